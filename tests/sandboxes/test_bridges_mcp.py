"""The MCP bridge against the real package: a server of its own, over pipes and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kintsugi.agents.policies.tool_calls import Tools
from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments.conformance import check, play
from kintsugi.sandboxes.environments.environment import environment_kinds, open_environment
from kintsugi.sandboxes.environments.mcp_actions import parse_call

pytest.importorskip("mcp.server.mcpserver", reason='the bridge needs mcp 2: pip install "kintsugi-agents[mcp]"')

SERVER = '''
import os, sys, time
from mcp.server.mcpserver import MCPServer

server = MCPServer("shop")
basket = []
prices = {"apple": 3, "pear": 4, "plum": 2}

@server.tool()
def price(thing: str) -> int:
    """What one of a thing costs, in coins."""
    if thing == "crash":
        os._exit(3)
    if thing == "hang":
        time.sleep(60)
    return prices[thing]

@server.tool()
def multiply(a: int, b: int) -> int:
    """a times b."""
    return a * b

@server.tool()
def buy(thing: str) -> str:
    """Put a thing into the basket."""
    basket.append(thing)
    return f"{len(basket)} in the basket"

@server.tool()
def holds(thing: str) -> bool:
    """Whether it is in the basket."""
    return thing in basket

if sys.argv[1:]:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run("stdio")
'''
QUESTIONS = [
    {
        "question": f"What do {n} {thing}s cost?",
        "answer": n * cost,
        "calls": [f"price[{thing}]", f'multiply[{{"a": {n}, "b": {cost}}}]'],
        "split": split,
    }
    for split, n in (("train", 12), ("train", 13), ("heldout", 15))
    for thing, cost in (("apple", 3), ("pear", 4), ("plum", 2))
]
TOOLS = {
    "search": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
    "now": {"type": "object", "properties": {}},
    "wait": {"type": "object", "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]},
    "book": {
        "type": "object",
        "properties": {"day": {"type": "integer"}, "seats": {"type": "integer"}},
        "required": ["day", "seats"],
    },
}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Any]:
    """Opens the bridge on the server above, and closes what the test opened."""
    (tmp_path / "shop.py").write_text(SERVER)
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    opened: list[Any] = []

    def one(**options: Any) -> Any:
        where = {} if "url" in options else {"command": [sys.executable, str(tmp_path / "shop.py")]}
        given = {**where, "tasks": tmp_path / "questions.jsonl", "match": "number", "timeout_s": 60.0, **options}
        opened.append(open_environment("mcp", given))
        return opened[-1]

    yield one
    for environment in opened:
        asyncio.run(environment.close())
    assert not _children("shop.py"), "a server is left behind"


def _children(name: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            ours = f"PPid:\t{os.getpid()}\n" in (path.parent / "status").read_text()
            if ours and any(word.endswith(name) for word in words):
                found.append(" ".join(words))
    return found


def said(environment: Any, *actions: str, split: str = "train") -> list[str]:
    task = environment.tasks(split)[0]
    replies = asyncio.run(play(environment, task, actions))
    return [reply.verdict.feedback if reply.verdict else reply.observation for reply in replies]


def test_shared_tools_conform_and_leave_nothing(shop: Any) -> None:
    before = threading.active_count()
    report = asyncio.run(check(shop(share=True), num_tasks=6))
    assert report.ok, str(report)
    assert threading.active_count() == before


def test_an_attempt_from_the_prompt_to_the_verdict(shop: Any) -> None:
    environment = shop(share=True, hide=["buy", "holds"])
    task = environment.tasks("train", limit=1)[0]
    assert task.prompt == (
        "What do 12 apples cost?\n\nTools, one call a turn:\nprice[thing]: What one of a thing costs, in coins.\n"
        'multiply[{"a": …, "b": …}]: a times b.\nfinish[answer]: Give the final answer; this ends the attempt.'
    )
    replies = said(
        environment,
        "think: the price first",
        "price[kite]",
        "buy[apple]",
        "Thought: so\nAction: price[apple]",
        '<tool_call>{"name": "multiply", "arguments": {"a": 12, "b": "3"}}</tool_call>',
        '{"name": "multiply", "arguments": {"a": 12, "b": 3}}',
        "finish[35 coins]",
    )
    assert replies[0] == "OK." and replies[1].startswith("Error") and "kite" in replies[1]
    assert replies[2].startswith('I do not understand "buy[apple]". You can: price[thing], multiply[')
    assert replies[3] == "3" and replies[5] == "36"
    assert replies[4].startswith("multiply was not called: b: '3' is not of type 'integer'.")
    assert replies[6] == '"35 coins" is not the answer. Tools called: price, multiply. 1 calls failed.'
    assert said(environment, "finish[36 coins]") == ["Right."]


def test_each_attempt_has_its_own_server_and_a_tool_can_judge(shop: Any, tmp_path: Path) -> None:
    line = {"question": "Buy a pear.", "calls": ["buy[pear]"], "judge": {"thing": "pear"}}
    (tmp_path / "errands.jsonl").write_text(json.dumps(line))
    environment = shop(tasks=tmp_path / "errands.jsonl", judge="holds")
    assert "holds" not in environment.tasks("train")[0].prompt
    task = environment.tasks("train")[0]
    gold = asyncio.run(environment.gold(task))
    assert gold == ("buy[pear]", "finish[done]")
    assert said(environment, "buy[apple]", "buy[pear]", "finish[done]") == ["1 in the basket", "2 in the basket", "Right."]
    lost = said(environment, "buy[apple]", "finish[done]")
    assert lost == ["1 in the basket", "The task was not done. Tools called: buy."]
    assert not _children("shop.py")


def test_a_server_that_dies_or_hangs_is_a_verdict(shop: Any) -> None:
    environment = shop(share=True, timeout_s=15.0)
    task = environment.tasks("train")[0]
    for harm, words in (("price[crash]", "broke"), ("price[hang]", "no answer within 15 s")):
        (reply,) = asyncio.run(play(environment, task, [harm]))
        assert reply.verdict is not None and not reply.verdict.success and reply.verdict.error
        assert words in reply.verdict.feedback
    assert said(environment, "price[apple]") == ["3"], "the next attempt has a new server"


def test_over_http(shop: Any, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}/mcp"
    with pytest.raises(DataError, match=r"expected an MCP server at .* found none .*start it"):
        shop(url=url, timeout_s=5.0)
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, str(tmp_path / "shop.py"), str(port)], **quiet)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        environment = shop(url=url)
        wrong = '"48" is not the answer. Tools called: price.'
        assert said(environment, "price[pear]", "finish[48]") == ["4", wrong]
        process.kill()
        process.wait()
        (reply,) = asyncio.run(play(environment, environment.tasks("train")[0], ["price[pear]"]))
        assert reply.verdict is not None and reply.verdict.error and url in reply.verdict.error
    finally:
        process.kill()
        process.wait()


def test_actions_are_read_as_a_policy_writes_calls() -> None:
    functions = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in TOOLS.items()]
    tools = Tools(functions)
    for name, arguments in (
        ("search", {"title": "The [Amber] Gate"}),
        ("now", {}),
        ("wait", {"seconds": 1.5}),
        ("book", {"day": 3, "seats": 2}),
    ):
        for thought in ("", "I need it."):
            step = parse_call(tools.text(thought, [(name, arguments)]), TOOLS)
            assert (step.kind, step.name, step.arguments) == ("call", name, arguments)
    assert parse_call("wait[2]", TOOLS).arguments == {"seconds": 2}
    for text in ("wait[soon]", "book[3]", "book", "search[", '{"name": "fly"}', "search[]", "<tool_call>", "", "x" * 30_000):
        step = parse_call(text, TOOLS)
        assert step.kind == ("call" if text == "search[]" and step.kind == "call" else "unknown"), text
        assert 0 < len(step.argument) < 1_000


def test_mistakes_are_one_sentence(shop: Any, tmp_path: Path) -> None:
    from kintsugi.sandboxes.environments.mcp_bridge import schemas

    assert environment_kinds()["mcp"].endswith("mcp_bridge")
    with pytest.raises(DataError, match=r"mend the command.*standard input"):
        shop(command=[sys.executable, "-c", "raise SystemExit('no such shop')"], timeout_s=20.0)
    with pytest.raises(DataError, match=r"expected an MCP server .* found none"):
        shop(command="no-such-program-here")
    with pytest.raises(ConfigError, match=r"one of command .* and url"):
        shop(url="http://localhost:1/mcp", command="x")
    with pytest.raises(ConfigError, match=r'mcp.match: unknown "exakt": did you mean "exact"'):
        shop(match="exakt")
    with pytest.raises(ConfigError, match='no tool "hold": did you mean "holds"'):
        shop(judge="hold")
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{"answer": 3}')
    with pytest.raises(DataError, match=r'bad.jsonl, line 2: expected an object with a text "question"'):
        shop(tasks=tmp_path / "bad.jsonl")
    found = schemas(command=[sys.executable, str(tmp_path / "shop.py")], hide=["buy", "holds"], timeout_s=60.0)
    assert [one["function"]["name"] for one in found] == ["price", "multiply", "finish"]

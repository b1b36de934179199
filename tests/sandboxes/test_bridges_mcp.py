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


# Many at once, and what servers leave behind ----------------------------------------------------------------------------

TINY = """
import fcntl, json, subprocess, sys, time

START_S = 0.4

with open(__file__ + ".lock", "w") as one_at_a_time:  # as if starting took all of the machine
    fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
    time.sleep(START_S)

def log(what):
    with open(__file__ + ".log", "a") as file:
        file.write(what + "\\n")

def called(name, text):
    if name == "child":
        subprocess.Popen(["sleep", "876.5"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        subprocess.Popen(["sleep", "876.5"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    return text

log("up")
text = {"type": "object", "properties": {"text": {"type": "string"}}}
for line in sys.stdin:
    asked = json.loads(line)
    match asked["method"]:
        case "initialize":
            said = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}},
                    "serverInfo": {"name": "tiny", "version": "1"}}
        case "tools/list":
            said = {"tools": [{"name": name, "inputSchema": text} for name in ("say", "child")]}
        case "tools/call":
            given = asked["params"]["arguments"].get("text", "")
            said = {"content": [{"type": "text", "text": called(asked["params"]["name"], given)}]}
        case _:
            said = None
    if "id" in asked:
        answer = {"result": said} if said is not None else {"error": {"code": -32601, "message": "unknown"}}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)
log("down")
"""


@pytest.fixture
def tiny(shop: Any, tmp_path: Path) -> Any:
    """Opens the bridge on a server without the package's slow imports, whose start keeps others from starting."""
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "tiny.jsonl").write_text(json.dumps({"question": "Say 5.", "answer": 5, "calls": ["say[5]"]}))
    given = {"command": [sys.executable, "-I", str(tmp_path / "tiny.py")], "tasks": tmp_path / "tiny.jsonl"}
    return lambda **options: shop(**{**given, **options})


def test_more_attempts_than_servers_wait_and_no_clock_of_a_call_counts_it(tiny: Any, tmp_path: Path) -> None:
    """Twelve starts take 5 s, one after the other: more than a call has."""
    environment = tiny(timeout_s=4.0, servers=3)
    task = environment.tasks("train")[0]

    async def every() -> list[Any]:
        return await asyncio.gather(*(play(environment, task, ["say[5]", "finish[5]"]) for _ in range(12)))

    last = [replies[-1].verdict for replies in asyncio.run(every())]
    assert [verdict.error for verdict in last] == [""] * 12 and all(verdict.success for verdict in last)
    running = most = 0
    for line in (tmp_path / "tiny.py.log").read_text().splitlines()[2:]:  # the first two: the tools were asked for
        running += 1 if line == "up" else -1
        most = max(most, running)
    assert most <= 3 and running == 0


def test_a_place_that_does_not_come_free_is_said(tiny: Any) -> None:
    environment = tiny(servers=1, wait_s=0.5)
    task = environment.tasks("train")[0]

    async def both() -> tuple[Any, Any, Any]:
        first, second = await environment.start(task), await environment.start(task)
        had, refused = await first.act("say[5]"), await second.act("say[5]")
        await first.close()
        await second.close()
        return had, refused, await play(environment, task, ["say[5]"])

    had, refused, after = asyncio.run(both())
    assert had.observation == "5" and after[0].observation == "5", "a place is free again when its attempt is closed"
    assert (
        refused.verdict is not None
        and "no place for another server: 1 run, and did nothing for 0.5 s" in refused.verdict.error
    )


def test_an_empty_text_is_no_output(tiny: Any) -> None:
    assert said(tiny(), 'say[{"text": ""}]', "say[a]") == ["(no output)", "a"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding orphans needs Linux's /proc")
def test_what_a_server_started_ends_with_its_attempt(tiny: Any) -> None:
    def sleepers() -> int:
        found = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += b"876.5" in path.read_bytes()
        return found

    environment = tiny()

    async def attempt() -> int:
        world = await environment.start(environment.tasks("train")[0])
        await world.act("child[x]")
        seen = sleepers()
        await world.close()
        return seen

    assert asyncio.run(attempt()) == 2 and sleepers() == 0


def test_a_program_that_never_answers_is_given_up_in_time(tiny: Any) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="not up within 1 s"):
        tiny(command="sleep 765", start_s=1.0)
    assert time.monotonic() - began < 10 and not _children("765")

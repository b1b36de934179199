"""`kintsugi eval --endpoint`: an agent behind somebody else's server plays, and is measured.

The server is a real one on this machine, of the standard library and not ours, and speaks only what every
OpenAI-compatible server does. (A policy of ours behind `kintsugi serve` is measured in test_cli.py.)
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kintsugi.cli.main import main
from kintsugi.ledger import Ledger
from kintsugi.records import Task
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.training.recipe import load_recipe
from kintsugi.training.round_tasks import RoundTasks

Chat = list[dict[str, str]]
HUNT = '[environment]\nname = "treasure_hunt"\n[model]\nkind = "endpoint"\nprompts = "react"\n[explore]\nmax_tokens = 64\n'


class Agent:
    """What a model behind the server says: the plan of the task it is told of, turn by turn; "quit" where it has none.

    dies_after: answers after which the server breaks every connection. refuses: arguments that it does not take. `chats` are
    the requests as they came."""

    def __init__(
        self, plans: Mapping[str, Sequence[str]], dies_after: int | None = None, refuses: Sequence[str] = ()
    ) -> None:
        self.plans, self.dies_after, self.refuses = plans, dies_after, refuses
        self.chats: list[Chat] = []

    def answer(self, chat: Chat) -> str:
        self.chats.append(chat)
        asked = next(message["content"] for message in chat if message["role"] == "user")
        plan = next((plan for prompt, plan in self.plans.items() if prompt in asked), ("quit",))
        return plan[sum(message["role"] == "assistant" for message in chat)]


@contextmanager
def listening(agent: Agent) -> Iterator[str]:
    """The agent's server; its base url."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if agent.dies_after is not None and len(agent.chats) >= agent.dies_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if self.path != "/v1/chat/completions" or body["model"] != "agent-7b":
                return self.reply(404, {"error": {"message": f"no model {body['model']}"}})
            for name in (name for name in agent.refuses if name in body):
                return self.reply(400, {"error": {"message": f"Unsupported parameter: '{name}'"}})
            text = agent.answer(body["messages"])
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self.reply(200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})

        def do_GET(self) -> None:
            self.reply(200, {"object": "list", "data": [{"id": "agent-7b", "owned_by": "somebody"}]})

        def reply(self, status: int, body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            return None  # a client that gave up

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def measured(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`kintsugi eval --endpoint URL …`: exit code, standard output, standard error."""

    def run(url: str, *arguments: object, model: str = "agent-7b") -> tuple[int, str, str]:
        line = ["kintsugi", "eval", "--endpoint", url, "--model", model, "--quiet", "--json", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", line)
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, "\n".join(line for line in err.splitlines() if not line.startswith("note: "))  # on sandboxes

    return run


def held_out(recipe: str, num: int) -> list[tuple[Task, Sequence[str]]]:
    """The held-out tasks that an evaluation takes, each with its gold actions."""

    async def find() -> list[tuple[Task, Sequence[str]]]:
        loaded = load_recipe(recipe, [f"evaluate.tasks={num}"])
        environment = open_environment(loaded.environment.name, loaded.environment.options)
        try:
            return [(task, await environment.gold(task) or ()) for task in RoundTasks(loaded, environment).heldout()]
        finally:
            await environment.close()

    return asyncio.run(find())


def test_programs(measured: Any, tmp_path: Path) -> None:
    """It knows six of eight answers, and says one of them as nobody should."""
    tasks = held_out("demo", 8)
    plans = {task.prompt: gold for task, gold in tasks[:6]}
    plans[tasks[0][0].prompt] = ("I would rather not.",)
    agent = Agent(plans)
    with listening(agent) as url:
        code, out, err = measured(url, "--recipe", "demo", "evaluate.tasks=8", "--ledger", tmp_path / "kept.sqlite")
    assert code == 0, err
    found = json.loads(out)
    assert (found["success_rate"], found["num_tasks"], found["errors"]) == (5 / 8, 8, 0)
    assert found["interval"][0] < 5 / 8 < found["interval"][1]
    assert sorted(chat[-1]["content"] for chat in agent.chats) == sorted(task.prompt for task, _ in tasks)
    with Ledger.open(tmp_path / "kept.sqlite", create=False, read_only=True) as ledger:
        kept = {one.task_id: one for one in ledger.trajectories(purpose="evaluate")}
    assert len(kept) == 8 and all(one.actions[0].tokens is None for one in kept.values()), "it tells no token ids"
    lost = kept[tasks[0][0].id]
    assert not lost.success and lost.feedback and lost.actions[0].text == "I would rather not."


def test_many_turns(measured: Any, tmp_path: Path) -> None:
    """In a world of turns, each request is the whole chat so far: what it said, and what it was told."""
    recipe = tmp_path / "hunt.toml"
    recipe.write_text(HUNT, encoding="utf-8")
    tasks = held_out(str(recipe), 6)
    agent = Agent({task.prompt: gold for task, gold in tasks[:4]})
    with listening(agent) as url:
        code, out, err = measured(url, "--recipe", recipe, "evaluate.tasks=6", "--ledger", tmp_path / "kept.sqlite")
    assert code == 0, err
    assert json.loads(out)["success_rate"] == pytest.approx(4 / 6)
    assert len(agent.chats) == sum(len(gold) for _, gold in tasks[:4]) + 2
    with Ledger.open(tmp_path / "kept.sqlite", create=False, read_only=True) as ledger:
        kept = {one.task_id: one for one in ledger.trajectories(purpose="evaluate")}
    for task, gold in tasks[:4]:
        assert [action.text for action in kept[task.id].actions] == list(gold)
        last = max((chat for chat in agent.chats if any(task.prompt in one["content"] for one in chat)), key=len)
        assert [one["content"] for one in last if one["role"] == "assistant"] == list(gold[:-1])
        assert [one["role"] for one in last][-2:] == ["assistant", "user"] and "You" in last[-1]["content"]
    assert {kept[task.id].stop for task, _ in tasks[4:]} == {"failure"}


def test_a_server_that_dies_is_one_sentence(measured: Any, tmp_path: Path) -> None:
    """In the middle of an evaluation, after some answers: no figure is given, and the exit code says so."""
    tasks = held_out("demo", 8)
    options = ["evaluate.tasks=8", "episode.wave=2", "--ledger", tmp_path / "kept.sqlite"]
    with listening(Agent({task.prompt: gold for task, gold in tasks}, dies_after=3)) as url:
        code, out, err = measured(url, "--recipe", "demo", *options)
    assert (code, out) == (6, "") and err.startswith(f"error: expected a model server at {url}, found none")
    assert len(err.splitlines()) == 1
    with Ledger.open(tmp_path / "kept.sqlite", create=False, read_only=True) as ledger:
        assert ledger.count_episodes() == 2 and ledger.integrity() == [], "the wave that was finished is kept"


def test_what_a_server_refuses_is_left_out_as_it_says(measured: Any) -> None:
    """The options that the error names, set beside --endpoint."""
    tasks = held_out("demo", 2)
    with listening(Agent({task.prompt: gold for task, gold in tasks}, refuses=("logprobs", "seed"))) as url:
        options = ["--recipe", "demo", "evaluate.tasks=2"]
        for way in ("model.options.logprobs=false", "model.options.extra_body.seed=null"):
            code, out, err = measured(url, *options)
            assert (code, out, len(err.splitlines())) == (6, "", 1) and "answered 400" in err
            assert way in err
            options.append(way)
        code, out, err = measured(url, *options)
    assert code == 0 and json.loads(out)["success_rate"] == 1, err


def test_a_model_that_the_server_has_not(measured: Any) -> None:
    with listening(Agent({})) as url:
        code, out, err = measured(url, "--recipe", "demo", "evaluate.tasks=2", model="agent-7")
    assert (code, out, len(err.splitlines())) == (6, "", 1)
    assert err.startswith("error: ") and 'did you mean "agent-7b"?' in err

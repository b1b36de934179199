"""The OpenEnv bridge against a real local server of the package.

The package and the bridge need not share an interpreter: KINTSUGI_OPENENV_PYTHON names another one that has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.conformance import check, play
from kintsugi.sandboxes.environments.environment import environment_kinds, open_environment
from kintsugi.sandboxes.environments.openenv_bridge import ActionForm

PYTHON = os.environ.get("KINTSUGI_OPENENV_PYTHON") or (sys.executable if importlib.util.find_spec("openenv") else "")
needs_openenv = pytest.mark.skipif(
    not PYTHON,
    reason="a real server needs openenv, which does not install beside this project's pins (websockets, pandas): "
    "pip install openenv elsewhere and name its interpreter in KINTSUGI_OPENENV_PYTHON",
)

SERVER = '''
import os, random, sys, time
import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

class Guess(Action):
    word: str

class Seen(Observation):
    text: str

class Locks(Environment):
    """Say the two words of the seed, in their order."""
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, **kwargs):
        rng = random.Random(seed)
        self.words = [f"{rng.choice('bdgkmt')}{rng.choice('aeiou')}{rng.randrange(100)}" for _ in range(2)]
        self.turn = 0
        return Seen(text="The words are " + " and ".join(self.words) + ".")

    def step(self, action, timeout_s=None, **kwargs):
        if action.word == "crash":
            raise RuntimeError("the lock broke")
        if action.word == "hang":
            time.sleep(30)
        if action.word == "die":
            os._exit(3)
        right = action.word == self.words[self.turn]
        self.turn += right
        done = self.turn == 2 or action.word.startswith("open")
        return Seen(text="click" if right else "nothing", reward=1.0 if right else 0.0, done=done)

    @property
    def state(self):
        return State()

app = create_fastapi_app(Locks, Guess, Seen, max_concurrent_envs=6)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("openenv") / "locks_server.py"
    path.write_text(SERVER)
    return f"{PYTHON} {path} {{port}}"


@pytest.fixture(scope="module")
def locks(command: str) -> Iterator[Any]:
    environment = open_environment("openenv", {"command": command, "timeout_s": 30.0})
    yield environment
    asyncio.run(environment.close())


def words_of(task: Any) -> list[str]:
    return task.prompt.removeprefix("The words are ").rstrip(".").split(" and ")


@needs_openenv
def test_an_attempt_from_the_prompt_to_the_verdict(locks: Any) -> None:
    task = locks.tasks("heldout", limit=1)[0]
    assert locks.tasks("heldout", limit=1) == [task] and set(task.payload) == {"seed"}
    first, second = words_of(task)
    texts = ["think: easy", "", '{"word": 3}', "crash", "nothing", f"So:\nAction: {first}", f'{{"word": "{second}"}}']
    replies = asyncio.run(play(locks, task, texts))
    shown = [reply.observation for reply in replies]
    assert shown[:2] == ["OK.", "That was empty. Write an action."]
    assert shown[2].startswith("The environment did not take it: word: Input should be a valid string")
    assert shown[3] == "The environment did not take it: the lock broke."
    assert shown[4:] == ["nothing", "click", "click"]
    verdict = replies[-1].verdict
    assert verdict is not None and verdict.success and verdict.detail == {"return": 2.0}
    lost = asyncio.run(play(locks, task, [first, "open"]))[-1].verdict
    assert lost is not None and not lost.success and lost.feedback.startswith("It ended after 2 actions with a return of 1.")


@needs_openenv
def test_it_conforms_with_more_worlds_than_the_server_has_places_and_leaves_nothing(command: str) -> None:
    before = threading.active_count()
    environment: Any = open_environment("openenv", {"command": command, "timeout_s": 60.0})
    pid = environment.process.process.pid
    report = asyncio.run(check(environment, num_tasks=2))
    assert report.ok, str(report)
    assert threading.active_count() == before and not Path(f"/proc/{pid}").exists()


@needs_openenv
def test_a_server_that_hangs_or_dies_is_a_verdict(command: str) -> None:
    environment: Any = open_environment("openenv", {"command": command, "timeout_s": 8.0})
    task = environment.tasks("train", limit=1)[0]

    def verdicts(actions: Sequence[str]) -> Any:
        return asyncio.run(play(environment, task, actions))[-1].verdict

    hung = verdicts(["hang"])
    assert not hung.success and "no answer within 8 s" in hung.error
    assert verdicts(words_of(task)).success, "other sessions go on"
    dead = verdicts(["die"])
    assert not dead.success and environment.url in dead.error and dead.feedback.startswith("The environment broke")
    with pytest.raises(DataError, match="gave no first observation"):
        environment.tasks("train", limit=2, seed=5)
    asyncio.run(environment.close())


def test_actions_by_the_servers_schema() -> None:
    one = ActionForm({"properties": {"metadata": {}, "message": {"type": "string"}}, "required": ["message"]}, "")
    assert one.read("hi") == {"message": "hi"} and one.read('{"x": 1}') == {"message": '{"x": 1}'} and one.help == ""
    number = ActionForm({"properties": {"move": {"type": "integer"}}}, "")
    assert number.read("Action: 3") == {"move": 3} and str(number.read("up")).startswith('"up" is no number.')
    properties = {"kind": {"const": "put", "type": "string"}, "row": {"type": "integer"}, "column": {"type": "integer"}}
    several = ActionForm({"properties": properties, "required": ["row", "column"]}, "")
    assert several.help == 'Actions: a JSON object with "kind": "put", "row" (integer), "column" (integer).'
    assert several.read('{"row": 1, "column": 2}') == {"row": 1, "column": 2}
    assert str(several.read("put it")).startswith('"put it" is no JSON object. Actions: a JSON object with')
    assert ActionForm({"properties": properties}, "row").read("2") == {"row": 2}
    with pytest.raises(ConfigError, match='no field "raw": it has kind, row, column'):
        ActionForm({"properties": properties}, "raw")


def test_mistakes_are_one_sentence() -> None:
    assert environment_kinds()["openenv"].endswith("openenv_bridge")
    with pytest.raises(DataError, match=r"expected an OpenEnv server at http://127.0.0.1:9, found none .*; start it"):
        open_environment("openenv", {"url": "http://127.0.0.1:9", "timeout_s": 5.0})
    with pytest.raises(ConfigError, match="expected one of url and command"):
        open_environment("openenv", {})
    with pytest.raises(ConfigError, match="port"):
        open_environment("openenv", {"command": "uvicorn app:app"})
    with pytest.raises(DataError, match="it ended; it said: no module"):
        open_environment("openenv", {"command": f"{sys.executable} -c 'raise SystemExit(\"no module {{port}}\")'"})


# Servers that answer oddly, and processes that are killed: without the package ------------------------------------------

PARENT = """
import sys, time
from kintsugi.sandboxes.environments.openenv_session import ServerProcess

server = ServerProcess(f"{sys.executable} -I -c 'import subprocess, time; subprocess.Popen([\\"sleep\\", \\"654\\"]); "
                       "time.sleep(654)' {port}", 60)
print(server.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"reward": "much", "done": True}, "expected a number as the reward, found 'much'"),
        ({"reward": float("nan"), "done": True}, "expected a number as the reward, found nan"),
        (["no", "object"], "expected an object as data, found list"),
        ("text", "expected an object as data, found str"),
    ],
)
def test_an_answer_that_is_none_is_a_verdict(data: Any, why: str) -> None:
    from aiohttp import web

    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            asked = message.json()
            await socket.send_json({"type": "result", "data": {"observation": "hi"} if asked["type"] == "reset" else data})
        return socket

    async def schema(_: web.Request) -> web.Response:
        return web.json_response({"action": {"properties": {"word": {"type": "string"}}, "required": ["word"]}})

    async def attempt() -> Any:
        app = web.Application()
        app.add_routes([web.get("/ws", talk), web.get("/schema", schema)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        environment: Any = await asyncio.to_thread(open_environment, "openenv", {"url": url, "timeout_s": 60.0})
        task = Task(id="t", environment="openenv", split="train", prompt="hi", payload={"seed": 0})
        replies = await play(environment, task, ["word"])
        await environment.close()
        await runner.cleanup()
        return replies[-1].verdict

    verdict = asyncio.run(attempt())
    assert verdict is not None and not verdict.success and why in verdict.error


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding orphans needs Linux's /proc")
def test_a_server_does_not_outlive_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = int(parent.stdout.readline())

    def held() -> list[str]:
        """The processes of the server's session that still run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state = path.read_text().rpartition(")")[2].split()
                found += [path.parent.name] if state[0] != "Z" and int(state[3]) == server else []
        return found

    deadline = time.monotonic() + 60
    while len(held()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(held()) == 2, "the server and what it started, or this test shows nothing"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while held() and time.monotonic() < deadline + 60:
        time.sleep(0.05)
    assert not held()

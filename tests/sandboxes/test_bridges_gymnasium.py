"""The Gymnasium bridge against the real package: its own Taxi and FrozenLake, and a text game written here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import threading
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError, MissingExtra
from kintsugi.sandboxes.environments.conformance import check, play
from kintsugi.sandboxes.environments.environment import environment_kinds, open_environment

pytest.importorskip("gymnasium", reason='the bridge needs gymnasium: pip install "kintsugi-agents[gymnasium]"')

GAME = '''
import os, time
import gymnasium
from gymnasium import spaces

class Doors(gymnasium.Env):
    """Open the named door of a row; some words do harm."""

    def __init__(self, num_doors=40):
        self.num_doors = num_doors
        self.action_space = spaces.Text(max_length=40, charset="abcdefghijklmnopqrstuvwxyz 0123456789")
        self.observation_space = spaces.Text(max_length=400)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.door, self.key = (int(n) for n in self.np_random.integers(0, self.num_doors, size=2))
        self.has_key = False
        print("this goes to the program's output, not to the bridge")
        return f"Key {self.key} fits door {self.door}.", {}

    def step(self, action):
        if action == "crash":
            raise RuntimeError("the doors fell out")
        if action == "hang":
            time.sleep(60)
        if action == "die":
            os._exit(3)
        if action == f"take key {self.key}":
            self.has_key = True
            return "You have it.", 0.25, False, False, {}
        if action.startswith("open door"):
            won = self.has_key and action == f"open door {self.door}"
            return ("It opens." if won else "It stays shut."), float(won), True, False, {"success": won}
        return "Nothing happens.", 0.0, False, False, {}

def expert(env, observation):
    return f"open door {env.door}" if env.has_key else f"take key {env.key}"

gymnasium.register(id="Doors-v0", entry_point=Doors)
'''


@pytest.fixture
def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens the game above, and closes what the test opened."""
    (tmp_path / "doors_game.py").write_text(GAME)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    opened: list[Any] = []

    def one(**options: Any) -> Any:
        given = {"env": "doors_game:Doors-v0", "expert": "doors_game:expert", "workers": 1, "timeout_s": 20.0, **options}
        opened.append(open_environment("gymnasium", given))
        return opened[-1]

    yield one
    for environment in opened:
        asyncio.run(environment.close())


def other_doors(task: Any, gold: Sequence[str]) -> list[list[str]]:
    return [[gold[-1]], [gold[0], f"{gold[-1]}0"], [gold[0], "open door"]]


def test_the_text_game_conforms_and_leaves_nothing(doors: Any) -> None:
    before = threading.active_count()
    report = asyncio.run(check(doors(workers=2), num_tasks=6, perturb=other_doors))
    assert report.ok, str(report)
    assert threading.active_count() == before


def test_splits_share_no_prompt_and_seeds_give_other_tasks(doors: Any) -> None:
    environment = doors(num_tasks=20)
    by_split = {split: environment.tasks(split) for split in ("train", "heldout", "demonstrations")}
    assert [len(tasks) for tasks in by_split.values()] == [20, 20, 20]
    train, heldout, shown = ({task.prompt for task in tasks} for tasks in by_split.values())
    assert not train & heldout and not train & shown and not heldout & shown
    assert {task.id for task in environment.tasks("train", seed=1)}.isdisjoint(task.id for task in by_split["train"])
    with pytest.raises(DataError, match='no split "held-out": did you mean "heldout"'):
        environment.tasks("held-out")


def test_success_is_what_info_says_or_the_return(doors: Any) -> None:
    environment = doors()
    task = environment.tasks("train", limit=1)[0]
    gold = asyncio.run(environment.gold(task))
    assert gold is not None
    won = asyncio.run(play(environment, task, ["think: which key?", f"Thought: this one.\nAction: {gold[0]}", gold[1]]))
    assert [reply.observation for reply in won] == ["OK.", "You have it.", "It opens."]
    assert won[-1].verdict is not None and won[-1].verdict.success and won[-1].verdict.detail == {"return": 1.25}
    (lost,) = asyncio.run(play(environment, task, [gold[1]]))
    assert lost.verdict is not None and not lost.verdict.success and "It stays shut." in lost.verdict.feedback
    strict = doors(success_return=2.0)
    beaten = asyncio.run(play(strict, task, gold))[-1].verdict
    assert beaten is not None and not beaten.success and beaten.detail == {"return": 1.25}


def test_what_breaks_is_a_verdict_and_other_worlds_go_on(doors: Any) -> None:
    environment = doors(timeout_s=4.0)
    first, second = environment.tasks("train", limit=2)
    gold = asyncio.run(environment.gold(second))

    async def one(harm: str) -> tuple[Any, Any]:
        harmed, other = await environment.start(first), await environment.start(second)
        await other.act(gold[0])
        broken = (await harmed.act(harm)).verdict
        reply = await other.act(gold[1])
        assert (await harmed.act("open door 1")).observation == "The game is over."
        await harmed.close()
        await other.close()
        return broken, reply.verdict

    for harm, words in (("crash", "RuntimeError: the doors fell out"), ("die", "it ended"), ("hang", "silent for 4 s")):
        broken, other = asyncio.run(one(harm))
        assert broken is not None and not broken.success and broken.error.startswith("environment_failed")
        assert words in broken.feedback
        assert other is not None and other.success, f"the neighbour of a world that did {harm} must go on"
    assert environment.processes[0].deaths == 2


def test_the_packages_own_games() -> None:
    taxi = open_environment("gymnasium", {"env": "Taxi-v4", "render": True, "workers": 1, "actions": "s,n,e,w,pick,drop"})
    task = taxi.tasks("heldout", limit=1)[0]
    assert "+---------+" in task.prompt and "\x1b" not in task.prompt
    assert task.prompt.endswith("Actions: s, n, e, w, pick, drop.")
    (reply,) = asyncio.run(play(taxi, task, ["fly"]))
    assert reply.observation == '"fly" is no action. Actions: s, n, e, w, pick, drop.' and reply.executions == 0
    asyncio.run(taxi.close())

    lake = open_environment("gymnasium", {"env": "FrozenLake-v1", "kwargs": {"is_slippery": False}, "workers": 1})
    task = lake.tasks("train", limit=1)[0]
    assert task.prompt.startswith("Game ") and task.prompt.endswith("\n0\nActions: a whole number from 0 to 3.")
    replies = asyncio.run(play(lake, task, ["1", "Action: 1", "2", "2", "4", "1", "2"]))
    assert [reply.observation for reply in replies][:2] == ["4", "8"]
    assert replies[-1].verdict is not None and replies[-1].verdict.success
    (hole,) = [reply.verdict for reply in asyncio.run(play(lake, task, ["2", "1"])) if reply.verdict]
    assert not hole.success and hole.feedback.startswith("It ended after 2 actions with a return of 0.")
    asyncio.run(lake.close())


def test_structured_actions_are_json() -> None:
    from gymnasium import spaces

    from kintsugi.sandboxes.environments.gymnasium_text import Actions, Malformed

    class Holder:
        def __init__(self, space: Any) -> None:
            self.action_space, self.unwrapped = space, self

    box = Actions(Holder(spaces.Box(-1.0, 1.0, shape=(2,))), [])
    assert box.read("[0.5, -1]").tolist() == [0.5, -1.0]
    mixed = Actions(Holder(spaces.Dict(go=spaces.Discrete(3), say=spaces.Text(5), at=spaces.MultiDiscrete([2, 2]))), [])
    assert mixed.read('{"go": 2, "say": "hi", "at": [0, 1]}')["go"] == 2
    wrong = ((box, "[0.5]"), (box, "[2, 0]"), (box, '["a", 0]'), (mixed, '{"go": 9}'), (mixed, "go"), (box, ""))
    for actions, text in wrong:
        with pytest.raises(Malformed, match="Actions: JSON, for example"):
            actions.read(text)


def test_mistakes_are_one_sentence(doors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_kinds()["gymnasium"].endswith("gymnasium_bridge")
    with pytest.raises(ConfigError, match=r'cannot make "Taxy-v4".*did you mean "Taxi-v4"'):
        open_environment("gymnasium", {"env": "Taxy-v4"})
    with pytest.raises(ConfigError, match=r"does not open with .*walls"):
        doors(kwargs={"walls": 3})
    with pytest.raises(ConfigError, match='expected a table for environment.options.kwargs, found "many"'.replace('"', "'")):
        doors(kwargs="many")
    with pytest.raises(ConfigError, match='needs the option "env"'):
        open_environment("gymnasium", {})
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gymnasium" else found(name, *rest))
    with pytest.raises(MissingExtra, match=r"kintsugi-agents\[gymnasium\]"):
        doors()


# What foreign code does to the bridge -----------------------------------------------------------------------------------

RUDE = '''
import subprocess, sys
import gymnasium, numpy
from gymnasium import spaces

class Rude(gymnasium.Env):
    """Does the harm that `mode` names."""

    def __init__(self, mode="", shape="text"):
        self.mode = mode
        self.action_space = {
            "text": spaces.Text(20),
            "box": spaces.Box(-1.0, 1.0, (2,)),
            "multi": spaces.MultiDiscrete([5, 6, 7]),
            "dict": spaces.Dict(go=spaces.Discrete(90), at=spaces.Box(0.0, 1.0, (2,))),
        }[shape]
        self.observation_space = spaces.Text(400)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = int(self.np_random.integers(100_000))
        if self.mode == "reset":
            raise RuntimeError("the board is missing " + "x" * 2000)
        return f"Say {self.word}.", {}

    def step(self, action):
        if self.mode == "surrogate":
            raise ValueError("bad \\ud800 and \\0 thing")
        if self.mode == "child":
            subprocess.Popen(["sleep", "987.25"])
            subprocess.Popen(["sleep", "987.25"], start_new_session=True)
            subprocess.Popen(["sleep", "987.25"], env={})
        info = {"success": numpy.array([1, 0])} if self.mode == "array" else {}
        reward = float("nan") if self.mode == "nan" else 1.0
        return "over", reward, True, False, info

def expert(env, observation):
    if env.mode == "expert":
        raise KeyError("no idea")
    if env.mode == "exit":
        import os
        os._exit(5)
    return "word"

gymnasium.register(id="Rude-v0", entry_point=Rude)
'''


@pytest.fixture
def rude(tmp_path: Path, doors: Any) -> Any:
    (tmp_path / "rude_game.py").write_text(RUDE)
    return lambda mode="", **more: doors(
        env="rude_game:Rude-v0", kwargs={"mode": mode, **more.pop("kwargs", {})}, expert="rude_game:expert", **more
    )


@pytest.mark.parametrize("shape", ["box", "multi", "dict"])
def test_the_example_of_an_action_is_the_same_in_every_run(rude: Any, shape: str) -> None:
    """It stands in prompts: what a prompt says must not differ from run to run."""
    prompts = {rude(kwargs={"shape": shape}).tasks("train", limit=1)[0].prompt for _ in range(2)}
    assert len(prompts) == 1 and "for example" in prompts.pop()


def test_numbers_that_a_space_would_wrap_or_round_are_refused() -> None:
    import numpy as np
    from gymnasium import spaces

    from kintsugi.sandboxes.environments.gymnasium_text import Actions, Malformed

    def reader(space: Any) -> Actions:
        env = types.SimpleNamespace(action_space=space)
        env.unwrapped = env
        return Actions(env, [])

    bytes_ = spaces.Box(0, 255, (2,), np.uint8)
    for space, text in [
        (spaces.MultiBinary(3), "[256, 257, 1]"),
        (spaces.MultiDiscrete([3, 4], dtype="int8"), "[256, 1]"),
        *((bytes_, text) for text in ("[256, -1]", "[NaN, 0]", "[1e400, 0]", "[1.5, 1.9]")),
    ]:
        with pytest.raises(Malformed):
            reader(space).read(text)
    assert reader(bytes_).read("[255, 1.0]").tolist() == [255, 1]
    with pytest.raises(ConfigError, match="a space Sequence cannot be written"):
        reader(spaces.Tuple([spaces.Discrete(2), spaces.Sequence(spaces.Discrete(2))]))


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("surrogate", "ValueError: bad ? and ? thing"),
        ("array", "expected true or false as info['success'], found array([1, 0])"),
        ("nan", "a reward of nan"),
    ],
)
def test_what_a_step_does_wrong_is_told_in_text_that_can_be_stored(rude: Any, mode: str, words: str) -> None:
    environment = rude(mode)
    (reply,) = asyncio.run(play(environment, environment.tasks("train", limit=1)[0], ["word"]))
    assert reply.verdict is not None and not reply.verdict.success
    assert reply.verdict.error.startswith("environment_failed") and words in reply.verdict.error
    assert f"{reply.verdict}".encode() and environment.processes[0].deaths == 0


def test_a_reset_that_raises_is_one_sentence_with_the_error(rude: Any) -> None:
    with pytest.raises(
        DataError, match=r'"rude_game:Rude-v0" raised at reset\(seed=0\): RuntimeError: the board is'
    ) as told:
        rude("reset").tasks("train")
    assert "Traceback" not in str(told.value) and len(str(told.value)) < 500


def test_an_expert_that_raises_dies_or_loses_is_no_exception_of_ours(rude: Any) -> None:
    for mode, sentence in (("expert", "raised KeyError: 'no idea'"), ("exit", "no gold for train-.* it ended")):
        environment = rude(mode)
        with pytest.raises(DataError, match=sentence):
            asyncio.run(environment.gold(environment.tasks("train", limit=1)[0]))
    beaten = rude(success_return=2.0)
    assert asyncio.run(beaten.gold(beaten.tasks("train", limit=1)[0])) is None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding orphans needs Linux's /proc")
def test_what_an_environment_started_ends_with_it(rude: Any) -> None:
    def sleepers() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += [path.parent.name] if b"987.25" in path.read_bytes() else []
        return found

    environment = rude("child", timeout_s=100.0)
    (reply,) = asyncio.run(play(environment, environment.tasks("train", limit=1)[0], ["word"]))
    assert reply.verdict is not None and reply.verdict.success
    deadline = time.monotonic() + 5  # the last of them may not have become what it runs yet
    while len(sleepers()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(sleepers()) == 3, "or this test shows nothing"
    asyncio.run(environment.close())
    assert not sleepers()


def test_a_world_that_broke_is_not_kept_by_its_worker(rude: Any) -> None:
    environment = rude("surrogate")
    task = environment.tasks("train", limit=1)[0]

    async def broken() -> dict[str, Any]:
        world = await environment.start(task)
        await world.act("word")
        await world.close()
        return await world.process.ask({"op": "act", "world": world.name, "number": 1, "action": "word"})

    assert asyncio.run(broken()) == {"lost": True}

"""The suite and the gold self-test say in one sentence what is wrong with an environment, and never end in a traceback."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import DataError, MissingExtra
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments import conformance
from kintsugi.sandboxes.environments.conformance import check
from kintsugi.sandboxes.environments.environment import ProgramEnvironment, ProgramWorld, Reply
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.leftovers import Leftovers
from kintsugi.sandboxes.environments.malformed_actions import malformed_actions

HERE = Path(__file__).name


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "CLOSE_WAIT_S", 0.3)


class Right(ProgramEnvironment):
    """Nothing is wrong with this one."""

    name = "right"

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Any:
        if split not in ("train", "heldout"):
            raise DataError(f"no split {split}")
        numbers = range(1000, 1000 + (limit or 4)) if split == "train" else range(5000, 5004)
        return [
            Task(id=f"{split}-{n}", environment="right", split=split, prompt=f"Say {n}.", payload={"answer": str(n)[::-1]})
            for n in numbers
        ]

    async def gold(self, task: Task) -> Any:
        return [task.payload["answer"]]

    async def judge(self, task: Task, action: str) -> Any:
        return self.said(action.strip() == task.payload["answer"], task, action)

    def said(self, right: bool, task: Task, action: str) -> Any:
        return Verdict(success=right, reward=float(right), feedback="" if right else "no")


class World(ProgramWorld):
    first: Any = staticmethod(lambda task: task.prompt)

    async def observe(self) -> Any:
        return self.first(self.task)


def beginning(first: Callable[[Task], Any]) -> type[Right]:
    class Begins(Right):
        async def start(self, task: Task) -> Any:
            world = World(self, task)
            world.first = first
            return world

    return Begins


def judging(said: Callable[[bool, Task, str], Any]) -> type[Right]:
    return type("Judging", (Right,), {"said": lambda self, right, task, action: said(right, task, action)})


def giving(gold: Any) -> type[Right]:
    async def give(self: Any, task: Task) -> Any:
        return gold

    return type("Giving", (Right,), {"gold": give})


def verdict(right: bool, **changes: Any) -> Verdict:
    return Verdict(**{"success": right, "reward": float(right), "feedback": "" if right else "no", **changes})


class Remembering(Right):
    """A success is remembered: any attempt at that task wins by "again"."""

    won = ""

    def said(self, right: bool, task: Task, action: str) -> Verdict:
        right = right or (action == "again" and self.won == task.id)
        self.won = task.id if right else self.won
        return verdict(right)


class Littering(Right):
    def said(self, right: bool, task: Task, action: str) -> Verdict:
        handle, _ = tempfile.mkstemp(prefix="litter")
        open(handle, "wb").close()
        return verdict(right)


class Escaping(Right):
    """Starts a process that no longer is this one's child."""

    started = False

    def said(self, right: bool, task: Task, action: str) -> Verdict:
        if not self.started:
            self.started = True
            subprocess.run("setsid sleep 8 >/dev/null 2>&1 &", shell=True, check=True)
        return verdict(right)


class Sleeping(Right):
    async def judge(self, task: Task, action: str) -> Any:
        if not action.strip():
            await asyncio.sleep(3600)
        return await super().judge(task, action)


class Blocking(Right):
    def said(self, right: bool, task: Task, action: str) -> Verdict:
        while not action:
            with contextlib.suppress(Exception):
                time.sleep(0.01)
        return verdict(right)


class SleepingAtStart(Right):
    async def start(self, task: Task) -> Any:
        await asyncio.sleep(3600)


class RaisingStart(Right):
    async def start(self, task: Task) -> Any:
        raise RuntimeError("no world")


class RaisingGold(Right):
    async def gold(self, task: Task) -> Any:
        raise KeyError("x")


class Leaving(Right):
    def said(self, right: bool, task: Task, action: str) -> Verdict:
        raise SystemExit(3)


class WrongSplitError(Right):
    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Any:
        return super().tasks({"train": "train", "heldout": "heldout"}[split], limit=limit, seed=seed)


class NoSeed(Right):
    def tasks(self, split: str, limit: int | None = None) -> Any:  # type: ignore[override]
        return super().tasks(split, limit=limit)


class NotAsync(Right):
    def judge(self, task: Task, action: str) -> Any:
        return self.said(action.strip() == task.payload["answer"], task, action)


class NoPrompt(Right):
    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Any:
        super().tasks(split)
        return [Task(id="1", environment="right", split=split, prompt=None, payload={})]  # type: ignore[arg-type]


def choke(right: bool, task: Task, action: str) -> Verdict:
    if len(action) > 900_000:
        raise MemoryError("too much")
    return verdict(right)


BROKEN: dict[str, tuple[type[Right], str]] = {
    "reset": (beginning(lambda task: f"{task.prompt} {random.random()}"), "begin differently"),
    "no observation": (beginning(lambda task: None), "gave None"),
    "empty observation": (beginning(lambda task: " \n"), "gave an empty text"),
    "negative": (judging(lambda right, *_: verdict(right, reward=1.0 if right else -7.0)), "gave reward -7 for a loss"),
    "big": (judging(lambda right, task, text: verdict(right, reward=3.0 if "a" in text else float(right))), "reward 3"),
    "nan": (judging(lambda right, *_: verdict(right, reward=1.0 if right else float("nan"))), "reward nan for a loss"),
    "state": (Remembering, "once its gold has been played"),
    "files": (Littering, "files are left"),
    "daemon": (Escaping, "processes are left 0.3 s after close: sleep 8"),
    "no feedback": (judging(lambda right, *_: verdict(right, feedback=None)), "whose feedback is None"),
    "empty feedback": (judging(lambda right, *_: verdict(right, feedback="")), "no observation and no feedback"),
    "no prompt": (NoPrompt, "whose prompt is None"),
    "huge": (judging(choke), "raised MemoryError: too much"),
    "raising": (judging(lambda right, task, text: verdict(int(text) == 1)), "raised ValueError: invalid literal for int()"),
    "start": (RaisingStart, "raised RuntimeError: no world"),
    "gold": (RaisingGold, "gold(train-1000) raised KeyError: 'x'"),
    "exit": (Leaving, "raised SystemExit: 3"),
    "split": (WrongSplitError, "raised KeyError: 'no such split'"),
    "seed": (NoSeed, "expected tasks(self, split, *, limit=None, seed=0)"),
    "sync": (NotAsync, "write `async def judge`"),
    "dict": (judging(lambda right, *_: {"success": right}), "gave a dict as its verdict"),
    "none": (judging(lambda *_: None), "gave None as its verdict"),
    "word": (judging(lambda right, *_: verdict(right, success="yes")), "whose success is the text 'yes'"),
    "empty gold": (giving([]), "gave an empty list"),
    "text gold": (giving("9000"), "gave the text '9000'"),
    "number gold": (giving([9000]), "gave the int 9000 in its list"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_a_sentence(fault: str) -> None:
    environment, sentence = BROKEN[fault]
    report = asyncio.run(check(environment(), num_tasks=4, limit_s=20.0))
    assert not report.ok and sentence in str(report), str(report)
    assert len(str(report).split("\n")) <= 23


def test_a_sentence_names_the_line_and_is_told_once() -> None:
    report = asyncio.run(check(RaisingStart(), num_tasks=4))
    line = next(n for n, text in enumerate(Path(__file__).read_text().split("\n"), 1) if "RuntimeError(" in text)
    assert len(report.failures) == 1 and f"({HERE}, line {line})" in report.failures[0]
    assert "more like it" in report.failures[0] and report.found == {"state": report.failures}
    golds = asyncio.run(check_golds(RaisingStart()))
    assert len(golds.failures) == 1 and f"({HERE}, line {line})" in golds.failures[0]


@pytest.mark.parametrize("environment", [Sleeping, Blocking, SleepingAtStart])
def test_an_answer_that_never_comes_has_a_limit(environment: type[Right]) -> None:
    begun = time.monotonic()
    report = asyncio.run(check(environment(), num_tasks=4, limit_s=2.0))
    assert "gave no answer within 2 s" in str(report) and not report.ok
    assert set(report.checks) == {"tasks", "state", "close"} and "leaks" in report.skipped
    assert "not tried: gold," in str(report)
    golds = asyncio.run(check_golds(environment(), limit_s=0.5))
    assert not golds.ok and "gave no answer within" in str(golds)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("fault", ["raising", "start", "gold", "sync", "dict", "none", "empty gold", "text gold", "seed"])
def test_the_gold_self_test_survives_them(fault: str) -> None:
    environment, sentence = BROKEN[fault]
    golds = asyncio.run(check_golds(environment()))
    assert golds.ok == (fault == "seed") and (golds.ok or sentence in str(golds)), str(golds)


def test_what_nobody_can_play_with_passes_through() -> None:
    class Lacking(Right):
        def said(self, right: bool, task: Task, action: str) -> Verdict:
            raise MissingExtra("install it")

    with pytest.raises(MissingExtra, match="install it"):
        asyncio.run(check(Lacking(), num_tasks=2))


def test_a_right_one_leaves_nothing_and_passes() -> None:
    report = asyncio.run(check(Right(), num_tasks=4))
    assert report.ok and report.skipped == () and report.found == {}, str(report)
    assert max(map(len, malformed_actions("1"))) >= 1_000_000


def test_leftovers_are_this_ones_alone() -> None:
    old = tempfile.gettempdir()
    with Leftovers() as left:
        assert tempfile.gettempdir() != old and left.files() == [] and left.processes() == []
        child = subprocess.Popen(["sleep", "5"])
        Path(tempfile.gettempdir(), "one").touch()
        assert left.files() == ["one"] and any("sleep 5" in text for text in left.processes())
        child.kill()
        child.wait()
        assert left.processes() == []
    assert tempfile.gettempdir() == old


def test_many_calls_that_block_a_little_are_no_hang() -> None:
    class Slow(Right):
        def said(self, right: bool, task: Task, action: str) -> Verdict:
            time.sleep(0.3)
            return verdict(right)

    golds = asyncio.run(check_golds(Slow(), ["heldout"], limit_s=1.5))  # 8 attempts, which never wait for anything
    assert golds.ok, str(golds)


def test_a_reply_must_be_one() -> None:
    class Odd(ProgramWorld):
        async def act(self, action: str) -> Any:
            return "hello"

    class Odder(ProgramWorld):
        async def act(self, action: str) -> Any:
            return Reply(observation="")

    for world, sentence in ((Odd, "gave the text 'hello'"), (Odder, "expected a Verdict")):

        class Starting(Right):
            kind = world

            async def start(self, task: Task) -> Any:
                return self.kind(self, task)

        assert sentence in str(asyncio.run(check(Starting(), num_tasks=2)))

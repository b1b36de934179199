"""The verifiers bridge against the real package, with a taskset of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments.conformance import check, play
from kintsugi.sandboxes.environments.environment import environment_kinds, open_environment

pytest.importorskip("verifiers.v1", reason='the bridge needs verifiers 0.4: pip install "kintsugi-agents[verifiers]"')

TASKSET = """
import os, time
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: str

class SumConfig(vf.TasksetConfig):
    highest: int = 60

class SumTask(vf.Task[SumData, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.75)
    async def right(self, trace) -> float:
        said = trace.last_reply.strip()
        if said == "crash":
            raise RuntimeError("no scorer")
        if said == "hang":
            time.sleep(60)
        if said == "odd text":
            raise RuntimeError("bad \\ud800 and \\0 thing")
        if said == "odd number":
            return float("nan")
        return float(said == self.data.answer)

    @vf.reward(weight=0.25)
    async def short(self, trace) -> float:
        return float(len(trace.last_reply) < 10)

    @vf.metric
    async def length(self, trace) -> float:
        return float(len(trace.last_reply))

class Sums(vf.Taskset[SumTask, SumConfig]):
    def load(self):
        for a in range(self.config.highest):
            data = SumData(prompt=f"What is {a} + 17?", system_prompt="Answer with a number.", answer=str(a + 17))
            yield SumTask(data, self.config.task)

__all__ = ["Sums"]
"""
NEEDY = TASKSET.replace(
    "class SumTask(vf.Task[SumData, vf.State, vf.TaskConfig]):",
    "class SumTask(vf.Task[SumData, vf.State, vf.TaskConfig]):\n    NEEDS_CONTAINER = True\n",
)


@pytest.fixture
def sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens the taskset above, and closes what the test opened."""
    (tmp_path / "small_sums.py").write_text(TASKSET)
    (tmp_path / "needy_sums.py").write_text(NEEDY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    opened: list[Any] = []

    def one(**options: Any) -> Any:
        opened.append(open_environment("verifiers", {"env": "small_sums", "gold": "answer", "workers": 1, **options}))
        return opened[-1]

    yield one
    for environment in opened:
        asyncio.run(environment.close())


def other_numbers(task: Any, gold: Sequence[str]) -> list[list[str]]:
    return [[str(int(gold[0]) + 1)], [f"{gold[0]}0"]]


def test_a_taskset_conforms_and_leaves_nothing(sums: Any) -> None:
    before = threading.active_count()
    report = asyncio.run(check(sums(), num_tasks=6, perturb=other_numbers))
    assert report.ok, str(report)
    assert threading.active_count() == before


def test_rewards_are_the_tasks_own_and_what_breaks_is_a_verdict(sums: Any) -> None:
    environment = sums(timeout_s=15.0, config={"highest": 40})
    splits = {split: environment.tasks(split) for split in ("train", "heldout", "demonstrations")}
    assert sum(map(len, splits.values())) == 40 and all(splits.values())
    task = splits["train"][0]
    assert task.prompt.startswith("Answer with a number.\n\nWhat is ")
    (gold,) = asyncio.run(environment.gold(task))

    def verdict(text: str) -> Any:
        return asyncio.run(play(environment, task, [text]))[0].verdict

    right, wrong, wordy = verdict(gold), verdict("3"), verdict("I think that it is 3.")
    assert right.success and right.reward == 1.0 and right.detail == {"length": 2.0, "right": 0.75, "short": 0.25}
    assert (
        not wrong.success and wrong.reward == 0.25 and wrong.feedback == '"3" is not enough: length 1, right 0, short 0.25.'
    )
    assert wordy.reward == 0.0
    crashed, hung = verdict("crash"), verdict("hang")
    assert "no scorer" in crashed.error and not crashed.success
    assert "silent for 15 s" in hung.error and not hung.success
    for harm, words in (("odd text", "bad ? and ? thing"), ("odd number", "expected numbers, found others as right")):
        broken = verdict(harm)
        assert words in broken.error and not broken.success and f"{broken}".encode()
    assert verdict(gold).success, "a new process scores on"
    with pytest.raises(DataError, match='no split "test"'):
        environment.tasks("test")


def test_mistakes_are_one_sentence(sums: Any) -> None:
    assert environment_kinds()["verifiers"].endswith("verifiers_bridge")
    with pytest.raises(ConfigError, match=r'expected an installed taskset, found none called "big_sums"'):
        sums(env="big_sums")
    with pytest.raises(ConfigError, match=r"expected tasks of one agent and no container.*a runtime of their own"):
        sums(env="needy_sums")
    with pytest.raises(ConfigError, match=r"does not open with .*hihgest"):
        sums(config={"hihgest": 3})
    with pytest.raises(ConfigError, match='no field "solution"'):
        sums(gold="solution")

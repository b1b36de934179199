"""The bundled word problems as an environment: tasks, verdicts and located faults."""

import asyncio
import random
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError
from kintsugi.records import Fault, from_plain, to_plain
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.sandbox import open_sandbox


def opened(**options) -> Any:
    return open_environment("word_problems", options)


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox("local", allow_unsafe=True) as opened:
        yield opened


def test_tasks_by_split_and_seed():
    environment = opened()
    splits = {
        split: {task.hash for seed in range(3) for task in environment.tasks(split, limit=200, seed=seed)}
        for split in ("train", "heldout", "demonstrations")
    }
    assert all(len(hashes) > 550 for hashes in splits.values())
    assert not splits["train"] & splits["heldout"] and not splits["demonstrations"] & splits["heldout"]
    assert environment.tasks("train", limit=9) == environment.tasks("train", limit=30)[:9]
    task = environment.tasks("train", limit=1)[0]
    assert from_plain(type(task), to_plain(task)) == task
    with pytest.raises(DataError, match='did you mean "heldout"'):
        environment.tasks("heldouts")


@pytest.mark.parametrize("events", ["3-5", "2", 2, (1, 2), [2, 3]])
def test_events(events):
    environment = opened(events=events)
    least, greatest = environment.events
    for task in environment.tasks("train", limit=40):
        assert least <= len(task.payload["events"]) <= greatest


@pytest.mark.parametrize("events", ["", "5-3", "0-2", "1-2-3", "one", None, (), "1-99"])
def test_bad_events_are_refused(events):
    with pytest.raises(ConfigError, match="expected"):
        opened(events=events)


def test_gold_wins_and_slips_are_located(sandbox):
    environment = opened(events="1-5", sandbox=sandbox)
    rng = random.Random(0)

    async def main():
        for task in environment.tasks("train", limit=60, seed=5):
            (gold,) = await environment.gold(task)
            assert (await environment.judge(task, gold)).success
            bad, fault, completion = environment.scripted_repair(task, rng)
            assert fault.kept + completion == gold
            verdict = await environment.judge(task, bad)
            if not verdict.success:  # a slip may still come to the right number
                assert verdict.fault == fault
                assert verdict.feedback == f"{fault.bad} # {fault.note}".strip()
            fenced = await environment.judge(task, f"Well:\n```python\n{bad}\n```")
            if not fenced.success:
                kept = "Well:\n```python\n" + fault.kept
                assert fenced.fault == Fault(kept=kept, bad=fault.bad, note=fault.note)

    asyncio.run(main())


def test_feedback_without_a_fault_shows_only_what_was_printed(sandbox):
    environment = opened(sandbox=sandbox)
    task = environment.tasks("train", limit=1)[0]
    verdict = asyncio.run(environment.judge(task, "for i in range(1):\n    print(12345)"))
    assert verdict.fault is None and verdict.feedback == "The check failed: the program printed 12345."

"""The treasure hunt: won by its plan, survivable without one, crashing only when asked to."""

import asyncio
import time
from typing import Any

import pytest

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments.conformance import play
from kintsugi.sandboxes.environments.environment import open_environment


def opened(**options) -> Any:
    return open_environment("treasure_hunt", options)


def test_plans_win_within_the_turns():
    environment = opened()

    async def main():
        for task in [*environment.tasks("train", limit=200), *environment.tasks("heldout", limit=100, seed=1)]:
            gold = await environment.gold(task)
            assert len(gold) <= environment.max_turns
            replies = await play(environment, task, gold)
            assert [reply.verdict is not None for reply in replies] == [False] * (len(gold) - 1) + [True]
            verdict = replies[-1].verdict
            assert verdict and verdict.success and verdict.reward == 1.0

    asyncio.run(main())


def test_wrong_actions_are_answered():
    environment = opened()
    task = environment.tasks("train", limit=1)[0]
    doors = task.payload["doors"][task.payload["start"]]
    closed = next(way for way in ("north", "east", "south", "west") if way not in doors)
    said = {
        "think: where is it?": "OK.",
        "dance": 'I do not understand "dance". You can: look, go north,',
        f"go {closed}": f"There is no door to the {closed}. Doors: ",
        "take moon": "There is no moon here to take.",
        "put moon": "You do not carry a moon.",
        " LOOK ": f"You are in the {task.payload['start']}. Doors: ",
    }
    replies = asyncio.run(play(environment, task, list(said)))
    for reply, text in zip(replies, said.values(), strict=True):
        assert reply.observation.startswith(text) and reply.verdict is None
    *_, last = asyncio.run(play(environment, task, ["quit"]))
    assert last.verdict and not last.verdict.success and "gave up" in last.verdict.feedback


def test_the_treasure_must_lie_in_its_room():
    environment = opened()

    async def main():
        for task in environment.tasks("train", limit=20):
            gold = list(await environment.gold(task))
            take = next(index for index, action in enumerate(gold) if action.startswith("take"))
            dropped = await play(environment, task, [*gold[: take + 1], gold[-1]])
            assert dropped[-1].verdict is None and "put the" in dropped[-1].observation
            again = await play(environment, task, [*gold[: take + 1], gold[-1], *gold[take:]])
            verdict = again[-1].verdict
            assert len(again) == environment.max_turns or (verdict and verdict.success)

    asyncio.run(main())


def test_crashes_and_delays_on_purpose():
    options = {"crash_on": ["train-0-1"], "crash_at": 2, "crashes": 1, "delay_s": 0.02}
    environment = opened(**options)
    fine, crashing = environment.tasks("train", limit=2)
    begun = time.monotonic()
    asyncio.run(play(environment, fine, ["look", "look"]))
    assert time.monotonic() - begun >= 0.04
    with pytest.raises(RuntimeError, match="on purpose in train-0-1"):
        asyncio.run(play(environment, crashing, ["look", "look"]))
    assert len(asyncio.run(play(environment, crashing, ["look", "look"]))) == 2
    with pytest.raises(DataError, match='did you mean "train"'):
        environment.tasks("tran")

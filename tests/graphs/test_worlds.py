"""Live worlds: found by key, replayed when they are not where the state is, retried once, closed when left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kintsugi.errors import SandboxError
from kintsugi.graphs.worlds import WorldBroke, Worlds
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.environment import Reply, open_environment

TASK = Task(id="t", environment="tape", split="train", prompt="p")


def test_programs_that_wait_for_a_sandbox_are_not_late() -> None:
    """Ten programs at their wall limit on one worker take three times as long as a turn may."""
    limits = {"sandbox": {"kind": "local", "allow_unsafe": True, "workers": 1}, "limits": {"wall_s": 1}}
    environment = open_environment("word_problems", limits)
    tasks = environment.tasks("train", limit=10)

    async def main() -> list[Reply]:
        worlds = Worlds(environment, timeout_s=4)
        endless = "import time\nwhile True: time.sleep(1)"
        replies = await asyncio.gather(*(worlds.act(task.id, task, [], endless) for task in tasks))
        await environment.close()
        assert worlds.crashes == 0
        return list(replies)

    verdicts = [reply.verdict for reply in asyncio.run(main())]
    assert all(verdict is not None and not verdict.error and "stopped" in verdict.feedback for verdict in verdicts)


class Tape:
    """Worlds that repeat what was done in them. `mishaps`: what action number n of world number m does instead, once."""

    name, max_turns = "tape", 9

    def __init__(self, mishaps: dict[tuple[int, int], Any] | None = None) -> None:
        self.mishaps = mishaps or {}
        self.worlds: list[TapeWorld] = []

    async def start(self, task: Task) -> TapeWorld:
        self.worlds.append(TapeWorld(self, len(self.worlds)))
        return self.worlds[-1]


class TapeWorld:
    def __init__(self, tape: Tape, number: int) -> None:
        self.tape, self.number = tape, number
        self.done: list[str] = []
        self.observed = self.closed = 0

    async def observe(self) -> str:
        self.observed += 1
        return "a tape"

    async def act(self, action: str) -> Reply:
        mishap = self.tape.mishaps.get((self.number, len(self.done)))
        self.done.append(action)
        if isinstance(mishap, Exception):
            raise mishap
        if isinstance(mishap, Verdict):
            return Reply(verdict=mishap)
        if mishap == "hang":
            await asyncio.sleep(30)
        return Reply(observation="".join(self.done))

    async def close(self) -> None:
        self.closed += 1


def opened(mishaps: dict[tuple[int, int], Any] | None = None, timeout_s: float = 0.05) -> tuple[Tape, Worlds]:
    tape = Tape(mishaps)
    return tape, Worlds(tape, timeout_s=timeout_s)  # type: ignore[arg-type]


def test_one_world_serves_an_attempt() -> None:
    tape, worlds = opened()

    async def main() -> None:
        assert await worlds.observe("k", TASK) == "a tape"
        for index, action in enumerate("abc"):
            reply = await worlds.act("k", TASK, "abc"[:index], action)
            assert reply.observation == "abc"[: index + 1]
        await worlds.leave("k")
        await worlds.leave("k")

    asyncio.run(main())
    (world,) = tape.worlds
    assert (world.done, world.observed, world.closed) == (["a", "b", "c"], 1, 1)


def test_attempts_do_not_share_a_world() -> None:
    tape, worlds = opened()

    async def main() -> None:
        for action in "ab":
            await asyncio.gather(worlds.act("k1", TASK, [], action), worlds.act("k2", TASK, [], action))
        await worlds.close()

    asyncio.run(main())
    assert [world.done for world in tape.worlds] == [["a"], ["a"], ["b"], ["b"]]
    assert all(world.closed == 1 for world in tape.worlds)


@pytest.mark.parametrize("before", ["", "ab", "abcd", "axc"])
def test_a_world_that_is_elsewhere_is_replayed(before: str) -> None:
    """The state was rewound, branched, or taken up in a new process."""
    tape, worlds = opened()

    async def main() -> str:
        for index, action in enumerate("abc"):
            await worlds.act("k", TASK, "abc"[:index], action)
        return (await worlds.act("k", TASK, list(before), "!")).observation

    assert asyncio.run(main()) == before + "!"
    first, second = tape.worlds
    assert first.closed == 1 and second.closed == 0 and second.observed == 1 and worlds.crashes == 0


@pytest.mark.parametrize(
    ("mishap", "reason"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (TimeoutError("its own"), "TimeoutError: its own"),
        ("hang", "no reply within 0.05 s"),
        (Verdict(success=False, reward=0.0, error="sandbox_failed"), "sandbox_failed"),
    ],
)
def test_one_retry_then_it_is_broken(mishap: Any, reason: str) -> None:
    for times in (1, 2):
        tape, worlds = opened({(number, 1): mishap for number in range(times)})

        async def main(worlds: Worlds = worlds) -> Reply:
            await worlds.act("k", TASK, [], "a")
            return await worlds.act("k", TASK, ["a"], "b")

        if times == 1:
            assert asyncio.run(main()).observation == "ab"
        else:
            with pytest.raises(WorldBroke) as caught:
                asyncio.run(main())
            assert str(caught.value) == reason and worlds._live == {}
        assert worlds.crashes == times and len(tape.worlds) == 2
        assert [world.closed for world in tape.worlds] == [1, times - 1]


def test_a_crash_while_replaying_counts_as_one() -> None:
    tape, worlds = opened({(0, 1): ValueError("first"), (1, 0): ValueError("replay")})

    async def main() -> None:
        await worlds.act("k", TASK, [], "a")
        await worlds.act("k", TASK, ["a"], "b")

    with pytest.raises(WorldBroke, match="replay"):
        asyncio.run(main())
    assert [world.closed for world in tape.worlds] == [1, 1]


def test_long_reasons_are_cut() -> None:
    _, worlds = opened({(number, 0): ValueError("x" * 5000) for number in range(2)})
    with pytest.raises(WorldBroke) as caught:
        asyncio.run(worlds.act("k", TASK, [], "a"))
    assert len(str(caught.value)) == 300


def test_what_a_user_must_mend_is_no_crash() -> None:
    tape, worlds = opened({(0, 0): SandboxError("no Docker here")})
    with pytest.raises(SandboxError, match="no Docker here"):
        asyncio.run(worlds.act("k", TASK, [], "a"))
    assert worlds.crashes == 0 and len(tape.worlds) == 1 and tape.worlds[0].closed == 1


def test_single_turn_tasks_open_no_world_to_be_seen() -> None:
    tape, worlds = opened()
    tape.max_turns = 1
    assert asyncio.run(worlds.observe("k", TASK)) == "p" and tape.worlds == []

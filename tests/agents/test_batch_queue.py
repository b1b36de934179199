"""Gathering calls into batches: when a batch starts, in which order, and that nothing ever hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kintsugi.agents.policies import batch_queue
from kintsugi.agents.policies.batch_queue import Batching, BatchQueue, Ticket
from kintsugi.errors import PolicyError

Finish = Callable[[Ticket, Any], None]


class Recorder:
    """A model that answers with the order of the call, and notes what came in which batch."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.seconds = seconds

    def __call__(self, tickets: Sequence[Ticket], finish: Finish, stopped: Callable[[], bool]) -> None:
        self.batches.append([ticket.order[0] for ticket in tickets])
        end = time.monotonic() + self.seconds
        while time.monotonic() < end and not stopped():
            time.sleep(0.002)
        if not stopped():
            for ticket in tickets:
                finish(ticket, ticket.order[0].upper())


def run(body: Callable[[BatchQueue], Any], model: Any, batching: Batching = "repeatable") -> Any:
    async def main() -> Any:
        queue = BatchQueue(model, batching=batching)
        try:
            return await asyncio.wait_for(body(queue), 10)
        finally:
            await queue.close()

    return asyncio.run(main())


def ask(queue: BatchQueue, key: str) -> Any:
    return queue.submit(Ticket(order=(key,), work=None))


def test_a_batch_waits_for_every_live_episode_and_is_sorted() -> None:
    """However long an episode's environment takes, batches hold every live episode's call, in order."""
    model = Recorder()

    async def episode(queue: BatchQueue, name: str, pauses: list[float]) -> None:
        async with queue.live():
            for turn, pause in enumerate(pauses):
                await asyncio.sleep(pause)
                assert await ask(queue, f"{name}{turn}") == f"{name.upper()}{turn}"

    async def body(queue: BatchQueue) -> None:
        slow, fast, short = [0.03, 0.0, 0.02], [0.0, 0.02, 0.0], [0.01]
        await asyncio.gather(episode(queue, "c", slow), episode(queue, "a", fast), episode(queue, "b", short))

    run(body, model)
    assert model.batches == [["a0", "b0", "c0"], ["a1", "c1"], ["a2", "c2"]]


def test_calls_outside_episodes_and_eager_calls_start_at_once() -> None:
    model = Recorder()

    async def outside(queue: BatchQueue) -> list[str]:
        return await asyncio.gather(*(ask(queue, key) for key in "cab"))

    assert run(outside, model) == ["C", "A", "B"]
    assert model.batches == [["a", "b", "c"]]

    async def eager(queue: BatchQueue) -> None:
        async with queue.live(), queue.live():
            assert await ask(queue, "x") == "X"

    run(eager, model, "eager")


def test_an_episode_that_waits_for_another_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_queue, "PATIENCE_S", 0.05)

    async def body(queue: BatchQueue) -> None:
        async def asks() -> None:
            async with queue.live():
                await ask(queue, "a")
                await ask(queue, "b")

        async def waits(other: asyncio.Task[None]) -> None:
            async with queue.live():
                await other

        first = asyncio.create_task(asks())
        await asyncio.gather(first, waits(first))

    model = Recorder()
    run(body, model)
    assert model.batches == [["a"], ["b"]]


def test_cancelled_calls_are_dropped_and_the_rest_goes_on() -> None:
    model = Recorder()

    async def body(queue: BatchQueue) -> None:
        async def episode(key: str) -> str:
            async with queue.live():
                await asyncio.sleep(0.05 if key == "late" else 0)
                return await ask(queue, key)

        tasks = [asyncio.create_task(episode(key)) for key in ("gone", "here", "late")]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        assert await asyncio.gather(*tasks[1:]) == ["HERE", "LATE"]

    run(body, model)
    assert model.batches == [["here", "late"]]


def test_a_broken_model_and_a_forgetful_one_reach_every_caller() -> None:
    def broken(tickets: Sequence[Ticket], finish: Finish, stopped: Callable[[], bool]) -> None:
        finish(tickets[0], "fine")
        raise ZeroDivisionError("of tokens")

    async def body(queue: BatchQueue) -> list[Any]:
        return await asyncio.gather(*(ask(queue, key) for key in "abc"), return_exceptions=True)

    for model, words in ((broken, "ZeroDivisionError: of tokens"), (lambda *_: None, "unanswered")):
        answers = run(body, model)
        assert answers[0] == "fine" or model is not broken
        assert all(isinstance(answer, PolicyError) and words in str(answer) for answer in answers[1:])


def test_close_fails_what_waits_and_what_runs_and_leaves_the_loop_free() -> None:
    async def main() -> None:
        queue = BatchQueue(Recorder(seconds=5), batching="repeatable")
        running = [asyncio.create_task(ask(queue, key)) for key in "ab"]
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(ask(queue, "c"))
        began = time.monotonic()
        await asyncio.sleep(0.01)
        assert time.monotonic() - began < 0.5, "the event loop must stay free while the model works"
        await queue.close()
        await queue.close()
        for answer in await asyncio.gather(*running, waiting, return_exceptions=True):
            assert isinstance(answer, PolicyError)
        assert time.monotonic() - began < 2
        with pytest.raises(PolicyError, match="closed"):
            await ask(queue, "d")

    asyncio.run(main())


def test_one_event_loop_after_another() -> None:
    queue = BatchQueue(Recorder(seconds=0.2), batching="repeatable")

    async def abandoned() -> None:
        with pytest.raises(asyncio.TimeoutError):
            async with queue.live():
                await asyncio.wait_for(ask(queue, "a"), 0.02)

    async def answered() -> None:
        assert await asyncio.wait_for(ask(queue, "b"), 5) == "B"
        await queue.close()

    asyncio.run(abandoned())
    asyncio.run(answered())

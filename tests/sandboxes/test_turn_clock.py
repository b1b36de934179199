"""A turn's limit counts the time that it is served, not the time in line."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kintsugi.sandboxes.turn_clock import Place, TookTooLong, bounded, in_line


def test_who_is_served_too_long_is_told() -> None:
    with pytest.raises(TookTooLong, match=r"no reply within 0\.05 s"):
        asyncio.run(bounded(asyncio.sleep(2), 0.05))

    async def own() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(bounded(own(), 5))


def test_time_in_line_is_not_counted_and_what_is_left_is_kept() -> None:
    async def turn(after_s: float) -> str:
        await asyncio.sleep(0.1)
        with in_line():
            await asyncio.sleep(0.6)
        await asyncio.sleep(after_s)
        return "served"

    assert asyncio.run(bounded(turn(0.0), 0.4)) == "served"
    with pytest.raises(TookTooLong):
        asyncio.run(bounded(turn(0.6), 0.4))


def test_two_places_at_once_and_a_place_left_twice() -> None:
    async def turn() -> None:
        first, second = Place(), Place()
        first.served()
        first.served()
        await asyncio.sleep(0.4)  # the second still waits
        second.served()
        await asyncio.sleep(2)

    begun = time.monotonic()
    with pytest.raises(TookTooLong):
        asyncio.run(bounded(turn(), 0.2))
    assert 0.5 < time.monotonic() - begun < 1.8


def test_another_thread_and_another_loop_begin_the_work() -> None:
    """One worker thread for two turns of 0.3 s each and a limit of 0.45 s: the second stands in line."""
    threads = ThreadPoolExecutor(1)

    async def turn() -> str:
        place = Place()

        def work() -> str:
            place.served()
            time.sleep(0.3)
            return threading.current_thread().name

        return await asyncio.get_running_loop().run_in_executor(threads, work)

    async def both() -> list[str]:
        return list(await asyncio.gather(bounded(turn(), 0.45), bounded(turn(), 0.45)))

    assert len(set(asyncio.run(both()))) == 1
    threads.shutdown()

    elsewhere = asyncio.new_event_loop()
    runner = threading.Thread(target=elsewhere.run_forever)
    runner.start()

    async def waits() -> str:
        with in_line():
            await asyncio.sleep(0.5)
        return "done"

    async def through() -> str:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waits(), elsewhere))

    try:
        assert asyncio.run(bounded(through(), 0.2)) == "done"
    finally:
        elsewhere.call_soon_threadsafe(elsewhere.stop)
        runner.join()


def test_a_turn_given_up_in_line_leaves_nothing_behind() -> None:
    async def main() -> None:
        async def waits() -> None:
            with in_line():
                await asyncio.sleep(9)

        waiting = asyncio.ensure_future(bounded(waits(), 5))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    with in_line():  # nobody's turn: no clock
        Place().served()

"""How long one turn of an environment may take, the time that it stands in line for a worker not counted.

    reply = await bounded(world.act("look"), 60)       # TookTooLong after 60 s of being served
    with in_line():                                     # in what lets callers wait: their clocks stand still
        await semaphore.acquire()
    place = Place()                                     # the same where another thread begins the work: it calls
    executor.submit(work, place.served)                 # place.served() first; again is harmless

A wave of slow programs, or of worlds on one worker that hangs, would else run out of time while nothing is wrong with it.
Whoever is served has a limit of its own, so that a line moves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_clock: ContextVar[_Clock | None] = ContextVar("turn_clock", default=None)


class TookTooLong(Exception):
    """A turn was served for longer than its limit."""


async def bounded(step: Awaitable[T], timeout_s: float) -> T:
    """What `step` gives. Raises TookTooLong when it takes longer than `timeout_s` seconds outside of lines."""
    clock = _Clock(timeout_s)
    before = _clock.set(clock)
    try:
        async with clock.timeout:
            return await step
    except TimeoutError:
        if clock.timeout.expired():
            raise TookTooLong(f"no reply within {timeout_s:g} s") from None
        raise
    finally:
        clock.over = True
        _clock.reset(before)


class Place:
    """A place in a line: from now on the turn's clock stands still, until `served`. Made and used in any thread."""

    def __init__(self) -> None:
        self._clock = _clock.get()
        self._waits = self._clock is not None
        if self._clock is not None:
            self._clock.told(self._clock.stop)

    def served(self) -> None:
        """It is this one's turn, or it does not wait any longer."""
        if self._clock is not None and self._waits:
            self._clock.told(self._leave)

    def _leave(self) -> None:
        if self._clock is not None and self._waits:
            self._waits = False
            self._clock.go_on()


@contextlib.contextmanager
def in_line() -> Iterator[None]:
    """The turn's clock stands still inside."""
    place = Place()
    try:
        yield
    finally:
        place.served()


class _Clock:
    """A timeout that can stand still."""

    def __init__(self, timeout_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.timeout = asyncio.timeout(timeout_s)
        self.over = False
        self._left_s = timeout_s
        self._waiting = 0

    def told(self, what: Callable[[], None]) -> None:
        """Do `what` in the event loop of the clock, at once where that is the one that runs here."""
        try:
            here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            here = False
        if here:
            what()
            return
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(what)

    def stop(self) -> None:
        self._waiting += 1
        when = self.timeout.when()
        if self._runs and when is not None:
            self._left_s = when - self.loop.time()
            self.timeout.reschedule(None)

    def go_on(self) -> None:
        self._waiting -= 1
        if self._runs and not self._waiting:
            self.timeout.reschedule(self.loop.time() + self._left_s)

    @property
    def _runs(self) -> bool:
        return not self.over and not self.timeout.expired()

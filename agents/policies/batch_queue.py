"""Gathers the calls of many episodes into batches for one model thread. Plain asyncio; knows nothing of models.

    queue = BatchQueue(run, batching="repeatable")
    async with queue.live():                                   # while an episode runs
        value = await queue.submit(Ticket(order=(key,), work=…))

`run(tickets, finish, stopped)` is called on the thread with tickets sorted by `order`; it calls `finish(ticket, value)`
for each as soon as it is done, and returns early once `stopped()`.

"repeatable": a batch starts when every live episode waits for one. So batches are the same from run to run, as long as
a new episode goes live before the one whose place it takes is over. Calls from outside any episode start when the loop
has nothing else to do. "eager": a batch starts whenever the thread is free. Left out: joining a batch that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from kintsugi.errors import KintsugiError, PolicyError

SETTLE = 4
"""Turns of the event loop without a new call before a batch starts: the calls of one `gather` get into one batch."""
PATIENCE_S = 60.0
"""A batch starts after this long even if some live episode does not wait: it may itself be waiting for another one."""

Batching = Literal["repeatable", "eager"]
Run = Callable[[Sequence["Ticket"], Callable[["Ticket", Any], None], Callable[[], bool]], None]

logger = logging.getLogger(__name__)
_scopes: ContextVar[tuple[object, ...]] = ContextVar("kintsugi_live_episodes", default=())


@dataclass(eq=False, kw_only=True)
class Ticket:
    """One call. order: sorts it among others (comparable). work: what the model thread needs to know."""

    order: tuple[Any, ...]
    work: Any
    dropped: bool = False
    """Its caller was cancelled; the model thread may stop working on it."""
    scope: object | None = None
    future: asyncio.Future[Any] = field(init=False)


class BatchQueue:
    """See the module's text. Serves one event loop at a time; one after another is fine.

    prepare: called once on the model thread before anything else.
    """

    def __init__(self, run: Run, *, batching: Batching, prepare: Callable[[], None] | None = None) -> None:
        self._run, self._eager = run, batching == "eager"
        self._executor = ThreadPoolExecutor(1, "kintsugi-model", initializer=prepare)
        self._closed = False
        self._stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._use_loop(None)

    @contextlib.asynccontextmanager
    async def live(self) -> AsyncIterator[None]:
        """Marks an episode as running: batches wait until it calls, or ends."""
        self._use_loop(asyncio.get_running_loop())
        scope, live = object(), self._live
        live.add(scope)
        _scopes.set((*_scopes.get(), scope))
        try:
            yield
        finally:
            live.discard(scope)
            _scopes.set(tuple(item for item in _scopes.get() if item is not scope))
            if live is self._live:
                self._poke()

    async def submit(self, ticket: Ticket) -> Any:
        """The value that the model thread finishes `ticket` with. Raises PolicyError when it fails or is closed."""
        if self._closed:
            raise PolicyError("The policy was closed: open it again before asking it anything.")
        loop = asyncio.get_running_loop()
        self._use_loop(loop)
        ticket.future = loop.create_future()
        ticket.scope = next((scope for scope in reversed(_scopes.get()) if scope in self._live), None)
        self._pending.append(ticket)
        if self._timer is None and self._live:
            self._timer = loop.call_later(PATIENCE_S, self._impatient)
        self._poke()
        try:
            return await ticket.future
        except asyncio.CancelledError:
            ticket.dropped = True
            self._poke()
            raise

    async def call(self, function: Callable[[], Any]) -> Any:
        """`function()` on the model thread, after the batch that runs now."""
        if self._closed:
            raise PolicyError("The policy was closed: open it again before asking it anything.")
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def close(self) -> None:
        """Fail what waits or runs, wait for the model thread to stop, and end it."""
        self._use_loop(asyncio.get_running_loop())
        self._closed = True
        self._stop.set()
        _fail([*self._pending, *self._running], "The policy was closed before it answered.")
        if self._batch is not None:
            await asyncio.wait([self._batch])
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _use_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is not None and loop is self._loop:
            return
        # What an earlier loop left behind cannot be answered any more.
        self._stop.set()
        self._loop = loop
        self._pending: list[Ticket] = []
        self._running: list[Ticket] = []
        self._live: set[object] = set()
        self._batch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._settling, self._quiet = False, 0

    def _ready(self) -> bool:
        self._pending = [ticket for ticket in self._pending if not ticket.dropped]
        if self._batch is not None or not self._pending or self._closed:
            return False
        # A call without a scope counts as one of the live episodes: it may have lost its context on the way here.
        waiting = len({ticket.scope or ticket for ticket in self._pending})
        return self._eager or waiting >= len(self._live)

    def _poke(self) -> None:
        self._quiet = SETTLE
        if not self._settling and self._loop is not None:
            self._settling = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        assert self._loop is not None
        if self._quiet:
            self._quiet -= 1
            self._loop.call_soon(self._settle)
            return
        self._settling = False
        if self._ready():
            self._start()

    def _impatient(self) -> None:
        self._timer = None
        if self._pending and self._batch is None and not self._closed:
            logger.warning(
                "After %g s a batch starts without waiting for all %d live episodes: this run is not repeatable.",
                PATIENCE_S,
                len(self._live),
            )
            self._start()

    def _start(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._running = sorted(self._pending, key=lambda ticket: ticket.order)
        self._pending = []
        self._batch = self._loop.create_task(self._run_batch(self._loop, self._running))

    async def _run_batch(self, loop: asyncio.AbstractEventLoop, tickets: list[Ticket]) -> None:
        self._stop = stop = threading.Event()
        problem, cause = "The model left a call unanswered.", None

        def finish(ticket: Ticket, value: Any) -> None:
            loop.call_soon_threadsafe(_succeed, ticket, value)

        try:
            await loop.run_in_executor(self._executor, self._run, tickets, finish, stop.is_set)
        except KintsugiError as error:
            problem, cause = str(error), error
        except Exception as error:
            # The boundary of the model thread: whatever broke there, every caller must hear of it.
            problem, cause = f"The model failed: {type(error).__name__}: {error}", error
        finally:
            stop.set()
            _fail(tickets, problem, cause)
            if self._running is tickets:
                self._running, self._batch = [], None
                self._rearm()
                self._poke()

    def _rearm(self) -> None:
        if self._pending and self._live and self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(PATIENCE_S, self._impatient)


def _succeed(ticket: Ticket, value: Any) -> None:
    if not ticket.future.done():
        ticket.future.set_result(value)


def _fail(tickets: Sequence[Ticket], problem: str, cause: Exception | None = None) -> None:
    for ticket in tickets:
        if not ticket.future.done():
            error = PolicyError(problem)
            error.__cause__ = cause
            ticket.future.set_exception(error)

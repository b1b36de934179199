"""One headless Chromium for many pages, driven over its debugging pipe: no driver program, no port, no other package.

    browser = Browser()
    title = browser.ask(lambda tab: tab.evaluate("document.title"))     # from any thread
    title = await browser.use(lambda tab: tab.evaluate("1 + 1"))        # from any event loop
    browser.close()

The browser lives in a thread with an event loop of its own, so that callers may come from one `asyncio.run` after
another. It is started with the first call and again when it has died. `use` hands a *tab* (a browser context of its own:
no cookies, storage or process shared with others, and offline) to one caller at a time; a tab whose work took too long
is thrown away.

Left out: the process (`miniwob_chromium`), and what tabs are used for (`miniwob_page`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from kintsugi.sandboxes.environments.miniwob_chromium import STOP_S, BrowserDied, Process, Refused
from kintsugi.sandboxes.turn_clock import in_line

T = TypeVar("T")


class TookTooLong(Exception):
    """The work on a tab was not done in its time; the tab is gone."""


class Browser:
    """See the module. binary: the browser's program (None: looked for). tabs: how many work at once."""

    def __init__(self, *, binary: str | Path | None = None, tabs: int = 4, timeout_s: float = 30.0) -> None:
        self.binary, self.num_tabs, self.timeout_s = binary, tabs, timeout_s
        self.starts = 0
        """How often a browser was started."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pool: _Pool | None = None

    def ask(self, work: Callable[[Tab], Awaitable[T]]) -> T:
        """What `work` gives with a tab of its own; blocks. Raises as `use` does."""
        return self.submit(work).result()

    async def use(self, work: Callable[[Tab], Awaitable[T]]) -> T:
        """What `work` gives with a tab of its own. It is run anew, once, when the browser died on it.

        Raises TookTooLong after `timeout_s`; BrowserDied when it died again; MissingExtra, ConfigError, SandboxError
        where no browser can be started."""
        return await asyncio.wrap_future(self.submit(work))

    def close(self) -> None:
        """End the browser, its processes and its folder; the next call would start another."""
        with self._lock:
            loop, thread, pool = self._loop, self._thread, self._pool
            self._loop = self._thread = self._pool = None
        if loop is not None and thread is not None and pool is not None:
            asyncio.run_coroutine_threadsafe(pool.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    @property
    def pid(self) -> int | None:
        """Process id of the running browser."""
        process = self._pool.process if self._pool is not None else None
        return process.pid if process is not None else None

    def submit(self, work: Callable[[Tab], Awaitable[T]]) -> Future[T]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._pool = _Pool(self)
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="browser", daemon=True)
                self._thread.start()
            assert self._pool is not None
            return asyncio.run_coroutine_threadsafe(self._pool.use(work), self._loop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    loop.close()


class _Pool:
    """The tabs of one browser process; lives in the browser's thread."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.process: Process | None = None
        self._free: list[Tab] = []
        self._room = asyncio.Semaphore(browser.num_tabs)
        self._starting = asyncio.Lock()
        self._closed = False

    async def use(self, work: Callable[[Tab], Awaitable[T]]) -> T:
        with in_line():
            await self._room.acquire()
        try:
            return await self._once(work)
        except BrowserDied:
            return await self._once(work)
        finally:
            self._room.release()

    async def _once(self, work: Callable[[Tab], Awaitable[T]]) -> T:
        process = await self._running()
        tab = None
        try:
            async with asyncio.timeout(self.browser.timeout_s):
                tab = self._free.pop() if self._free else await Tab.open(process)
                result = await work(tab)
        except TimeoutError:
            if tab is None or not await self._dropped(tab, hangs=True):
                await process.end()  # a page that hangs so deep that it cannot be closed: all others start anew
            raise TookTooLong from None
        except BaseException:
            if tab is not None and not process.dead:
                await self._dropped(tab)
            raise
        if not process.dead:
            self._free.append(tab)
        return result

    async def _running(self) -> Process:
        async with self._starting:
            if self._closed:
                raise BrowserDied  # whoever still waits does not start another
            if self.process is None or self.process.dead:
                self._free.clear()
                if self.process is not None:
                    await self.process.end()
                self.process = None
                self.process = await Process.start(self.browser.binary)
                self.browser.starts += 1
            return self.process

    async def _dropped(self, tab: Tab, *, hangs: bool = False) -> bool:
        """Whether the tab could be closed. hangs: its process is ended first, for it would go on computing."""
        try:
            if hangs:
                await tab.crash()
            async with asyncio.timeout(STOP_S):
                await tab.close()
        except (TimeoutError, Refused, BrowserDied):
            return False
        return True

    async def close(self) -> None:
        self._closed = True
        async with self._starting:
            if self.process is not None:
                await self.process.end()
                self.process = None
        self._free.clear()
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        if waiting:
            await asyncio.wait(waiting, timeout=STOP_S)


class Tab:
    """A page in a browser context of its own."""

    def __init__(self, process: Process, context: str, session: str) -> None:
        self.process, self.context, self.session = process, context, session
        self._loaded: asyncio.Future[None] | None = None
        process.listeners[session] = self._hear

    @classmethod
    async def open(cls, process: Process) -> Tab:
        context = (await process.call("Target.createBrowserContext", disposeOnDetach=True))["browserContextId"]
        target = (await process.call("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await process.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = cls(process, context, session)
        size = {"width": 500, "height": 400, "deviceScaleFactor": 1, "mobile": False}
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await asyncio.gather(
            tab.call("Page.enable"),
            tab.call("Runtime.enable"),
            tab.call("Network.enable"),
            tab.call("Network.emulateNetworkConditions", **offline),
            tab.call("Emulation.setFocusEmulationEnabled", enabled=True),
            tab.call("Emulation.setTimezoneOverride", timezoneId="UTC"),
            tab.call("Emulation.setLocaleOverride", locale="en-US"),
            tab.call("Emulation.setDeviceMetricsOverride", **size),
        )
        return tab

    def call(self, method: str, **params: Any) -> Coroutine[Any, Any, dict[str, Any]]:
        return self.process.call(method, self.session, **params)

    async def evaluate(self, expression: str) -> Any:
        """The value of our own JavaScript, promises awaited. Raises Refused when it throws."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            problem = found["exceptionDetails"]
            raise Refused(problem.get("exception", {}).get("description") or problem["text"])
        return found["result"].get("value")

    async def go(self, url: str) -> None:
        """Load a page, until its load event."""
        with self.process.awaited() as (_, self._loaded):
            found = await self.call("Page.navigate", url=url)
            if "errorText" in found:
                raise Refused(f"{url}: {found['errorText']}")
            await self._loaded

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired" and self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)
        if method == "Inspector.targetCrashed" and self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(Refused("the page crashed"))
        if method == "Page.javascriptDialogOpening":
            task = asyncio.ensure_future(self.call("Page.handleJavaScriptDialog", accept=False))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def crash(self) -> None:
        """End the process that draws the page; it hears this also while a script runs, and mostly cannot answer."""
        with contextlib.suppress(TimeoutError, Refused):
            async with asyncio.timeout(0.5):
                await self.call("Page.crash")

    async def close(self) -> None:
        self.process.listeners.pop(self.session, None)
        await self.process.call("Target.disposeBrowserContext", browserContextId=self.context)

"""A headless Chromium and the debugging pipe to it: started, asked, ended.

    process = await Process.start(None)
    print(await process.call("Browser.getVersion"))
    await process.end()

The pipe is the file descriptors 3 and 4 of the child: there is no port that another process could reach, and the browser
ends by itself when this process is killed. Its profile is a folder of its own under the system's temporary one, removed
with it, also when Python ends without `end`.

What it may reach: nothing. Every host name and address resolves to nothing (`--host-resolver-rules`), downloads are
refused. Chromium's own sandbox stays on unless the caller is root, for whom it does not start.

Left out: other browsers, Windows. The protocol: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, MissingExtra, SandboxError

BINARIES: Final = (
    "/usr/lib/chromium/chromium-headless-shell",
    "/usr/lib/chromium/chromium",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)
"""Where a browser is looked for. Debian's binaries come before its wrapper script, which would be one process more."""
START_S: Final = 60.0
STOP_S: Final = 3.0
_FLAGS: Final = (
    "--headless", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--no-startup-window",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-sync", "--disable-breakpad", "--disable-crash-reporter",
    "--metrics-recording-only", "--disable-dev-shm-usage", "--disable-gpu", "--mute-audio", "--hide-scrollbars",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding", "--disable-backgrounding-occluded-windows",
    "--disable-ipc-flooding-protection", "--disable-hang-monitor", "--password-store=basic", "--use-mock-keychain",
    "--force-device-scale-factor=1", "--force-color-profile=srgb", "--lang=en-US", "--deny-permission-prompts",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--no-proxy-server", "--window-size=500,400",
    "--disable-features=Translate,BackForwardCache,MediaRouter,OptimizationHints,AutofillServerCommunication,SpareRendererForSitePerProcess",
)  # fmt: skip


class BrowserDied(Exception):
    """The browser ended while somebody waited for its answer."""


class Refused(Exception):
    """The browser answered a command with an error; `str()` is its message."""


class Process:
    """A running Chromium and the pipe to it."""

    def __init__(self, pid: int, folder: Path, write: int) -> None:
        self.pid, self.folder = pid, folder
        self.dead = False
        self.listeners: dict[str, Callable[[str, dict[str, Any]], None]] = {}
        """Who hears the events of a session."""
        self._write = write
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._buffer = bytearray()
        self._reader: asyncio.BaseTransport | None = None
        self._clean = weakref.finalize(self, _end, pid, folder, write)  # also when the interpreter ends without `close`

    @classmethod
    async def start(cls, binary: str | Path | None) -> Process:
        """Raises MissingExtra without a browser, SandboxError when it does not start."""
        program = find_binary(binary)
        folder = Path(tempfile.mkdtemp(prefix="kintsugi-browser-"))
        from_us, to_browser = _pipe()
        from_browser, to_us = _pipe()
        flags = [*_FLAGS, f"--user-data-dir={folder}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, str(folder / "stderr"), os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, from_us, 3),
            (os.POSIX_SPAWN_DUP2, to_us, 4),
        ]
        kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "FONTCONFIG_PATH", "FONTCONFIG_FILE")
        environ = {name: os.environ[name] for name in kept if name in os.environ}
        environ |= {"TZ": "UTC", "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        pid = os.posix_spawn(program, [program, *flags], environ, file_actions=actions, setsid=True)
        os.close(from_us)
        os.close(to_us)
        process = cls(pid, folder, to_browser)
        await process._listen(from_browser)
        try:
            async with asyncio.timeout(START_S):
                await process.call("Browser.getVersion")
                await process.call("Browser.setDownloadBehavior", behavior="deny")
        except (BrowserDied, TimeoutError):
            said = (folder / "stderr").read_text(errors="replace").strip().splitlines()
            await process.end()
            why = next((line for line in said if "sandbox" in line.lower() or "FATAL" in line), said[-1] if said else "")
            why = why[:200] or "it said nothing"
            raise SandboxError(f"expected {program} to start headless, and it did not: {why}") from None
        return process

    async def _listen(self, descriptor: int) -> None:
        self._reader, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Ear(self._heard, self._ended), os.fdopen(descriptor, "rb", buffering=0)
        )

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The browser's answer. Raises Refused or BrowserDied."""
        if self.dead:
            raise BrowserDied
        message = {"method": method, "params": params, **({"sessionId": session} if session else {})}
        with self.awaited() as (number, answer):
            self._send(json.dumps({"id": number, **message}).encode() + b"\0")
            return await answer

    @contextlib.contextmanager
    def awaited(self) -> Iterator[tuple[int, asyncio.Future[Any]]]:
        """A number, and what answers it or an event will be: it fails with BrowserDied when the browser ends first."""
        number, answer = next(self._ids), asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            yield number, answer
        finally:
            self._waiting.pop(number, None)
            _ = answer.cancel() or answer.cancelled() or answer.exception()  # or it would be logged as never retrieved

    def _send(self, data: bytes) -> None:
        try:
            while data:  # the browser reads its pipe in a thread of its own: a blocking write is short
                data = data[os.write(self._write, data) :]
        except OSError:
            self._ended()
            raise BrowserDied from None

    def _heard(self, data: bytes) -> None:
        self._buffer += data
        *whole, rest = self._buffer.split(b"\0")
        self._buffer = bytearray(rest)
        for one in whole:
            message = json.loads(one)
            waiting = self._waiting.get(message.get("id", 0))
            if waiting is not None and not waiting.done():
                if "error" in message:
                    waiting.set_exception(Refused(message["error"].get("message", "refused")))
                else:
                    waiting.set_result(message["result"])
            elif "method" in message and (hears := self.listeners.get(message.get("sessionId", ""))) is not None:
                hears(message["method"], message.get("params", {}))

    def _ended(self) -> None:
        self.dead = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(BrowserDied())

    async def end(self) -> None:
        """Kill it, wait for it, remove its folder."""
        self._ended()
        if self._reader is not None:
            self._reader.close()
        await asyncio.to_thread(self._clean)


class _Ear(asyncio.Protocol):
    def __init__(self, heard: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self.data_received, self.eof_received = heard, ended  # type: ignore[method-assign]
        self.connection_lost = lambda exc: ended()  # type: ignore[method-assign]


def find_binary(given: str | Path | None = None) -> str:
    """The browser's program. Raises ConfigError when `given` is none, MissingExtra when none is found."""
    if given is not None:
        if (found := shutil.which(str(Path(given).expanduser()))) is None:
            raise ConfigError(f"expected Chromium's program at {given}, found none")
        return found
    for name in BINARIES:
        if (found := shutil.which(name)) is not None:
            return found
    raise MissingExtra(
        "expected Chromium, found none: install it (Debian: apt-get install chromium), or name its program with "
        'the option chromium="..."'
    )


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not 3 or 4, so that neither is overwritten while they are put there."""
    ends = []
    for descriptor in os.pipe():
        ends.append(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(descriptor)
    return ends[0], ends[1]


def _end(pid: int, folder: Path, write: int) -> None:
    """Ask the browser to end, then kill its process group, reap it, remove its folder. Runs once, at the latest as
    Python ends."""
    with contextlib.suppress(OSError):
        os.write(write, b'{"id": 1000000000, "method": "Browser.close"}\0')
    os.close(write)
    deadline = time.monotonic() + STOP_S / 2
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    for _ in range(50):  # helpers that die a moment later may still write
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)

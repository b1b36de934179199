"""Worker processes for ALFWorld: a bounded number, started when first asked, replaced when one dies or hangs.

    pool = Pool(workers=2, engine="lean", cache=None, timeout_s=60)
    answer = await pool.ask(key, {"op": "act", …})      # the same key goes to the same worker
    pool.close()                                          # no process is left; a later `ask` starts anew

With `workers=0` requests are answered in this process: fastest for authored games, and without the protection. Each
worker has one thread here, which waits for its answers, so a pool may be used from one event loop after another. Only
the request under way when a worker dies fails (`WorkerDied`); those behind it go to its successor. Left out: what the
requests mean (`alfworld_worker`), and replaying (the world's part).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kintsugi
from kintsugi import errors
from kintsugi.sandboxes.environments.alfworld_worker import Worker


class WorkerDied(RuntimeError):
    """The worker ended or fell silent while it did a request."""


class Pool:
    """workers: most processes at once, 0 for none. engine, cache: the worker's. timeout_s: longest wait for an answer."""

    def __init__(self, *, workers: int, engine: str, cache: str | Path | None, timeout_s: float) -> None:
        self._here = Worker(engine, cache) if workers == 0 else None
        self._slots = [_Slot(engine, str(cache or ""), timeout_s) for _ in range(workers)]

    @property
    def deaths(self) -> int:
        """Workers that had to be replaced so far."""
        return sum(slot.deaths for slot in self._slots)

    def processes(self) -> list[int]:
        """Process ids of the workers that are up."""
        return [slot.process.pid for slot in self._slots if slot.process is not None and slot.up]

    async def ask(self, key: str, request: Mapping[str, Any], *, start: bool = True) -> dict[str, Any]:
        """The answer; `{}` when the worker is not up and `start` is False.

        Raises WorkerDied, and the KintsugiError that the worker refused with."""
        if self._here is not None:
            answer = self._here.answer(request)
        else:
            slot = self._slots[zlib.crc32(key.encode()) % len(self._slots)]
            if not start and not slot.up:
                return {}
            answer = await asyncio.get_running_loop().run_in_executor(slot.threads(), slot.ask, dict(request))
        if "refused" in answer:
            raise getattr(errors, answer["kind"], errors.DataError)(answer["refused"])
        return answer

    def close(self) -> None:
        """End every process and wait for it; harmless twice."""
        for slot in self._slots:
            slot.close()
        if self._here is not None:
            self._here.close()


class _Slot:
    """One worker at a time, and the thread that talks to it."""

    def __init__(self, engine: str, cache: str, timeout_s: float) -> None:
        self.engine, self.cache, self.timeout_s = engine, cache, timeout_s
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0
        self._threads: ThreadPoolExecutor | None = None
        self._said: Any = None
        self._left = b""

    @property
    def up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="alfworld")
        return self._threads

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its answer (in this slot's thread)."""
        process = self._up()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            return json.loads(self._line(process.stdout.fileno()))
        except (OSError, ValueError) as error:
            self.deaths += 1
            words = self._end()
            raise WorkerDied(f"ALFWorld's worker {process.pid} gave no answer: {error}{words}") from None

    def _line(self, descriptor: int) -> bytes:
        deadline = time.monotonic() + self.timeout_s
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while b"\n" not in self._left:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise OSError(f"silent for {self.timeout_s:g} s")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise OSError("it ended")
            self._left += piece
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _up(self) -> subprocess.Popen[bytes]:
        """The worker, started if it is not there; one that died unasked is replaced without a word."""
        if self.process is not None and self.up:
            return self.process
        if self.process is not None:
            self.deaths += 1
            self._end()
        self._said, self._left = tempfile.TemporaryFile(), b""  # noqa: SIM115 - lives as long as the worker
        root = str(Path(kintsugi.__file__).parents[1])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kintsugi.sandboxes.environments.alfworld_worker", self.engine, self.cache],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # the terminal's Ctrl-C is the caller's to handle
        )
        return self.process

    def _end(self) -> str:
        """Kill and reap the worker; its last words, if any."""
        process, self.process = self.process, None
        if process is None:
            return ""
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet written has no reader any more
                    pipe.close()
        self._said.seek(0)
        said = self._said.read()[-1000:].decode("utf-8", "replace").strip()
        self._said.close()
        return f"; it said: {said}" if said else ""

    def close(self) -> None:
        if self.process is not None and self.up:
            self.process.kill()  # a thread that waits for it is set free
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        self._end()

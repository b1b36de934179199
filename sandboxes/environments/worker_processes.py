"""A process that answers JSON lines: started when first asked, killed when it falls silent, replaced at the next request.

    process = WorkerProcess("kintsugi.sandboxes.environments.alfworld_worker", ["lean", ""], timeout_s=60)
    answer = await process.ask({"op": "act", …})
    process.close()                                       # no process and no thread is left; a later `ask` starts anew

For environments whose code blocks, leaks, dies or hangs. What a worker started ends with it, however it ends. Each process
has one thread here, which waits for its answers, so it may be used from one event loop after another. Only the request under
way when it dies fails (`WorkerDied`); those behind it go to its successor, which has forgotten everything. `timeout_s` runs
from when a request is sent to a worker that is up; to start it has `START_S`.

The other side is `serve(answer)`: it says that it is up, then a line in, a line out, until the input ends; what the code
under it prints goes to standard error. What it answers is text that can be stored: lone surrogates become `?`. Left out:
what requests mean, and bounding the memory of the process.
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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import kintsugi
from kintsugi import errors
from kintsugi.sandboxes.environments.marked_processes import VARIABLE, end_marked, new_mark
from kintsugi.sandboxes.turn_clock import Place

LAST_WORDS: Final = 220
"""Most characters of a dead worker's standard error that are told: the error stands at its end."""
START_S: Final = 120.0
"""Longest wait for a new worker, whose imports may take long on a busy machine."""


class WorkerDied(RuntimeError):
    """The worker ended or fell silent while it did a request."""


class WorkerProcess:
    """One worker at a time, and the thread that talks to it. module, arguments: what `python -m` runs. deaths: workers
    that had to be replaced so far. settings: more of its environment's variables."""

    def __init__(
        self, module: str, arguments: Sequence[str], timeout_s: float, settings: Mapping[str, str] | None = None
    ) -> None:
        self.module, self.arguments, self.timeout_s = module, list(arguments), timeout_s
        self.settings = dict(settings or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0
        self._threads: ThreadPoolExecutor | None = None
        self._said: Any = None
        self._left = b""
        self._mark: dict[str, str] = {}

    @property
    def up(self) -> bool:
        """Whether it runs. One that ended is not reaped by asking: until `_end` its process group keeps its number."""
        if self.process is None or self.process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # reaped by someone else
            return False

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer. Raises WorkerDied, and the KintsugiError that the worker refused with."""
        place = Place()
        try:
            asked = asyncio.get_running_loop().run_in_executor(self._thread(), self._ask, dict(request), place.served)
            return refused(await asked)
        finally:
            place.served()

    def ask_blocking(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """`ask` where there is no event loop, or where it may wait (loading tasks)."""
        return refused(self._thread().submit(self._ask, dict(request)).result())

    def close(self) -> None:
        """End the process and the thread and wait for them; harmless twice."""
        if self.process is not None and self.up:
            self.process.kill()  # a thread that waits for it is set free
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        self._end()

    def _thread(self) -> ThreadPoolExecutor:
        if self._threads is None:
            name = self.module.rpartition(".")[2].removesuffix("_worker")
            self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        return self._threads

    def _ask(self, request: dict[str, Any], served: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Send one request and wait for its answer (in this worker's thread). served: called when the worker is up."""
        try:
            process = self._up()
            served()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            return json.loads(self._line(process.stdout.fileno(), self.timeout_s))
        except (OSError, ValueError) as error:
            self.deaths += 1
            words = self._end()
            name = self.module.rpartition(".")[2]
            raise WorkerDied(f"the process of {name} gave no answer: {error}{words}") from None

    def _line(self, descriptor: int, patience_s: float) -> bytes:
        deadline = time.monotonic() + patience_s
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while b"\n" not in self._left:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise OSError(f"silent for {patience_s:g} s")
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
        self._mark = new_mark()
        root = str(Path(kintsugi.__file__).parents[1])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        pythonpath = os.pathsep.join(dict.fromkeys(paths))
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": pythonpath, "OMP_NUM_THREADS": "1", **self.settings, **self._mark},
            start_new_session=True,  # the terminal's Ctrl-C is the caller's to handle, and what it starts is found by it
        )
        assert self.process.stdout is not None
        self._line(self.process.stdout.fileno(), START_S)
        return self.process

    def _end(self) -> str:
        """Kill and reap the worker, and whatever it started; its last words, if any."""
        process, self.process = self.process, None
        if process is None:
            return ""
        end_marked(self._mark, {process.pid} if process.returncode is None else ())  # before its number is free again
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet written has no reader any more
                    pipe.close()
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - 4_000))
        said = " ".join(self._said.read().decode("utf-8", "replace").replace("\0", "?").split())
        self._said.close()
        if not said:
            return ""
        return f"; it said: {said if len(said) <= LAST_WORDS else '…' + said[-LAST_WORDS:]}"


def refused(answer: dict[str, Any]) -> dict[str, Any]:
    """`answer`, or the KintsugiError that it tells of: `{"refused": sentence, "kind": class}`."""
    if "refused" in answer:
        raise getattr(errors, answer["kind"], errors.DataError)(answer["refused"])
    return answer


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer each line of standard input with a line, until it ends; then end what this process started. A KintsugiError
    becomes a refusal; another exception ends the process, with its traceback on standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not come between the answers
    out.write(b"{}\n")
    out.flush()
    for line in sys.stdin.buffer:
        try:
            said = answer(json.loads(line))
        except errors.KintsugiError as error:
            said = {"refused": str(error), "kind": type(error).__name__}
        out.write(json.dumps(said, ensure_ascii=False).encode(errors="replace") + b"\n")
        out.flush()
    if VARIABLE in os.environ:  # the asker is gone without a word
        end_marked({VARIABLE: os.environ[VARIABLE]})

"""The launcher's side that every backend shares: a line to a worker, and the pool that serves callers with workers.

    class MyWorker(WorkerLine): ...            # how bytes reach one worker, how it is killed and cleaned up after
    class MySandbox(WorkerPool):
        def _start(self) -> WorkerLine: ...

Each slot is a thread here and a worker (`worker.py`) elsewhere. Callers queue in the order in which they came. A worker
that dies or hangs is replaced and its program is run once more; if that fails too the status is `sandbox_failed`.

Leaves out: starting workers and isolating programs, which are the backend's (`local_sandbox.py`, `docker_sandbox.py`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import queue
import threading
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, Self, TypeVar

from kintsugi.errors import ConfigError, SandboxError
from kintsugi.sandboxes.sandbox import (
    GUARANTEES,
    Limits,
    RunResult,
    SandboxStats,
    TestFailure,
    TestResult,
    check_arguments,
)
from kintsugi.sandboxes.turn_clock import Place

START_S = 60.0  # for a worker to say hello
SLOW_MACHINE = 3.0  # the worker's own patience, see watching.SLOW_MACHINE
GRACE_S = 60.0  # beyond that: kill, sweep and wipe; a worker still silent then has hung
LARGEST_ANSWER = 1 << 28
TWO_PROCESSES = "two processes"
_CLOSED = "sandbox: expected an open one, found it closed; open another"

_warned: set[tuple[str, frozenset[str]]] = set()
Answer = TypeVar("Answer")


def num_cores() -> int:
    """Cores that this process may use: as many programs run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _names_a_file(name: str) -> bool:
    """Whether it can be the path of a file inside a folder at all."""
    path = PurePosixPath(name)
    try:
        parts = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return False
    short = all(len(part) < 256 for part in parts) and len(name) < 1024
    return bool(parts) and short and name[-1] != "/" and not path.is_absolute() and b".." not in parts and "\0" not in name


class WorkerFailed(Exception):
    """The worker gave no answer."""


class WorkerLine(ABC):
    """The launcher's end of one worker. `hello` is what it said first: its rung and its guarantees."""

    name: str
    hello: dict[str, Any]

    @abstractmethod
    def _send(self, content: bytes, patience_s: float) -> None:
        """All of `content`; OSError when it cannot."""

    @abstractmethod
    def _receive(self, count: int, patience_s: float) -> bytes:
        """Between 1 and `count` bytes; OSError at the end or after `patience_s`."""

    @abstractmethod
    def last_words(self) -> str:
        """What the worker complained about."""

    @abstractmethod
    def close(self) -> None:
        """Let it clean up and go, or after two seconds, or when it is dead already, clean up in its place."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once; `close` follows."""

    def begin(self, *frames: dict[str, Any]) -> None:
        """Send the settings, and what must go before them, and hear the hello."""
        self.hello = self.ask(frames, START_S)

    def ask(self, frames: Sequence[dict[str, Any]], patience_s: float) -> dict[str, Any]:
        """Send `frames`, hear one answer; or WorkerFailed."""
        bodies = [json.dumps(frame).encode() for frame in frames]
        try:
            self._send(b"".join(len(body).to_bytes(4, "big") + body for body in bodies), patience_s)
            length = int.from_bytes(self._exactly(4, patience_s), "big")
            if length > LARGEST_ANSWER:
                raise WorkerFailed(f"{self.name} announced an answer of {length} bytes")
            return json.loads(self._exactly(length, patience_s))
        except (OSError, ValueError) as error:
            said = self.last_words()
            raise WorkerFailed(f"{self.name} gave no answer: {error}" + (f"; it said: {said}" if said else "")) from error

    def _exactly(self, count: int, patience_s: float) -> bytes:
        parts: list[bytes] = []
        while count:
            part = self._receive(min(count, 1 << 20), patience_s)
            if not part:
                raise OSError("it closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class WorkerPool(ABC):
    """Implements `Sandbox` over `num_workers` slots. A subclass gives `kind`, `_start` and, if need be, `_released`."""

    kind: str

    def __init__(self, *, workers: int, limits: Limits, allow_unsafe: bool) -> None:
        self.limits, self.num_workers = limits, workers
        self._process, self._closed = os.getpid(), False
        self._lock = threading.Lock()
        self._by_status: Counter[str] = Counter()
        self._replaced = self._retried = self._serial = 0
        self._idle: queue.SimpleQueue[WorkerLine | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        try:
            first = self._start()
            self.rung: str = first.hello["rung"]
            self._guarantees = frozenset(first.hello["guarantees"])
            self._idle.put(first)
            self._accept(allow_unsafe)
        except WorkerFailed as error:
            self.close()
            raise SandboxError(
                f"{self.kind} sandbox: expected a worker to start, found: {error}; mend what it names or use another kind"
            ) from error
        except BaseException:
            self.close()
            raise
        for _ in range(workers - 1):
            self._idle.put(None)  # started when first needed

    @abstractmethod
    def _start(self) -> WorkerLine:
        """A worker that has said hello; WorkerFailed or OSError when none starts."""

    def _released(self) -> object:
        """All workers are closed: remove what else there is."""
        return None

    def _accept(self, allow_unsafe: bool) -> None:
        missing = frozenset(GUARANTEES) - self._guarantees
        if "host_writes" in missing and not allow_unsafe:
            raise SandboxError(
                f"{self.kind} sandbox: expected Landlock and seccomp (Linux 5.13 or later, x86-64 or arm64), found none; "
                "use kind='docker', or allow_unsafe=True if you trust every program: it could read and write your files"
            )
        if missing and (self.kind, missing) not in _warned:
            _warned.add((self.kind, missing))
            lines = "; ".join(f"{name} ({GUARANTEES[name]})" for name in sorted(missing))
            warnings.warn(f"{self.kind} sandbox ({self.rung}) does not guarantee: {lines}", RuntimeWarning, stacklevel=5)

    @property
    def guarantees(self) -> frozenset[str]:
        return self._guarantees

    @property
    def backend(self) -> str:
        """What `RunResult.backend` says, such as `local/landlock+seccomp`."""
        return f"{self.kind}/{self.rung}"

    # Running ----------------------------------------------------------------------------------------------------------

    def run(
        self,
        code: str,
        *,
        stdin: str = "",
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits | None = None,
    ) -> RunResult:
        """See `Sandbox.run`."""
        return self._submit(self._run, [self._checked(code, stdin, files, limits)]).result()[0]

    async def arun(
        self,
        code: str,
        *,
        stdin: str = "",
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits | None = None,
    ) -> RunResult:
        """See `Sandbox.arun`. A caller that is cancelled while it queues never runs."""
        frames = [self._checked(code, stdin, files, limits)]
        return (await self._in_line(lambda place: self._submit(self._run, frames, place)))[0]

    def run_many(self, programs: Iterable[str], *, stdin: str = "", limits: Limits | None = None) -> list[RunResult]:
        """See `Sandbox.run_many`."""
        if isinstance(programs, (str, bytes)):
            raise ConfigError("programs: expected a list of programs, found one; write [program], or call run")
        futures = [self._submit(self._run, [self._checked(code, stdin, None, limits)]) for code in programs]
        return [future.result()[0] for future in futures]

    def run_tests(self, code: str, tests: Sequence[str], *, setup: str = "", limits: Limits | None = None) -> TestResult:
        """See `Sandbox.run_tests`."""
        return self._tests(code, tests, setup, limits).result()

    async def arun_tests(
        self, code: str, tests: Sequence[str], *, setup: str = "", limits: Limits | None = None
    ) -> TestResult:
        """See `Sandbox.arun_tests`."""
        return await self._in_line(lambda place: self._tests(code, tests, setup, limits, place))

    async def _in_line(self, submitted: Callable[[Place], Future[Answer]]) -> Answer:
        """What is submitted with a place in the line, in which the caller's clock stands still."""
        place = Place()
        try:
            return await asyncio.wrap_future(submitted(place))
        finally:
            place.served()

    def _tests(
        self, code: str, tests: Sequence[str], setup: str, limits: Limits | None, place: Place | None = None
    ) -> Future[TestResult]:
        check_arguments(setup=setup, tests=tests)
        request = self._checked(code, "", None, limits) | {"setup": setup, "judge": True}
        return self._submit(self._judged, [request, {"setup": setup, "tests": list(tests)}], place)

    def _judged(self, frames: list[dict[str, Any]]) -> TestResult:
        """In two processes; in one where the judge says that these tests need it."""
        tests = frames[1]["tests"]
        run, lines = self._run(frames, count=False)
        alone = next((str(line[1]) for line in lines if len(line) == 2 and line[0] == "alone"), "")
        if alone:
            run, lines = self._run([frames[0] | {"judge": False, "tests": tests}], count=False)
        self._count(run.status)
        errors = {line[0]: line[1] for line in lines if len(line) == 2 and isinstance(line[0], int)}
        if run.status == "timeout" and len(errors) == len(tests) > 0:
            errors[len(tests) - 1] = "timeout"  # over the limit at the end, which no look has seen: that is luck
        last = run.stderr.strip().rpartition("\n")[2] if run.status == "error" else ""
        unreached = f"not reached: {last or ('the program exited' if run.status == 'ok' else run.status)}"
        failures = tuple(
            TestFailure(index=index, test=test, error=str(errors.get(index, unreached)))
            for index, test in enumerate(tests)
            if errors.get(index, unreached) is not None
        )
        passed = len(tests) - len(failures)
        judging = f"one process: {alone}" if alone else TWO_PROCESSES
        return TestResult(passed=passed, total=len(tests), failures=failures, run=run, judging=judging)

    def _checked(
        self, code: str, stdin: str, files: Mapping[str, str | bytes] | None, limits: Limits | None
    ) -> dict[str, Any]:
        check_arguments(code=code, stdin=stdin, files=files, limits=limits)
        return self._request(code, stdin, files, limits)

    def _request(
        self, code: str, stdin: str, files: Mapping[str, str | bytes] | None, limits: Limits | None
    ) -> dict[str, Any]:
        content: dict[str, str] = {}
        size = 0
        for name, text in (files or {}).items():
            if not _names_a_file(name):
                raise ConfigError(
                    f"files: expected a path inside the program's folder, found {name[:300]!r}; make it relative, without .."
                )
            written = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
            content[name] = base64.b64encode(written).decode()
            size += len(written)
        folders = {str(parent) for name in content for parent in PurePosixPath(name).parents}
        if both := next((name for name in content if str(PurePosixPath(name)) in folders), None):
            raise ConfigError(f"files: expected files, found {both!r} as the folder of another; rename one")
        for what, large in (("files", size), ("stdin", len(stdin.encode("utf-8", "surrogatepass")))):
            if large > (most := (limits or self.limits).files_mb) << 20:
                raise ConfigError(
                    f"{what}: expected at most the {most} MiB of Limits.files_mb, found {large / (1 << 20):.1f} MiB; give "
                    "less or raise it"
                )
        return {
            "code": code,
            "stdin": stdin,
            "files": content,
            "limits": asdict(limits or self.limits),
            "tests": None,
            "setup": "",
            "judge": False,
        }

    def _submit(
        self, job: Callable[[list[dict[str, Any]]], Answer], frames: list[dict[str, Any]], place: Place | None = None
    ) -> Future[Answer]:
        if os.getpid() != self._process and not self._closed:
            raise SandboxError(f"sandbox: opened in process {self._process}, used in its fork {os.getpid()}; open one here")

        def unless_closed() -> Answer:  # asked again when its turn comes: it may have queued while the sandbox was closed
            if place is not None:
                place.served()
            self._refuse_if_closed()
            return job(frames)

        self._refuse_if_closed()
        try:
            return self._threads.submit(unless_closed)
        except RuntimeError as error:  # closed since we looked, or the interpreter is at its end
            raise SandboxError(_CLOSED) from error

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise SandboxError(_CLOSED)

    def _run(self, frames: list[dict[str, Any]], count: bool = True) -> tuple[RunResult, list[list[Any]]]:
        """One program, in a slot's thread: twice when the first worker fails."""
        reasons: list[str] = []
        worker, answer = self._idle.get(), None
        try:
            for attempt in range(2):  # the second one with a fresh worker: what killed one may have killed all
                if attempt:
                    with self._lock:
                        self._retried += 1
                try:
                    worker = worker or self._start()
                    answer = worker.ask(frames, SLOW_MACHINE * frames[0]["limits"]["wall_s"] + GRACE_S)
                    for stream in ("stdout", "stderr"):
                        answer[stream] = base64.b64decode(answer[stream]).decode("utf-8", "replace")
                    broke = next((line[1] for line in answer["tests"] if len(line) == 2 and line[0] == "broke"), "")
                    if len(frames) > 1 and broke:
                        raise WorkerFailed(f"the judge broke: {broke}")
                    if answer["status"] != "sandbox_failed":
                        if answer.pop("unclean") or (len(frames) > 1 and ["heard"] not in answer["tests"]):
                            self._retire(worker)  # its next request would begin in the middle of these tests
                            worker = None
                        break
                    raise WorkerFailed(f"the program was not started: {answer['stderr'][-2000:]}")
                except (WorkerFailed, OSError) as error:
                    reasons.append(str(error))
                    self._retire(worker)
                    worker = answer = None
        finally:
            self._idle.put(worker)
        lines: list[list[Any]] = []
        if answer is None:
            result = RunResult(status="sandbox_failed", stderr="\n".join(reasons), backend=self.backend)
        else:
            lines = answer.pop("tests")
            result = RunResult(**answer, backend=self.backend)
        if count:
            self._count(result.status)
        return result, lines

    def _retire(self, worker: WorkerLine | None) -> None:
        with self._lock:
            self._replaced += 1
        if worker is not None:
            worker.kill()
            worker.close()

    def _count(self, status: str) -> None:
        with self._lock:
            self._by_status[status] += 1

    def stats(self) -> SandboxStats:
        """See `Sandbox.stats`."""
        with self._lock:
            counts = dict(self._by_status)
            return SandboxStats(runs=sum(counts.values()), by_status=counts, replaced=self._replaced, retried=self._retried)

    # Ending -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Finish what runs, refuse what queues, stop every worker, remove every file."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._threads.shutdown(wait=True)  # what queues is refused by itself, see `_submit`
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.close()
        self._released()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

"""The local backend: a pool of warm worker processes on this machine.

    with LocalSandbox(workers=2) as sandbox:
        sandbox.run("print(1)").stdout            # "1\\n"
        sandbox.guarantees                        # what holds on this machine

Each slot is a thread here and a worker process (`worker.py`) there, started with exec and never by a fork of the
caller, so that a caller with torch and its threads loaded is safe. Callers queue in the order in which they came. A
worker that dies or hangs is replaced and its program is run once more; if that fails too the status is
`sandbox_failed`.

Leaves out: namespaces (so the names and sizes of host files can be seen, though not their content), a hard bound on
memory summed over many processes (looked at every 20 to 100 ms), packages beyond the standard library, systems
without Linux's /proc, and reaping for a caller that is process 1.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

from kintsugi.errors import SandboxError
from kintsugi.sandboxes.sandbox import GUARANTEES, Limits, RunResult, SandboxStats, TestFailure, TestResult

START_S = 20.0  # for a worker to say hello
SLOW_MACHINE = 3.0  # the worker's own patience, see watching.SLOW_MACHINE
GRACE_S = 60.0  # beyond that: kill, sweep and wipe; a worker still silent then has hung
LARGEST_ANSWER = 1 << 28

_warned: set[frozenset[str]] = set()
Answer = TypeVar("Answer")


def unavailable() -> str | None:
    """None where this backend can run."""
    if sys.platform != "linux" or not os.path.isdir("/proc/self"):
        return "the local sandbox needs Linux with /proc"
    return None


def open_backend(
    *, workers: int | None, limits: Limits, image: str | None, allow_unsafe: bool, packages: Mapping[str, str] | None = None
) -> LocalSandbox:
    """See `open_sandbox`. There is no image here: programs run on the caller's own Python."""
    return LocalSandbox(workers=workers, limits=limits, allow_unsafe=allow_unsafe, packages=packages)


class WorkerFailed(Exception):
    """The worker gave no answer."""


class LocalWorker:
    """The launcher's end of one worker process."""

    def __init__(self, folder: Path, confinement: str, packages: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(mode=0o711)
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        try:
            script = str(Path(__file__).with_name("worker.py"))
            python = getattr(sys, "_base_executable", None) or sys.executable
            self.process = subprocess.Popen(
                [python, "-I", "-S", "-B", "-X", "utf8", script, str(folder), confinement, json.dumps(packages or {})],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                cwd="/",
                # One arena: each thread's own would eat 64 MB of a program's address space.
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
                start_new_session=True,  # the terminal's Ctrl-C is the caller's to handle
            )
        except BaseException:
            ours.close()
            self._errors.close()
            raise
        finally:
            theirs.close()
        try:
            self.hello = self._receive(START_S)
        except BaseException:
            self.close()
            raise

    def ask(self, request: dict[str, Any], patience_s: float) -> dict[str, Any]:
        """The answer, or WorkerFailed."""
        body = json.dumps(request).encode()
        try:
            self._socket.settimeout(patience_s)
            self._socket.sendall(len(body).to_bytes(4, "big") + body)
        except OSError as error:
            raise WorkerFailed(self._last_words(f"worker {self.process.pid} took no request: {error}")) from error
        return self._receive(patience_s)

    def _receive(self, patience_s: float) -> dict[str, Any]:
        try:
            self._socket.settimeout(patience_s)
            length = int.from_bytes(self._exactly(4), "big")
            if length > LARGEST_ANSWER:
                raise WorkerFailed(f"worker {self.process.pid} announced an answer of {length} bytes")
            return json.loads(self._exactly(length))
        except (OSError, ValueError) as error:
            raise WorkerFailed(self._last_words(f"worker {self.process.pid} gave no answer: {error}")) from error

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            part = self._socket.recv(min(count, 1 << 20))
            if not part:
                raise OSError("it closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _last_words(self, what: str) -> str:
        self._errors.seek(0)
        said = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
        return f"{what}; it said: {said}" if said else what

    def close(self) -> None:
        """Let it clean up and go; after two seconds, or when it is dead already, clean up in its place."""
        self._socket.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()
        _kill_orphans(str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)


def _kill_orphans(folder: str) -> None:
    """Kill what a dead worker left: forks of it carry its command line, in which `folder` is unique."""
    for _ in range(20):
        found = False
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if folder.encode() not in file.read().split(b"\0"):
                        continue
                os.kill(int(name), signal.SIGKILL)
                found = True
                os.waitpid(int(name), os.WNOHANG)  # ours only when this process is process 1 or a subreaper
            except OSError:
                continue
        if not found:
            return


class LocalSandbox:
    """The pool. `workers`: programs at once, default one a core. `confinement`: auto or one of `confinement.RUNGS`.

    Raises SandboxError when the machine allows no isolation (the rung `rlimits`) and `allow_unsafe` is not set.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        allow_unsafe: bool = False,
        confinement: str = "auto",
        packages: Mapping[str, str] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.num_workers = workers or len(os.sched_getaffinity(0))
        self._process, self._closed = os.getpid(), False
        self._lock = threading.Lock()
        self._by_status: Counter[str] = Counter()
        self._replaced = self._retried = self._serial = 0
        self._folder = Path(
            tempfile.mkdtemp(prefix="kintsugi-sandbox-", dir=_room(self.num_workers * self.limits.files_mb))
        )
        self._folder.chmod(0o711)  # a program of another uid must reach its own folder
        self._remove = weakref.finalize(self, _remove, self._folder, os.getpid())
        self._idle: queue.SimpleQueue[LocalWorker | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="sandbox")
        self._confinement = confinement
        self._packages = packages
        try:
            first = self._start()
            self.rung: str = first.hello["rung"]
            self._guarantees = frozenset(first.hello["guarantees"])
            self._idle.put(first)
            self._accept(allow_unsafe)
        except WorkerFailed as error:
            self.close()
            raise SandboxError(
                f"local sandbox: expected a worker to start, found: {error}; mend what it names or use another kind"
            ) from error
        except BaseException:
            self.close()
            raise
        self._confinement = self.rung  # a replacement must not be weaker than what was promised
        for _ in range(self.num_workers - 1):
            self._idle.put(None)  # started when first needed

    def _accept(self, allow_unsafe: bool) -> None:
        missing = frozenset(GUARANTEES) - self._guarantees
        if "host_writes" in missing and not allow_unsafe:
            raise SandboxError(
                "local sandbox: expected Landlock and seccomp (Linux 5.13 or later, x86-64 or arm64), found none; use "
                "kind='docker', or allow_unsafe=True if you trust every program: it could read and write your files"
            )
        if missing and missing not in _warned:
            _warned.add(missing)
            lines = "; ".join(f"{name} ({GUARANTEES[name]})" for name in sorted(missing))
            warnings.warn(f"local sandbox ({self.rung}) does not guarantee: {lines}", RuntimeWarning, stacklevel=4)

    @property
    def guarantees(self) -> frozenset[str]:
        return self._guarantees

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
        return self._submit(self._run, self._request(code, stdin, files, limits)).result()[0]

    async def arun(
        self,
        code: str,
        *,
        stdin: str = "",
        files: Mapping[str, str | bytes] | None = None,
        limits: Limits | None = None,
    ) -> RunResult:
        """See `Sandbox.arun`. A caller that is cancelled while it queues never runs."""
        future = self._submit(self._run, self._request(code, stdin, files, limits))
        return (await asyncio.wrap_future(future))[0]

    def run_many(self, programs: Iterable[str], *, stdin: str = "", limits: Limits | None = None) -> list[RunResult]:
        """See `Sandbox.run_many`."""
        futures = [self._submit(self._run, self._request(code, stdin, None, limits)) for code in programs]
        return [future.result()[0] for future in futures]

    def run_tests(
        self, code: str, tests: Sequence[str], *, setup: str = "", limits: Limits | None = None
    ) -> TestResult:
        """Run `setup`, `code`, then each test, all in one process and one namespace.

        A test counts only when its own line arrives on a channel that neither standard output nor exiting early can
        imitate. Does not yet guard against a candidate that knows this file: it shares a process with the tests, so
        it can read them, patch what they call, return objects that equal everything, or look for the channel's secret
        in its own memory.
        """
        request = self._request(code, "", None, limits) | {"tests": list(tests), "setup": setup}
        run, lines = self._submit(self._run, request).result()
        errors = {line[0]: line[1] for line in lines if len(line) == 2 and isinstance(line[0], int)}
        last = run.stderr.strip().rpartition("\n")[2] if run.status == "error" else ""
        unreached = f"not reached: {last or ('the program exited' if run.status == 'ok' else run.status)}"
        failures = tuple(
            TestFailure(index=index, test=test, error=str(errors.get(index, unreached)))
            for index, test in enumerate(tests)
            if errors.get(index, unreached) is not None
        )
        return TestResult(passed=len(tests) - len(failures), total=len(tests), failures=failures, run=run)

    def _request(
        self, code: str, stdin: str, files: Mapping[str, str | bytes] | None, limits: Limits | None
    ) -> dict[str, Any]:
        content: dict[str, str] = {}
        for name, text in (files or {}).items():
            path = PurePosixPath(name)
            if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
                raise SandboxError(
                    f"files: expected a path inside the program's folder, found {name!r}; make it relative, without .."
                )
            content[name] = base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
        return {
            "code": code,
            "stdin": stdin,
            "files": content,
            "limits": asdict(limits or self.limits),
            "tests": None,
            "setup": "",
        }

    def _submit(self, job: Callable[[dict[str, Any]], Answer], request: dict[str, Any]) -> Future[Answer]:
        if self._closed:
            raise SandboxError("sandbox: expected an open one, found it closed; open another")
        if os.getpid() != self._process:
            raise SandboxError(
                f"sandbox: opened in process {self._process}, used in its fork {os.getpid()}; open one here"
            )
        return self._threads.submit(job, request)

    def _run(self, request: dict[str, Any]) -> tuple[RunResult, list[list[Any]]]:
        """One program, in a slot's thread: twice when the first worker fails."""
        reasons: list[str] = []
        for attempt in range(2):
            if attempt:
                with self._lock:
                    self._retried += 1
            worker = self._idle.get()
            try:
                worker = worker or self._start()
                answer = worker.ask(request, SLOW_MACHINE * request["limits"]["wall_s"] + GRACE_S)
                if answer["status"] == "sandbox_failed":
                    raise WorkerFailed(f"the program was not started: {answer['stderr'][-2000:]}")
            except (WorkerFailed, OSError) as error:
                reasons.append(str(error))
                self._retire(worker)
                worker = None
                continue
            finally:
                self._idle.put(worker)
            lines = answer.pop("tests")
            result = RunResult(**answer, backend=f"local/{self.rung}")
            self._count(result.status)
            return result, lines
        self._count("sandbox_failed")
        return RunResult(status="sandbox_failed", stderr="\n".join(reasons), backend=f"local/{self.rung}"), []

    def _start(self) -> LocalWorker:
        with self._lock:
            self._serial += 1
            serial = self._serial
        return LocalWorker(self._folder / f"worker-{serial}", self._confinement, self._packages)

    def _retire(self, worker: LocalWorker | None) -> None:
        with self._lock:
            self._replaced += 1
        if worker is not None:
            worker.process.kill()
            worker.close()

    def _count(self, status: str) -> None:
        with self._lock:
            self._by_status[status] += 1

    def stats(self) -> SandboxStats:
        """See `Sandbox.stats`."""
        with self._lock:
            counts = dict(self._by_status)
            return SandboxStats(
                runs=sum(counts.values()), by_status=counts, replaced=self._replaced, retried=self._retried
            )

    # Ending -----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Finish what runs, refuse what queues, stop every worker, remove every file."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            worker = self._idle.get()
            if worker is not None:
                worker.close()
        self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _room(needed_mb: float) -> str | None:
    """Shared memory when it is roomy, since a folder made and removed per program costs a disk ten times as much."""
    if "TMPDIR" in os.environ or not os.access("/dev/shm", os.W_OK | os.X_OK):
        return None
    free = os.statvfs("/dev/shm")
    return "/dev/shm" if free.f_bavail * free.f_frsize > 4 * needed_mb * (1 << 20) else None


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not at the end of a fork of the caller
        shutil.rmtree(folder, ignore_errors=True)

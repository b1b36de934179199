"""The worker: one warm interpreter that forks once per program, on this machine or in a container.

    python -I -S worker.py FOLDER RUNG [PACKAGES]     RUNG: auto, or one of confinement.RUNGS

PACKAGES is a JSON object of module names and the folders that they are imported from, before any program runs.

Frames on standard input and output: four bytes of length (big-endian), then JSON. First the worker says `{"rung",
"guarantees"}`; then each request `{"code", "stdin", "files", "limits", "tests", "setup"}` gets one answer
`{"status", "exit_code", "signal", "stdout", "stderr", "truncated", "wall_s", "cpu_s", "peak_memory_mb", "tests"}`.
End of input ends it. A worker that cannot vouch for its own state any more leaves with exit code 3: replace it.

Standard library only; only `confinement.py` and `watching.py` travel with it. After each program it kills and reaps
everything left (it is the subreaper of its descendants) and empties FOLDER. Leaves out: choosing, replacing and
retrying, which are the launcher's.
"""

from __future__ import annotations

import base64
import builtins
import ctypes  # noqa: F401 - loaded once, so that programs find it warm
import gc
import importlib
import json
import linecache
import os
import resource
import select
import signal
import stat
import sys
import time
import traceback
import types
from typing import Any, NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import confinement as confine
from watching import Place, Watch, descendants, empty

sys.path.pop(0)


class Unclean(Exception):
    """The worker could not clean up after a program and must be replaced."""


def reachable_library() -> None:
    """Let a child of another uid import: open the library's folders now where their parents are closed to others.

    A path through /proc/self/fd starts at the open folder, so no parent is asked. (pyenv below /root is the common
    case.)
    """
    for index, folder in enumerate(sys.path):
        parents = [folder]
        while parents[-1] != "/":
            parents.append(os.path.dirname(parents[-1]))
        if os.path.isdir(folder) and not all(os.stat(parent).st_mode & stat.S_IXOTH for parent in parents):
            descriptor = os.open(folder, os.O_PATH)
            sys.path[index] = f"/proc/self/fd/{descriptor}"


def warm_up(packages: dict[str, str]) -> None:
    """Import what small programs import most, and `packages` (name: folder), so that a fork already has them."""
    names = "bisect collections copy datetime functools heapq itertools math operator random re string typing"
    for name in names.split():
        importlib.import_module(name)
    for name, folder in packages.items():
        sys.path.append(folder)  # for now only: what programs can import is what is imported here
        importlib.import_module(name)
        sys.path.remove(folder)


# Frames ---------------------------------------------------------------------------------------------------------------


def read_frame(descriptor: int) -> dict[str, Any] | None:
    """The next frame, or None at the end of input."""
    header = _read_exactly(descriptor, 4)
    body = _read_exactly(descriptor, int.from_bytes(header, "big")) if len(header) == 4 else b""
    return json.loads(body) if body else None


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_frame(descriptor: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    view = memoryview(len(body).to_bytes(4, "big") + body)
    while view:
        view = view[os.write(descriptor, view) :]


# The child: what runs in the fork -------------------------------------------------------------------------------------


class Child:
    """The program's side of the fork. Ends by `os._exit`, which spares the interpreter's long goodbye."""

    def __init__(self, request: dict[str, Any], report: int, nonce: bytes) -> None:
        self.request, self.report, self.nonce = request, report, nonce
        self.ballast: bytearray | None = bytearray(2 << 20)  # let go of when memory runs out: a traceback needs some

    def say(self, message: list[Any]) -> None:
        """One line for the worker; the nonce tells it from what a program might write to the same descriptor."""
        os.write(self.report, self.nonce + json.dumps(message).encode() + b"\n")

    def main(self) -> NoReturn:
        code = 1
        try:
            code = self.execute()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
            if not isinstance(exit_.code, int | None):
                print(exit_.code, file=sys.stderr)
        except BaseException as error:  # KeyboardInterrupt too is the program's own
            self.show(error)
        try:
            code = self.goodbye(code & 0xFF)
        finally:
            os._exit(code & 0xFF)

    def execute(self) -> int:
        request = self.request
        for name, content in request["files"].items():
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "wb") as file:
                file.write(base64.b64decode(content))
        module = types.ModuleType("__main__")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        sys.argv, sys.path[:0] = ["program.py"], [""]
        tests: list[str] | None = request["tests"]
        if tests is None:
            os.close(self.report)
        elif request["setup"]:
            exec(compiled(request["setup"], "setup.py"), module.__dict__)
        exec(compiled(request["code"], "program.py"), module.__dict__)
        for index, test in enumerate(tests or ()):
            error = None
            try:
                exec(compiled(test, f"test_{index}.py"), module.__dict__)
            except BaseException as caught:  # exiting is a failure of the test
                error = "".join(traceback.format_exception_only(caught)).strip()[-2000:]
            self.say([index, error])
        return 0

    def show(self, error: BaseException) -> None:
        """The traceback, as an interpreter would print it: without this file's frames."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        if isinstance(error, MemoryError):
            self.ballast = None
            traceback.clear_frames(trace)
        if sys.excepthook is not sys.__excepthook__:
            sys.excepthook(type(error), error, trace)
        else:
            traceback.print_exception(type(error), error, trace)

    def goodbye(self, code: int) -> int:
        """What an interpreter owes a program at its end: wait for its threads, run its exit functions, flush."""
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        import atexit

        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                code = code or 120
        return code


def compiled(source: str, name: str) -> types.CodeType:
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return compile(source, name, "exec", dont_inherit=True)


# The worker -----------------------------------------------------------------------------------------------------------


class Worker:
    """Runs one program after the other. `folder` is its own; a program's is `folder/run`."""

    def __init__(self, folder: str, rung: str) -> None:
        self.folder, self.run_folder = folder, os.path.join(folder, "run")
        self.input, self.output = os.dup(0), os.dup(1)
        self.null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(self.null, standard)
        os.makedirs(self.run_folder, exist_ok=True)
        self.first_descriptor = 3
        for path in (path for path in sys.path if path.startswith("/proc/self/fd/")):
            self.first_descriptor = max(self.first_descriptor, int(path.rpartition("/")[2]) + 1)
        self.confinement = confine.strongest(rung, folder)
        with open("/proc/self/statm") as file:
            mapped, resident = (int(word) * resource.getpagesize() for word in file.read().split()[:2])
        self.own_bytes = mapped  # what an empty program already maps
        self.place = Place(folder, self.input, resident)
        self.other_processes = 0 if self.confinement.uid is not None else self._processes_of_uid()
        os.rmdir(self.run_folder)

    def _processes_of_uid(self) -> int:
        """Threads that this uid has already: RLIMIT_NPROC counts them too. The watch below counts exactly."""
        found = 0
        for name in os.listdir("/proc"):
            try:
                if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                    found += len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue
        return found + 48  # room for what else the user starts meanwhile

    def serve(self) -> None:
        confinement = self.confinement
        write_frame(self.output, {"rung": confinement.rung, "guarantees": confinement.guarantees})
        parent, poll = os.getppid(), select.poll()
        poll.register(self.input, select.POLLIN)
        while True:
            # A fork of the launcher may hold our input open after the launcher's death: ask who the parent is, too.
            while not poll.poll(5000):
                if os.getppid() != parent:
                    return
            request = read_frame(self.input)
            if request is None:
                return
            write_frame(self.output, self.run(request))

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        os.mkdir(self.run_folder, 0o700)
        if self.confinement.uid is not None:
            os.chown(self.run_folder, self.confinement.uid, self.confinement.uid)
        stdin = self._stdin(request["stdin"].encode("utf-8", "surrogatepass"))
        pipes = [os.pipe() for _ in range(3)]  # standard output, standard error, report
        nonce = os.urandom(12).hex().encode()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._become_program(request, stdin, pipes, nonce)
        for _, writing in pipes:
            os.close(writing)
        if stdin != self.null:
            os.close(stdin)
        watch = Watch(self.place, pid, [reading for reading, _ in pipes], request["limits"], started)
        try:
            watch.until_end()
            self.sweep()
            watch.drain()
        finally:
            watch.close()
        empty(self.folder)
        return watch.answer(nonce)

    def _stdin(self, text: bytes) -> int:
        if not text:
            return self.null
        if len(text) <= 65536:  # what a pipe holds without a reader
            reading, writing = os.pipe()
            os.write(writing, text)
            os.close(writing)
            return reading
        path = os.path.join(self.folder, "stdin")
        with open(path, "wb") as file:
            file.write(text)
        descriptor = os.open(path, os.O_RDONLY)
        os.unlink(path)
        return descriptor

    def _become_program(
        self, request: dict[str, Any], stdin: int, pipes: list[tuple[int, int]], nonce: bytes
    ) -> NoReturn:
        try:
            os.setsid()
            os.dup2(stdin, 0)
            os.dup2(pipes[0][1], 1)
            os.dup2(pipes[1][1], 2)
            os.chdir(self.run_folder)
            confine.prctl(confine.PR_SET_DUMPABLE, 1)  # our own /proc is closed to us otherwise; `apply` sets 0 again
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("900")  # when the machine runs out, the program goes first
            self._limit(request["limits"])
            os.environ.clear()
            os.environ.update(PATH="/usr/bin:/bin", HOME=self.run_folder, TMPDIR=self.run_folder, LANG="C.UTF-8")
            self.confinement.apply()
            # Everything of the worker's is closed; only the report is kept, on the first number after the library's.
            report = os.dup2(pipes[2][1], 255, inheritable=False)
            os.closerange(self.first_descriptor, 255)
            report = os.dup2(report, self.first_descriptor, inheritable=False)
            os.close(255)
            child = Child(request, report, nonce)
            child.say(["ready"])
            child.main()
        finally:
            os._exit(1)  # without "ready" the worker says that the sandbox failed

    def _limit(self, limits: dict[str, Any]) -> None:
        cpu, files = int(limits["cpu_s"]) + 2, int(limits["files_mb"] * (1 << 20))
        for name, value in {
            "RLIMIT_CPU": cpu,  # the watch is finer; this holds should the watch fail
            "RLIMIT_AS": int(limits["memory_mb"] * (1 << 20)) + self.own_bytes,
            "RLIMIT_FSIZE": files,
            "RLIMIT_NPROC": int(limits["processes"]) + self.other_processes,
            "RLIMIT_NOFILE": 256,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }.items():
            kind = getattr(resource, name, None)
            if kind is not None:
                hard = resource.getrlimit(kind)[1]
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (value, value))

    def sweep(self) -> None:
        """Kill and reap every descendant that is left. Orphans come to this process, so none can hide."""
        deadline = time.monotonic() + 5
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            for pid in descendants():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline:
                raise Unclean("processes of a program could not be killed within 5 s")
            time.sleep(0.0005)


def main() -> None:
    folder, rung = sys.argv[1:3]
    confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    confine.prctl(confine.PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.getuid() == 0:
        reachable_library()
    warm_up(json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
    worker = Worker(folder, rung)
    gc.collect()
    gc.freeze()
    try:
        worker.serve()
        os._exit(0)
    except BaseException:  # said to the launcher, then out
        traceback.print_exc()
    finally:
        os._exit(3)


if __name__ == "__main__":
    main()

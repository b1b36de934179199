"""The worker: one warm interpreter that forks once per program, on this machine or in a container.

    python -I -S -c BOOT [FOLDER]                 see `boot.py`; FOLDER only names it among the machine's processes

Frames on standard input and output: four bytes of length (big-endian), then JSON. First the launcher sends its
settings (see `Settings`) and the worker says `{"rung", "guarantees"}`. Then each request `{"code", "stdin", "files",
"limits", "tests", "setup", "judge"}` gets one answer `{"status", "exit_code", "signal", "stdout", "stderr",
"truncated", "wall_s", "cpu_s", "peak_memory_mb", "tests", "unclean"}`, the streams in base 64. After a request with
`judge` the launcher sends one more frame `{"setup", "tests"}`, which only the judging process reads: no process that
the program could read ever holds the tests. End of input ends the worker. `unclean` says why it cannot vouch for its own
state any more, "" where it can: the answer counts, and the worker must be replaced, like one that leaves.

Standard library only, like the files that travel beside it. After each program it kills and reaps everything left (it
is the subreaper of its descendants, or process 1) and tidies its folder. Leaves out: choosing, replacing and
retrying, which are the launcher's.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import contextlib
import ctypes  # noqa: F401 - loaded once, so that programs find it warm
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
import traceback
from typing import Any, NamedTuple, NoReturn

import confinement as confine
import namespaces
from child import Child, Say, flush
from frames import as_input, read_frame, write_frame
from holdings import ThreadCount
from judging import Candidate, Link, judge
from keeping import keep
from tidying import tidy, wipe_system_v
from watching import Place, Watch, descendants, kill_all

DESCRIPTORS = 64
"""That a program may hold: each may stand for 208 KiB of a socket's buffer, or for a deleted file."""


class Settings(NamedTuple):
    """What the launcher wants."""

    folder: str
    """The worker's own folder: there and empty."""
    rung: str = "auto"
    """auto, or one of confinement.RUNGS."""
    container: bool = False
    """Whether this is process 1 of a container, whose engine bounds memory and processes."""
    files_mb: float = 32
    """MiB that a program's folder is to hold at first."""
    files: tuple[str, ...] = ()
    """Shared libraries that the standard library needs, and links to them (path: target)."""
    links: dict[str, str] | None = None
    packages: dict[str, str] | None = None
    """Modules to import before any program runs, and the folders that they come from."""


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
            for module in [*sys.modules.values()]:  # packages loaded by now look for the rest of themselves
                for place, path in enumerate(getattr(module, "__path__", ())):
                    if path.startswith(folder + os.sep):
                        module.__path__[place] = sys.path[index] + path.removeprefix(folder)


def warm_up(packages: dict[str, str]) -> None:
    """Import what small programs import most, and `packages`, so that a fork already has them."""
    names = "bisect collections copy datetime functools heapq itertools math operator random re string typing"
    for name in names.split():
        importlib.import_module(name)
    for name in ("exit", "quit"):  # what an interpreter's start gives to programs, and -S leaves out
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    builtins.help = _sitebuiltins._Helper()
    for name, folder in packages.items():
        sys.path.append(folder)  # for now only: what programs can import is what is imported here
        importlib.import_module(name)
        sys.path.remove(folder)


class Worker:
    """Runs one program after the other. `settings.folder` is its own; a program's is `run` in it."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.container, self.folder = settings.container, settings.folder
        self.run_folder = os.path.join(self.folder, "run")
        self.input, self.output = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1):
            os.dup2(null, standard)
        os.close(null)
        os.makedirs(self.run_folder, 0o700, exist_ok=True)  # in a world of its own it is there: a mount
        self.first_descriptor = 3
        for path in (path for path in sys.path if path.startswith("/proc/self/fd/")):
            self.first_descriptor = max(self.first_descriptor, int(path.rpartition("/")[2]) + 1)
        ground = confine.Ground(self.run_folder, tuple(settings.files), settings.container)
        self.confinement = confine.strongest(settings.rung, ground, seed)
        with open("/proc/self/statm") as file:
            mapped, resident = (int(word) * resource.getpagesize() for word in file.read().split()[:2])
        self.own_bytes = mapped  # what an empty program already maps
        seen, uid = self.confinement.sums_seen, self.confinement.uid
        self.place = Place(self.run_folder, self.input, resident, seen, uid, alone_too=self.container)
        plain = self.confinement.rung == "rlimits"  # elsewhere no program has System V's objects
        self.system_v = uid if plain and uid is not None else os.getuid() if plain and self.container else None
        self.first_of_world = os.getpid() == 1
        self.files_mb = settings.files_mb if settings.rung == confine.NAMESPACES else 0.0
        self.users_threads = ThreadCount(os.getuid())

    def _other_processes(self) -> int | None:
        """Threads that the program's uid has already: RLIMIT_NPROC counts them too. None: it would count others.

        Across containers the same uid is counted together, and their engine bounds processes anyway. In a user
        namespace of its own, and for a uid of its own, the count is exact. Else there is room for what the user
        starts meanwhile (its threads too), and only the watch counts exactly.
        """
        if self.container:
            return None
        if self.confinement.uid is not None or self.confinement.rung == confine.NAMESPACES:
            return 1 if self.confinement.uid is None else 0
        return self.users_threads.now() + 112

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
        limits = request["limits"]
        if self.files_mb and self.files_mb != limits["files_mb"]:
            self.files_mb = limits["files_mb"]
            namespaces.resize(int(self.files_mb) + 1)
        self.other_processes = self._other_processes()
        stdin = as_input(request["stdin"].encode("utf-8", "surrogatepass"))
        pipes = [os.pipe() for _ in range(3)]  # standard output, standard error, report
        nonce = os.urandom(12).hex().encode()
        started = time.monotonic()
        candidate = 0
        if request["judge"]:
            limits["processes"] += 1  # the judge's own
            candidate, pid = self._start_pair(request, stdin, pipes, nonce)
        elif (pid := os.fork()) == 0:
            self._become_program(request, stdin, pipes, nonce)
        for _, writing in pipes:
            os.close(writing)
        os.close(stdin)
        watch = Watch(self.place, pid, [reading for reading, _ in pipes], limits, started)
        try:
            watch.until_end()
            unclean = self._clean_up(watch, candidate if watch.ended_alone else 0)
        finally:
            watch.close()
        return watch.answer(nonce) | {"unclean": unclean}

    # In the forks

    def _become_program(self, request: dict[str, Any], stdin: int, pipes: list[tuple[int, int]], nonce: bytes) -> NoReturn:
        try:
            (report,) = self._give_up(request["limits"], stdin, pipes, [pipes[2][1]], self.run_folder)
            say = sayer(report, nonce)
            say(["ready"])
            if request["tests"] is None:
                os.close(report)
            Child(request, say).main()
        finally:
            os._exit(1)  # without "ready" the worker says that the sandbox failed

    def _start_pair(
        self, request: dict[str, Any], stdin: int, pipes: list[tuple[int, int]], nonce: bytes
    ) -> tuple[int, int]:
        """Two forks: the program, and after it the judge, which alone reads the tests."""
        ours, theirs = socket.socketpair()
        candidate = os.fork()
        if candidate == 0:
            try:
                (descriptor,) = self._give_up(request["limits"], stdin, pipes, [theirs.fileno()], self.run_folder)
                Candidate(request, Link(descriptor)).main()
            finally:
                os._exit(1)
        judging = os.fork()
        if judging == 0:
            say: Say | None = None
            try:
                told = read_frame(self.input) or {}
                keep = [pipes[2][1], ours.fileno()]
                limits = request["limits"] | {"memory_mb": request["limits"]["memory_mb"] + 64}  # its lack is no verdict
                report, descriptor = self._give_up(limits, as_input(b""), pipes, keep, "/")
                say = sayer(report, nonce)
                judge(told["setup"], told["tests"], Link(descriptor), say)
                flush()
                os._exit(0)
            except BaseException as error:  # not the program's: its answers, and the tests, raise nothing here
                if say is not None:
                    say(["broke", "".join(traceback.format_exception(error))[-2000:]])
            finally:
                os._exit(1)
        ours.close()
        theirs.close()
        return candidate, judging

    def _give_up(
        self, limits: dict[str, Any], stdin: int, pipes: list[tuple[int, int]], keep: list[int], folder: str
    ) -> list[int]:
        """Become what a program may be. Everything of the worker's is closed but `keep`; its new numbers."""
        os.setsid()
        os.dup2(stdin, 0)
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[1][1], 2)
        os.chdir(folder)
        confine.prctl(confine.PR_SET_DUMPABLE, 1)  # our own /proc is closed to us otherwise; `apply` sets 0 again
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("900")  # when the machine runs out, the program goes first
        self._limit(limits)
        os.environ.clear()
        os.environ.update(PATH="/usr/bin:/bin", HOME=self.run_folder, TMPDIR=self.run_folder, LANG="C.UTF-8", TZ="UTC0")
        time.tzset()
        self.confinement.apply()
        first, high = self.first_descriptor, DESCRIPTORS - len(keep)
        for number, descriptor in enumerate(keep):
            os.dup2(descriptor, high + number, inheritable=False)
        os.closerange(first, high)
        for number in range(len(keep)):
            os.dup2(high + number, first + number, inheritable=False)
        os.closerange(high, 256)
        return list(range(first, first + len(keep)))

    def _limit(self, limits: dict[str, Any]) -> None:
        cpu, files = int(limits["cpu_s"]) + 2, int(limits["files_mb"] * (1 << 20))
        values = {
            "RLIMIT_CPU": cpu,  # the watch is finer; this holds should the watch fail
            # In a container room for stacks and what is never touched: its engine and the watch bound what is.
            "RLIMIT_AS": int(limits["memory_mb"] * (1 << 20)) + self.own_bytes + (self.container << 32),
            "RLIMIT_FSIZE": files,
            "RLIMIT_NOFILE": DESCRIPTORS,
            "RLIMIT_CORE": 1,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_SIGPENDING": 64,
        }
        if self.other_processes is not None:
            values["RLIMIT_NPROC"] = int(limits["processes"]) + self.other_processes
        for name, value in values.items():
            kind = getattr(resource, name, None)
            if kind is not None:
                hard = resource.getrlimit(kind)[1]
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (value, value))

    def _clean_up(self, watch: Watch, candidate: int) -> str:
        """Leave nothing of a program; why that could not be done, or "". What it did is known by now and stands."""
        unclean = ""
        try:
            self.sweep(watch, candidate)
        except Unclean as error:
            unclean = str(error)
        watch.drain()
        try:
            if self.system_v is not None:
                wipe_system_v(self.system_v)
            tidy(self.run_folder)
        except OSError as error:
            unclean = unclean or f"its folder could not be made ready again: {error}"
        return unclean

    def sweep(self, watch: Watch, candidate: int) -> None:
        """Kill and reap every descendant that is left. Orphans come to this process, so none can hide.

        `candidate`: a program beside its judge that is about to end by itself is let end, for its exit code.
        """
        deadline = time.monotonic() + 5
        patience = time.monotonic() + (0.5 if candidate else 0.0)
        while True:
            try:
                while (ended := os.wait4(-1, os.WNOHANG))[0]:
                    watch.reaped(*ended, by_itself=ended[0] == candidate)
                    candidate = 0 if ended[0] == candidate else candidate
            except ChildProcessError:
                return
            if not candidate or time.monotonic() > patience:
                candidate = 0
                self.kill_all()
            if time.monotonic() > deadline:
                raise Unclean("processes of a program could not be killed within 5 s")
            time.sleep(0.0005)

    def kill_all(self) -> None:
        if self.first_of_world:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # everything but this process 1, at once: no fork slips by
            return
        kill_all(descendants)


def sayer(report: int, nonce: bytes) -> Say:
    """Lines for the worker; the nonce tells them from what a program might write to the same descriptor."""

    def say(message: list[Any]) -> None:
        os.write(report, nonce + json.dumps(message).encode() + b"\n")

    return say


def inside(settings: Settings) -> Settings:
    """Go on as this process's child, in namespaces of its own where they are wanted and to be had."""
    if settings.rung in ("auto", confine.NAMESPACES):
        library = [*filter(os.path.isdir, sys.path), confine.ZONES]
        size = int(settings.files_mb) + 1
        pid, refusal = namespaces.enter(settings.folder, size, library, [*settings.files], settings.links or {})
        if pid:
            keep(pid, settings.folder)
        if not refusal:
            confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
            return settings._replace(folder=namespaces.WORK, rung=confine.NAMESPACES)
        if settings.rung == confine.NAMESPACES:
            raise SystemExit(f"namespaces are refused: {refusal}")
    if pid := os.fork():
        keep(pid, settings.folder)
    confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)
    confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    return settings


def step_aside() -> None:
    """Leave names such as `frames` to programs: their imports find their own files, and nothing of the worker's."""
    for name, module in [*sys.modules.items()]:  # what functions need of theirs stays with them
        if os.path.dirname(getattr(module, "__file__", None) or "") == os.path.dirname(__file__):
            del sys.modules[name]
    sys.orig_argv[1:] = sys.argv[1:] = []


def main() -> None:
    told = read_frame(0)
    if told is None:
        return
    settings, seed = Settings(**told), os.getpid()
    confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    confine.prctl(confine.PR_SET_DUMPABLE, 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    with contextlib.suppress(ValueError):  # a hard limit of 0 stays
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # less than any dump, and the one value that silences handlers
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may have had it ignored: children would not be counted
    warm_up(settings.packages or {})
    if not settings.container:
        settings = inside(settings)
    if os.getuid() == 0 and settings.rung != confine.NAMESPACES:
        reachable_library()
    worker = Worker(settings, seed)
    step_aside()
    gc.collect()
    gc.freeze()
    try:
        worker.serve()
        os._exit(0)
    except BaseException:  # said to the launcher, then out
        traceback.print_exc()
    finally:
        os._exit(3)

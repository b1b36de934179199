"""The battery: every hostile program against an open sandbox, and what must be true after each of them.

    with Host() as host:
        outcomes = [attempt(sandbox, program, host) for program in HOSTILE]

    python -m kintsugi.sandboxes.battery --kind local [--rung landlock+seccomp] [--json]     # what the doctor runs

After each program: nothing was breached that `sandbox.guarantees` promises, the call came back within its limit and
2 s, the next programs' answers are right, no process of it is left (where the backend has `count_processes`), the
caller's memory has grown by less than 50 MB. What breaches a guarantee that is not promised is reported, not failed.
Leaves out: the programs (`hostile_programs.py` and its neighbours).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kintsugi.errors import KintsugiError
from kintsugi.sandboxes.conformance import busyness
from kintsugi.sandboxes.hostile_candidates import CANDIDATES
from kintsugi.sandboxes.hostile_programs import ESCAPES, Hostile
from kintsugi.sandboxes.hostile_resources import BOMBS
from kintsugi.sandboxes.sandbox import GUARANTEES, Limits, Sandbox, open_sandbox

HOSTILE: tuple[Hostile, ...] = (*ESCAPES, *BOMBS, *CANDIDATES)
SHORT = Limits(wall_s=1.0, cpu_s=0.5, memory_mb=128, processes=16, output_bytes=4096, files_mb=4)
GROWTH_MB = 50.0
_LATE = "it took"
_VICTIM = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(3600)"]
_LOOK = (
    "import colorsys, fcntl, json, os, random, tempfile\n"
    "flags, own = fcntl.fcntl(0, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND), os.stat('.')\n"
    "print(sorted(os.listdir('.')), os.listxattr('.'), oct(own.st_mode), min(own.st_mtime, own.st_atime) > 1e9)\n"
    "with tempfile.NamedTemporaryFile('w', delete=False) as file: file.write('[1]')\n"
    "print(json.load(open(file.name)), 'LEFT' in os.environ, flags, 6 * 7)"
)
_SEEN = "[] [] 0o40700 True\n[1] False 0 42\n"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one hostile program. held: nothing promised was breached and all was well after it. breached:
    what it achieved, promised or not. wrong: what was not well after it. seconds: until its answer came."""

    name: str
    kind: str
    guarantee: str
    promised: bool
    held: bool
    status: str
    breached: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    seconds: float = 0.0


class SharedObjects:
    """A shared memory segment, a message queue and a semaphore, open to everybody; -1 where the kernel has none."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._libc.shmat.restype = ctypes.c_void_p
        self.memory = self._libc.shmget(0, ctypes.c_size_t(4096), 0o1666)
        self.queue, self.semaphore = self._libc.msgget(0, 0o1666), self._libc.semget(0, 1, 0o1666)
        self._libc.semctl(self.semaphore, 0, 16, 3)  # SETVAL
        address = self._libc.shmat(self.memory, None, 0) if self.memory >= 0 else None
        self._address = None if address is None or address == 2**64 - 1 else address
        if self._address:
            ctypes.memset(self._address, 1, 8)

    def intact(self) -> bool:
        """Whether all are there and as they were."""
        kept = self._address is None or ctypes.string_at(self._address, 8) == b"\1" * 8
        there = self.memory < 0 or self._libc.shmctl(self.memory, 2, ctypes.create_string_buffer(512)) == 0  # IPC_STAT
        status = ctypes.create_string_buffer(512)
        there &= self.queue < 0 or (self._libc.msgctl(self.queue, 2, status) == 0)
        return kept and there and (self.semaphore < 0 or self._libc.semctl(self.semaphore, 0, 12) == 3)  # GETVAL

    def remove(self) -> None:
        if self._address:
            self._libc.shmdt(ctypes.c_void_p(self._address))
        self._libc.shmctl(self.memory, 0, None)
        self._libc.msgctl(self.queue, 0, None)
        self._libc.semctl(self.semaphore, 0, 0)


class Host:
    """What a program could harm: a secret, a folder and a file open to all, a process, sockets, System V's objects."""

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kintsugi-battery-")))
        self.folder.chmod(0o755)
        self.token = secrets.token_hex(16)
        self.secret, self.victim_file, self.outside = (self.folder / name for name in ("secret", "victim", "outside"))
        self.secret.write_text(self.token)
        self.victim_file.write_text(self.token)
        self.victim_file.chmod(0o666)
        self.outside.mkdir()
        self.outside.chmod(0o777)
        self.victim = subprocess.Popen(_VICTIM, stdin=subprocess.DEVNULL)
        self._stack.callback(self._end_victim)
        self.tcp = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.unix = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        self.unix.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)
        self.unix.listen()
        self.datagrams = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.datagrams.bind(str(self.folder / "datagrams"))
        (self.folder / "datagrams").chmod(0o777)
        self.objects = SharedObjects()
        self._stack.callback(lambda: self.objects.remove())
        os.environ["KINTSUGI_SECRET"] = self.token
        self._stack.callback(os.environ.pop, "KINTSUGI_SECRET", None)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _end_victim(self) -> None:
        self.victim.kill()
        self.victim.wait()

    def fill_in(self, code: str) -> str:
        words = {
            "PORT": self.tcp.getsockname()[1], "UNIX": self.folder / "socket", "SECRET": self.secret, "TOKEN": self.token,
            "OUTSIDE": self.outside, "VICTIM_FILE": self.victim_file, "VICTIM": self.victim.pid, "CALLER": os.getpid(),
            "DATAGRAM": self.folder / "datagrams", "SHARED": self.objects.memory, "QUEUE": self.objects.queue,
            "SEMAPHORE": self.objects.semaphore, "SELF": Path(__file__).resolve(), "NODE": os.uname().nodename,
        }  # fmt: skip
        for word, value in words.items():
            code = code.replace(f"@{word}@", str(value))
        return code

    def harm(self) -> list[str]:
        """What was done to it since the last look; made good again."""
        found: list[str] = []
        for listener in (self.tcp, self.unix):
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    found.append("a connection came")
        self.datagrams.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.datagrams.recv(100):
                found.append("a datagram came")
        if not self.objects.intact():
            found.append("a System V object of the host was changed")
            self.objects.remove()
            self.objects = SharedObjects()
        if self.victim.poll() is not None:
            found.append("a process outside was killed")
            self.victim = subprocess.Popen(_VICTIM, stdin=subprocess.DEVNULL)
        if not self.victim_file.exists() or self.victim_file.read_text() != self.token:
            found.append("a file outside was changed")
        self.victim_file.write_text(self.token)
        self.victim_file.chmod(0o666)
        for folder in (self.outside, Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):
            left = folder / "kintsugi-left"
            if left.is_symlink() or left.exists():
                found.append(f"something was written to {folder}")
                left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()
        return found


def attempt(sandbox: Sandbox, program: Hostile, host: Host) -> Outcome:
    """Run one hostile program and look around."""
    count = getattr(sandbox, "count_processes", None)
    look = [_LOOK] * getattr(sandbox, "num_workers", 2)
    processes = count() if count else 0
    memory, busy, started = resident_mb(), busyness(), time.monotonic()
    if program.tests:
        judged = sandbox.run_tests(program.code, program.tests, limits=SHORT)
        run, stdout = judged.run, ""
        failed = {failure.index for failure in judged.failures}
        breached = [f"passed {test!r}" for index, test in enumerate(program.tests) if index not in failed]
    else:
        run = sandbox.run(host.fill_in(program.code), limits=SHORT)
        stdout = run.stdout
        breached = [line[7:].strip() for line in stdout.splitlines() if line.startswith("BREACH")]
    seconds = time.monotonic() - started
    breached += host.harm()
    wrong: list[str] = []
    busy = max(busy, busyness()) if seconds > SHORT.wall_s + 2 else busy
    if seconds > SHORT.wall_s * min(3.0, max(1.0, busy)) + 2:
        wrong.append(f"{_LATE} {seconds:.1f} s")
    if run.status == "sandbox_failed" or (program.statuses and run.status not in program.statuses):
        wrong.append(f"its status is {run.status}: {run.stderr[-200:]}")
    for result in sandbox.run_many(look):
        if (result.stdout, result.status) != (_SEEN, "ok"):
            wrong.append(f"the next program answered {result.stdout[:80]!r}, {result.status}, {result.stderr[-200:]!r}")
    if count and (left := count()) > processes:
        wrong.append(f"{left - processes} processes are left")
    if (grown := resident_mb() - memory) > GROWTH_MB:
        wrong.append(f"the caller grew by {grown:.0f} MB")
    promised = program.guarantee in sandbox.guarantees
    return Outcome(
        name=program.name,
        kind=program.kind,
        guarantee=program.guarantee,
        promised=promised,
        held=not wrong and not (promised and breached),
        status=run.status,
        breached=tuple(breached),
        wrong=tuple(wrong),
        seconds=round(seconds, 2),
    )


def battery(sandbox: Sandbox, programs: Sequence[Hostile] = HOSTILE) -> list[Outcome]:
    """All of them, one after the other, on one sandbox. Not those that would end this very process, where nothing is
    promised about other processes and programs keep the caller's uid."""
    if os.getuid() and "host_processes" not in sandbox.guarantees:
        programs = [program for program in programs if not program.ends_its_caller]
    sandbox.run_many(["print(1)"] * 2 * getattr(sandbox, "num_workers", 2))  # every worker is there before one is counted
    with Host() as host:
        return [_twice(sandbox, program, host) for program in programs]


def _twice(sandbox: Sandbox, program: Hostile, host: Host) -> Outcome:
    """Another try where nothing but lateness was wrong: other programs may have had the machine."""
    outcome = attempt(sandbox, program, host)
    late = bool(outcome.wrong) and all(said.startswith(_LATE) for said in outcome.wrong) and not outcome.breached
    return attempt(sandbox, program, host) if late else outcome


def resident_mb() -> float:
    """MiB of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def summary(sandbox: Sandbox, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a guarantee: whether it is promised here, how many attacks on it were run, what breached or went wrong."""
    rows: list[dict[str, Any]] = []
    for name, meaning in GUARANTEES.items():
        mine = [outcome for outcome in outcomes if outcome.guarantee == name]
        rows.append(
            {
                "guarantee": name,
                "means": meaning,
                "promised": name in sandbox.guarantees,
                "attacks": len(mine),
                "breached": [f"{one.name}: {one.breached[0]}" for one in mine if one.breached],
                "wrong": [f"{one.name}: {one.wrong[0]}" for one in mine if one.wrong],
            }
        )
    return rows


def examine(kind: str, rung: str = "auto", workers: int = 2, only: Sequence[str] = ()) -> dict[str, Any]:
    """Open a sandbox of `kind`, run the battery: {"backend", "held", "seconds", "guarantees": rows, "outcomes"}."""
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "local" and rung != "auto":
            from kintsugi.sandboxes.local_sandbox import LocalSandbox

            sandbox: Sandbox = LocalSandbox(workers=workers, confinement=rung, allow_unsafe=True)
        else:
            sandbox = open_sandbox(kind, workers=workers, allow_unsafe=True)
    with sandbox:
        outcomes = battery(sandbox, [program for program in HOSTILE if not only or program.name in only])
        rows, stats = summary(sandbox, outcomes), sandbox.stats()
        promised = "clean_state" in sandbox.guarantees  # then no program may cost a worker
        backend = sandbox.run("print(1)").backend
    return {
        "backend": backend,
        "user": "root" if os.getuid() == 0 else "an ordinary user",
        "held": all(outcome.held for outcome in outcomes) and not (stats.replaced and promised),
        "replaced": stats.replaced,
        "seconds": round(time.monotonic() - started, 1),
        "guarantees": rows,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="local")
    parser.add_argument("--rung", default="auto")
    parser.add_argument("--only", nargs="*", default=[], help="names of programs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = examine(options.kind, options.rung, only=options.only)
    except KintsugiError as error:
        raise SystemExit(str(error)) from None
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for row in found["guarantees"]:
            print(f"{row['guarantee']:18} {'promised' if row['promised'] else '-':9} {row['attacks']:3} attacks")
            for line in (*row["breached"], *row["wrong"]):
                print(f"{'':18} {line}")
        print(f"{found['backend']} as {found['user']}: {'held' if found['held'] else 'BREACHED'} in {found['seconds']} s")
    sys.exit(0 if found["held"] else 1)


if __name__ == "__main__":
    main()

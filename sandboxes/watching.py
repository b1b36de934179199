"""How a worker follows one program: its output, its time, its memory, its descendants, its files.

    watch = Watch(place, pid, [stdout, stderr, report], limits, started)
    watch.until_end(); ...; watch.drain(); answer = watch.answer(nonce)

Travels beside `worker.py`; standard library only. The kernel's own limits (set by the worker in the child) hold for one
process at once; what is looked at here, every 20 to 100 ms, holds for a program with all its descendants. Leaves out:
starting the program and cleaning up after it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from holdings import VMA_BYTES, count_held

PAGE = resource.getpagesize()
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SLOW_MACHINE = 3.0  # a program that waits for a core gets at most this many times its wall limit
DEEPEST, MANY = 256, 100_000
OUT_OF_MEMORY = re.compile(rb"^Traceback \(most recent call last\):\n(?:  .*\n)+MemoryError\b", re.MULTILINE)
NOT_EVEN_A_TRACEBACK = re.compile(rb"^MemoryError\s*\Z", re.MULTILINE)
CHILDREN_LISTED = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class Place(NamedTuple):
    """Where programs run."""

    folder: str
    """The program's folder; everything in it is the program's."""
    launcher: int
    """Descriptor whose hang-up says that the launcher has gone."""
    own_resident: int
    """Bytes resident in a forked worker before any program ran."""
    descriptors_seen: bool = False
    """Whether what programs hold open is to be counted here, and can be."""
    uid: int | None = None
    """Whose programs are; None: the worker's own."""
    alone_too: bool = False
    """Whether the memory of a program of one process is judged here, too: no limit of the kernel's is at its own."""


class Watch:
    """Follows one program: collects what it prints, and kills it when it passes a limit."""

    def __init__(self, place: Place, pid: int, reading: list[int], limits: dict[str, Any], started: float) -> None:
        self.place, self.pid, self.limits, self.started = place, pid, limits, started
        self.buffers = {descriptor: bytearray() for descriptor in reading}
        self.streams = reading
        self.killed, self.note, self.truncated = "", "", False
        self.family = [pid]
        self.own_ticks: dict[tuple[int, bytes], int] = {}  # of each process ever seen, by its id and start
        self.seen_ticks = 0
        self.oom_kills = oom_kills()
        self.code, self.cpu_s, self.peak_mb, self.wall_s = 0, 0.0, 0.0, 0.0
        self.before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.handle = os.pidfd_open(pid)
        self.poll = select.poll()
        for descriptor in (*reading, self.handle):
            self.poll.register(descriptor, select.POLLIN)
        self.poll.register(place.launcher, 0)  # only the launcher's end

    def until_end(self) -> None:
        """Return when the program's first process has ended or was killed, and is reaped."""
        next_look = self.started + 0.02
        while True:
            events = self.poll.poll(max(0.0, next_look - time.monotonic()) * 1000)
            for descriptor, _ in events:
                if descriptor in self.buffers:
                    self._read(descriptor)
                elif descriptor == self.place.launcher:
                    self.kill("error", "the launcher has gone")
                    self.poll.unregister(descriptor)
            if any(descriptor == self.handle for descriptor, _ in events):
                break
            now = time.monotonic()
            if not self.killed and now >= next_look:
                self._look(now)
                next_look = time.monotonic() + min(0.1, max(0.02, (now - self.started) / 8))
        _, self.code, usage = os.wait4(self.pid, 0)
        self.peak_mb = usage.ru_maxrss / 1024
        self.wall_s = time.monotonic() - self.started

    def kill(self, status: str, note: str = "") -> None:
        """Kill the program, and with it all that it started: a process must run to die, and a bomb would not let it."""
        if not self.killed:
            self.killed, self.note = status, note
            kill_all(lambda: dict.fromkeys([self.pid, *self.family]))

    @property
    def ended_alone(self) -> bool:
        """Whether no limit was passed."""
        return not self.killed

    def reaped(self, pid: int, code: int, usage: resource.struct_rusage, *, by_itself: bool) -> None:
        """Another process of the program has ended; `by_itself`: the one that a judge has judged."""
        self.peak_mb = max(self.peak_mb, usage.ru_maxrss / 1024)
        if by_itself and not self.code:
            self.code = code

    def _read(self, descriptor: int) -> bool:
        """Take what is there; True while more may come."""
        part = os.read(descriptor, 65536)
        if not part:
            self.poll.unregister(descriptor)
            return False
        buffer, room = self.buffers[descriptor], int(self.limits["output_bytes"])
        if descriptor == self.streams[2]:
            room = 1 << 24  # the report: a few hundred bytes a test
        if len(buffer) + len(part) > room:
            part = part[: room - len(buffer)]
            self.truncated = True
            self.kill_output()
        buffer += part
        return True

    def kill_output(self) -> None:
        if not self.killed and not self.wall_s:
            self.kill("output")
        elif not self.killed:
            self.killed = "output"

    def _look(self, now: float) -> None:
        """Judge what the kernel's limits do not hold for several processes; first what is cheap to see, so that what a
        program holds open or has mapped, which takes time to count, never hides its time, memory and processes."""
        limits, place = self.limits, self.place
        threads, memory = self._look_at_processes()
        if self.seen_ticks * TICK_S >= limits["cpu_s"]:
            return self.kill("timeout")
        summed = len(self.family) > 1 or place.alone_too  # else the kernel's limit is exact
        if summed and memory > limits["memory_mb"] * (1 << 20):
            return self.kill("memory")
        if max(threads, len(self.family)) > limits["processes"]:
            return self.kill("error", f"stopped: more than {limits['processes']} processes and threads")
        late = now - self.started - limits["wall_s"]
        if late >= 0 and (late >= self._waited() or now - self.started >= SLOW_MACHINE * limits["wall_s"]):
            return self.kill("timeout")
        written, entries = folder_size(place.folder)
        if place.descriptors_seen:
            held = count_held(self.family, place.folder, place.uid, int(limits["files_mb"] * (1 << 20)))
            if held.too_many:
                return self.kill("memory", f"stopped: it holds too many {held.too_many}")
            written += held.files
            memory += held.buffers + held.shared + held.mappings * VMA_BYTES
            if summed and memory > limits["memory_mb"] * (1 << 20):
                return self.kill("memory")
        if written > limits["files_mb"] * (1 << 20) or entries > min(256 * limits["files_mb"], MANY - 1):
            self.kill("error", f"stopped: its files are more or larger than {limits['files_mb']} MiB allow, or hidden")

    def _look_at_processes(self) -> tuple[int, int]:
        """Threads there are and bytes they have in memory, both of all processes; counts their CPU time as well."""
        memory, threads, living, waited = 0, 0, 0, 0
        self.family = descendants()
        for pid in self.family:
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    words = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            own = int(words[11]) + int(words[12])
            living, waited = living + own, waited + int(words[13]) + int(words[14])
            self.own_ticks[pid, words[19]] = own
            threads += int(words[17])
            resident = int(words[21]) if words[0] != b"Z" else resident_of_threads(pid)
            memory += max(0, resident * PAGE - self.place.own_resident)
        # Those that have gone are in a parent's count of waited children, or nowhere: never both, so the larger is safe.
        gone = sum(self.own_ticks.values()) - living
        self.seen_ticks = max(self.seen_ticks, living + max(gone, waited))
        return threads, memory

    def _waited(self) -> float:
        """Seconds that the program was ready to run but had no core: not its fault. Of its processes the two that waited
        longest count, for a judge and what it judges wait in turns."""
        waits = []
        for pid in self.family:
            try:
                with open(f"/proc/{pid}/schedstat") as file:
                    waits.append(int(file.read().split()[1]) / 1e9)
            except (OSError, IndexError):
                continue
        return sum(sorted(waits)[-2:])

    def drain(self) -> None:
        """Read what the pipes still hold; all writers are dead, or could not be killed and are waited for no longer."""
        for descriptor in self.streams:
            os.set_blocking(descriptor, False)
            while self._read_open(descriptor):
                pass
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        waited = after.ru_utime + after.ru_stime - self.before.ru_utime - self.before.ru_stime
        self.cpu_s = max(waited, self.seen_ticks * TICK_S)

    def _read_open(self, descriptor: int) -> bool:
        try:
            return self._read(descriptor)
        except (KeyError, BlockingIOError):  # already unregistered at its end; or a writer lives
            return False

    def close(self) -> None:
        for descriptor in (*self.streams, self.handle):
            os.close(descriptor)

    def answer(self, nonce: bytes) -> dict[str, Any]:
        stdout, stderr, report = (self.buffers.pop(descriptor) for descriptor in self.streams)
        lines = said(bytes(report), nonce)
        exit_code = os.WEXITSTATUS(self.code) if os.WIFEXITED(self.code) else None
        number = os.WTERMSIG(self.code) if os.WIFSIGNALED(self.code) else None
        full = self.peak_mb > self.limits["memory_mb"] / 2  # or it may just say so
        out_of_memory = OUT_OF_MEMORY.search(stderr) or (full and NOT_EVEN_A_TRACEBACK.search(stderr))
        if self.killed in ("memory", "output"):
            status = self.killed
        elif self.cpu_s >= self.limits["cpu_s"]:  # whether a look fell between the limit and the end is luck: it counts not
            status = "timeout"
        elif self.killed:
            status = self.killed
        elif (exit_code == 1 and out_of_memory) or (number == signal.SIGKILL and oom_kills() > self.oom_kills):
            status = "memory"
        elif ["ready"] not in lines:
            status = "sandbox_failed"
        else:
            status = "ok" if exit_code == 0 else "error"
        stderr += f"\n[sandbox] {self.note}\n".encode() if self.note else b""
        return {
            "status": status,
            "exit_code": exit_code,
            "signal": number,
            "stdout": b64encode(stdout).decode(),  # as JSON's text it could be six times as long
            "stderr": b64encode(stderr).decode(),
            "truncated": self.truncated,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "peak_memory_mb": self.peak_mb,
            "tests": [line for line in lines if line != ["ready"]],
        }


def oom_kills() -> int:
    """How often this container's control group has run out of memory; 0 outside one."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            with open(path) as file:
                return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except OSError:
            continue
    return 0


def resident_of_threads(pid: int) -> int:
    """Pages in memory of a process whose first thread has ended: the others' memory, which they share."""
    pages = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/statm") as file:
                pages = max(pages, int(file.read().split()[1]))
    except OSError:
        return pages
    return pages


def said(report: bytes, nonce: bytes) -> list[list[Any]]:
    """The child's lines. A program that found the nonce may have written anything: no list, no line."""
    lines: list[list[Any]] = []
    for line in report.split(b"\n"):
        try:
            words = json.loads(line.removeprefix(nonce)) if line.startswith(nonce) else None
        except (ValueError, RecursionError):
            continue
        if isinstance(words, list):
            lines.append(words)
    return lines


def kill_all(find: Callable[[], Iterable[int]]) -> None:
    """Stop all that `find` finds, until it finds no more; then kill them: each one killed makes room for a bomb's next."""
    stopped: dict[int, None] = {}
    for _ in range(20):
        new = [pid for pid in find() if pid not in stopped]
        if not new:
            break
        _signal(new, signal.SIGSTOP)
        stopped |= dict.fromkeys(new)
    _signal(stopped, signal.SIGKILL)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def descendants() -> list[int]:
    """Process ids of everything below this process, parents first."""
    found = _children(os.getpid())
    for pid in found:  # grows while it is walked
        found += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # each thread has children of its own
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += [int(word) for word in file.read().split()]
    except OSError:
        return found if CHILDREN_LISTED else _children_by_search(pid)
    return found


def _children_by_search(parent: int) -> list[int]:
    """The same on kernels built without CONFIG_PROC_CHILDREN."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
        except OSError:
            continue
    return found


def folder_size(folder: str) -> tuple[int, int]:
    """Bytes on disk and number of entries below `folder`; very many entries where folders lie deeper than `DEEPEST`, or
    where one is closed to its own owner, who could hide anything in it."""
    total, entries, pending = 0, 0, [(folder, 0)]
    while pending and entries < MANY:
        path, depth = pending.pop()
        if depth > DEEPEST:  # each look would walk the whole path again
            return total, MANY
        try:
            with os.scandir(path) as found:
                for entry in found:
                    entries += 1
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((entry.path, depth + 1))
        except PermissionError:
            return total, MANY
        except OSError:
            continue  # it went away while we looked
    return total, entries

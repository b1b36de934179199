"""What a program holds that no limit of the kernel's counts: deleted files still open, full sockets and pipes.

    held = count_held(pids, folder, uid, largest)       # Held(files, buffers, mappings, too_many)

Travels beside `worker.py`; standard library only. A process's descriptors are read through /proc, which shows them to
their owner: the worker becomes the program's uid for files while it reads. Only what a filter of system calls makes
countable is counted: no descriptor in a message under way, no buffer of a size of its own (`confinement.py`). Leaves
out: files that have a name (`watching.folder_size`), memory of processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

SOCKET_BYTES, PIPE_BYTES = 212_992, 65_536
"""What one of them holds at most: net.core.wmem_default as kernels have it, and sixteen pages."""
VMA_BYTES = 200
"""What the kernel keeps of one mapping."""
MOST_PIPES = 256
"""Of one program: a user's pipes together have few pages (fs.pipe-user-pages-soft), and slots may share a user."""
MAPS_BYTES = 1 << 21
"""Of the descriptions of mappings, about 90 bytes each, that are read at a look: more would take all the looker's time."""

_libc = ctypes.CDLL(None, use_errno=True)


class Held(NamedTuple):
    """What some processes hold together."""

    files: int
    """Bytes on disk, in files of the program's folder that have no name any more."""
    buffers: int
    """Bytes that the sockets and pipes could hold at most."""
    mappings: int = 0
    """Pieces of memory that they have mapped."""
    shared: int = 0
    """Bytes of shared memory without a name that may be held and are in no process's resident memory just now."""
    too_many: str = ""
    """What they hold more of than can be counted or shared, if anything: pipes or mappings."""


@contextlib.contextmanager
def as_owner(uid: int | None) -> Iterator[None]:
    """Reach files as `uid` would; None: as we are. setfsuid(2) concerns nothing but access to files."""
    if uid is None:
        yield
        return
    _libc.setfsgid(uid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())


def can_see(pid: int, uid: int | None) -> bool:
    """Whether the descriptors and the mapped files of `pid`, which runs as `uid`, can be read."""
    try:
        with as_owner(uid), open(f"/proc/{pid}/maps") as file:
            return bool(file.readline()) and os.stat(f"/proc/{pid}/fd/0") is not None
    except OSError:
        return False


class ThreadCount:
    """Threads of a user, counted again only when there are clearly more or fewer threads on the machine."""

    def __init__(self, uid: int) -> None:
        self._uid, self._all, self._found = uid, -1000, 0

    def now(self) -> int:
        """The number, at most some 64 off."""
        with open("/proc/loadavg") as file:
            there = int(file.read().split()[3].partition("/")[2])
        if abs(there - self._all) > 64:
            self._all, self._found = there, _threads_of(self._uid)
        return self._found


def _threads_of(uid: int) -> int:
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                found += len(_tasks(int(name)))
        except OSError:
            continue
    return found


def count_held(pids: Iterable[int], folder: str, uid: int | None, largest: int) -> Held:
    """What these processes hold. largest: bytes that one file may have; a file that is only mapped counts as such."""
    device = os.stat(folder).st_dev
    files: dict[int, int] = {}
    buffers: dict[tuple[int, int], int] = {}
    with as_owner(uid):
        for pid in pids:
            for task in _tasks(pid):  # a thread may have descriptors of its own, and its leader none any more
                for found in _open_files(f"/proc/{pid}/task/{task}/fd"):
                    if stat.S_ISSOCK(found.st_mode):
                        buffers[found.st_dev, found.st_ino] = SOCKET_BYTES
                    elif stat.S_ISFIFO(found.st_mode):
                        buffers[found.st_dev, found.st_ino] = PIPE_BYTES
                    elif not found.st_nlink and found.st_dev == device and stat.S_ISREG(found.st_mode):
                        files[found.st_ino] = found.st_blocks * 512
        mappings, left, shared, resident = 0, MAPS_BYTES, dict[bytes, int](), 0
        for pid in pids:
            text = _maps(pid, left)
            mappings, left = mappings + text.count(b"\n"), left - len(text)
            for inode in _deleted(text, folder):
                files.setdefault(inode, largest)
            if areas := _areas(text):
                shared |= {inode: max(size, shared.get(inode, 0)) for inode, size in areas.items()}
                resident += _shared_resident(pid)
    pipes = sum(size == PIPE_BYTES for size in buffers.values())
    too_many = "mappings" if left <= 0 else "pipes" if pipes > MOST_PIPES else ""
    unseen = max(0, sum(shared.values()) - resident)
    return Held(sum(files.values()), sum(buffers.values()), mappings, unseen, too_many)


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _open_files(folder: str) -> Iterator[os.stat_result]:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.stat(f"{folder}/{name}")
        except OSError:
            continue  # closed while we looked


def _maps(pid: int, most: int) -> bytearray:
    """A line for each of a process's mappings, `most` bytes of them."""
    for task in reversed(_tasks(pid)):  # a leader that has ended has none
        text = bytearray()
        try:
            with open(f"/proc/{pid}/task/{task}/maps", "rb", buffering=0) as file:
                while len(text) < most and (part := file.read(min(65536, most - len(text)))):
                    text += part
        except OSError:
            continue
        if text:
            return text
    return bytearray()


def _areas(text: bytearray) -> dict[bytes, int]:
    """Bytes of each piece of shared memory without a name among these lines, by inode: as far as it is mapped."""
    found: dict[bytes, int] = {}
    if b"/dev/zero (deleted)\n" in text:
        for line in re.finditer(rb"^(\w+)-(\w+) \S+ (\w+) \S+ (\d+) +/dev/zero \(deleted\)$", text, re.MULTILINE):
            begin, end, offset = (int(word, 16) for word in line.groups()[:3])
            found[line[4]] = max(found.get(line[4], 0), offset + end - begin)
    return found


def _shared_resident(pid: int) -> int:
    """Bytes of shared memory that a process has resident, by which it is counted already."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem:")), 0)
    except OSError:
        return 0


def _deleted(text: bytearray, folder: str) -> Iterator[int]:
    """Inodes of the deleted files of `folder` among these lines."""
    if b" (deleted)\n" in text:
        pattern = rb"^\S+ \S+ \S+ \S+ (\d+) +" + re.escape(folder.encode()) + rb"/.* \(deleted\)$"
        for line in re.finditer(pattern, text, re.MULTILINE):
            yield int(line[1])

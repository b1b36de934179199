"""What a program holds that no limit of the kernel's counts: deleted files still open, full sockets and pipes.

    held = count_held(pids, folder, uid)                # Held(files, buffers), bytes

Travels beside `worker.py`; standard library only. A process's descriptors are read through /proc, which shows them to
their owner: the worker becomes the program's uid for files while it reads. Only what a filter of system calls makes
countable is counted: no descriptor in a message under way, no buffer of a size of its own (`confinement.py`). Leaves
out: files that have a name (`watching.folder_size`), memory of processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

SOCKET_BYTES, PIPE_BYTES = 212_992, 65_536
"""What one of them holds at most: net.core.wmem_default as kernels have it, and sixteen pages."""

_libc = ctypes.CDLL(None, use_errno=True)


class Held(NamedTuple):
    """Bytes."""

    files: int
    """On disk, in files of the program's folder that have no name any more."""
    buffers: int
    """What the sockets and pipes could hold at most."""


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
        for pid in pids:
            for inode in _mapped_only(pid, folder):
                files.setdefault(inode, largest)
    return Held(sum(files.values()), sum(buffers.values()))


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


def _mapped_only(pid: int, folder: str) -> Iterator[int]:
    """Inodes of deleted files of `folder` that a process has mapped."""
    start = folder.encode() + b"/"
    for task in reversed(_tasks(pid)):
        try:
            with open(f"/proc/{pid}/task/{task}/maps", "rb") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split(None, 5)
            if len(words) == 6 and words[5].startswith(start) and words[5].endswith(b" (deleted)"):
                yield int(words[4])
        if lines:
            return

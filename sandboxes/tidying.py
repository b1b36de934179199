"""What a worker does to its program's folder, and to System V's objects, before the next program.

    tidy(folder)                              # empty, and as it was made: modes, dates, attributes
    wipe_system_v(uid)                        # shared memory, queues and semaphores of that user

Travels beside `worker.py`; standard library only. All processes of the program are dead by then. Raises OSError where
something cannot be made good: then the worker must be replaced. Leaves out: killing and reaping.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)


def tidy(folder: str) -> None:
    """Empty a program's folder and take off what the program may have set on it."""
    os.chmod(folder, 0o700)
    for name in os.listxattr(folder):  # only where no filter refuses to set them
        os.removexattr(folder, name)
    _empty(folder)
    os.utime(folder)


def _empty(folder: str) -> None:
    """Remove everything in `folder`. Depth never matters: a folder in a folder is first moved to the top."""
    moved = 0
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        os.chmod(entry.path, 0o700)
                        moved += 1
                        os.rename(entry.path, os.path.join(folder, f".{moved}.{time.monotonic_ns()}"))
                    else:
                        os.unlink(entry.path)
            os.rmdir(path)


def wipe_system_v(uid: int) -> None:
    """Remove all of System V's objects that `uid` has made. For a uid, or a namespace, that only programs have."""
    for number in _system_v("shm", "shmid", uid):
        _libc.shmctl(number, 0, None)
    for number in _system_v("msg", "msqid", uid):
        _libc.msgctl(number, 0, None)
    for number in _system_v("sem", "semid", uid):
        _libc.semctl(number, 0, 0)


def _system_v(kind: str, number: str, uid: int) -> Iterator[int]:
    try:
        with open(f"/proc/sysvipc/{kind}") as file:
            head, *lines = (line.split() for line in file)
    except OSError:  # the kernel has none
        return
    for words in lines:
        row = dict(zip(head, words, strict=False))
        if row["cuid"] == str(uid):
            yield int(row[number])

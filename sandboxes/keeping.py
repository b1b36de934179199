"""The keeper: a worker's parent on this machine, who ends as it ends and leaves nothing of it behind.

    keep(worker_pid, folder)                          # never returns

What a dead worker leaves comes to its keeper and is killed and reaped here, never by the launcher: a trainer that is
process 1 of a container would gather zombies until no fork succeeds any more. SIGTERM, or the launcher's death, ends the
worker. Its folder goes with it, and with the launcher the pool's, which is that folder's parent. Travels beside
`worker.py`; standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from typing import NoReturn

from watching import descendants


def keep(worker: int, folder: str) -> NoReturn:
    """Wait for the worker, clean up after it, leave with its exit code (128 + signal when one ended it)."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)  # else the launcher would never see the worker's end of the line close
    signal.signal(signal.SIGTERM, lambda *_: _kill(worker))
    parent, poll = os.getppid(), select.poll()
    poll.register(os.pidfd_open(worker), select.POLLIN)
    while not poll.poll(5000):
        if os.getppid() != parent:
            _kill(worker)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    deadline = time.monotonic() + 5
    while (left := descendants()) and time.monotonic() < deadline:
        for pid in left:
            _kill(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        time.sleep(0.001)
    shutil.rmtree(folder, ignore_errors=True)
    if _gone(parent):
        with contextlib.suppress(OSError):  # another worker's folder is there yet: its keeper will do it
            os.rmdir(os.path.dirname(folder))
    os._exit(code if code >= 0 else 128 - code)


def _gone(parent: int) -> bool:
    """Whether the launcher has ended or is ending: it closes the worker's line a little before it is no more."""
    try:
        with open(f"/proc/{parent}/stat", "rb") as file:
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except OSError:
        return True
    return os.getppid() != parent or bool(flags & 4)  # PF_EXITING


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

"""Ending a program and whatever it started, even what outlived it or left its process group.

    mark = new_mark()                                  # {"KINTSUGI_MARK": "…"}: variables for the program's environment
    process = subprocess.Popen(command, env={**os.environ, **mark}, start_new_session=True)
    sessions = sessions_of(mark)                       # while it lives: also finds children that emptied their environment
    …
    end_marked(mark, sessions)

    watcher = Watcher(mark)                            # ends them too when this process is killed: a process of its own
    watcher.close()

A child inherits the variable, whatever group, session or parent it has later. Linux's /proc is read; elsewhere only the
process groups that the sessions are named after are ended. Left out: reaping (orphans are the init process's), children that
both emptied their environment and began a session of their own, and those of a program that was given no mark.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "KINTSUGI_MARK"
_ROUNDS: Final = 20
_PAUSE_S: Final = 0.02
_KERNEL_THREADS: Final = 2
"""The parent of the kernel's own, which have neither environment nor arguments."""


def new_mark() -> dict[str, str]:
    """A variable that nothing else has."""
    return {VARIABLE: secrets.token_hex(16)}


def carriers(mark: Mapping[str, str]) -> set[int]:
    """The processes that carry `mark`, but this one."""
    return {pid for pid in _processes() if _carries(pid, mark)}


def children() -> set[int]:
    """This process's children, zombies included."""
    own = str(os.getpid()).encode()
    return {pid for pid in _processes() if _state(pid)[1:2] == [own]}


def sessions_of(mark: Mapping[str, str]) -> set[int]:
    """The sessions of the processes that carry `mark`, this process's own left out."""
    return {_session(pid) for pid in carriers(mark)} - {0, os.getsid(0)}


def end_marked(mark: Mapping[str, str], sessions: Collection[int] = ()) -> None:
    """Kill every process that carries `mark` or belongs to one of `sessions`, and those they start meanwhile."""
    sessions = set(sessions) - {0, os.getsid(0)}
    for session in sessions:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGKILL)
    for _ in range(_ROUNDS):
        found = [pid for pid in _processes() if _carries(pid, mark) or (sessions and _session(pid) in sessions)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found and not any(map(_begins, _processes())):
            return
        time.sleep(_PAUSE_S)


class Watcher:
    """A process that waits for this one to end, however it does, and then ends what carries `mark`."""

    def __init__(self, mark: Mapping[str, str]) -> None:
        quiet = subprocess.DEVNULL  # a terminal's Ctrl-C does not reach it, and its input ends when this process does
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *(f"{name}={value}" for name, value in mark.items())],
            stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True,
        )  # fmt: skip

    def close(self) -> None:
        """End the waiting, and what carries the mark; harmless twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def _processes() -> list[int]:
    """Every process but this one; [] where there is no /proc."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    except OSError:
        return []


def _carries(pid: int, mark: Mapping[str, str]) -> bool:
    held = _read(pid, "environ")
    return all(f"{name}={value}".encode() in held for name, value in mark.items())


def _begins(pid: int) -> bool:
    """Whether it is just being replaced by its program, and says nothing yet of its environment."""
    if _read(pid, "environ") or _read(pid, "cmdline"):
        return False
    state = _state(pid)
    return bool(state) and state[0] not in (b"Z", b"X") and int(state[1]) != _KERNEL_THREADS and pid != _KERNEL_THREADS


def _session(pid: int) -> int:
    """Its session, 0 for one that is gone or dead but not yet reaped."""
    state = _state(pid)
    return int(state[3]) if state and state[0] not in (b"Z", b"X") else 0


def _state(pid: int) -> list[bytes]:
    """What stands behind its name in `stat`: state, parent, group, session, …; [] when it is gone."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # gone, or another user's
        return b""


def _main(words: Collection[str]) -> None:
    """Wait until the input ends, then end what carries the mark."""
    mark = dict(word.split("=", 1) for word in words)
    sys.stdin.buffer.read()
    end_marked(mark, sessions_of(mark))


if __name__ == "__main__":
    _main(sys.argv[1:])

"""Where namespaces are refused, by whatever part, the worker goes on outside and says why; the next rung serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kintsugi.sandboxes import namespaces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="NAMESPACES ARE LINUX'S")


def answer_of_enter(folder: Path, prepare: Callable[[], None]) -> str:
    """What `enter` answers in a process of its own, which must be one thread's."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            prepare()
            inside, reason = namespaces.enter(str(folder), 4, [], [], {})
            os.write(writing, f"{inside} {reason}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = b"".join(iter(lambda: os.read(reading, 4096), b"")).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    return said


def test_a_refused_unshare_is_said(tmp_path: Path) -> None:
    def refuse() -> None:
        def unshare() -> None:
            raise PermissionError(1, "as in a container")

        namespaces._unshare = unshare

    assert answer_of_enter(tmp_path, refuse).startswith("0 PermissionError") and "as in a container" in answer_of_enter(
        tmp_path, refuse
    )


def test_a_refused_mount_is_said(tmp_path: Path) -> None:
    def refuse() -> None:
        def build(*arguments: object) -> None:
            raise OSError(1, "mount /proc")

        namespaces._build = build
        namespaces._unshare = lambda: None

    assert "mount /proc" in answer_of_enter(tmp_path, refuse)

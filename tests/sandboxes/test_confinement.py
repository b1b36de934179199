"""What confinement refuses where the kernel's Landlock is older than this machine's: truncation and signals by ioctl.

The worker takes the version from `landlock_version`, which is capped here; a forked child applies the rung and tries.
Leaves out: this machine's own version (`test_battery.py`).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kintsugi.sandboxes import confinement

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or confinement.landlock_version() < 1, reason="NO LANDLOCK ON THIS KERNEL"
)


@pytest.fixture
def ground() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kintsugi-test-", dir="/tmp") as folder:
        for name, mode in (("run", 0o777), ("victim", 0o666)):
            path = Path(folder, name)
            path.mkdir() if name == "run" else path.write_text("whole")
            path.chmod(mode)
        Path(folder).chmod(0o711)
        yield Path(folder)


def refused(ground: Path, version: int, attempts: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> str:
    """A letter an attempt, tried under a Landlock of that version: r refused, d done."""
    actual = confinement.landlock_version()
    if actual < version:
        pytest.skip(f"LANDLOCK HERE IS OF VERSION {actual}")
    monkeypatch.setattr(confinement, "landlock_version", lambda: version)
    uid = 61001 if os.getuid() == 0 else None
    rung = confinement.Confinement("landlock+seccomp", confinement.Ground(str(ground / "run")), uid)
    hearing, say = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            rung.apply()
            os.chdir(ground / "run")
            for attempt in attempts:
                try:
                    attempt()
                    os.write(say, b"d")
                except OSError:
                    os.write(say, b"r")
        finally:
            os._exit(0)
    os.close(say)
    said = b"".join(iter(lambda: os.read(hearing, 99), b"")).decode()
    os.close(hearing)
    os.waitpid(pid, 0)
    os.close(rung._ruleset)
    return said


@pytest.mark.parametrize("version", [1, 2, 3])
def test_files_outside_cannot_be_cut(ground: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = str(ground / "victim")
    attempts = [
        lambda: os.truncate(victim, 0),
        lambda: os.open(victim, os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(victim, 3 | os.O_TRUNC),
        lambda: os.utime(victim),
        lambda: Path("own").write_text("x"),
        lambda: Path("own").write_text("y"),
        lambda: os.ftruncate(os.open("own", os.O_RDWR), 0),
    ]
    assert refused(ground, version, attempts, monkeypatch) == "rrrrddd"
    assert Path(victim).read_text() == "whole"


@pytest.mark.parametrize("version", [2, 5])
def test_no_owner_of_a_descriptor_is_named(ground: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    pair = socket.socketpair()
    attempts = [lambda code=code: fcntl.ioctl(pair[0], code, struct.pack("i", 1)) for code in (0x8901, 0x8902, 0x5452)]
    assert refused(ground, version, [*attempts, lambda: os.kill(os.getpid(), 0)], monkeypatch) == "rrrd"


def test_buffers_and_kinds_of_pairs_are_bounded(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import signal

    pair = socket.socketpair()
    attempts = [
        lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        *(lambda option=option: pair[0].setsockopt(socket.SOL_SOCKET, option, 1 << 20) for option in (7, 8, 32, 33)),
        lambda: fcntl.fcntl(os.pipe()[0], 1031, 1 << 20),
        lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        lambda: socket.send_fds(pair[0], [b"x"], [0]),
        lambda: socket.socketpair(),
        lambda: pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    ]
    version = confinement.landlock_version()
    assert refused(ground, version, attempts, monkeypatch) == "r" * 9 + "ddd"

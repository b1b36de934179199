"""What a program started is found and ended: by its mark, by its session, and when who asked is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kintsugi.sandboxes.environments.marked_processes import Watcher, end_marked, new_mark, sessions_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finding orphans needs Linux's /proc")

STARTS = "import subprocess, time; print(subprocess.Popen(['sleep', '543'], HOW).pid, flush=True); time.sleep(543)"
DAEMON = "start_new_session=True"
EMPTIED = "env={}"
ANSWERS = f"""
import subprocess
from kintsugi.sandboxes.environments.worker_processes import serve

serve(lambda asked: {{"pid": subprocess.Popen(["sleep", "543"], {DAEMON}, stdin=subprocess.DEVNULL).pid}})
"""


def runs(pid: int) -> bool:
    """Whether it does, for up to 30 s: what was killed may take a moment."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.02)
    return True


def started(mark: dict[str, str], how: str) -> tuple[subprocess.Popen[bytes], int]:
    """A program with this mark, and the process that it started so."""
    words = [sys.executable, "-I", "-S", "-c", STARTS.replace("HOW", how)]
    program = subprocess.Popen(words, env={**os.environ, **mark}, stdout=subprocess.PIPE, start_new_session=True)
    assert program.stdout is not None
    return program, int(program.stdout.readline())


def test_an_orphan_is_found_by_its_mark_and_another_mark_is_left_alone() -> None:
    mark, other = new_mark(), new_mark()
    program, child = started(mark, DAEMON)
    neighbour, theirs = started(other, DAEMON)
    program.kill()
    program.wait()
    end_marked(mark)
    assert not runs(child) and neighbour.poll() is None and Path(f"/proc/{theirs}").exists()
    watcher = Watcher(other)
    watcher.close()
    watcher.close()
    assert neighbour.wait(30) == -9 and not runs(theirs)
    for one in (program, neighbour):
        assert one.stdout is not None
        one.stdout.close()


def test_a_child_that_emptied_its_environment_is_found_by_its_session() -> None:
    mark = new_mark()
    program, child = started(mark, EMPTIED)
    sessions = sessions_of(mark)
    assert sessions == {program.pid} and os.getsid(0) not in sessions
    program.kill()
    program.wait()
    end_marked(mark, sessions)
    assert not runs(child)
    assert program.stdout is not None
    program.stdout.close()


def test_a_worker_whose_asker_is_gone_ends_what_it_started() -> None:
    pipe = subprocess.PIPE
    worker = subprocess.Popen([sys.executable, "-c", ANSWERS], env={**os.environ, **new_mark()}, stdin=pipe, stdout=pipe)
    told, _ = worker.communicate(b"{}\n", timeout=100)  # and its input ends
    child = int(told.decode().split('"pid": ')[1].split("}")[0])
    assert worker.returncode == 0 and not runs(child)

"""The local sandbox: the conformance suite on each rung this machine allows, then what only this backend can be asked.

Leaves out: the long list of attacks (acceptance runs it) and speed (`benchmarks/sandboxes.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from kintsugi.errors import ConfigError, SandboxError
from kintsugi.sandboxes import local_sandbox, worker_pool
from kintsugi.sandboxes.confinement import RUNGS
from kintsugi.sandboxes.conformance import CHECKS
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.sandbox import Limits, Sandbox, open_sandbox

pytestmark = pytest.mark.filterwarnings("ignore:local sandbox")


@pytest.fixture(scope="module", params=RUNGS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[LocalSandbox]:
    try:
        opened = LocalSandbox(workers=2, confinement=request.param, allow_unsafe=True)
    except SandboxError as error:
        pytest.skip(f"this machine does not allow {request.param}: {error}")
    with opened:
        yield opened
    assert processes_of(opened) == []


def processes_of(sandbox: LocalSandbox) -> list[int]:
    """Every process with the sandbox's folder in its command line: keepers, workers and forks of workers."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if str(sandbox._folder).encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(sandbox: LocalSandbox, check) -> None:
    check(sandbox)
    assert len(processes_of(sandbox)) <= 4, "only the workers and their keepers may be left"
    assert sandbox.stats().replaced == 0, "no program may cost a worker"


def test_it_is_a_sandbox(sandbox: LocalSandbox) -> None:
    assert isinstance(sandbox, Sandbox)


def test_a_killed_worker_is_replaced_and_its_program_run_again() -> None:
    with LocalSandbox(workers=1, allow_unsafe=True) as sandbox:
        answers: list[object] = []
        caller = threading.Thread(
            target=lambda: answers.append(sandbox.run("import time\ntime.sleep(0.7)\nprint('done')"))
        )
        worker = max(processes_of(sandbox))
        caller.start()
        time.sleep(0.3)
        os.kill(worker, signal.SIGKILL)
        caller.join(10)
        result = answers[0]
        assert getattr(result, "stdout", None) == "done\n", result
        stats = sandbox.stats()
        assert (stats.replaced, stats.retried, stats.by_status) == (1, 1, {"ok": 1})
        assert len(processes_of(sandbox)) == 2


def test_a_worker_that_dies_twice_is_sandbox_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalSandbox(workers=1, allow_unsafe=True) as sandbox:

        def die(self: object, frames: object, patience_s: float) -> None:
            raise worker_pool.WorkerFailed("as the test wants it")

        with monkeypatch.context() as patch:
            patch.setattr(local_sandbox.LocalWorker, "ask", die)
            result = sandbox.run("print(1)")
        assert result.status == "sandbox_failed" and "as the test wants it" in result.stderr
        assert (sandbox.stats().replaced, sandbox.stats().retried) == (2, 1)
        assert sandbox.run("print(2)").stdout == "2\n"


def test_close_leaves_no_process_and_no_folder() -> None:
    sandbox = LocalSandbox(workers=2, allow_unsafe=True)
    sandbox.run_many(["open('left', 'w').write('x')"] * 4)
    folder = sandbox._folder
    assert folder.is_dir() and len(processes_of(sandbox)) == 4
    sandbox.close()
    sandbox.close()
    assert not folder.exists() and processes_of(sandbox) == []
    with pytest.raises(SandboxError, match="open another"):
        sandbox.run("print(1)")


def test_workers_go_when_the_launcher_is_killed() -> None:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            sandbox = LocalSandbox(workers=1, allow_unsafe=True)
            os.write(writing, str(sandbox._folder).encode())
            sandbox.run("import time\ntime.sleep(60)", limits=Limits(wall_s=60))
        finally:
            os._exit(0)
    folder = os.read(reading, 1000).decode()
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        if not any(folder.encode() in line for line in lines):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker outlived its launcher")
    while Path(folder).exists():
        assert time.monotonic() < deadline, f"left: {list(Path(folder).rglob('*'))}"
        time.sleep(0.1)


def test_what_killed_callers_and_keepers_left_is_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_sandbox, "_SHARED", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    world = local_sandbox._pid_world()
    names = [f"{gone.pid}-{world}-a", f"{os.getpid()}-{world}-b", f"{gone.pid}-{world + 1}-c", "old"]
    folders = [tmp_path / f"kintsugi-sandbox-{name}" for name in names]
    for folder in folders:
        (folder / "worker-1").mkdir(parents=True)
    local_sandbox._sweep()
    assert [folder.exists() for folder in folders] == [False, True, True, True]


def test_no_isolation_needs_allow_unsafe() -> None:
    with pytest.raises(SandboxError, match="allow_unsafe=True"):
        LocalSandbox(workers=1, confinement="rlimits")


def test_missing_guarantees_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_warned", set())
    with pytest.warns(RuntimeWarning, match="does not guarantee: .*network"):
        LocalSandbox(workers=1, confinement="rlimits", allow_unsafe=True).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalSandbox(workers=1, confinement="rlimits", allow_unsafe=True).close()


def test_a_fork_of_the_caller_is_told() -> None:
    with LocalSandbox(workers=1, allow_unsafe=True) as sandbox:
        if (pid := os.fork()) == 0:
            try:
                sandbox.run("print(1)")
            except SandboxError:
                sandbox.close()
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert sandbox.run("print(1)").stdout == "1\n"


def test_what_open_sandbox_refuses() -> None:
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        open_sandbox("lokal")
    with pytest.raises(ConfigError, match="at least 1"):
        open_sandbox("local", workers=0)
    with pytest.raises(ConfigError, match=r"Limits\.cpu_s"):
        Limits(cpu_s=0)
    with LocalSandbox(workers=1, allow_unsafe=True) as sandbox, pytest.raises(ConfigError, match="make it relative"):
        sandbox.run("print(1)", files={"../x": "y"})


def test_all_workers_killed_at_once_costs_no_answer() -> None:
    with LocalSandbox(workers=2, allow_unsafe=True) as sandbox:
        sandbox.run_many(["print(1)"] * 8)
        for pid in processes_of(sandbox):
            os.kill(pid, signal.SIGKILL)
        assert [one.stdout for one in sandbox.run_many(["print(2)"] * 4)] == ["2\n"] * 4
        assert sandbox.stats().replaced == 2 and "sandbox_failed" not in sandbox.stats().by_status

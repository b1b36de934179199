"""What the worker's watch counts, and what it does not let a program hide: mappings, pipes, closed folders, CPU time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kintsugi.sandboxes import holdings, tidying
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.sandbox import Limits

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="NO /proc HERE"),
    pytest.mark.filterwarnings("ignore:local sandbox"),
]


def held_after(doing: Callable[[], object], folder: Path) -> holdings.Held:
    """What a child holds that has done it."""
    hearing, say = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            doing()
            os.write(say, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(hearing, 1) == b"x"
        return holdings.count_held([pid], str(folder), None, 1 << 20)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(hearing)
        os.close(say)


def test_mappings_are_counted_and_too_many_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = held_after(lambda: None, tmp_path)
    assert plain.mappings > 20 and plain.too_many == ""
    monkeypatch.setattr(holdings, "MAPS_BYTES", 1000)
    assert held_after(lambda: None, tmp_path).too_many == "mappings"


def test_pipes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "MOST_PIPES", 40)
    pipes: list[tuple[int, int]] = []
    assert held_after(lambda: pipes.extend(os.pipe() for _ in range(60)), tmp_path).too_many == "pipes"
    assert held_after(lambda: None, tmp_path).too_many == ""


def test_the_cpu_limit_holds_at_the_end_too() -> None:
    with LocalSandbox(workers=1, allow_unsafe=True) as sandbox:
        short = Limits(cpu_s=0.001)
        assert sandbox.run("print(1)", limits=short).status == "timeout"
        judged = sandbox.run_tests("def f(): return 1", ["assert f() == 1"], limits=short)
        assert judged.run.status == "timeout" and not judged.all_passed
        assert sandbox.stats().by_status == {"timeout": 2}


def test_a_folder_is_made_ready_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/c").write_text("x")
    os.utime(folder, (12345, 12345))
    folder.chmod(0o755)
    tidying.tidy(str(folder))
    assert list(folder.iterdir()) == [] and folder.stat().st_mode & 0o777 == 0o700
    assert min(folder.stat().st_mtime, folder.stat().st_atime) > 12345


def test_a_spoilt_folder_costs_the_worker_and_not_the_verdict() -> None:
    """On limits alone a program may take its folder away: what it did stands, the next program has a new worker."""
    with LocalSandbox(workers=1, allow_unsafe=True, confinement="rlimits") as sandbox:
        folder = next(sandbox._folder.glob("worker-*"))
        folder.chmod(0o777)  # what a program of the same user could do
        code = "import os\nprint('done', flush=True)\nos.rename(os.getcwd(), os.getcwd() + '-away')"
        result = sandbox.run(code)
        assert (result.status, result.stdout) == ("ok", "done\n"), result
        assert sandbox.run("print(2)").stdout == "2\n"
        assert (sandbox.stats().replaced, sandbox.stats().retried) == (1, 0)


def test_arguments_of_opening_are_checked() -> None:
    from kintsugi.errors import ConfigError, SandboxError
    from kintsugi.sandboxes.sandbox import open_sandbox

    with pytest.raises(SandboxError, match="local: it takes no image"):
        open_sandbox("local", image="my/strict:1")
    wrong: tuple[dict[str, Any], ...]
    wrong = ({"kind": None}, {"image": 5}, {"packages": [3]}, {"packages": "json"}, {"packages": [".x"]}, {"workers": True})
    for arguments in wrong:
        with pytest.raises(ConfigError, match=f"{next(iter(arguments))}: expected"):
            open_sandbox(**arguments)
    with open_sandbox("local", workers=1, allow_unsafe=True, packages=["json"]) as sandbox:
        assert sandbox.run("import json, colorsys\nprint(json.dumps(1))").stdout == "1\n"
        with pytest.raises(ConfigError, match="files: expected at most the 1 MiB"):
            sandbox.run("", files={"a": bytes(2 << 20)}, limits=Limits(files_mb=1))
        with pytest.raises(ConfigError, match="stdin: expected at most the 1 MiB"):
            sandbox.run("", stdin="x" * (2 << 20), limits=Limits(files_mb=1))
        assert sandbox.run("import sys\nsys.exit(2**70)").exit_code == 255
        assert sandbox.run_tests("x = 1", ["assert x == 1"], limits=Limits(memory_mb=1)).run.status == "memory"

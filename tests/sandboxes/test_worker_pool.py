"""The pool behind every sandbox: frames that were not read, closing while callers wait, arguments that are none.

On the local backend. Leaves out: what a worker does with a program (`test_local_sandbox.py`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kintsugi.errors import ConfigError, SandboxError
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.sandbox import Limits, open_sandbox

pytestmark = pytest.mark.filterwarnings("ignore:local sandbox")


def test_tests_that_were_not_read_to_their_end_cost_the_next_program_nothing() -> None:
    """The judge is killed while it reads: what is left of its tests must not be taken for the next request."""
    with LocalSandbox(workers=1, allow_unsafe=True) as sandbox:
        result = sandbox.run_tests("x = 1", ["x = '" + "y" * 60_000_000 + "'"], limits=Limits(wall_s=0.02))
        assert (result.passed, result.run.status) == (0, "timeout")
        started = time.monotonic()
        assert sandbox.run("print(1)").stdout == "1\n"
        assert time.monotonic() - started < 20 and sandbox.stats().by_status == {"timeout": 1, "ok": 1}
        assert (sandbox.stats().replaced, sandbox.stats().retried) == (1, 0)


def test_callers_who_queue_while_it_closes_hear_that_it_is_closed() -> None:
    sandbox = LocalSandbox(workers=1, allow_unsafe=True)
    heard: list[object] = []

    def call() -> None:
        try:
            heard.append(sandbox.run("import time\ntime.sleep(1.5)").status)
        except BaseException as error:  # what it is, is the question
            heard.append(error)

    async def wait_for_it() -> None:
        try:
            heard.append((await sandbox.arun("print(1)")).status)
        except BaseException as error:
            heard.append(error)

    callers = [threading.Thread(target=call) for _ in range(2)]
    callers.append(threading.Thread(target=lambda: asyncio.run(wait_for_it())))
    for caller in callers:
        caller.start()
    deadline = time.monotonic() + 10
    while sandbox._threads._work_queue.qsize() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    sandbox.close()
    for caller in callers:
        caller.join(10)
    refused = [one for one in heard if one != "ok"]
    assert len(heard) == 3 and len(refused) == 2, "what runs is finished, what queues is refused"
    assert all(isinstance(one, SandboxError) and "found it closed" in str(one) for one in refused), heard


def test_a_run_that_races_with_closing_hears_that_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = LocalSandbox(workers=1, allow_unsafe=True)
    sandbox.close()
    monkeypatch.setattr(sandbox, "_closed", False)  # as if it had been looked at just before
    with pytest.raises(SandboxError, match="found it closed"):
        sandbox.run("print(1)")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    with LocalSandbox(workers=1, allow_unsafe=True) as opened:
        yield opened
        assert opened.stats().replaced == 0, "no argument may cost a worker"


ODD_NAMES = ("\ud800", "", ".", "a/", "/a", "../a", "a\0", "é" * 128, "a/" * 600 + "a")


@pytest.mark.parametrize(
    ("method", "arguments", "sentence"),
    [
        ("run", {"code": b""}, "code: expected text, found b'' .bytes."),
        ("run", {"code": "", "stdin": None}, "stdin: expected text, found None"),
        ("run", {"code": "", "limits": {}}, "limits: expected a Limits, found {} .dict."),
        ("run", {"code": "", "files": ["a"]}, "files: expected a mapping"),
        ("run", {"code": "", "files": {"a": None}}, "files: expected a path and text or bytes"),
        *(("run", {"code": "", "files": {name: ""}}, "files: expected a path inside") for name in ODD_NAMES),
        ("run", {"code": "", "files": {"a": "", "a/b": ""}}, "files: expected files, found 'a' as the folder of another"),
        ("run_many", {"programs": "print(1)"}, "programs: expected a list"),
        ("run_tests", {"code": "", "tests": [None]}, r"tests\[0\]: expected text, found None"),
        ("run_tests", {"code": "", "tests": "assert 1"}, "tests: expected a list of texts"),
        ("run_tests", {"code": "", "tests": [], "setup": 3}, "setup: expected text, found 3"),
    ],
)
def test_wrong_arguments_are_said_in_one_sentence(sandbox: LocalSandbox, method: str, arguments: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        getattr(sandbox, method)(**arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in Limits.__dataclass_fields__ for value in (0, -1, 1e300, float("nan"), True, "1", None)),
        ("processes", 0.5), ("memory_mb", 0.5), ("output_bytes", 1 << 30),
    ],
)  # fmt: skip
def test_limits_are_sane(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"Limits\.{name}: expected a .*number above 0 and at most \d+, found"):
        Limits(**{name: value})


def test_the_largest_limits_and_odd_texts_are_served(sandbox: LocalSandbox) -> None:
    most = Limits(wall_s=1e6, cpu_s=1e6, memory_mb=1 << 20, processes=100_000, output_bytes=1 << 22, files_mb=1 << 20)
    assert sandbox.run("print(1)", limits=most).stdout == "1\n"
    odd = sandbox.run("print(open('a', 'rb').read(), input())", stdin="\ud800x", files={"a": "\ud800"})
    assert odd.status in ("ok", "error") and sandbox.run("print(open('a', 'rb').read())", files={"a": "\ud800"}).stdout
    with pytest.raises(ConfigError, match="workers: expected a whole number"):
        open_sandbox("local", workers=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory_mb", [1, 2, 4, 8])
def test_too_little_memory_is_called_memory(sandbox: LocalSandbox, memory_mb: int) -> None:
    result = sandbox.run("x = [0] * 10**7", limits=Limits(memory_mb=memory_mb))
    assert (result.status, "MemoryError" in result.stderr) == ("memory", True), result

"""The pool behind every sandbox: frames that were not read, closing while callers wait, arguments that are none.

On the local backend. Leaves out: what a worker does with a program (`test_local_sandbox.py`).
"""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from kintsugi.errors import SandboxError
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.sandbox import Limits

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
            heard.append(sandbox.run("import time\ntime.sleep(0.8)").status)
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
        time.sleep(0.15)
    sandbox.close()
    for caller in callers:
        caller.join(10)
    assert heard[0] == "ok", "what runs is finished"
    assert len(heard) == 3 and all(isinstance(one, SandboxError) and "found it closed" in str(one) for one in heard[1:]), heard


def test_a_run_that_races_with_closing_hears_that_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = LocalSandbox(workers=1, allow_unsafe=True)
    sandbox.close()
    monkeypatch.setattr(sandbox, "_closed", False)  # as if it had been looked at just before
    with pytest.raises(SandboxError, match="found it closed"):
        sandbox.run("print(1)")

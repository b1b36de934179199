"""The pool behind every sandbox: frames that were not read, closing while callers wait, arguments that are none.

On the local backend. Leaves out: what a worker does with a program (`test_local_sandbox.py`).
"""

from __future__ import annotations

import time

import pytest

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

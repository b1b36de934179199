"""MBPP: golds on the official slice, feedback that can be used, what is shown, splits, schemas, and the self-test itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError
from kintsugi.records import Verdict
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.mbpp import compared_call
from tests.sandboxes.environment_trials import SHARED, opened

RECORD: dict[str, Any] = {
    "text": "Write a function to double a number.",
    "code": "def double(n):\r\n    return 2 * n",
    "task_id": 601,
    "test_setup_code": "",
    "test_list": ["assert double(2) == 4", "assert double(0) == 0", "assert double(-1) == -2"],
    "challenge_test_list": [],
}


@pytest.fixture(scope="module")
def environment() -> Any:
    opened_one = opened("mbpp")
    yield opened_one
    asyncio.run(opened_one.close())


def folder(tmp_path: Path, *records: Any, **options: Any) -> Any:
    (tmp_path / "mbpp.jsonl").write_text("\n".join(map(json.dumps, records)))
    return opened("mbpp", data=tmp_path, **options)


def test_every_gold_of_the_slice_passes_and_broken_ones_do_not() -> None:
    if not (SHARED / "mbpp").is_dir():
        pytest.skip(f"MBPP's file is not in {SHARED / 'mbpp'}")
    environment = opened("mbpp", data=SHARED / "mbpp")

    async def main() -> Any:
        try:
            return await check_golds(environment)
        finally:
            await environment.close()

    result = asyncio.run(main())
    assert result.ok and (result.tasks, result.without_gold) == (310, 0), str(result)
    assert dict(result.splits) == {"train": 200, "test": 100, "heldout": 100, "demonstrations": 10}


def judged(environment: Any, task: Any, action: str) -> Verdict:
    return asyncio.run(environment.judge(task, action))


def test_feedback_says_what_failed_and_what_the_call_gave(tmp_path: Path) -> None:
    environment = folder(tmp_path, RECORD)
    (task,) = environment.tasks("train")
    assert task.prompt.endswith(
        "The function must pass these tests:\nassert double(2) == 4\nassert double(0) == 0\nassert double(-1) == -2"
    )
    verdict = judged(environment, task, "```python\ndef double(n):\n    return n + 2\n```")
    assert verdict.feedback == "1 of 3 tests pass. This one fails: assert double(0) == 0 (AssertionError). double(0) gave 2."
    assert (verdict.success, verdict.reward, verdict.detail) == (False, 0.0, {"tests": 1 / 3})
    crashed = judged(environment, task, "def double(n):\n    return x")
    assert "NameError: name 'x' is not defined" in crashed.feedback
    wrong = judged(environment, task, "def double(n)\n    return n")
    assert wrong.feedback.startswith("SyntaxError") and wrong.fault is not None and wrong.fault.bad == "def double(n)"
    early = judged(environment, task, "import sys\nsys.exit(0)")
    assert not early.success and early.feedback
    assert judged(environment, task, "").feedback == "The answer holds no program: write the function in Python."
    assert judged(environment, task, RECORD["code"]).feedback == "All 3 tests pass."
    asyncio.run(environment.close())


def test_the_program_cannot_make_its_tests_pass(tmp_path: Path) -> None:
    environment = folder(tmp_path, RECORD)
    (task,) = environment.tasks("train")
    cheats = [
        "class E:\n    def __eq__(self, other): return True\ndef double(n): return E()",
        "import os\nos._exit(0)",
        "import builtins\nbuiltins.AssertionError = ValueError\ndef double(n): return None",
        "import sys\ndef double(n): sys.exit(0)",
        "def double(n):\n    while True: pass",
    ]
    for cheat in cheats:
        verdict = judged(environment, task, cheat)
        assert not verdict.success and not verdict.error and verdict.feedback, cheat
    asyncio.run(environment.close())


def test_tests_that_are_not_shown_are_not_told(tmp_path: Path) -> None:
    for show, prompt_has, told in (("none", 0, False), ("first", 1, False), ("all", 3, True)):
        environment = folder(tmp_path, RECORD, show_tests=show)
        (task,) = environment.tasks("train")
        assert task.prompt.count("assert") == prompt_has
        verdict = judged(environment, task, "def double(n):\n    return 4")
        assert ("double(0)" in verdict.feedback) is told and verdict.feedback.startswith("1 of 3 tests pass.")
        asyncio.run(environment.close())
    with pytest.raises(ConfigError, match='did you mean "none"'):
        opened("mbpp", show_tests="non")


@pytest.mark.parametrize(
    ("test", "call"),
    [
        ("assert f(1) == 2", "f(1)"),
        ("assert (f([1, 2], k=3)) == [1]", "f([1, 2], k=3)"),
        ("assert f(1)", None),
        ("assert not f(1) == 2", None),
        ("assert 2 == f(1)", None),
        ("x = 1; assert f(x) == 1", None),
        ("assert f(1) == 2 == 2", None),
        ("assert (", None),
    ],
)
def test_the_call_of_a_test(test: str, call: str | None) -> None:
    assert compared_call(test) == call


def test_splits_go_by_task_id(tmp_path: Path) -> None:
    ids = [1, 10, 11, 510, 511, 600, 601, 974]
    environment = folder(tmp_path, *({**RECORD, "task_id": number} for number in ids))
    found = {
        split: [int(task.id.removeprefix("mbpp-")) for task in environment.tasks(split)]
        for split in ("prompt", "demonstrations", "test", "heldout", "validation", "train")
    }
    assert found == {
        "prompt": [1, 10], "demonstrations": [1, 10], "test": [11, 510], "heldout": [11, 510], "validation": [511, 600],
        "train": [601, 974],
    }  # fmt: skip


def test_the_sanitized_release_and_bad_records(tmp_path: Path) -> None:
    row = {
        "task_id": 601,
        "prompt": "Write …",
        "code": "def f(): return pi",
        "test_imports": ["from math import pi"],
        "test_list": ["assert f()"],
    }
    (tmp_path / "sanitized-mbpp.json").write_text(json.dumps([row]))
    (task,) = opened("mbpp", data=tmp_path).tasks("train")
    assert task.payload["setup"] == "from math import pi" and task.prompt.startswith("Write …")
    for bad, sentence in (
        ({**RECORD, "task_id": "x"}, 'whole number "task_id"'),
        ({**RECORD, "test_list": []}, 'list of texts "test_list"'),
        ({**RECORD, "code": 3}, 'a text "code"'),
    ):
        with pytest.raises(DataError, match=sentence):
            folder(tmp_path, bad).tasks("train")


def test_the_self_test_finds_a_wrong_gold_and_a_wrong_list(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = environment.tasks("train", limit=2)
    real = environment.gold

    async def gold(task: Any) -> tuple[str, ...]:
        return ("def nothing(): pass",) if task.id == first.id else await real(task)

    monkeypatch.setattr(environment, "gold", gold)
    monkeypatch.setattr(environment, "tasks", lambda split, **_: [first, second] if split == "train" else [])
    result = asyncio.run(check_golds(environment))
    assert result.failures == (f"the gold of {first.id} does not earn 1",) and not result.ok
    monkeypatch.setattr(environment, "known_bad", {first.id: "on purpose"}, raising=False)
    result = asyncio.run(check_golds(environment))
    assert result.ok and result.known_bad == {first.id: "on purpose"} and "on purpose" in str(result)
    monkeypatch.setattr(environment, "known_bad", {second.id: "by mistake"}, raising=False)
    assert "take it off the list" in str(asyncio.run(check_golds(environment)))

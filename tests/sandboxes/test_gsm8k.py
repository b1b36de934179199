"""GSM8K: the verifier's self-test on every record of the slice, feedback that gives nothing away, and bad data."""

import asyncio
import json
import sys
import types
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.gsm8k import steps_program
from kintsugi.sandboxes.environments.number_problems import unused_numbers
from kintsugi.sandboxes.sandbox import open_sandbox

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"GSM8K's official files are not in {DATA}")
RECORD = {"question": "Ann has 3 pens and buys 5. How many?", "answer": "She has 3+5=<<3+5=8>>8 pens.\n#### 8"}


def opened(**options) -> Any:
    return open_environment("gsm8k", options)


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox("local", allow_unsafe=True) as opened:
        yield opened


def folder(tmp_path, *lines, split="train"):
    (tmp_path / f"{split}.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return opened(data=tmp_path)


@needs_data
@pytest.mark.parametrize(("split", "num"), [("train", 200), ("test", 100)])
def test_gold_scores_one_and_perturbed_gold_zero(split, num, sandbox):
    environment = opened(data=DATA, sandbox=sandbox)
    tasks = environment.tasks(split)
    assert len(tasks) == len({task.id for task in tasks}) == num

    async def rewards(task):
        (gold,) = await environment.gold(task)
        answer = task.payload["answer"]
        wrong = [f"print({answer + 1})", "a = 3", gold.replace("print(", "print((", 1)]
        wrong += [f"print({answer * 10})", f"print({-answer})"] if answer else []
        verdicts = [await environment.judge(task, action) for action in [gold, f"print({answer})", *wrong]]
        assert not any(verdict.error for verdict in verdicts)
        return [verdict.reward for verdict in verdicts]

    async def main():
        return await asyncio.gather(*map(rewards, tasks))

    for task, (first, second, *others) in zip(tasks, asyncio.run(main()), strict=True):
        assert (first, second) == (1.0, 1.0), task.id
        assert set(others) == {0.0}, task.id


@needs_data
def test_most_solutions_become_programs():
    environment = opened(data=DATA)
    tasks = environment.tasks("train")
    made = [
        steps_program(task.prompt, task.payload["solution"], Fraction(str(task.payload["answer"]))) for task in tasks
    ]
    assert sum(program is not None for program in made) >= 180


def test_steps_use_names_for_earlier_values():
    solution = "3*60=<<3*60=180>>180, 180/2 = <<180/2=90.0>>90\n#### 90"
    assert steps_program("3 hours at 60", solution, Fraction(90)) == "step_1 = 3*60\nstep_2 = step_1/2\nprint(step_2)"
    assert steps_program("3 hours at 60", solution, Fraction(91)) is None
    for odd in ["<<2**9=512>>", "<<x+1=3>>", "<<1/0=0>>", "<<=5>>", "no steps", "<<1=1=1>>", "<<05+1=6>>"]:
        steps_program("", odd + "\n#### 5", Fraction(5))


def test_tasks_are_stable(tmp_path):
    records = [{**RECORD, "question": f"Question {n}?"} for n in range(20)]
    environment = folder(tmp_path, *records, records[0], "")
    tasks = environment.tasks("train")
    assert tasks == opened(data=str(tmp_path)).tasks("train")
    assert len({task.id for task in tasks}) == 21 and tasks[20].id == tasks[0].id + "-2"
    assert environment.tasks("train", limit=5) == tasks[:5]
    sampled = environment.tasks("train", limit=5, seed=3)
    assert sampled == environment.tasks("train", limit=5, seed=3) != environment.tasks("train", limit=5, seed=4)
    assert [task for task in tasks if task in sampled] == sampled
    (tmp_path / "test.jsonl").write_text(json.dumps(RECORD))
    (heldout,), (test,) = environment.tasks("heldout"), environment.tasks("test")
    assert (heldout.split, test.split, heldout.id, heldout.hash) == ("heldout", "test", test.id, test.hash)
    assert environment.tasks("demonstrations") == ()


@pytest.mark.parametrize(
    ("gold", "number"), [("8", 8), ("1,234", 1234), ("-5", -5), ("0.5", 0.5), ("70,000.25", 70000.25), (" 8 ", 8)]
)
def test_gold_numbers(tmp_path, gold, number):
    (task,) = folder(tmp_path, {**RECORD, "answer": f"so\n#### {gold}"}).tasks("train")
    assert task.payload["answer"] == number


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '["a list"]',
        '{"question": "no answer?"}',
        '{"question": 3, "answer": "#### 3"}',
        '{"question": "q", "answer": "no marker 8"}',
        '{"question": "q", "answer": "#### eight"}',
        '{"question": "q", "answer": "#### "}',
        "[" * 100_000,
        b"\xff\xfe".decode("latin-1"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path, line):
    environment = folder(tmp_path, RECORD, "", line)
    with pytest.raises(DataError, match=r"train\.jsonl, line 3: expected") as caught:
        environment.tasks("train")
    assert "github.com/openai/grade-school-math" in str(caught.value)


def test_missing_data_says_where_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere/train\.jsonl.*no such folder.*github\.com/openai"):
        opened(data=tmp_path / "nowhere").tasks("train")
    with pytest.raises(DataError, match=r"test\.jsonl.*it has train\.jsonl"):
        folder(tmp_path, RECORD).tasks("test")
    with pytest.raises(DataError, match="holds no records"):
        folder(tmp_path, "").tasks("train")
    with pytest.raises(DataError, match='did you mean "train"'):
        folder(tmp_path, RECORD).tasks("trains")

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=refuse))
    with pytest.raises(DataError, match=r"openai/gsm8k from the hub \(ConnectionError: no route to the hub\)"):
        opened().tasks("train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="package datasets"):
        opened().tasks("train")


def test_the_hub_gives_the_same_tasks(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [RECORD]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    environment = opened(hub="me/mirror")
    assert environment.tasks("train") == environment.tasks("train") == folder(tmp_path, RECORD).tasks("train")
    assert asked == [(("me/mirror", "main"), {"split": "train"})]


def test_feedback_locates_without_the_gold(tmp_path, sandbox):
    (tmp_path / "train.jsonl").write_text(json.dumps({**RECORD, "question": "3 pens at $5 and 20% off 1,000?"}))
    environment = opened(data=tmp_path, sandbox=sandbox)
    (task,) = environment.tasks("train")

    def judge(action):
        return asyncio.run(environment.judge(task, action))

    verdict = judge("a = 3\nb = 0.8 * a\nc = a * 1000\nprint(c)")
    assert verdict.feedback == (
        "The check failed: the program printed 3000. The variable b is never used. "
        "Of the question's numbers the program never uses 5."
    )
    assert (verdict.fault.kept, verdict.fault.bad) == ("a = 3\n", "b = 0.8 * a")
    crashed = judge("a = 3\nprint(a + x)")
    assert crashed.fault.bad == "print(a + x)" and "NameError" in crashed.feedback
    assert judge("print(").feedback.startswith("SyntaxError")
    assert unused_numbers(task.prompt, "print(3 * 5 * .2 * 1000)") == []

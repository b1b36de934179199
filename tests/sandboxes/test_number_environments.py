"""GSM-Hard, SVAMP, ASDiv: golds on the official slices, the metric against a reference, splits, schemas, bad data."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import types
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import DataError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.number_problems import equation_program
from kintsugi.sandboxes.environments.official_records import share_of
from kintsugi.sandboxes.environments.svamp import joined
from tests.sandboxes.environment_trials import LOCAL, SHARED, opened

KINDS = ("gsm_hard", "svamp", "asdiv")
SVAMP = {"ID": "chal-1", "Body": "Ann has 3 pens", "Question": "How many?", "Equation": "( 3.0 + 5.0 )", "Answer": 8.0}
HARD = {"input": "Ann has 3 pens. How many?", "code": "def solution():\n    return 3\n", "target": 3.0}
XML = '<Problem ID="n-1" Grade="1"><Body>B.</Body><Question>Q?</Question><Answer>{}</Answer><Formula>{}</Formula></Problem>'


@pytest.mark.parametrize("kind", KINDS)
def test_every_gold_of_the_slice_scores_one_and_near_misses_nothing(kind: str) -> None:
    if not (SHARED / kind).is_dir():
        pytest.skip(f"the official files of {kind} are not in {SHARED / kind}")
    environment = opened(kind, data=SHARED / kind)

    async def main() -> Any:
        try:
            return await check_golds(environment)
        finally:
            await environment.close()

    result = asyncio.run(main())
    assert result.ok, str(result)
    assert result.tasks == 300 and result.without_gold == 0 and result.known_bad == {}


def written(rng: random.Random, value: Decimal) -> str:
    """A number as a program or a person may print it, exactly."""
    plain = format(value, "f")
    sign, digits = ("-", plain[1:]) if plain.startswith("-") else ("", plain)
    whole, _, rest = digits.partition(".")
    forms = [
        plain,
        f"{plain} ",
        f"The answer is {plain}",
        f"{sign}{int(whole):,}{'.' + rest if rest else ''}",
        f"{plain} cups",
    ]
    forms += [f"{value:E}".replace("E+0", "E+0")] if abs(value) >= 10 else []
    forms += [plain + "0" if rest else plain + ".0"]
    return rng.choice(forms)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tolerance_equals_a_reference_on_generated_pairs(kind: str) -> None:
    rng = random.Random(f"tolerance {kind}")
    environment = opened(kind)

    async def main() -> None:
        right = 0
        for index in range(300):
            gold = rng.choice([rng.randint(-50, 50), rng.randint(10**6, 10**13), round(rng.uniform(-9, 9), 4)])
            shift = Decimal(rng.choice(["0", "0", "0.0001", "-0.0001", "0.00010001", "0.00009", "1", "-0.5", "0.001"]))
            value = Decimal(str(gold)) + shift
            task = Task(id=str(index), environment=kind, split="train", prompt="?", payload={"answer": gold})
            expected = abs(value - Decimal(str(gold))) <= Decimal("0.0001")
            line = written(rng, value)
            assert await environment.correct(task, line) is expected, (gold, line)
            right += expected
        assert 100 < right < 250

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("9 (apples)", 9),
        ("1.33 (hours)", 1.33),
        ("16 (m); 12 (m)", 16),
        ("9:41", "9:41"),
        ("31; 21", "31; 21"),
        ("9:03:36 a.m.", "9:03:36 a.m."),
        ("They are equal", "They are equal"),
        ("5", 5),
    ],
)
def test_asdiv_cuts_its_answers(tmp_path: Path, answer: str, gold: Any) -> None:
    text = f"<R><ProblemSet>{XML.format(answer, '3+6=9')}</ProblemSet></R>"
    (tmp_path / "ASDiv.train.xml").write_text(text)
    environment = opened("asdiv", data=tmp_path)
    (task,) = environment.tasks("train")
    assert (task.payload["answer"], task.prompt) == (gold, "B. Q?")
    assert task.payload["program"] == ("result = 3+6\nprint(result)" if gold == 9 else "")


@pytest.mark.parametrize(
    ("line", "right"),
    [("9:41", True), (" 9 : 41", True), ("they  are", False), ("9/41", False), ("41:9", False), ("", None)],
)
def test_asdivs_texts_are_compared_without_case_and_spaces(line: str, right: bool | None) -> None:
    task = Task(id="1", environment="asdiv", split="train", prompt="?", payload={"answer": "9:41"})
    assert asyncio.run(opened("asdiv").correct(task, line)) is right


def test_equations_become_programs_only_when_they_come_to_the_answer() -> None:
    assert equation_program("( 92.0 - 56.0 )", 36) == "result = 92 - 56\nprint(result)"
    assert equation_program("( ( 1.0 + 2.0 ) * ( 3.0 - 1.0 ) )", 6) == "result = ( 1 + 2 ) * ( 3 - 1 )\nprint(result)"
    assert equation_program("( 1.0 + 2.0 ) * ( 3.0 - 1.0 )", 6) == "result = ( 1 + 2 ) * ( 3 - 1 )\nprint(result)"
    for odd in ("( 1.0 / 3.0 )", "__import__('os')", "1" * 500, "2 ** 9", "", "x", "( 1.0"):
        assert equation_program(odd, 36) == ""


def golds_of(kind: str, folder: Path) -> Any:
    environment = opened(kind, data=folder)

    async def main() -> Any:
        try:
            return await check_golds(environment, ["test"])
        finally:
            await environment.close()

    return asyncio.run(main())


def test_an_answer_that_svamps_own_equation_does_not_come_to_is_noticed(tmp_path: Path) -> None:
    rows = [SVAMP, {**SVAMP, "ID": "chal-2", "Body": "Bo has 3 pens", "Answer": 9.0}]
    (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
    result = golds_of("svamp", tmp_path)
    assert not result.ok and result.failures == ("the gold of chal-2 does not earn 1",)
    rows[1] |= {"Equation": "x = 9"}
    (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
    result = golds_of("svamp", tmp_path)
    assert result.ok and list(result.unproven) == ["chal-2"]
    assert "1 golds only print the answer: the release's equation is none" in str(result)


def test_golds_that_prove_nothing_are_counted_with_the_reason(tmp_path: Path) -> None:
    problems = [XML.format("9 (apples)", "3+6=9"), XML.format("Leon", "3+6=9"), XML.format("4 (apples)", "3+6=9")]
    text = "".join(problem.replace("n-1", f"n-{place}") for place, problem in enumerate(problems))
    (tmp_path / "ASDiv.xml").write_text(f"<R><ProblemSet>{text}</ProblemSet></R>")
    result = golds_of("asdiv", tmp_path)
    assert result.ok and dict(result.unproven) == {
        "n-1": "the answer is a text",
        "n-2": "the release's equation is none, or does not come to the answer",
    }
    right, wrong = ({"question": f"Q{n}?", "answer": f"So <<3+5=8>>8.\n#### {n}"} for n in (8, 9))
    (tmp_path / "test.jsonl").write_text(f"{json.dumps(right)}\n{json.dumps(wrong)}")
    result = golds_of("gsm8k", tmp_path)
    assert result.ok and "1 golds only print the answer: the solution's calculator steps do not lead" in str(result)


def test_body_and_question_are_joined() -> None:
    assert joined("Ann has  3 pens", "How many?") == "Ann has 3 pens, How many?"
    assert joined("Ann has 3 pens.", "How many?") == "Ann has 3 pens. How many?"
    assert joined("", "How many?") == "How many?"


def test_one_official_file_is_shared_out_the_same_way_each_time(tmp_path: Path) -> None:
    rows = [{**SVAMP, "ID": f"chal-{n}", "Body": f"Ann has {n} pens"} for n in range(200)]
    (tmp_path / "SVAMP.json").write_text(json.dumps(rows))
    environment = opened("svamp", data=tmp_path)
    train, heldout, test = (environment.tasks(split) for split in ("train", "heldout", "test"))
    assert len(train) + len(heldout) == len(test) == 200 and 20 < len(heldout) < 60
    assert not {task.hash for task in train} & {task.hash for task in heldout}
    assert all(share_of(task.id) == "heldout" for task in heldout)
    (tmp_path / "train.json").write_text(json.dumps(rows[:3]))
    assert len(opened("svamp", data=tmp_path).tasks("train")) == 3
    assert environment.tasks("demonstrations") == ()
    assert environment.tasks("train", limit=5, seed=2) == environment.tasks("train", limit=5, seed=2) != train[:5]


@pytest.mark.parametrize(
    ("kind", "file", "content", "sentence"),
    [
        ("svamp", "SVAMP.json", "{", "expected a JSON"),
        ("svamp", "SVAMP.json", '{"a": 1}', "expected a JSON list"),
        ("svamp", "SVAMP.json", json.dumps([{**SVAMP, "Answer": "many"}]), 'record 1: expected a number "Answer"'),
        ("svamp", "SVAMP.json", json.dumps([{**SVAMP, "Answer": True}]), 'expected a number "Answer"'),
        ("svamp", "SVAMP.json", json.dumps([{"ID": "x"}]), 'expected a text "Body"'),
        ("svamp", "SVAMP.json", "[3]", "expected an object"),
        ("gsm_hard", "gsmhardv2.jsonl", "[" * 99_999, "line 1: expected a JSON"),
        ("gsm_hard", "gsmhardv2.jsonl", json.dumps({**HARD, "target": float("nan")}), 'expected a number "target"'),
        ("gsm_hard", "gsmhardv2.jsonl", "", "holds no records"),
        ("asdiv", "ASDiv.xml", "<R>", "expected the official XML"),
        ("asdiv", "ASDiv.xml", '<!DOCTYPE x [<!ENTITY a "b">]><R/>', "without a document type"),
        ("asdiv", "ASDiv.xml", "<R><Problem><Body>b</Body></Problem></R>", 'expected a text "ID"'),
    ],
)
def test_bad_data_are_named(tmp_path: Path, kind: str, file: str, content: str, sentence: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=sentence) as caught:
        opened(kind, data=tmp_path).tasks("test")
    assert "https://" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_data_and_unknown_splits_say_what_to_do(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*https://"):
        opened(kind, data=tmp_path / "nowhere").tasks("train")
    with pytest.raises(DataError, match='did you mean "train"'):
        opened(kind, data=tmp_path).tasks("trian")
    with pytest.raises(DataError, match=f"{kind} has no split"):
        opened(kind).tasks("validation")


@pytest.mark.parametrize(("kind", "row"), [("svamp", {**SVAMP, "Answer": "8.0"}), ("gsm_hard", HARD)])
def test_the_hub_gives_the_same_tasks(kind: str, row: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **named: Any) -> list[Any]:
        asked.append((arguments, named))
        return [row]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    name = "SVAMP.json" if kind == "svamp" else "gsmhardv2.jsonl"
    (tmp_path / name).write_text(json.dumps([row]) if kind == "svamp" else json.dumps(row))
    from_hub = opened(kind, data="hub", hub="me/mirror").tasks("test")[0]
    from_folder = opened(kind, data=tmp_path).tasks("test")[0]
    assert from_hub == from_folder and asked[0][0] == ("me/mirror",)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs a local folder or the package datasets"):
        opened(kind, data="hub").tasks("test")


def test_without_data_the_bundled_set_plays_and_says_so(recwarn: pytest.WarningsRecorder) -> None:
    from kintsugi.sandboxes.environments import official_records
    from kintsugi.sandboxes.environments.environment import open_environment

    official_records._warned.discard("svamp")
    tasks = open_environment("svamp", {"sandbox": LOCAL}).tasks("train")
    assert len(tasks) == 24 and all(task.id.startswith("bundled-") for task in tasks)
    assert [str(one.message) for one in recwarn if "small bundled set" in str(one.message)]

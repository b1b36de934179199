r"""MATH: the official comparison against an independent reference, numbers, boxes, golds, schemas, math-verify."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import math
import random
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError, MissingExtra
from kintsugi.sandboxes.environments import math_verifier
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.math_ import same_number
from kintsugi.sandboxes.environments.math_equivalence import is_equiv, last_boxed, latex_number, normal_form
from tests.sandboxes.environment_trials import SHARED, opened

RECORD = {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{2}$."}


# The reference: the release's rules, character by character and with exceptions where its code has them ---------------


def reference(one: str, other: str) -> bool:
    try:
        return simplified(one) == simplified(other)
    except (IndexError, AssertionError):
        return one == other


def simplified(s: str) -> str:
    s = "".join(s.split("\n"))
    s = "".join(s.split("\\!"))
    s = re.sub(r"\\\\", r"\\", s)
    s = re.sub("[td]frac", "frac", s)
    s = re.sub(r"\\left|\\right", "", s)
    s = re.sub(r"\^(\{\\circ\}|\\circ)", "", s)
    s = re.sub(r"\\\$", "", s)
    if "\\text{ " in s:
        parts = s.split("\\text{ ")
        assert len(parts) == 2
        s = parts[0]
    s = re.sub(r"\\%", "", s)
    s = re.sub(r"(?<= )\.|(?<=\{)\.", "0.", s)
    if s == "":
        return s
    s = f"0{s}" if s.startswith(".") else s
    if s.count("=") == 1 and s.index("=") <= 2:
        s = s[s.index("=") + 1 :]
    s = braces(s, "\\sqrt", 1)
    s = re.sub(" ", "", s)
    s = braces(s, "\\frac", 2)
    if s == "0.5":
        return "\\frac{1}{2}"
    found = re.fullmatch(r"([-+\d_ ]+)/([-+\d_ ]+)", s)
    if found:
        try:
            top, bottom = int(found[1]), int(found[2])
        except ValueError:
            return s
        return f"\\frac{{{top}}}{{{bottom}}}" if s == f"{top}/{bottom}" else s
    return s


def braces(s: str, command: str, arguments: int) -> str:
    """Give single characters after `command` their braces."""
    out, at = "", 0
    while True:
        start = s.find(command, at)
        if start < 0:
            return out + s[at:]
        out += s[at : start + len(command)]
        at = start + len(command)
        end = s.find(command, at)
        rest = s[at : end if end >= 0 else len(s)]
        first = rest[0]  # an IndexError is the release's own
        if first == "{":
            continue
        if arguments == 1:
            out, at = out + "{" + first + "}", at + 1
        elif len(rest) < 2:
            return s
        else:
            second = rest[1]
            out += "{" + first + "}" + (second if second == "{" else "{" + second + "}")
            at += 2


ATOMS = (
    "3", "12", "0.5", ".5", "-7", "1/2", "-3/4", "6/8", r"\frac12", r"\frac{1}{2}", r"\dfrac{3}{4}", r"\tfrac 34",
    r"\frac1{72}", r"\frac{72}1",
    r"\sqrt3", r"\sqrt{3}", r"2\sqrt 5", r"\pi", "x", "k=4", "x = 4", "abc=4", "x=y=2", r"5\text{ cm}",
    r"5 \text{cm}", r"\text{(B)}", r"90^\circ", r"90^{\circ}", r"\$12", r"30\%", r"\left(3, 4\right)", "(3,4)", "[1, 4]",
    r"10,\!000", "10,000", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "{.25}", "a .5", r"\frac", r"\sqrt", r"\frac1",
    "", " ", "x+1",
    "1 + x", "007", "1/02", "+1/2", "1_0/3", r"\frac{\sqrt{2}}3", r"\frac\pi2", r"3\text{ m}\text{ s}", "\n4\n",
)  # fmt: skip


def disguised(rng: random.Random, text: str) -> str:
    """The same answer, or nearly, in another dress."""
    for _ in range(rng.randrange(3)):
        text = rng.choice(
            [
                lambda t: t.replace("frac", "dfrac"),
                lambda t: t.replace(" ", ""),
                lambda t: t + r"\text{ units}",
                lambda t: t + r"^\circ",
                lambda t: r"\left" + t if t.startswith("(") else t,
                lambda t: t.replace(",", ", "),
                lambda t: r"\$" + t,
                lambda t: t + r"\%",
                lambda t: "y=" + t,
                lambda t: t.replace("\\", "\\\\"),
                lambda t: t.replace("{", "", 1),
                lambda t: t[:-1],
                lambda t: t + rng.choice("1 }x."),
            ]
        )(text)
    return text


def test_the_comparison_equals_the_reference_on_generated_pairs() -> None:
    rng = random.Random("math pairs")
    same = 0
    for _ in range(6000):
        one = "".join(rng.choices(ATOMS, k=rng.choice((1, 1, 1, 2))))
        other = disguised(rng, one if rng.random() < 0.7 else rng.choice(ATOMS))
        assert is_equiv(one, other) is reference(one, other), (one, other)
        same += is_equiv(one, other)
    assert 1500 < same < 5000


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\frac12", r"\dfrac{1}{2}", True),
        ("0.5", "1/2", True),
        ("0.25", "1/4", False),
        (r"5\text{ cm}", "5", True),
        (r"5\text{cm}", "5", False),
        ("x=4", "4", True),
        ("abc=4", "4", False),
        (r"\sqrt", r"\sqrt", True),
        ("(1, 2)", r"\left(1,2\right)", True),
        ("2,1", "1,2", False),
    ],
)
def test_the_official_rule_by_example(one: str, other: str, same: bool) -> None:
    assert is_equiv(one, other) is same


def test_normal_forms_are_stable() -> None:
    assert normal_form(r"\dfrac 34") == r"\frac{3}{4}" and normal_form("") == ""


# Numbers and boxes ----------------------------------------------------------------------------------------------------


def expression(rng: random.Random, depth: int) -> tuple[str, float]:
    """LaTeX of a number and its value, computed side by side."""
    if depth == 0 or rng.random() < 0.2:
        value = rng.choice([rng.randint(0, 30), round(rng.uniform(0, 9), 2)])
        return str(value), float(value)
    (left, a), (right, b) = expression(rng, depth - 1), expression(rng, depth - 1)
    form = rng.randrange(6)
    if form == 0:
        return rf"\frac{{{left}}}{{{right}}}", a / b
    if form == 1:
        return rf"\sqrt{{{left}}}", math.sqrt(a)
    if form == 2:
        return rf"({left} + {right})", a + b
    if form == 3:
        return rf"({left} - {right})", a - b
    if form == 4:
        return rf"({left}) \cdot ({right})", a * b
    return rf"({left})\pi", a * math.pi


def test_latex_numbers_equal_a_reference() -> None:
    rng = random.Random("latex numbers")
    known = 0
    for _ in range(600):
        try:
            text, value = expression(rng, 3)
        except (ZeroDivisionError, ValueError):
            continue
        found = latex_number(text)
        assert found is not None and math.isclose(found, value, rel_tol=1e-9, abs_tol=1e-9), text
        known += 1
    assert known >= 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"40,\!000", 40000), ("1,234.5", 1234.5), (r"\$18.90", 18.9),
        (r"65\%", 65), (r"90^\circ", 90), (r"118^{\circ}", 118),
        (r"\frac56", 5 / 6), (r"\frac 59", 5 / 9), (r"-\frac{\sqrt{10}}{10}", -math.sqrt(0.1)), (r"2^{10}", 1024),
        ("3/4", 0.75),
        (r"30\pi + 9\sqrt{3}", 30 * math.pi + 9 * math.sqrt(3)), (r"25 \text{ ft}", 25), (r"1\frac{1}{2}", 1.5),
        (r"\sqrt[3]{8}", 2),
        ("x", None), ("(3,4)", None), ("4343_6", None), ("", None), (r"\frac{1}{0}", None), (r"\infty", None),
        ("2, -1", None),
        ("1,23", None), ("9" * 500, None), ("(" * 300, None), (r"2^{9^{9^{9}}}", None), (r"x = 4", None), (r"5 5", None),
    ],
)  # fmt: skip
def test_latex_numbers_by_example(text: str, value: float | None) -> None:
    found = latex_number(text)
    assert (found is None) if value is None else (found is not None and math.isclose(found, value))


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{3}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{x = \text{\{a\}}}", r"x = \text{\{a\}}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{1}, \fbox{2}", "1"),
        (r"\boxed 5$ it is", "5"),
        (r"\boxed{3", None),
        ("nothing", None),
    ],
)
def test_the_last_box(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


# The environment ------------------------------------------------------------------------------------------------------


def test_every_gold_of_the_slice_scores_one() -> None:
    if not (SHARED / "math").is_dir():
        pytest.skip(f"MATH's files are not in {SHARED / 'math'}")
    environment = opened("math", data=SHARED / "math", equivalence="official")

    async def main() -> Any:
        try:
            return await check_golds(environment)
        finally:
            await environment.close()

    result = asyncio.run(main())
    assert result.ok and result.tasks == 300 and result.without_gold == 0, str(result)


def judged(environment: Any, gold: str, *actions: str) -> list[bool]:
    async def main() -> list[bool]:
        task = environment.tasks("train", limit=1)[0]
        changed = dataclasses.replace(task, payload={**task.payload, "answer": gold})
        verdicts = [await environment.judge(changed, action) for action in actions]
        assert all(not verdict.error and "official" in verdict.detail for verdict in verdicts)
        await environment.close()
        return [verdict.success for verdict in verdicts]

    return asyncio.run(main())


def test_programs_and_boxes_are_answers() -> None:
    half = (
        r"\boxed{\frac{3}{4}}",
        "print(3/4)",
        r"print(r'\frac34')",
        "print('3/4')",
        r"print(r'$\boxed{0.75}$')",
        "print(0.751)",
    )
    assert judged(opened("math"), r"\frac{3}{4}", *half) == [True, True, True, True, True, False]
    assert judged(opened("math", equivalence="official"), r"\frac{3}{4}", *half) == [True, False, True, True, False, False]
    assert judged(opened("math"), "(3,4)", "print((3, 4))", r"The point is \boxed{(3, 4)}.", "print([3, 4])") == [
        True,
        True,
        False,
    ]


def test_math_verify_says_what_it_says_outside_the_sandbox() -> None:
    if importlib.util.find_spec("math_verify") is None:
        pytest.skip('math-verify is not installed: pip install "kintsugi-agents[math]"')
    from math_verify import parse, verify

    pairs = [
        ("(x-5)(x^2-4x+7)", "(x^2-4x+7)(x-5)"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        ("x^2+2x+1", "(x+1)^2"),  # these six need what sympy imports only when it is used
        (r"[1,2]\cup[3,4]", r"[3,4]\cup[1,2]"),
        (r"x>3", r"(3,\infty)"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\sin^2 x", r"1-\cos^2 x"),
        (r"(x,y)=(1,2)", "(1,2)"),
        ("x+1", "x-1"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ]
    environment = opened("math", equivalence="math-verify")

    async def main() -> list[bool]:
        try:
            return [(await environment._verifier.compare(gold, line)).same for gold, line in pairs]
        finally:
            await environment.close()

    # No alarms here: on a busy machine they would say "not the same" of what was not finished.
    unhurried: Any = {"parsing_timeout": None}
    both = [[parse(f"\\boxed{{{text}}}", **unhurried) for text in pair] for pair in pairs]
    here = [verify(gold, line, timeout_seconds=None) for gold, line in both]
    assert asyncio.run(main()) == here == [True] * 9 + [False, False]


@pytest.mark.parametrize(
    ("gold", "line", "same"),
    [
        ("9007199254740993", "9007199254740992", False),
        ("9007199254740993", "9007199254740992.0", False),
        (r"\frac{9007199254740993}{2}", "4503599627370496.0", False),
        (r"\frac{1}{100000}", "0", False),
        (r"\frac{1}{100000}", "0.0", False),
        (r"\frac{1}{100000}", "1e-05", True),
        (r"\frac{1}{46656}", "0", False),
        (r"\frac{1}{46656}", "2.143347050754458e-05", True),
        ("0.00001", "0.00002", False),
        ("2", "2.00005", False),
        ("2", "1.9999999999999998", True),
        ("0", "1.2246467991473532e-16", True),
        (r"\frac{1}{3}", "0.333333", True),
        (r"\frac{1}{3}", "0.3333", False),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"\frac{\sqrt3}{3}", r"1/\sqrt{3}", True),
        (r"\sqrt{100000000000000000001}", "10000000000", False),
        (r"10^{10}\pi", "31415926535.897934", True),
        (r"\pi", "3.14159265", True),
        (r"\sqrt[3]{8}", "2", True),
        (r"\sqrt{\frac{4}{9}}", "2/3", True),
        ("10^{20}", "100000000000000000000", True),
        ("10^{20}", "100000000000000000001", False),
        (r"6.02\times 10^{23}", "602000000000000000000000", True),
    ],
)
def test_integers_and_fractions_are_compared_exactly_and_decimals_by_their_places(gold: str, line: str, same: bool) -> None:
    assert same_number(line, gold) is same


class Answering:
    """A sandbox that answers the checker as it is told."""

    def __init__(self, status: str, stdout: str = "", stderr: str = "") -> None:
        self.run = types.SimpleNamespace(status=status, stdout=stdout, stderr=stderr)

    async def arun(self, *_: Any, **__: Any) -> Any:
        return self.run


def told(**found: Any) -> str:
    return json.dumps({"same": False, "missing": [], "broken": [], **found})


@pytest.mark.parametrize(
    "answering",
    [
        Answering("sandbox_failed"),
        Answering("ok", told(missing=["sympy.physics"])),
        Answering("error", "", "ModuleNotFoundError: No module named 'math_verify'"),
    ],
)
def test_a_judge_that_fails_says_so_and_calls_nothing_wrong(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verifier, "find_spec", lambda name: True)
    with pytest.raises(RuntimeError, match="the judge failed, not the answer"):
        asyncio.run(math_verifier.MathVerifier(answering).compare("x", "y"))


@pytest.mark.parametrize("answering", [Answering("timeout"), Answering("ok", told(broken=["TypeError"]))])
def test_what_math_verify_cannot_tell_is_not_called_wrong(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_verifier, "find_spec", lambda name: True)
    environment: Any = open_environment("math", {"data": "bundled", "equivalence": "math-verify", "sandbox": answering})
    task = environment.tasks("train", limit=1)[0]
    verdict = asyncio.run(environment.judge(task, r"\boxed{x^y}"))
    assert not verdict.success and verdict.detail["undecided"] == 1.0
    assert verdict.feedback.startswith("The judge could not tell whether x^y is right (math-verify ")
    assert "undecided" not in asyncio.run(environment.judge(task, r"\boxed{123456}")).detail


def test_the_default_is_math_verify_with_official_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled: Any = open_environment("math")
    monkeypatch.setattr(math_verifier, "find_spec", lambda name: True)
    official: Any = open_environment("math", {"data": tmp_path})
    assert (bundled.equivalence, official.equivalence) == ("number", "math-verify")
    monkeypatch.setattr(math_verifier, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"\[math\].*equivalence=number"):
        open_environment("math", {"data": tmp_path})


def test_options_and_schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match='did you mean "official"'):
        opened("math", equivalence="oficial")
    (tmp_path / "train.jsonl").write_text(json.dumps(RECORD))
    (tmp_path / "math500.jsonl").write_text(json.dumps({**RECORD, "answer": "2", "subject": "Algebra", "unique_id": "u"}))
    environment = opened("math", data=tmp_path, equivalence="number")
    train, test = environment.tasks("train")[0], environment.tasks("heldout")[0]
    assert train.payload == {"answer": "2", "subject": "Algebra", "level": "Level 1"} and test.payload["answer"] == "2"
    folder = tmp_path / "release"
    (folder / "train" / "algebra").mkdir(parents=True)
    (folder / "train" / "algebra" / "1.json").write_text(json.dumps(RECORD))
    assert opened("math", data=folder, equivalence="number").tasks("train") == [train]
    (folder / "train" / "algebra" / "1.json").write_text("{")
    with pytest.raises(DataError, match=r"1\.json: expected a JSON"):
        opened("math", data=folder, equivalence="number").tasks("train")
    (tmp_path / "train.jsonl").write_text(json.dumps({**RECORD, "solution": "no box"}))
    with pytest.raises(DataError, match=r"its answer in \\boxed"):
        opened("math", data=tmp_path, equivalence="number").tasks("train")
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *_, **__: [RECORD]))
    assert len(opened("math", data="hub", equivalence="number").tasks("test")) == 7  # a configuration a subject

r"""GSM8K: grade-school word problems, answered by a program whose printed number is compared with the gold one.

    environment = open_environment(data="~/grade-school-math/grade_school_math/data")
    task = environment.tasks("train", limit=1)[0]

**Data**: the official files `train.jsonl` and `test.jsonl`, one `{"question", "answer"}` a line, the gold number after
`####` (commas dropped), from a local folder, or from the hub through `datasets` when no folder is named. Splits:
`train`, `test`, and `heldout`, which is `test` under the name that the rounds use; `demonstrations` is empty. The
task's prompt is the question alone. Ids are hashes of the questions, so a slice and the whole set agree. `bundled`
names a small set of the project's own making.

**Feedback** never uses the gold answer: where Python stopped, a value that was computed and not used, numbers of the
question that the program never uses (a hint: some questions hold idle numbers).

Source: Cobbe et al. 2021 (arXiv 2110.14168), https://github.com/openai/grade-school-math. Left out: the socratic
variant, majority voting, answers without a program (`allow_answer=True` takes a bare number).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.number_problems import NUMBER_IN_TEXT, NumberProblems, calculate
from kintsugi.sandboxes.environments.official_records import Made, Row, digest, hub_rows, jsonl, texts

_MEND: Final = (
    "the official files are in the folder grade_school_math/data of https://github.com/openai/grade-school-math: "
    'name that folder with the option data="..."'
)
_FILES: Final = {"train": "train", "test": "test", "heldout": "test"}
_STEP: Final = re.compile(r"<<([^<>]*)=[^<>=]*>>")
_RAW: Final = "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"

ABOUT = About(
    kind="program of thought",
    metric="|printed number - gold| <= 1e-4",
    data="train.jsonl, test.jsonl: question, answer",
    splits=("train", "test", "heldout (= test)"),
    licence="MIT",
    home="https://github.com/openai/grade-school-math",
    bundled=True,
    downloads=tuple(
        Download(url=f"{_RAW}grade_school_math/data/{name}", path=name, sha256=sha256)
        for name, sha256 in (
            ("train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
            ("test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
        )
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "openai/gsm8k",
    sandbox: Any = None,
    limits: Any = None,
    allow_answer: bool = False,
    memo: bool = True,
) -> Gsm8k:
    """GSM8K from the folder `data`, else from the hub's data set `hub`; the rest as `ProgramOfThought` has it."""
    return Gsm8k(data=data, hub=hub, sandbox=sandbox, limits=limits, allow_answer=allow_answer, memo=memo)


class Gsm8k(NumberProblems):
    """The environment. A payload holds `answer` (a number) and `solution` (the official text)."""

    name = "gsm8k"
    files = _FILES
    mend = _MEND
    source = "hub"

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        return jsonl(folder / f"{official}.jsonl", _MEND)

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        return hub_rows(self.name, hub, _MEND, config="main", split=official)

    def made(self, record: Any, where: str, official: str) -> Made:
        question, solution = texts(record, where, _MEND, "question", "answer")
        payload = {"answer": _gold_number(solution, where), "solution": solution}
        return Made(key=f"{official}-{digest(question)}", prompt=question, payload=payload)

    async def gold(self, task: Task) -> tuple[str, ...]:
        """One action: the official calculator steps as a program when they lead to the answer, else a bare `print`."""
        return (self._program(task) or f"print({task.payload['answer']})",)

    def unproven(self, task: Task) -> str:
        """Why the gold is a bare `print`; "" elsewhere."""
        return "" if self._program(task) else "the solution's calculator steps do not lead to the answer"

    def _program(self, task: Task) -> str | None:
        return steps_program(task.prompt, task.payload["solution"], self.expected(task))


def steps_program(question: str, solution: str, gold: Fraction) -> str | None:
    """The `<<16*1/2=8>>` steps of an official solution as lines of Python that end in the gold number, or None.

    Each step gets a name; a literal that is an earlier step's value and no number of the question becomes that name."""
    given = {Fraction(written.replace(",", "")) for written in NUMBER_IN_TEXT.findall(question)}
    lines: list[str] = []
    values: dict[Fraction, str] = {}
    value = None
    for index, expression in enumerate(_STEP.findall(solution)):
        name = f"step_{index + 1}"

        def named(match: re.Match[str]) -> str:
            literal = Fraction(match[0])
            return values[literal] if literal in values and literal not in given else match[0]

        value = calculate(expression)
        if value is None:
            return None
        lines.append(f"{name} = {re.sub(r'[0-9]+[.]?[0-9]*|[.][0-9]+', named, expression).strip()}")
        values[value] = name
    if value != gold:
        return None
    return "\n".join([*lines, f"print(step_{len(lines)})"])


def _gold_number(answer: str, where: str) -> int | float:
    """The number after `####`."""
    text = answer.rpartition("####")[2].strip().replace(",", "") if "####" in answer else ""
    if not re.fullmatch(r"-?(?:\d+(?:\.\d*)?|\.\d+)", text, re.ASCII):
        raise DataError(f'{where}: expected an answer that ends in "#### 8", found {answer[-40:]!r}; {_MEND}')
    return int(text) if "." not in text else float(text)

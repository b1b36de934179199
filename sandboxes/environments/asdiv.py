"""ASDiv: diverse school word problems with units, ratios, times and names as answers, answered by a program.

    environment = open_environment(data="~/nlu-asdiv-dataset/dataset")
    task = environment.tasks("heldout", limit=1)[0]

**Data**: the official `ASDiv.xml` (2,305 problems), or `ASDiv.train.xml` and `ASDiv.test.xml` in its schema:
`ProblemSet/Problem[@ID @Grade @Source]` with Body, Question, Solution-Type, Answer, Formula. There is no official
division: `test` is all of it, and where there are no files of one's own `train` and `heldout` divide it 4 : 1 by a hash
of the ID. Its licence is CC BY-NC 4.0, non-commercial: nothing of it is shipped here. (Not on the hub in this schema.)

**Right**: the answer `9 (apples)` is cut at the first ` (`; when a number is left, |number - it| <= 1e-4. Other answers
(`3:4`, `9:03:36 a.m.`, `31; 21`, `Leon`: 17 of the 300 problems that this was tried on) are compared as text, case and
white space aside. Of several answers with units, `16 (m); 12 (m)`, the cut leaves the first.

Source: Miao et al. 2020 (arXiv 2106.15772), https://github.com/chaochun/nlu-asdiv-dataset. Left out: the official
five-fold lists (ASDiv-A).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.number_problems import NumberProblems, equation_program
from kintsugi.sandboxes.environments.official_records import Made, Row, first_of, read_bytes, shared_out, texts
from kintsugi.sandboxes.environments.svamp import joined

_MEND: Final = (
    "the official file is dataset/ASDiv.xml of https://github.com/chaochun/nlu-asdiv-dataset (CC BY-NC 4.0): name its "
    'folder with the option data="..."'
)
_FILES: Final = {"train": "train", "test": "test", "heldout": "heldout"}
_NUMBER: Final = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
_COMMIT: Final = "883f90a9a65bf00304ba8f37423910fe743abc47"

ABOUT = About(
    kind="program of thought",
    metric="|printed number - answer before ' ('| <= 1e-4; other answers as text",
    data="ASDiv.xml (or ASDiv.train.xml, ASDiv.test.xml): Body, Question, Answer, Formula",
    splits=("test (all)", "train and heldout (4 : 1 of it)"),
    licence="CC BY-NC 4.0 (non-commercial)",
    home="https://github.com/chaochun/nlu-asdiv-dataset",
    bundled=True,
    downloads=(
        Download(
            url=f"https://raw.githubusercontent.com/chaochun/nlu-asdiv-dataset/{_COMMIT}/dataset/ASDiv.xml",
            path="ASDiv.xml",
            sha256="ef8904068482919ac48c8eeaaf6df344b8a308ba66d048c2d4d87eab82dc4929",
        ),
    ),
)


def open_environment(
    data: str | Path | None = None,
    sandbox: Any = None,
    limits: Any = None,
    allow_answer: bool = False,
    memo: bool = True,
) -> AsDiv:
    """ASDiv from the folder `data` or "bundled" (the default); the rest as `ProgramOfThought` has it."""
    return AsDiv(data=data, sandbox=sandbox, limits=limits, allow_answer=allow_answer, memo=memo)


class AsDiv(NumberProblems):
    """The environment. A payload holds `answer`, a number or a text, and `program` when the formula comes to it."""

    name = "asdiv"
    files = _FILES
    mend = _MEND
    wanted = "answer of the kind asked for: print the number (or the ratio, time or name) alone"

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        own = {"train": "ASDiv.train.xml", "heldout": "ASDiv.test.xml", "test": "ASDiv.test.xml"}[official]
        path = first_of(folder, own, "ASDiv.xml")
        rows = _problems(path)
        return rows if path.name == own else shared_out(rows, official, self._key)

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        raise DataError(f"asdiv is on no hub in the official schema; {_MEND}")

    def _key(self, record: Any, where: str) -> str:
        return texts(record, where, _MEND, "ID")[0]

    def made(self, record: Any, where: str, official: str) -> Made:
        key, body, question, said = texts(record, where, _MEND, "ID", "Body", "Question", "Answer")
        text = said.partition(" (")[0].strip()
        if _NUMBER.fullmatch(text) is None:
            return Made(key=key, prompt=joined(body, question), payload={"answer": text, "program": ""})
        value = Fraction(text)
        answer = int(value) if value.denominator == 1 else float(text)
        formula = str(record.get("Formula") or "").partition("=")[0]
        payload = {"answer": answer, "program": equation_program(formula, answer)}
        return Made(key=key, prompt=joined(body, question), payload=payload)

    async def correct(self, task: Task, line: str, *, words: bool = True) -> bool | None:
        answer = task.payload["answer"]
        if isinstance(answer, str):
            return _plain(line) == _plain(answer) if line.strip() else None
        return await super().correct(task, line, words=words)


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()


def _problems(path: Path) -> Iterator[Row]:
    """Each problem's ID and the texts of its elements."""
    text = read_bytes(path, _MEND)
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # an entity can stand for gigabytes; the release has none
        raise DataError(f"{path}: expected XML without a document type, found one; {_MEND}")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: expected the official XML, found what cannot be read ({error}); {_MEND}") from error
    for number, problem in enumerate(root.iter("Problem"), 1):
        record = {"ID": problem.get("ID"), **{part.tag: (part.text or "") for part in problem}}
        yield record, f"{path}, problem {number}"

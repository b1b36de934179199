"""SVAMP: arithmetic word problems varied so that shallow reading fails, answered by a program.

    environment = open_environment(data="~/SVAMP")
    task = environment.tasks("heldout", limit=1)[0]

**Data**: the official file `SVAMP.json` (1,000 records), or `train.json` and `test.json` in its schema: a list of
`{"ID", "Body", "Question", "Equation", "Answer", "Type"}`. It is a challenge set for testing: `test` is all of it, and
where there are no files of one's own `train` and `heldout` divide it 4 : 1 by a hash of the ID. The prompt is the body
and the question, with a comma between them where the body ends in no mark.

**Right**: |number - Answer| <= 1e-4. Gold: the release's equation as a program, whatever it comes to: a record whose Answer
is another number fails the gold self-test.

Source: Patel et al. 2021 (arXiv 2103.07191), https://github.com/arkilpatel/SVAMP. Left out: cross-validation with MAWPS
and ASDiv-A.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.number_problems import NumberProblems, equation_program
from kintsugi.sandboxes.environments.official_records import (
    Made,
    Row,
    first_of,
    hub_rows,
    json_list,
    number_of,
    shared_out,
    texts,
)

_MEND: Final = (
    'the official file is SVAMP.json of https://github.com/arkilpatel/SVAMP: name its folder with the option data="..."'
)
_FILES: Final = {"train": "train", "test": "test", "heldout": "heldout"}

ABOUT = About(
    kind="program of thought",
    metric="|printed number - Answer| <= 1e-4",
    data="SVAMP.json (or train.json, test.json): ID, Body, Question, Equation, Answer",
    splits=("test (all)", "train and heldout (4 : 1 of it)"),
    licence="MIT",
    home="https://github.com/arkilpatel/SVAMP",
    bundled=True,
    downloads=(
        Download(
            url="https://raw.githubusercontent.com/arkilpatel/SVAMP/689d7ccac74b9983a2ac7cc3b264f441b99e7c53/SVAMP.json",
            path="SVAMP.json",
            sha256="5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
        ),
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "ChilleD/SVAMP",
    sandbox: Any = None,
    limits: Any = None,
    allow_answer: bool = False,
    memo: bool = True,
) -> Svamp:
    """SVAMP from the folder `data`, "hub" or "bundled" (the default); the rest as `ProgramOfThought` has it."""
    return Svamp(data=data, hub=hub, sandbox=sandbox, limits=limits, allow_answer=allow_answer, memo=memo)


class Svamp(NumberProblems):
    """The environment. A payload holds `answer`, and `program`, the equation, where it is plain arithmetic."""

    name = "svamp"
    files = _FILES
    mend = _MEND

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        own = {"train": "train.json", "heldout": "test.json", "test": "test.json"}[official]
        path = first_of(folder, own, "SVAMP.json")
        rows = json_list(path, _MEND)
        return rows if path.name == own else shared_out(rows, official, self._key)

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        """The hub's copy divides the 1,000 records into train (700) and test (300); Answer is a text there."""
        if official != "test":
            return hub_rows(self.name, hub, _MEND, split="train" if official == "train" else "test")
        return (row for part in ("train", "test") for row in hub_rows(self.name, hub, _MEND, split=part))

    def _key(self, record: Any, where: str) -> str:
        return texts(record, where, _MEND, "ID")[0]

    def made(self, record: Any, where: str, official: str) -> Made:
        key, body, question, equation = texts(record, where, _MEND, "ID", "Body", "Question", "Equation")
        answer = number_of(record, where, _MEND, "Answer")
        return Made(
            key=key,
            prompt=joined(body, question),
            payload={"answer": answer, "program": equation_program(equation, None)},
        )


def joined(body: str, question: str) -> str:
    """Body and question on one line, with a comma where the body ends in no mark of its own."""
    body, question = " ".join(body.split()), " ".join(question.split())
    return f"{body}{'' if not body or body[-1] in '.,;:?!' else ','} {question}".strip()

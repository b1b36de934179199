"""GSM-Hard: GSM8K's test questions with one number made large, answered by a program.

    environment = open_environment(data="~/pal/datasets")
    task = environment.tasks("train", limit=1)[0]

**Data**: the official file `gsmhardv2.jsonl` (1,319 records), or `train.jsonl` and `test.jsonl` in its schema, one
`{"input", "code", "target"}` a line. The release has one split: `test` is all of it, and where there are no files of
one's own `train` and `heldout` divide it 4 : 1 by a hash of the question. It is a renumbering of GSM8K's *test*, in
another order: a model trained on that file has met these questions.

**Right**: |number - target| <= 1e-4, computed exactly. Targets reach 10^13, where a float has about 1e-3 to spare: a
program that computes with integers is always safe, one that divides late is not; that is the release's own difficulty.

Source: Gao et al. 2022 (PAL, arXiv 2211.10435), https://github.com/reasoning-machines/pal. Left out: joining with
GSM8K by question, and the release's own answers by sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.number_problems import NumberProblems
from kintsugi.sandboxes.environments.official_records import (
    Made,
    Row,
    digest,
    first_of,
    hub_rows,
    jsonl,
    number_of,
    shared_out,
    texts,
)

_MEND: Final = (
    "the official file is datasets/gsmhardv2.jsonl of https://github.com/reasoning-machines/pal: name its folder with "
    'the option data="..."'
)
_FILES: Final = {"train": "train", "test": "test", "heldout": "heldout"}

ABOUT = About(
    kind="program of thought",
    metric="|printed number - target| <= 1e-4",
    data="gsmhardv2.jsonl (or train.jsonl, test.jsonl): input, code, target",
    splits=("test (all)", "train and heldout (4 : 1 of it)"),
    licence="MIT (hub's card), repository Apache-2.0",
    home="https://github.com/reasoning-machines/pal",
    bundled=True,
    downloads=(
        Download(
            url="https://huggingface.co/datasets/reasoning-machines/gsm-hard/resolve/main/gsmhardv2.jsonl",
            path="gsmhardv2.jsonl",
        ),
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "reasoning-machines/gsm-hard",
    sandbox: Any = None,
    limits: Any = None,
    allow_answer: bool = False,
    memo: bool = True,
) -> GsmHard:
    """GSM-Hard from the folder `data`, "hub" or "bundled" (the default); the rest as `ProgramOfThought` has it."""
    return GsmHard(data=data, hub=hub, sandbox=sandbox, limits=limits, allow_answer=allow_answer, memo=memo)


class GsmHard(NumberProblems):
    """The environment. A payload holds `answer` (the target) and `program`: the release's `code`, its call printed."""

    name = "gsm_hard"
    files = _FILES
    mend = _MEND

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        own = {"train": "train.jsonl", "heldout": "test.jsonl", "test": "test.jsonl"}[official]
        path = first_of(folder, own, "gsmhardv2.jsonl")
        rows = jsonl(path, _MEND)
        return rows if path.name == own else shared_out(rows, official, self._key)

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        return shared_out(hub_rows(self.name, hub, _MEND, split="train"), official, self._key)

    def _key(self, record: Any, where: str) -> str:
        return texts(record, where, _MEND, "input")[0]

    def made(self, record: Any, where: str, official: str) -> Made:
        question, code = texts(record, where, _MEND, "input", "code")
        answer = number_of(record, where, _MEND, "target")
        payload = {"answer": answer, "program": f"{code.strip()}\n\nprint(solution())"}
        return Made(key=digest(question), prompt=question, payload=payload)

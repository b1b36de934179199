r"""MATH: competition problems, answered by a program that prints the answer, or by `\boxed{…}`.

    environment = open_environment(data="~/prm800k/math_splits")
    task = environment.tasks("heldout", limit=1)[0]

(The environment is called `math`; the file is not, so that nobody's `import math` meets it.)

**Data**, either form: `train.jsonl` and `test.jsonl` (or `math500.jsonl`), a problem a line, with `problem` and
`solution` and, in MATH-500's form, `answer`; or the release's folders `train/` and `test/` with a JSON file a problem
in a folder a subject. The gold answer is what stands in the solution's last `\boxed{}`.

**Right**, by `equivalence`. `"math-verify"`: the package math-verify says so (extra `math`), asked in a sandbox; the
default with official data. `"number"`: the release's comparison of strings (`math_equivalence.py`) says so, or both are
one number: integers and fractions exactly, rounded decimals to six places; the default of the bundled set, which plays
without extras. `"official"`: that comparison of strings alone. The verdict's detail `official` has it whichever decides;
`undecided` is 1 where math-verify could not tell.

Source: Hendrycks et al. 2021 (arXiv 2103.03874), https://github.com/hendrycks/math; the division into 12,000 and 500 is
PRM800K's (arXiv 2305.20050). Left out: Asymptote pictures are text here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.math_equivalence import is_equiv, last_boxed, latex_number, same_value
from kintsugi.sandboxes.environments.math_verifier import MathVerifier
from kintsugi.sandboxes.environments.official_records import (
    BUNDLED,
    Made,
    RecordTasks,
    Row,
    digest,
    first_of,
    hub_rows,
    jsonl,
    read_bytes,
    texts,
)
from kintsugi.sandboxes.environments.printed_number import parse_number, readable
from kintsugi.sandboxes.environments.program_of_thought import (
    Objection,
    Program,
    ProgramOfThought,
    find_program,
    parse_program,
)

_MEND: Final = (
    "MATH is at https://github.com/hendrycks/math, and divided into 12,000 and 500 in prm800k/math_splits of "
    'https://github.com/openai/prm800k: name the folder with the option data="..."'
)
_FILES: Final = {"train": "train", "test": "test", "heldout": "test"}
_WAYS: Final = ("math-verify", "number", "official")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_MOST_KEPT: Final = 4096
_SUBJECTS: Final = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_RAW: Final = "https://github.com/openai/prm800k/raw/main/prm800k/math_splits/"

ABOUT = About(
    kind="program of thought or boxed answer",
    metric="math-verify says so (extra math); of the bundled set: official strings or the same number (option equivalence)",
    data="train.jsonl, test.jsonl (or folders train/, test/): problem, solution",
    splits=("train", "test", "heldout (= test)"),
    licence="MIT",
    home="https://github.com/hendrycks/math",
    bundled=True,
    downloads=tuple(
        Download(url=f"{_RAW}{name}.jsonl", path=f"{name}.jsonl", sha256=sha256)
        for name, sha256 in (
            ("train", "90d96daeac3fe343ebb1e22ce93dd99690f75983e957f88de42f87cffe1e8076"),
            ("test", "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"),
        )
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "EleutherAI/hendrycks_math",
    equivalence: str | None = None,
    sandbox: Any = None,
    limits: Any = None,
    allow_answer: bool = False,
    memo: bool = True,
) -> CompetitionMath:
    """MATH from the folder `data`, "hub" or "bundled" (the default). equivalence: "math-verify", "number" or "official"; the
    first with official data, the second with the bundled set. The rest as `ProgramOfThought` has it."""
    return CompetitionMath(
        data=data,
        hub=hub,
        equivalence=equivalence,
        sandbox=sandbox,
        limits=limits,
        allow_answer=allow_answer,
        memo=memo,
    )


class CompetitionMath(RecordTasks, ProgramOfThought):
    """The environment. A payload holds `answer` (LaTeX), `subject` and `level`."""

    name = "math"
    files = _FILES
    mend = _MEND
    wanted = "answer: print the answer alone"

    def __init__(self, *, equivalence: str | None = None, **options: Any) -> None:
        if equivalence is not None and equivalence not in _WAYS:
            raise ConfigError(f'math.equivalence: unknown "{equivalence}": {nearest(equivalence, _WAYS)}')
        super().__init__(**options)
        self.equivalence = equivalence or ("number" if self.source == BUNDLED else "math-verify")
        self._verifier = MathVerifier(options.get("sandbox")) if self.equivalence == "math-verify" else None
        self._undecided: dict[tuple[str, str], str] = {}

    # The data

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        if (folder / official).is_dir():
            for path in sorted((folder / official).glob("*/*.json")):
                yield _one(path), str(path)
            return
        names = [f"{official}.jsonl", *(["math500.jsonl"] if official == "test" else [])]
        yield from jsonl(first_of(folder, *names), _MEND)

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        for subject in _SUBJECTS:
            yield from hub_rows(self.name, hub, _MEND, config=subject, split=official)

    def made(self, record: Any, where: str, official: str) -> Made:
        problem, solution = texts(record, where, _MEND, "problem", "solution")
        gold = record.get("answer") or last_boxed(solution)
        if not isinstance(gold, str) or not gold.strip():
            raise DataError(f"{where}: expected a solution with its answer in \\boxed{{...}}, found none; {_MEND}")
        subject, level = record.get("subject", record.get("type", "")), record.get("level", "")
        payload = {"answer": gold.replace("\n", "").strip(), "subject": str(subject), "level": str(level)}
        return Made(key=digest(problem), prompt=problem, payload=payload)

    def kind(self, task: Task) -> str:
        """The subject."""
        return task.payload["subject"]

    async def gold(self, task: Task) -> tuple[str, ...]:
        """A program that prints the answer."""
        answer = task.payload["answer"]
        return (f"print({answer if answer.isdigit() and str(int(answer)) == answer else repr(answer)})",)

    def unproven(self, task: Task) -> str:
        """The gold is a bare `print` of the answer."""
        return "the release has no programs, and an answer is its own gold"

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """The answer with two digits more before its first one (before all, where it has none), printed and boxed."""
        answer = task.payload["answer"]
        wrong = re.sub(r"[0-9]", lambda digit: f"71{digit[0]}", answer, count=1)
        wrong = wrong if wrong != answer else f"71{answer}"
        return [[f"print({wrong!r})"], [f"\\boxed{{{wrong}}}"]]

    # The verdict

    def bare_answer(self, action: str) -> str:
        """The last `\\boxed{…}` of an action without a program; all of it where bare answers are allowed."""
        boxed = last_boxed(action)
        if boxed is None or not boxed.strip():
            return super().bare_answer(action)
        return boxed.strip() if isinstance(parse_program(find_program(action).source), Objection) else ""

    async def correct(self, task: Task, line: str, *, words: bool = True) -> bool | None:
        line, gold = _unboxed(line), task.payload["answer"]
        if self._verifier is not None:
            return await self._verified(self._verifier, gold, line)
        return is_equiv(line, gold) or (self.equivalence == "number" and same_number(line, gold))

    async def _verified(self, verifier: MathVerifier, gold: str, line: str) -> bool:
        """What math-verify says; not asked about the same text twice over, and about two plain integers."""
        if line == gold:
            return True
        if _INTEGER.fullmatch(line) and _INTEGER.fullmatch(gold):
            return line == gold or line.strip("-") == gold.strip("-") == "0"
        compared = await verifier.compare(gold, line)
        if compared.undecided and len(self._undecided) < _MOST_KEPT:
            self._undecided[gold, line] = compared.undecided
        return compared.same

    def metrics(self, task: Task, line: str) -> Mapping[str, float]:
        """`official`: what the release's own comparison says; `undecided`: math-verify could not tell."""
        line, gold = _unboxed(line), task.payload["answer"]
        more = {"undecided": 1.0} if (gold, line) in self._undecided else {}
        return {"official": float(is_equiv(line, gold)), **more}

    def _compare(self, task: Task, action: str, correct: bool, line: str, program: Program | None = None) -> Verdict:
        """As every program of thought; where the judge could not tell, the feedback says so and calls nothing wrong."""
        verdict = super()._compare(task, action, correct, line, program=program)
        why = self._undecided.get((task.payload["answer"], _unboxed(line)))
        if why is None or verdict.success:
            return verdict
        told = f"The judge could not tell whether {readable(line, 60)} is right ({why}): it counts as not solved."
        return replace(verdict, feedback=told)

    async def close(self) -> None:
        await super().close()
        if self._verifier is not None:
            await self._verifier.close()


def _unboxed(line: str) -> str:
    return (last_boxed(line) or line).strip()


def same_number(line: str, gold: str) -> bool:
    """Whether both are one number, and the same (`math_equivalence.same_value`)."""
    wanted = latex_number(gold)
    if wanted is None:
        return False
    printed: Fraction | None = parse_number(line, words=False)
    value = printed if printed is not None else latex_number(line)
    rounded = any(re.search(r"\.\d|\d[eE][-+]?\d", text) is not None for text in (line, gold))
    return value is not None and same_value(value, wanted, rounded=rounded)


def _one(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_bytes(path, _MEND))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON object ({error}); {_MEND}") from error
    return found

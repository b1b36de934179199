r"""MATH: competition problems, answered by a program that prints the answer, or by `\boxed{…}`.

    environment = open_environment(data="~/prm800k/math_splits")
    task = environment.tasks("heldout", limit=1)[0]

(The environment is called `math`; the file is not, so that nobody's `import math` meets it.)

**Data**, either form: `train.jsonl` and `test.jsonl` (or `math500.jsonl`), a problem a line, with `problem` and
`solution` and, in MATH-500's form, `answer`; or the release's folders `train/` and `test/` with a JSON file a problem
in a folder a subject. The gold answer is what stands in the solution's last `\boxed{}`.

**Right**, by `equivalence`: `"official"`: the release's comparison of strings (`math_equivalence.py`), nothing else.
`"number"` (the default): or both are one number, within 1e-4 (ENVISIONS), since programs print 0.75 where people write
\frac{3}{4}. `"math-verify"`: or the package math-verify says so (extra `math`), asked in the sandbox. The verdict's
detail `official` tells the first of them whichever is used.

Source: Hendrycks et al. 2021 (arXiv 2103.03874), https://github.com/hendrycks/math; the division into 12,000 and 500 is
PRM800K's (arXiv 2305.20050). Left out: Asymptote pictures are text here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Task
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.math_equivalence import is_equiv, last_boxed, latex_number
from kintsugi.sandboxes.environments.official_records import (
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
from kintsugi.sandboxes.environments.printed_number import parse_number
from kintsugi.sandboxes.environments.program_of_thought import (
    TOLERANCE,
    Objection,
    ProgramOfThought,
    find_program,
    parse_program,
)
from kintsugi.sandboxes.sandbox import Limits

_MEND: Final = (
    "MATH is at https://github.com/hendrycks/math, and divided into 12,000 and 500 in prm800k/math_splits of "
    'https://github.com/openai/prm800k: name the folder with the option data="..."'
)
_FILES: Final = {"train": "train", "test": "test", "heldout": "test"}
_WAYS: Final = ("official", "number", "math-verify")
_SUBJECTS: Final = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_PACKAGES: Final = (
    "math_verify",
    # What it imports only when it is used: a program in the sandbox could not.
    "antlr4.LL1Analyzer",
    "sympy.combinatorics.named_groups",
    "sympy.combinatorics.polyhedron",
    "sympy.combinatorics.tensor_can",
    "sympy.tensor.tensor",
    "sympy.solvers.inequalities",
    "sympy.calculus.util",
    "sympy.sets.setexpr",
)
_CHECKER: Final = """
import json, sys
from math_verify import parse, verify
gold, answer = (parse(text, parsing_timeout=None) for text in json.load(sys.stdin))
print(verify(gold, answer, timeout_seconds=None))
"""
_CHECK_LIMITS: Final = Limits(cpu_s=5, wall_s=60, memory_mb=512)
"""CPU decides: what is the same must not depend on how busy the machine is."""
_RAW: Final = "https://github.com/openai/prm800k/raw/main/prm800k/math_splits/"

ABOUT = About(
    kind="program of thought or boxed answer",
    metric="official string equivalence, or the same number within 1e-4 (option equivalence)",
    data="train.jsonl, test.jsonl (or folders train/, test/): problem, solution",
    splits=("train", "test", "heldout (= test)"),
    licence="MIT",
    home="https://github.com/hendrycks/math",
    bundled=True,
    downloads=tuple(Download(url=f"{_RAW}{name}.jsonl", path=f"{name}.jsonl") for name in ("train", "test")),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "EleutherAI/hendrycks_math",
    equivalence: str = "number",
    sandbox: Any = None,
    limits: Any = None,
    allow_answer: bool = False,
    memo: bool = True,
) -> CompetitionMath:
    """MATH from the folder `data`, "hub" or "bundled" (the default); the rest as `ProgramOfThought` has it."""
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

    def __init__(self, *, equivalence: str = "number", **options: Any) -> None:
        if equivalence not in _WAYS:
            raise ConfigError(f'math.equivalence: unknown "{equivalence}": {nearest(equivalence, _WAYS)}')
        self.equivalence = equivalence
        super().__init__(**options)
        if equivalence == "math-verify":
            for package in _PACKAGES:
                self.need(package, extra="math")

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

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """The answer with two digits before it, printed and boxed."""
        wrong = f"71{task.payload['answer']}"
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
        if is_equiv(line, gold):
            return True
        if self.equivalence == "official":
            return False
        return same_number(line, gold) or (self.equivalence == "math-verify" and await self._verified(gold, line))

    async def _verified(self, gold: str, line: str) -> bool:
        """What math-verify says, asked in the sandbox; False when it cannot tell within its limits."""
        texts = json.dumps([f"\\boxed{{{gold}}}", f"\\boxed{{{line}}}"])
        run = await (await self.sandbox()).arun(_CHECKER, stdin=texts, limits=_CHECK_LIMITS)
        if run.status == "sandbox_failed":  # a crash of the environment, which is retried; never a wrong answer
            raise RuntimeError(f"the sandbox failed as math-verify was asked: {run.stderr[-200:]}")
        return run.status == "ok" and run.stdout.strip() == "True"

    def metrics(self, task: Task, line: str) -> Mapping[str, float]:
        """`official`: what the release's own comparison says, whichever decides."""
        return {"official": float(is_equiv(_unboxed(line), task.payload["answer"]))}


def _unboxed(line: str) -> str:
    return (last_boxed(line) or line).strip()


def same_number(line: str, gold: str) -> bool:
    """Whether both are one number, and the same within 1e-4."""
    wanted = latex_number(gold)
    if wanted is None:
        return False
    printed = parse_number(line, words=False)
    value = float(printed) if printed is not None else latex_number(line)
    return value is not None and abs(value - wanted) <= float(TOLERANCE)


def _one(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_bytes(path, _MEND))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON object ({error}); {_MEND}") from error
    return found

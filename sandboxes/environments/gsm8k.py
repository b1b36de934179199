r"""GSM8K: grade-school word problems, answered by a program whose printed number is compared with the gold one.

    environment = open_environment(data="~/grade-school-math/grade_school_math/data")
    task = environment.tasks("train", limit=1)[0]

**Data**: the official files `train.jsonl` and `test.jsonl`, one `{"question", "answer"}` a line, the gold number after
`####` (commas dropped), from a local folder, or from the hub through `datasets` when no folder is named. Splits:
`train`, `test`, and `heldout`, which is `test` under the name that the rounds use; `demonstrations` is empty. The
task's prompt is the question alone. Ids are hashes of the questions, so a slice and the whole set agree.

**Feedback** never uses the gold answer: where Python stopped, a value that was computed and not used, numbers of the
question that the program never uses (a hint: some questions hold idle numbers).

Source: Cobbe et al. 2021 (arXiv 2110.14168), https://github.com/openai/grade-school-math. Left out: the socratic
variant, majority voting, answers without a program (`allow_answer=True` takes a bare number).
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError, nearest
from kintsugi.records import Fault, Task
from kintsugi.sandboxes.environments.program_of_thought import Objection, ProgramOfThought, find_program, parse_program

_FILES: Final = {"train": "train", "test": "test", "heldout": "test"}
_MEND: Final = (
    "the official files are in the folder grade_school_math/data of https://github.com/openai/grade-school-math: "
    'name that folder with the option data="..."'
)
_STEP: Final = re.compile(r"<<([^<>]*)=[^<>=]*>>")
_IN_TEXT: Final = re.compile(r"(?<![\w.])(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)|\.\d+)")


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


class Gsm8k(ProgramOfThought):
    """The environment. A payload holds `answer` (a number) and `solution` (the official text)."""

    name = "gsm8k"

    def __init__(self, *, data: str | Path | None = None, hub: str = "openai/gsm8k", **options: Any) -> None:
        super().__init__(**options)
        self.folder = Path(data).expanduser() if data is not None else None
        self.hub = hub
        self._read: dict[str, list[tuple[str, str, int | float]]] = {}

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Tasks in the file's order; with `limit`, the first ones for seed 0 and a sample for each other seed.

        Raises DataError for an unknown split and for files that are missing or malformed."""
        if split == "demonstrations":
            return ()
        if split not in _FILES:
            raise DataError(f'gsm8k has no split "{split}": {nearest(split, [*_FILES, "demonstrations"])}')
        official = _FILES[split]
        if official not in self._read:
            rows = _from_folder(self.folder, official) if self.folder is not None else _from_hub(self.hub, official)
            self._read[official] = [(question, answer, _gold_number(answer, where)) for question, answer, where in rows]
            if not self._read[official]:
                raise DataError(f"{self.folder or self.hub}: the {official} split holds no records; {_MEND}")
        made = list(_as_tasks(self._read[official], split, official))
        if limit is None or limit >= len(made):
            return made
        if seed == 0:
            return made[:limit]
        chosen = random.Random(f"gsm8k {seed}").sample(range(len(made)), limit)
        return [made[index] for index in sorted(chosen)]

    async def gold(self, task: Task) -> Sequence[str]:
        """One action: the official calculator steps as a program when they lead to the answer, else a bare `print`."""
        program = steps_program(task.prompt, task.payload["solution"], self.expected(task))
        return (program or f"print({task.payload['answer']})",)

    def find_fault(self, task: Task, action: str) -> Fault | None:
        """The first value that is computed and never used: gentle, as it may be idle on purpose."""
        program = find_program(action)
        tree = parse_program(program.source)
        if isinstance(tree, Objection):
            return None
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        for statement in tree.body:
            for target in statement.targets if isinstance(statement, ast.Assign) else ():
                if isinstance(target, ast.Name) and target.id not in used | {"answer", "_"}:
                    return program.fault_at(statement.lineno, f"{target.id} is never used")
        return None

    def feedback(self, task: Task, action: str, text: str, fault: Fault | None) -> str:
        parts = [text]
        if fault is not None and fault.note.endswith("is never used"):
            parts.append(f"The variable {fault.note}.")
        unused = unused_numbers(task.prompt, find_program(action).source)
        if unused:
            parts.append(f"Of the question's numbers the program never uses {', '.join(unused)}.")
        return " ".join(parts)


def unused_numbers(question: str, source: str) -> list[str]:
    """Numbers of the question, as written there, that no constant of the program stands for (n, n % or 1 ± n %).

    Empty when the program does not parse: there is nothing to compare."""
    tree = parse_program(source)
    if isinstance(tree, Objection):
        return []
    constants = {
        Fraction(str(float(node.value)))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and abs(node.value) < 1e15
    }
    unused = []
    for written in dict.fromkeys(_IN_TEXT.findall(question)):
        number = Fraction(written.replace(",", ""))
        if not constants & {number, number / 100, 1 - number / 100, 1 + number / 100}:
            unused.append(written)
    return unused


def steps_program(question: str, solution: str, gold: Fraction) -> str | None:
    """The `<<16*1/2=8>>` steps of an official solution as lines of Python that end in the gold number, or None.

    Each step gets a name; a literal that is an earlier step's value and no number of the question becomes that name."""
    given = {Fraction(written.replace(",", "")) for written in _IN_TEXT.findall(question)}
    lines: list[str] = []
    values: dict[Fraction, str] = {}
    value = None
    for index, expression in enumerate(_STEP.findall(solution)):
        name = f"step_{index + 1}"

        def named(match: re.Match[str]) -> str:
            literal = Fraction(match[0])
            return values[literal] if literal in values and literal not in given else match[0]

        value = _calculate(expression)
        if value is None:
            return None
        lines.append(f"{name} = {re.sub(r'[0-9]+[.]?[0-9]*|[.][0-9]+', named, expression).strip()}")
        values[value] = name
    if value != gold:
        return None
    return "\n".join([*lines, f"print(step_{len(lines)})"])


def _calculate(expression: str) -> Fraction | None:
    """Exact value of + - * / ( ) over plain literals; None for anything else."""
    if not re.fullmatch(r"[\d.+\-*/() ]{1,200}", expression) or "**" in expression or "//" in expression:
        return None
    tree = parse_program(expression.strip())
    if isinstance(tree, Objection) or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return None
    try:
        return _value(tree.body[0].value)
    except (ZeroDivisionError, TypeError):
        return None


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _value(node.operand)
        return -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add | ast.Sub):
            return left + right if isinstance(node.op, ast.Add) else left - right
        if isinstance(node.op, ast.Mult | ast.Div):
            return left * right if isinstance(node.op, ast.Mult) else left / right
    raise TypeError("not plain arithmetic")


def _as_tasks(rows: Sequence[tuple[str, str, int | float]], split: str, official: str) -> Iterator[Task]:
    seen: dict[str, int] = {}
    for question, solution, answer in rows:
        digest = hashlib.sha256(question.encode()).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        again = f"-{seen[digest]}" if seen[digest] > 1 else ""
        payload = {"answer": answer, "solution": solution}
        yield Task(id=f"{official}-{digest}{again}", environment="gsm8k", split=split, prompt=question, payload=payload)


def _gold_number(answer: str, where: str) -> int | float:
    """The number after `####`."""
    text = answer.rpartition("####")[2].strip().replace(",", "") if "####" in answer else ""
    if not re.fullmatch(r"-?(?:\d+(?:\.\d*)?|\.\d+)", text, re.ASCII):
        raise DataError(f'{where}: expected an answer that ends in "#### 8", found {answer[-40:]!r}; {_MEND}')
    return int(text) if "." not in text else float(text)


def _from_folder(folder: Path, official: str) -> Iterator[tuple[str, str, str]]:
    """(question, answer, "file, line n") of each record."""
    path = folder / f"{official}.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        names = sorted(entry.name for entry in folder.iterdir())[:6] if folder.is_dir() else None
        found = "no such folder" if names is None else f"it has {', '.join(names) or 'nothing'}"
        raise DataError(f"gsm8k expected the file {path}, found none ({error.strerror}; {found}); {_MEND}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: expected a JSON object, found {line[:40]!r} ({error}); {_MEND}") from error
        yield *_fields(record, where), where


def _from_hub(hub: str, official: str) -> Iterator[tuple[str, str, str]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"gsm8k needs a local folder or the package datasets, found neither; {_MEND}") from error
    try:
        rows = load_dataset(hub, "main", split=official)
    except Exception as error:  # the hub client raises a dozen unrelated kinds; all mean "no data from there"
        reason = str(error).strip().partition("\n")[0][:160]
        what = f"gsm8k could not read {hub} from the hub ({type(error).__name__}: {reason})"
        raise DataError(f"{what}; {_MEND}") from error
    for number, record in enumerate(rows, 1):
        where = f"{hub} {official}, record {number}"
        yield *_fields(record, where), where


def _fields(record: Any, where: str) -> tuple[str, str]:
    """Question and answer, both texts."""
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected an object with question and answer, found {type(record).__name__}; {_MEND}")
    for key in ("question", "answer"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            names = ", ".join(map(str, record)) or "nothing"
            raise DataError(f'{where}: expected a text "{key}", found the fields {names}; {_MEND}')
    return record["question"], record["answer"]

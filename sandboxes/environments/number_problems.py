"""Base of the official sets of word problems whose answer is a number: their feedback, and golds from equations.

    class Svamp(NumberProblems): …       # with `name`, `files`, `from_folder`, `from_hub` and `made` (RecordTasks)

**Feedback** never uses the gold answer: where Python stopped, a value that was computed and not used, numbers of the
question that the program never uses (a hint: some questions hold idle numbers). Left out: what each release's records
are, which is its own file's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from kintsugi.records import Fault, Task
from kintsugi.sandboxes.environments.official_records import RecordTasks
from kintsugi.sandboxes.environments.program_of_thought import Objection, ProgramOfThought, find_program, parse_program

NUMBER_IN_TEXT: Final = re.compile(r"(?<![\w.])(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)|\.\d+)")


class NumberProblems(RecordTasks, ProgramOfThought):
    """Word problems from records. A payload holds `answer`, a number, and `program`, the gold one when there is one."""

    async def gold(self, task: Task) -> tuple[str, ...]:
        """One action: the release's own program or equation when it leads to the answer, else a bare `print`."""
        return (task.payload.get("program") or f"print({task.payload['answer']!r})",)

    def unproven(self, task: Task) -> str:
        """Why the gold is a bare `print`, which shows that the answer is accepted and not that it is right; "" elsewhere."""
        if task.payload.get("program"):
            return ""
        text = isinstance(task.payload["answer"], str)
        return "the answer is a text" if text else "the release's equation is none, or does not come to the answer"

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """Answers that are near and wrong."""
        answer = task.payload["answer"]
        if isinstance(answer, str):
            return [[f"print({'no ' + answer!r})"]]
        near = [answer + 1, answer + 0.001 if abs(answer) < 1e9 else answer - 1]
        return [[f"print({wrong!r})"] for wrong in near]

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
    for written in dict.fromkeys(NUMBER_IN_TEXT.findall(question)):
        number = Fraction(written.replace(",", ""))
        if not constants & {number, number / 100, 1 - number / 100, 1 + number / 100}:
            unused.append(written)
    return unused


def calculate(expression: str) -> Fraction | None:
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


def equation_program(expression: str, answer: int | float | None) -> str:
    """`print(…)` of an equation that comes to `answer` exactly, "" when it does not; `92.0` is written 92.

    Without an answer whatever it comes to: "" only where it is no plain arithmetic."""
    value = calculate(expression)
    if value is None or (answer is not None and value != Fraction(str(answer))):
        return ""
    plain = re.sub(r"(\d+)\.0(?!\d)", r"\1", expression).strip()
    inner = plain[1:-1].strip() if plain.startswith("(") and plain.endswith(")") else plain
    plain = inner if calculate(inner) == calculate(plain) else plain
    return f"result = {plain}\nprint(result)"


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

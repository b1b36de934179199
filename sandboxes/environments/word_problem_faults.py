"""What can be objected to in a straight-line program for a word problem, without knowing the answer.

Use::

    fault = find_fault(question, program)  # None, or the first line with a note
    fault.kept + "corrected line..."  # what a repair goes on from

``find_fault`` is a linter: it knows that every sentence but the last states one quantity or event and wants one line,
that numbers come from the question, and that counts are whole and not negative. It does not understand words: a wrong
operation passes unless its result is impossible. Its notes hold numbers and names of the question or of the program
only.

Left out: execution (a sandbox does that; ``interpret`` covers straight-line arithmetic only). Nothing is ever executed
here: programs are parsed, and exact arithmetic is done on their trees.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first line that can be objected to without knowing the answer.

    Example: ``Fault(line=1, kept="a = 12\\n", bad="b = a + 70", note="70 not in question")``.
    """

    line: int
    """Index from 0; equal to the number of lines where the program stops too early."""
    kept: str
    """The lines before it, with their newlines; kept + completion is the repaired program."""
    bad: str
    """The line itself, without newline; empty where the program stops too early."""
    note: str
    """Why; its numbers and names come from the question or from the program."""


def interpret(program: str) -> Fraction | None:
    """What a straight-line program prints last, or None if it prints nothing, fails or goes beyond arithmetic.

    For labelling without a sandbox in tests and scripts; a program is never executed here.
    """
    parsed = _parse(program)
    if parsed is None or not all(_is_plain(statement) for statement in parsed.body):
        return None
    values: dict[str, Fraction] = {}
    printed = None
    for statement in parsed.body:
        try:
            if isinstance(statement, ast.Assign):
                values[_target(statement)] = evaluate(statement.value, values)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                printed = evaluate(statement.value.args[0], values)
        except (ArithmeticError, KeyError):
            return None
    return printed


def find_fault(question: str, program: str) -> Fault | None:
    """The first line to which the question gives reason to object, or None.

    None says "nothing to object to", not "right"; and a right program of another form (two events on one line) may be
    objected to: ask only about attempts that failed. Programs beyond straight-line arithmetic get a syntax fault or
    None.

    Notes: ``syntax`` · ``116 not in question`` · ``7 used twice`` · ``no b`` (used before it is set) · ``not whole``
    · ``below zero`` · ``never used 11`` · ``name unused b`` · ``1 event without line`` · ``no print``.
    """
    lines = program.rstrip("\n").split("\n") if program.strip("\n") else []
    end = len(lines)
    parsed = _parse(program)
    statements: dict[int, ast.stmt] = {}
    if parsed is not None:
        if not all(_is_plain(statement) and statement.lineno == statement.end_lineno for statement in parsed.body):
            return None
        statements = {statement.lineno - 1: statement for statement in parsed.body}
        broken = end
    else:
        broken = 0
        while broken < end and (line := _parse(lines[broken])) is not None:
            if len(line.body) > 1 or not all(_is_plain(statement) for statement in line.body):
                return _fault(lines, broken, "syntax")
            statements.update(dict.fromkeys([broken] * len(line.body), *line.body))
            broken += 1
        if broken == end:
            return _fault(lines, 0, "syntax")
    found = _line_fault(question, statements)
    if found is None and broken < end:
        found = (broken, "syntax")
    if broken == end and (other := _whole_fault(question, statements, end)) is not None:
        found = min(found, other, key=lambda fault: fault[0]) if found else other
    return None if found is None else _fault(lines, *found)


def _fault(lines: list[str], index: int, note: str) -> Fault:
    kept = "".join(f"{line}\n" for line in lines[:index])
    return Fault(line=index, kept=kept, bad=lines[index] if index < len(lines) else "", note=note)


def _line_fault(question: str, statements: Mapping[int, ast.stmt]) -> tuple[int, str] | None:
    """The first fault that a line shows by itself and the lines before it."""
    stock = Counter(numbers_in(question))
    asked = set(stock)
    values: dict[str, Fraction] = {}
    for index, statement in statements.items():
        expression = _expression(statement)
        for number in _constants(expression):
            if number not in asked:
                return index, f"{number} not in question"
            stock[number] -= 1
            if stock[number] < 0:
                return index, f"{number} used twice"
        unknown = [name for name in _names_in(expression) if name not in values]
        if unknown:
            return index, f"no {unknown[0]}"
        try:
            value = evaluate(expression, values, whole=True)
        except ArithmeticError:
            return index, "not whole"
        if value.denominator != 1:
            return index, "not whole"
        if value < 0:
            return index, "below zero"
        if isinstance(statement, ast.Assign):
            values[_target(statement)] = value
    return None


def _whole_fault(question: str, statements: Mapping[int, ast.stmt], end: int) -> tuple[int, str] | None:
    """The first fault that only the whole program shows: what is missing from it."""
    sentences = [sentence for sentence in re.split(r"(?<=[.?!])\s+", question.strip()) if sentence]
    assigned = [index for index, statement in statements.items() if isinstance(statement, ast.Assign)]
    printed = [index for index, statement in statements.items() if not isinstance(statement, ast.Assign)]
    last = printed[0] if printed else end
    found: list[tuple[int, str]] = []
    missing = Counter(numbers_in(question))
    missing.subtract(number for statement in statements.values() for number in _constants(_expression(statement)))
    for place, sentence in enumerate(sentences):
        never = [number for number in numbers_in(sentence) if missing[number] > 0]
        if never:
            found.append((min(assigned[place] if place < len(assigned) else last, last), f"never used {never[0]}"))
            break
    for position, index in enumerate(assigned):
        later = [statements[other] for other in statements if other > index]
        name = _target(statements[index])
        if later and not any(name in _names_in(_expression(statement)) for statement in later):
            follower = assigned[position + 1] if position + 1 < len(assigned) else last
            found.append((follower, f"name unused {name}"))
            break
    without = len(sentences) - 1 - len(assigned)
    if without > 0:
        found.append((last, f"{without} event{'s' * (without > 1)} without line"))
    if not printed:
        found.append((end, "no print"))
    return min(found, key=lambda fault: fault[0]) if found else None


def numbers_in(text: str) -> list[int]:
    """Numbers of a text in order."""
    return [int(number) for number in re.findall(r"[0-9]{1,18}", text)]


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_plain(statement: ast.stmt) -> bool:
    """Whether it is ``name = arithmetic`` or ``print(arithmetic)``."""
    if isinstance(statement, ast.Assign):
        return (
            len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
            and _is_plain_value(statement.value)
        )
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        call = statement.value
        named = isinstance(call.func, ast.Name) and call.func.id == "print"
        return named and len(call.args) == 1 and not call.keywords and _is_plain_value(call.args[0])
    return False


def _is_plain_value(node: ast.expr, depth: int = 0) -> bool:
    if depth > 50:
        return False
    if isinstance(node, ast.BinOp):
        known = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv)
        return known and _is_plain_value(node.left, depth + 1) and _is_plain_value(node.right, depth + 1)
    if isinstance(node, ast.Constant):
        return type(node.value) is int and node.value < 10**12
    return isinstance(node, ast.Name)


def _expression(statement: ast.stmt) -> ast.expr:
    """What a plain statement assigns or prints."""
    if isinstance(statement, ast.Assign):
        return statement.value
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return statement.value.args[0]


def _target(statement: ast.stmt) -> str:
    assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    return statement.targets[0].id


def _constants(node: ast.expr) -> list[int]:
    return [child.value for child in _leaves(node) if isinstance(child, ast.Constant) and isinstance(child.value, int)]


def _names_in(node: ast.expr) -> list[str]:
    return [child.id for child in _leaves(node) if isinstance(child, ast.Name)]


def _leaves(node: ast.expr) -> list[ast.expr]:
    """Names and numbers from left to right."""
    return [*_leaves(node.left), *_leaves(node.right)] if isinstance(node, ast.BinOp) else [node]


def evaluate(node: ast.expr, values: Mapping[str, Fraction], *, whole: bool = False) -> Fraction:
    """Exact arithmetic; with ``whole`` a ``//`` that leaves a rest is an ArithmeticError."""
    if isinstance(node, ast.BinOp):
        left, right = evaluate(node.left, values, whole=whole), evaluate(node.right, values, whole=whole)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        quotient = left / right
        if isinstance(node.op, ast.Div):
            return quotient
        if whole and quotient.denominator != 1:
            raise ArithmeticError("a rest remains")
        return Fraction(left // right)
    if isinstance(node, ast.Name):
        return values[node.id]
    assert isinstance(node, ast.Constant) and isinstance(node.value, int)
    return Fraction(node.value)

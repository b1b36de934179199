"""Word problems that a few lines of Python solve, and a fault finder that never sees the answer.

A problem is a start quantity, N events in words and a question; its gold program has one line for the start, one
line for each event and ``print``::

    Mia has 12 marbles. Mia finds 7 marbles. Then she loses 4 of them. How many marbles does Mia have now?

    a = 12
    b = a + 7
    c = b - 4
    print(c)

Use::

    tasks = generate(0, 250, split="train")  # events 1-3; events=(3, 5) for longer programs
    fault = find_fault(question, program)  # reads the question and the program, never the gold
    bad_program, fault, completion = scripted_repair(task, random.Random(0))

**Splits.** A problem belongs to one split by a hash of its name and its numbers in order, so no two splits share a
question, nor a question with other wording about the same name and numbers. Demonstrations use only a share of the
paraphrases of each operation (``PARAPHRASE_SHARE``); training and held-out problems use all of them. What the held-back
paraphrases mean can only be found out by trying: that is the headroom of self-training.

**Faults.** ``find_fault`` is a linter: it knows that every sentence but the last states one quantity or event and wants
one line, that numbers come from the question, and that counts are whole and not negative. It does not understand words:
a wrong operation passes unless its result is impossible. Its notes hold numbers and names of the question or of
the program only.

Left out: execution (a sandbox does that; ``interpret`` covers straight-line arithmetic only), prompts, tokens, rewards.
Standard library only; everything is deterministic by seed.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, get_args

Split = Literal["train", "heldout", "demonstrations"]

PARAPHRASE_SHARE: Final = 0.8
"""Share of each operation's paraphrases that demonstrations may use."""

_MAX_VALUE: Final = 999
_VARIABLES: Final = "abcdefghijklmnopqrstuvwxyz"

_NAMES: Final = {
    "Ada": "she", "Ben": "he", "Cleo": "she", "Dan": "he", "Eva": "she", "Finn": "he", "Gina": "she", "Hugo": "he",
    "Iris": "she", "Jon": "he", "Kira": "she", "Leo": "he", "Mia": "she", "Noah": "he", "Olga": "she", "Paul": "he",
    "Rosa": "she", "Sam": "he", "Tara": "she", "Vito": "he",
}  # fmt: skip
_THINGS: Final = (
    "marbles", "stamps", "apples", "coins", "cards", "shells", "pencils", "stickers",
    "books", "buttons", "cookies", "pebbles", "beads", "plums", "tickets", "ribbons",
)  # fmt: skip

_STARTS: Final = (
    "{name} has {n} {things}.",
    "{name} starts with {n} {things}.",
    "There are {n} {things} in the bag of {name}.",
    "{name} owns {n} {things}.",
    "At first {name} has {n} {things}.",
    "In the morning {name} counts {n} {things}.",
)
_QUESTIONS: Final = (
    "How many {things} does {name} have now?",
    "How many {things} does {name} have in the end?",
    "How many {things} are left with {name}?",
    "What is the number of {things} that {name} has now?",
)

# Operation -> (the rest of its line, paraphrases). Numbers stand in the line in the order in which the words name them.
# Demonstrations use the first PARAPHRASE_SHARE of every list.
_EVENTS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "gain": (
        "+ {n}",
        (
            "{name} finds {n} more.",
            "Then {pro} buys {n} {things}.",
            "A friend gives {name} {n} {things}.",
            "{name} gets {n} {things} as a present.",
            "After that {pro} picks up {n} more.",
            "{name} adds {n} {things}.",
            "Later {name} wins {n} in a game.",
            "{name} receives {n} {things} by mail.",
            "An uncle sends {n} {things}.",
            "{name} earns {n} by helping out.",
        ),
    ),
    "lose": (
        "- {n}",
        (
            "{name} loses {n} of them.",
            "Then {pro} gives away {n} {things}.",
            "{name} sells {n} {things}.",
            "A thief takes {n} {things}.",
            "After that {pro} drops {n} in a river.",
            "{name} uses up {n} {things}.",
            "Later {name} throws {n} out.",
            "{n} of the {things} get broken.",
            "A dog runs off with {n} {things}.",
            "{name} lends {n} to a cousin.",
        ),
    ),
    "times": (
        "* {n}",
        (
            "The number grows to {n} times as many.",
            "Then {pro} has {n} times what {pro} had.",
            "{name} multiplies the {things} by {n}.",
            "After that there are {n} times as many {things}.",
            "A trick makes each of them into {n}.",
            "{name} ends up with {n} times that amount.",
            "Magic turns every one into {n} {things}.",
            "The pile becomes {n} times as large.",
            "Each one is swapped against {n} new {things}.",
            "The collection swells by a factor of {n}.",
        ),
    ),
    "share": (
        "// {n}",
        (
            "{name} shares them equally among {n} people and keeps one part.",
            "Then {pro} splits the {things} into {n} equal parts and keeps one.",
            "{name} divides them by {n}.",
            "After that {pro} puts them in {n} equal heaps and takes one heap.",
            "Only one of every {n} {things} is kept.",
            "{name} holds on to one part in {n}.",
            "The {things} are dealt evenly to {n} players and {name} is one.",
            "{name} forms {n} equal rows and keeps a single row.",
            "The pile shrinks by a factor of {n}.",
            "{n} sisters part them fairly and {name} is one of the sisters.",
        ),
    ),
    "packs": (
        "+ {n} * {m}",
        (
            "{name} buys {n} boxes with {m} {things} in each.",
            "Then {pro} finds {n} bags of {m} {things}.",
            "{name} gets {n} packs of {m}.",
            "After that {n} friends bring {m} {things} each.",
            "{name} wins {n} times and gets {m} {things} every time.",
            "For {n} days {name} collects {m} a day.",
            "{name} opens {n} drawers and finds {m} in each.",
            "Later {n} parcels come with {m} {things} apiece.",
            "{n} neighbours hand over {m} {things} each.",
            "{name} fills {n} jars with {m} new ones per jar.",
        ),
    ),
    "hand_out": (
        "- {n} * {m}",
        (
            "{name} gives {n} friends {m} {things} each.",
            "Then {pro} sells {n} bags of {m} {things}.",
            "{name} loses {n} boxes with {m} in each.",
            "After that {pro} sends {n} cousins {m} {things} each.",
            "For {n} days {name} uses up {m} a day.",
            "{name} takes out {n} packs of {m}.",
            "Later {n} thieves steal {m} {things} each.",
            "{name} wastes {m} {things} on each of {n} tries.",
            "{n} birds carry off {m} apiece.",
            "{name} pays {n} workers {m} {things} per head.",
        ),
    ),
    "swap": (
        "- {n} + {m}",
        (
            "{name} trades {n} of them for {m} others.",
            "Then {pro} gives {n} {things} and gets {m} back.",
            "{name} loses {n} but finds {m}.",
            "After that {pro} sells {n} and buys {m} {things}.",
            "{n} {things} go and {m} come.",
            "{name} swaps {n} against {m} with a friend.",
            "{name} throws away {n} and picks up {m} new ones.",
            "In exchange for {n} {things} a shop hands {name} {m}.",
            "{name} returns {n} and is sent {m} instead.",
            "{n} {things} are replaced by {m} fresh ones.",
        ),
    ),
    "refund": (
        "+ {n} - {m}",
        (
            "{name} gets {n} {things} but loses {m}.",
            "Then {pro} buys {n} and gives away {m}.",
            "{name} finds {n} and drops {m} of them.",
            "After that {n} {things} come and {m} go.",
            "A friend brings {n} and takes {m} home.",
            "{name} wins {n} but must pay {m}.",
            "{name} picks up {n} and throws away {m}.",
            "{name} is sent {n} and returns {m}.",
            "{name} borrows {n} {things} and hands {m} back.",
            "Out of {n} new ones {m} turn out broken.",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class WordProblem:
    """One problem and its gold program.

    Example: ``WordProblem(id="train-5f0c...", question="Mia has 12 marbles. Mia finds 7 more. How many ...?",
    program="a = 12\\nb = a + 7\\nprint(b)", answer=19, events=("gain",))``.
    """

    id: str
    """Split and a hash of the question."""
    question: str
    """Start, events and question, one sentence each."""
    program: str
    """The gold program: one line for the start, one for each event, ``print``; no newline at the end."""
    answer: int
    """What the gold program prints."""
    events: tuple[str, ...]
    """Operations in order, as named in this module; for analysis, never shown to a policy."""


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


def generate(
    seed: int,
    num: int,
    *,
    split: Split,
    events: tuple[int, int] = (1, 3),
    paraphrase_share: float = PARAPHRASE_SHARE,
) -> list[WordProblem]:
    """Make ``num`` different problems of one split.

    Args:
        seed: the same seed and arguments give the same problems.
        num: how many problems; questions do not repeat within one call.
        split: which problems may be drawn; two splits never share one.
        events: least and greatest number of events, drawn evenly.
        paraphrase_share: share of each operation's paraphrases that demonstrations use; other splits use all.

    Raises:
        ValueError: an unknown split, an impossible number of events or share.
    """
    if split not in get_args(Split):
        raise ValueError(f"expected a split of {get_args(Split)}, found {split!r}")
    if not 1 <= events[0] <= events[1] <= len(_VARIABLES) - 1:
        raise ValueError(f"expected 1 <= events[0] <= events[1] <= {len(_VARIABLES) - 1}, found {events}")
    if not 0 < paraphrase_share <= 1:
        raise ValueError(f"expected 0 < paraphrase_share <= 1, found {paraphrase_share}")
    rng = random.Random(f"word_problem {split} {seed} {events}")
    share = paraphrase_share if split == "demonstrations" else 1.0
    problems: dict[str, WordProblem] = {}
    for _ in range(1000 + 200 * num):
        if len(problems) == num:
            break
        problem = _draw(rng, rng.randint(*events), share, split)
        if problem is not None:
            problems.setdefault(problem.question, problem)
    if len(problems) < num:
        raise ValueError(f"only {len(problems)} different problems of {num} with {events} events; ask for fewer")
    return list(problems.values())


def split_of(name: str, numbers: tuple[int, ...]) -> Split:
    """The one split that problems about this name and these numbers (in order) belong to."""
    digest = hashlib.sha256(f"{name} {' '.join(map(str, numbers))}".encode()).digest()
    bucket = digest[0] % 8
    return "heldout" if bucket < 2 else "demonstrations" if bucket < 5 else "train"


def _draw(rng: random.Random, num_events: int, share: float, split: Split) -> WordProblem | None:
    """One problem, or None if the draw came to a dead end or belongs to another split."""
    name, things = rng.choice(list(_NAMES)), rng.choice(_THINGS)
    words = {"name": name, "pro": _NAMES[name], "things": things}
    value = rng.randint(2, 99)
    sentences, lines, operations = [rng.choice(_STARTS).format(n=value, **words)], [f"a = {value}"], []
    for index in range(num_events):
        operation = rng.choice(list(_EVENTS))
        numbers = _numbers(rng, operation, value)
        if numbers is None:
            return None
        rest, paraphrases = _EVENTS[operation]
        template = rng.choice(paraphrases[: max(1, round(share * len(paraphrases)))])
        if "{m}" in template and template.index("{m}") < template.index("{n}"):
            rest = rest.replace("{n} * {m}", "{m} * {n}")
        slots = dict(zip("nm", numbers, strict=False))
        sentences.append(template.format(**slots, **words))
        lines.append(f"{_VARIABLES[index + 1]} = {_VARIABLES[index]} {rest.format(**slots)}")
        operations.append(operation)
        value = int(_value(lines[-1].split(" = ")[1], {_VARIABLES[index]: Fraction(value)}))
    sentences.append(rng.choice(_QUESTIONS).format(**words))
    question = " ".join(sentences)
    if split_of(name, tuple(_numbers_in(question))) != split:
        return None
    lines.append(f"print({_VARIABLES[num_events]})")
    digest = hashlib.sha256(question.encode()).hexdigest()[:16]
    return WordProblem(
        id=f"{split}-{digest}", question=question, program="\n".join(lines), answer=value, events=tuple(operations)
    )


def _numbers(rng: random.Random, operation: str, value: int) -> tuple[int, ...] | None:
    """Numbers (2 to 99) with which the operation leads from ``value`` to 1.._MAX_VALUE, or None if none do."""
    n, m = rng.randint(2, 99), rng.randint(2, 99)
    small_n, small_m = rng.randint(2, 9), rng.randint(2, 12)
    if operation == "gain":
        return (n,) if value + n <= _MAX_VALUE else None
    if operation == "lose":
        return (rng.randint(2, min(99, value - 1)),) if value >= 3 else None
    if operation == "times":
        return (small_n,) if value * small_n <= _MAX_VALUE else None
    if operation == "share":
        divisors = [d for d in range(2, 13) if value % d == 0 and value > d]
        return (rng.choice(divisors),) if divisors else None
    if operation == "packs":
        return (small_n, small_m) if value + small_n * small_m <= _MAX_VALUE else None
    if operation == "hand_out":
        pairs = [(i, j) for i in range(2, 10) for j in range(2, 13) if i * j < value]
        return rng.choice(pairs) if pairs else None
    if operation == "swap":
        return (rng.randint(2, min(99, value - 1)), m) if value >= 3 else None
    return (n, rng.randint(2, min(99, value + n - 1))) if value + n <= _MAX_VALUE else None


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
                values[_target(statement)] = _evaluate(statement.value, values)
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                printed = _evaluate(statement.value.args[0], values)
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
    stock = Counter(_numbers_in(question))
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
            value = _evaluate(expression, values, whole=True)
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
    missing = Counter(_numbers_in(question))
    missing.subtract(number for statement in statements.values() for number in _constants(_expression(statement)))
    for place, sentence in enumerate(sentences):
        never = [number for number in _numbers_in(sentence) if missing[number] > 0]
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


def scripted_repair(problem: WordProblem, rng: random.Random) -> tuple[str, Fault, str]:
    """A slip made on purpose: ``(bad_program, fault, completion)`` with ``fault.kept + completion == problem.program``.

    The slips are those of a small model: a wrong or foreign number, a number used again, a lost line, a wrong
    operation that goes below zero or leaves a rest, a lost symbol, an old name. Only slips that ``find_fault`` locates
    at the line where the gold program is left are returned.
    """
    slips = [
        _wrong_number,
        _wrong_number,
        _other_number,
        _lost_line,
        _lost_line,
        _wrong_operation,
        _wrong_name,
        _cut_short,
    ]
    while True:
        lines = problem.program.split("\n")
        bad_program = "\n".join(rng.choice(slips)(lines, rng))
        fault = find_fault(problem.question, bad_program)
        if fault is not None and problem.program.startswith(fault.kept) and bad_program != problem.program:
            completion = problem.program[len(fault.kept) :]
            if completion.split("\n")[0] != fault.bad:
                return bad_program, fault, completion


def _wrong_number(lines: list[str], rng: random.Random) -> list[str]:
    index = rng.randrange(len(lines) - 1)
    number = rng.choice(re.findall(r"\d+", lines[index]))
    wrong = rng.choice(
        [number[::-1], str(rng.randint(2, 99)), number + number[-1], number[0], f"{rng.randint(1, 9)}{number}"]
    )
    wrong = wrong.lstrip("0") or "10"
    return [*lines[:index], re.sub(rf"\b{number}\b", wrong, lines[index], count=1), *lines[index + 1 :]]


def _other_number(lines: list[str], rng: random.Random) -> list[str]:
    numbers = re.findall(r"\d+", " ".join(lines))
    index = rng.randrange(len(lines) - 1)
    number = rng.choice(re.findall(r"\d+", lines[index]))
    return [*lines[:index], re.sub(rf"\b{number}\b", rng.choice(numbers), lines[index], count=1), *lines[index + 1 :]]


def _lost_line(lines: list[str], rng: random.Random) -> list[str]:
    """Leave out one event; the names after it move up."""
    index = rng.randrange(1, len(lines) - 1)
    rest = [_rename(line, -1) for line in lines[index + 1 :]]
    return [*lines[:index], *rest]


def _wrong_operation(lines: list[str], rng: random.Random) -> list[str]:
    """Another operation with the same numbers, or with one number of two."""
    index = rng.randrange(1, len(lines) - 1)
    head, *numbers = re.findall(r"\d+|^\w = \w", lines[index])
    if len(numbers) == 2 and rng.random() < 0.5:
        numbers = [rng.choice(numbers)]
    signs = (["+", "-", "*", "//"],) if len(numbers) == 1 else (["-", "+"], ["*", "*", "+", "-"])
    tail = " ".join(f"{rng.choice(choice)} {number}" for choice, number in zip(signs, numbers, strict=True))
    return [*lines[:index], f"{head} {tail}", *lines[index + 1 :]]


def _wrong_name(lines: list[str], rng: random.Random) -> list[str]:
    index = rng.randrange(1, len(lines))
    name = _VARIABLES[index - 1]
    others = [other for other in _VARIABLES[: len(lines)] if other != name]
    return [
        *lines[:index],
        re.sub(rf"(?<=[= (]){name}\b", rng.choice(others), lines[index], count=1),
        *lines[index + 1 :],
    ]


def _cut_short(lines: list[str], rng: random.Random) -> list[str]:
    """Lose one symbol of a line, or the print."""
    index = rng.randrange(1, len(lines))
    parts = lines[index].split(" ")
    del parts[rng.randrange(len(parts))]
    return [*lines[:index], *([" ".join(parts)] if parts else []), *lines[index + 1 :]]


def _rename(line: str, shift: int) -> str:
    """Move one-letter names along the alphabet."""
    return re.sub(r"\b[a-z]\b", lambda match: _VARIABLES[_VARIABLES.index(match[0]) + shift], line)


def _numbers_in(text: str) -> list[int]:
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


def _value(source: str, values: Mapping[str, Fraction]) -> Fraction:
    return _evaluate(ast.parse(source, mode="eval").body, values)


def _evaluate(node: ast.expr, values: Mapping[str, Fraction], *, whole: bool = False) -> Fraction:
    """Exact arithmetic; with ``whole`` a ``//`` that leaves a rest is an ArithmeticError."""
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, values, whole=whole), _evaluate(node.right, values, whole=whole)
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

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

**Faults** are found next door, in ``word_problem_faults``; its names are exported here too.

Left out: execution (a sandbox does that), prompts, tokens, rewards.
Standard library only; everything is deterministic by seed.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from kintsugi.sandboxes.environments.word_problem_faults import Fault, find_fault, interpret, numbers_in

__all__ = ["Fault", "Split", "WordProblem", "find_fault", "generate", "interpret", "scripted_repair", "split_of"]

Split = Literal["train", "heldout", "demonstrations"]

PARAPHRASE_SHARE: Final = 1 / 3
"""Share of each operation's paraphrases that demonstrations may use."""

_MAX_VALUE: Final = 999
_VARIABLES: Final = "abcdefghijklmnopqrstuvwxyz"

_NAMES: Final = {
    "Ada": "she", "Ben": "he", "Dan": "he", "Eva": "she", "Iris": "she", "Jon": "he",
    "Leo": "he", "Mia": "she", "Olga": "she", "Paul": "he", "Sam": "he", "Tara": "she",
}  # fmt: skip
_THINGS: Final = ("marbles", "stamps", "apples", "coins", "cards", "shells", "books", "beads")

_STARTS: Final = ("{name} has {n} {things}.", "{name} starts with {n} {things}.", "At first {name} owns {n} {things}.")
_QUESTIONS: Final = (
    "How many {things} does {name} have now?",
    "How many {things} are left with {name}?",
)

# Operation -> (the rest of its line, paraphrases). Numbers stand in the line in the order in which the words name them.
# Demonstrations use the first PARAPHRASE_SHARE of every list.
_EVENTS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "gain": (
        "+ {n}",
        (
            "{name} finds {n} more.",
            "A friend gives {name} {n} {things}.",
            "An uncle sends {n} {things}.",
            "Later {name} wins {n} in a game.",
            "{name} earns {n} by helping out.",
            "{n} {things} turn up under a chair.",
        ),
    ),
    "lose": (
        "- {n}",
        (
            "{name} loses {n} of them.",
            "Then {pro} gives away {n} {things}.",
            "A thief takes {n} {things}.",
            "{n} of the {things} get broken.",
            "{name} lends {n} to a cousin.",
            "Rain ruins {n} {things}.",
        ),
    ),
    "times": (
        "* {n}",
        (
            "The number grows to {n} times as many.",
            "{name} multiplies the {things} by {n}.",
            "A trick makes each of them into {n}.",
            "Every one is swapped against {n} new {things}.",
            "The collection swells by a factor of {n}.",
            "Soon {pro} owns {n} {things} for each old one.",
        ),
    ),
    "share": (
        "// {n}",
        (
            "{name} shares them equally among {n} people and keeps one part.",
            "Then {pro} splits the {things} into {n} equal parts and keeps one.",
            "Only one of every {n} {things} stays.",
            "{name} forms {n} even rows and saves a single row.",
            "{n} sisters part them fairly and {name} is one of the sisters.",
            "The pile shrinks by a factor of {n}.",
        ),
    ),
    "packs": (
        "+ {n} * {m}",
        (
            "{name} buys {n} boxes with {m} {things} in each.",
            "After that {n} friends bring {m} {things} each.",
            "For {n} days {name} collects {m} a day.",
            "{name} opens {n} drawers holding {m} apiece.",
            "{n} parcels come containing {m} per parcel.",
            "Grandma fills {n} socks with {m} {things} apiece.",
        ),
    ),
    "hand_out": (
        "- {n} * {m}",
        (
            "{name} gives {n} friends {m} {things} each.",
            "After that {pro} sells {n} bags of {m} {things}.",
            "For {n} days {name} uses up {m} a day.",
            "{n} birds carry off {m} apiece.",
            "{name} pays {n} workers {m} per head.",
            "{n} jars break, spilling {m} {things} from every jar.",
        ),
    ),
    "swap": (
        "- {n} + {m}",
        (
            "{name} trades {n} of them for {m} others.",
            "{name} loses {n} but finds {m}.",
            "{n} {things} go and {m} come.",
            "In exchange for {n} a shop hands {name} {m}.",
            "{name} returns {n} and is sent {m} instead.",
            "{n} bad {things} make room for {m} fresh ones.",
        ),
    ),
    "refund": (
        "+ {n} - {m}",
        (
            "{name} gets {n} {things} but loses {m}.",
            "Then {pro} buys {n} and gives away {m}.",
            "A visitor brings {n} and takes {m} home.",
            "{name} borrows {n} and repays {m}.",
            "Out of {n} fresh ones {m} turn out rotten.",
            "Of {n} delivered {things} {name} refuses {m}.",
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
        value = _result(lines[-1], value)
    sentences.append(rng.choice(_QUESTIONS).format(**words))
    question = " ".join(sentences)
    if split_of(name, tuple(numbers_in(question))) != split:
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


def _result(line: str, value: int) -> int:
    """What ``b = a + 7`` makes of ``value``."""
    printed = interpret(f"{line[4]} = {value}\n{line}\nprint({line[0]})")
    assert printed is not None
    return int(printed)

"""The word problem generator: deterministic, disjoint splits, true golds, and a fault finder that gives nothing away."""

import random
import re

import pytest

from kintsugi.sandboxes.environments.word_problem_generator import (
    find_fault,
    generate,
    interpret,
    scripted_repair,
    split_of,
)

EVENTS = [(1, 3), (3, 5)]


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


@pytest.mark.parametrize("events", EVENTS)
@pytest.mark.parametrize("split", ["train", "heldout", "demonstrations"])
def test_same_seed_same_problems(split, events):
    first = generate(3, 50, split=split, events=events)
    assert first == generate(3, 50, split=split, events=events)
    assert first != generate(4, 50, split=split, events=events)
    assert len({problem.question for problem in first}) == len({problem.id for problem in first}) == 50


@pytest.mark.parametrize("events", EVENTS)
def test_splits_share_no_names_with_numbers(events):
    keys = {}
    for split in ("train", "heldout", "demonstrations"):
        problems = [problem for seed in range(3) for problem in generate(seed, 300, split=split, events=events)]
        keys[split] = {problem.question for problem in problems}
        names = {problem.question: re.findall(r"[A-Z][a-z]+(?= |,|\.)", problem.question) for problem in problems}
        for problem in problems:
            drawn = tuple(map(int, numbers(problem.question)))
            assert any(split_of(name, drawn) == split for name in names[problem.question])
    assert not keys["train"] & keys["heldout"]
    assert not keys["train"] & keys["demonstrations"]
    assert not keys["heldout"] & keys["demonstrations"]


def test_demonstrations_hold_paraphrases_back():
    held_back = "An uncle sends"
    assert not any(held_back in problem.question for problem in generate(0, 2000, split="demonstrations"))
    assert any(held_back in problem.question for problem in generate(0, 2000, split="train"))
    assert any(
        held_back in problem.question for problem in generate(0, 2000, split="demonstrations", paraphrase_share=1.0)
    )


@pytest.mark.parametrize("events", EVENTS)
@pytest.mark.parametrize("split", ["train", "heldout", "demonstrations"])
def test_gold_is_right_and_faultless(split, events):
    for problem in generate(1, 300, split=split, events=events):
        assert interpret(problem.program) == problem.answer >= 1
        assert find_fault(problem.question, problem.program) is None
        assert events[0] <= len(problem.events) <= events[1]
        assert problem.program.count("\n") == len(problem.events) + 1
        assert numbers(problem.program) == numbers(problem.question)


@pytest.mark.parametrize("events", EVENTS)
def test_scripted_repairs_give_nothing_away(events):
    rng = random.Random(0)
    kinds = set()
    for problem in generate(2, 500, split="train", events=events):
        bad, fault, completion = scripted_repair(problem, rng)
        assert fault == find_fault(problem.question, bad)
        assert fault.kept + completion == problem.program
        assert f"{bad}\n".startswith(fault.kept)
        assert bad.split("\n")[fault.line : fault.line + 1] in ([fault.bad], [])
        assert not any(line in fault.note for line in problem.program.split("\n"))
        if "without" not in fault.note:
            assert set(numbers(fault.note)) <= set(numbers(problem.question)) | set(numbers(bad))
        kinds.add(re.sub(r"\d+|\b[a-z]\b", "#", fault.note))
    assert {"# not in question", "never used #", "not whole", "below zero", "syntax", "no #"} <= kinds


QUESTION = "Mia has 12 marbles. Mia finds 7 more. Then she loses 4 of them. How many marbles does Mia have now?"


@pytest.mark.parametrize(
    ("program", "line", "note"),
    [
        ("a = 12\nb = a + 70\nc = b - 4\nprint(c)", 1, "70 not in question"),
        ("a = 12\nb = a + 12\nc = b - 4\nprint(c)", 1, "12 used twice"),
        ("a = 12\nb = a - 4\nprint(b)", 1, "never used 7"),
        ("a = 12\nb = a + 7\nprint(b)", 2, "never used 4"),
        ("a = 4\nb = a - 7\nc = b + 12\nprint(c)", 1, "below zero"),
        ("a = 12\nb = a // 7\nc = b - 4\nprint(c)", 1, "not whole"),
        ("a = 12\nb = a / 7\nc = b - 4\nprint(c)", 1, "not whole"),
        ("a = 12\nb = a + 7\nc = a - 4\nprint(c)", 2, "name unused b"),
        ("a = 12\nb = a + 7 - 4\nprint(b)", 2, "1 event without line"),
        ("a = 12\nb = e + 7\nc = b - 4\nprint(c)", 1, "no e"),
        ("a = 12\nb = a + \nc = b - 4\nprint(c)", 1, "syntax"),
        ("a = 12\nb = a + 7\nc = b - 4", 3, "no print"),
        ("", 0, "never used 12"),
    ],
)
def test_notes(program, line, note):
    fault = find_fault(QUESTION, program)
    assert fault is not None
    assert (fault.line, fault.note) == (line, note)


@pytest.mark.parametrize(
    "program",
    ["def f():\n    return 3\nprint(f())", "import os\nprint(os.getcwd())", "for i in range(3):\n    print(i)"],
)
def test_general_programs_pass(program):
    assert find_fault(QUESTION, program) is None
    assert interpret(program) is None


def test_garbage_is_survived():
    rng = random.Random(0)
    alphabet = "abc=+-*/()[]{}:.,'\"\\ \n\n\t0123456789#@é\0\x0cprint" + "٣²"
    gold = generate(0, 1, split="train")[0].program
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(0, 60)))
        cut = rng.randrange(len(gold))
        for program in (text, gold[:cut] + text[:5] + gold[cut:]):
            for question in (QUESTION, text):
                fault = find_fault(question, program)
                assert fault is None or f"{program}\n".startswith(fault.kept)
            interpret(program)
    for program in (
        "(" * 5000,
        "-" * 5000,
        "a = " + "1+" * 5000 + "1",
        "a = " + "9" * 5000,
        "a = 2 ** 9 ** 9 ** 9\nprint(a)",
    ):
        find_fault(QUESTION, program)
        interpret(program)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "expected a split"),
        ({"split": "train", "events": (0, 3)}, "expected 1 <= events"),
        ({"split": "train", "paraphrase_share": 0.0}, "paraphrase_share"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(0, 1, **arguments)

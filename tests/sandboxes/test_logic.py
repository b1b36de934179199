"""Logic programs: the language, labels against an independent chainer, golds on the official slices, schemas."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import itertools
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import DataError, MissingExtra
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.logic_program import LogicProgram, read_program
from kintsugi.sandboxes.environments.program_of_thought import Objection
from kintsugi.sandboxes.environments.theory_english import program_of, representation_program
from tests.sandboxes.environment_trials import SHARED, opened

needs_clingo = pytest.mark.skipif(
    importlib.util.find_spec("clingo") is None, reason='clingo is not installed: pip install "kintsugi-agents[logic]"'
)
PROGRAM = """Predicates:
Needs($x, $y, bool) ::: $x needs $y
Kind($x, bool)
Facts:
Needs(cat, dog, True) ::: The cat needs the dog.
Kind(bald eagle, False)
Rules:
Needs($x, dog, True) >>> Kind($x, True) ::: any
Query:
Kind(cat, False)"""


# The language ---------------------------------------------------------------------------------------------------------


def test_a_program_is_read() -> None:
    program = read_program(PROGRAM)
    assert isinstance(program, LogicProgram)
    assert [str(fact) for fact in program.facts] == ["Needs(cat, dog, True)", "Kind(bald eagle, False)"]
    assert str(program.query) == "Kind(cat, False)" and program.query.line == 10
    assert program.rules_text(closed=False).splitlines() == [
        "d(0).", "d(1).", "d(2).", "h(0,1,0,1).", "h(1,0,2).", "h(1,1,X0) :- d(X0), h(0,1,X0,1).",
    ]  # fmt: skip
    loose = read_program("query: A(b)\nFACTS:\n  A ( b )  \n A(  b , true)")
    assert isinstance(loose, LogicProgram) and str(loose.query) == "A(b, True)"
    empty = read_program("Facts:\nRaining(True)\nRules:\nRaining(True) >>> Wet(street)\nQuery: Wet(street, True)")
    assert isinstance(empty, LogicProgram) and empty.facts[0].arguments == ()


@pytest.mark.parametrize(
    ("source", "text", "line"),
    [
        ("", "holds no logic program", None),
        ("hello", "Expected one of Predicates", 1),
        ("Facts:\nA(b, True)", "one statement under Query:, found 0", None),
        ("Query:\nA(b)\nA(c)", "one statement under Query:, found 2", 3),
        ("Facts:\nA(b\nQuery:\nA(b)", 'Expected an atom such as Kind(dog, True), found "A(b"', 2),
        ("Facts:\nA($x)\nQuery:\nA(b)", "A fact holds no variable, found $x", 2),
        ("Facts:\nA(b) && B(c)\nQuery:\nA(b)", "A fact is one atom", 2),
        ("Query:\nA($x)", "The query holds no variable", 2),
        ("Rules:\nA($x)\nQuery:\nA(b)", "Expected a rule such as", 2),
        ("Rules:\nA($x) >>> B($x) >>> C($x)\nQuery:\nA(b)", "Expected a rule such as", 2),
        ("Rules:\nA($x) >>> \nQuery:\nA(b)", "Expected an atom", 2),
        ("Facts:\nA(b, c)\nQuery:\nA(b)", "A has 1 arguments here and 2 as line 2", 4),
        ("Predicates:\nKind($x, bool)\nQuery:\nKnd(b)", "Knd is not declared in Predicates; did you mean Kind", 4),
        ("Predicates:\nKind($x, bool)\nQuery:\nKind(b, c, True)", "has 2 arguments here and 1 as declared", 4),
        ("Query:\nA(b.c)", 'found "b.c"', 2),
        ('Query:\nA("b")', "found", 2),
        ("Query:\nA(" + "b, " * 65 + "b)", "at most 64 arguments", 2),
        ("Rules:\nA($a,$b,$c,$d) && B($e,$f,$g) >>> A($a,$b,$c,$d)\nQuery:\nB(a,b,c)", "at most 6 variables", 2),
        ("Facts:\n" + "A(b)\n" * 700 + "Query:\nA(b)", "at most 600 facts and rules", 602),
    ],
)
def test_what_is_wrong_is_said_with_its_line(source: str, text: str, line: int | None) -> None:
    found = read_program(source)
    assert isinstance(found, Objection) and text in found.text and found.line == line, found


# Labels ---------------------------------------------------------------------------------------------------------------


def chained(program: LogicProgram, closed: bool) -> str:
    """Naive forward chaining over all groundings; in the closed world, rules whose negated predicates are settled first.

    Independent of the translation: sets of (predicate, arguments, truth), no numbers, no solver."""
    names = program.names
    known = {(fact.predicate, fact.arguments, fact.truth) for fact in program.facts}

    def grounded() -> Any:
        for rule in program.rules:
            variables = sorted(set().union(*(one.variables for one in (*rule.conditions, *rule.conclusions))))
            for chosen in itertools.product(names, repeat=len(variables)):
                table = dict(zip(variables, chosen, strict=True))
                yield rule, lambda one, table=table: tuple(table.get(argument, argument) for argument in one.arguments)

    changed = True
    while changed:
        changed = False
        for rule, fill in grounded():
            holds = all(
                (one.predicate, fill(one), True) not in known
                if closed and not one.truth
                else (one.predicate, fill(one), one.truth) in known
                for one in rule.conditions
            )
            for one in rule.conclusions if holds else ():
                if (atom := (one.predicate, fill(one), one.truth)) not in known:
                    known.add(atom)
                    changed = True
    query = program.query
    positive = (query.predicate, query.arguments, query.truth) in known
    negative = (query.predicate, query.arguments, not query.truth) in known
    if closed:
        return str(((query.predicate, query.arguments, True) in known) == query.truth)
    return "True" if positive else "False" if negative else "Unknown"


def random_program(rng: random.Random, closed: bool) -> str:
    """Predicates of 0 to 3 and of 9 arguments; what is negated in a closed world is never concluded (B0, B1, …)."""
    names = ["ada", "bo", "cy"][: rng.randint(1, 3)]
    arities = {f"{kind}{arity}": arity for kind in "AB" for arity in (0, 1, 2, 3, 9)}

    def atom(terms: list[str], kinds: str, truth: bool) -> str:
        name = rng.choice([one for one in arities if one[0] in kinds])
        return f"{name}({', '.join([*rng.choices(terms, k=arities[name]), str(truth)])})"

    def maybe() -> bool:
        return rng.random() < 0.75

    facts = [atom(names, "AB", True if closed else maybe()) for _ in range(rng.randint(1, 6))]
    rules = []
    for _ in range(rng.randint(1, 7)):
        terms = [*names, "$x", "$y"][-rng.randint(1, 4) :]
        conditions = [atom(terms, "AB", True) for _ in range(rng.randint(1, 2))]
        if rng.random() < 0.5:
            conditions.append(atom(terms, "B" if closed else "AB", False))
        concluded = "A" if closed else "AB"
        conclusions = [atom(terms, concluded, True if closed else maybe()) for _ in range(rng.randint(1, 2))]
        rules.append(f"{' && '.join(conditions)} >>> {' && '.join(conclusions)}")
    return "\n".join(["Facts:", *facts, "Rules:", *rules, "Query:", atom(names, "AB", rng.random() < 0.5)])


@needs_clingo
@pytest.mark.parametrize("kind", ["proofwriter", "ruletaker"])
def test_labels_equal_an_independent_chainer_on_generated_theories(kind: str) -> None:
    rng = random.Random(f"theories {kind}")
    environment = opened(kind)
    closed = kind == "ruletaker"
    task = environment.tasks("train", limit=1)[0]
    sources = [random_program(rng, closed) for _ in range(220)]

    async def label(source: str) -> tuple[str, str]:
        program = read_program(source)
        assert isinstance(program, LogicProgram), source
        expected = chained(program, closed)
        asked = dataclasses.replace(task, payload={**task.payload, "answer": expected})
        verdict = await environment.judge(asked, source)
        assert verdict.success, (source, expected, verdict.feedback)
        return expected, str(len(program.query.arguments))

    async def main() -> list[tuple[str, str]]:
        try:
            return list(await asyncio.gather(*map(label, sources)))
        finally:
            await environment.close()

    found = asyncio.run(main())
    assert {label for label, _ in found} == ({"True", "False"} if closed else {"True", "False", "Unknown"})
    assert {arity for _, arity in found} == {"0", "1", "2", "3", "9"}


@needs_clingo
def test_negation_in_a_circle_is_answered() -> None:
    environment = opened("ruletaker")
    task = environment.tasks("train", limit=1)[0]

    async def main() -> list[str]:
        texts = []
        for rules in ("A(x, False) >>> A(x, True)", "A(x, False) >>> B(x, True)\nB(x, False) >>> A(x, True)"):
            verdict = await environment.judge(task, f"Facts:\nC(x)\nRules:\n{rules}\nQuery:\nA(x, True)")
            assert not verdict.success and not verdict.error
            texts.append(verdict.feedback)
        await environment.close()
        return texts

    first, second = asyncio.run(main())
    assert first.startswith("The rules contradict themselves") and second.startswith("The rules leave the query open")


@needs_clingo
def test_feedback_locates_loose_ends_without_the_label() -> None:
    environment = opened("proofwriter")
    task = dataclasses.replace(
        environment.tasks("train", limit=1)[0], payload={"answer": "True", "context": "", "statement": ""}
    )
    source = (
        "Facts:\nKind(dog, True)\nRules:\nKind($x, True) >>> Big($x, True)\nRough($x, True) >>> Nice($x, True)\nQuery:\n"
    )

    async def main() -> Any:
        verdict = await environment.judge(task, f"So:\n```logic\n{source}Nice(Dog, True)\n```")
        await environment.close()
        return verdict

    verdict = asyncio.run(main())
    assert verdict.feedback == (
        "The check failed: the program concludes Unknown for Nice(Dog, True). "
        "No fact and no rule gives Rough(…, True) (line 5). "
        'The query\'s "Dog" occurs in no fact and no rule; did you mean "dog". Its rules derive Big(dog, True).'
    )
    assert verdict.fault is not None and verdict.fault.bad == "Rough($x, True) >>> Nice($x, True)"
    assert verdict.fault.kept.startswith("So:\n```logic\nFacts:") and verdict.detail == {"read": 1.0, "decided": 0.0}


def test_a_machine_without_clingo_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util as finder

    real = finder.find_spec
    monkeypatch.setattr(finder, "find_spec", lambda name, *rest: None if name == "clingo" else real(name, *rest))
    environment = opened("proofwriter")
    task = environment.tasks("train", limit=1)[0]
    with pytest.raises(MissingExtra, match=r"kintsugi-agents\[logic\]"):
        asyncio.run(environment.judge(task, PROGRAM))


# English and the releases ---------------------------------------------------------------------------------------------


def test_english_becomes_a_program() -> None:
    context = (
        "The bald eagle chases the cow. Anne is not round. Big, kind people are not rough. All red things are big. "
        "If someone is nice and not red and they see the cow then they are quiet. "
        "If the cow does not need Anne then it is red."
    )
    assert program_of(context, "The cow does not chase the bald eagle.") is None  # needs Anne: a name without `the`
    program = program_of(context.replace("need Anne", "need the dog"), "The cow does not chase the bald eagle.")
    assert program is not None and program.split("Facts:\n")[1] == "\n".join(
        [
            "Chase(bald_eagle, cow, True)",
            "Round(anne, False)",
            "Rules:",
            "Big($x, True) && Kind($x, True) >>> Rough($x, False)",
            "Red($x, True) >>> Big($x, True)",
            "Nice($x, True) && Red($x, False) && See($x, cow, True) >>> Quiet($x, True)",
            "Need(cow, dog, False) >>> Red($x, True)",
            "Query:",
            "Chase(cow, bald_eagle, False)",
        ]
    )
    assert program_of("Some cold people can be nice at times.", "Anne is nice.") is None
    assert representation_program([], [], "nonsense") is None


@needs_clingo
@pytest.mark.parametrize(("kind", "num"), [("proofwriter", 350), ("ruletaker", 2384)])
def test_every_gold_of_the_slices_scores_one(kind: str, num: int) -> None:
    if not (SHARED / kind).is_dir():
        pytest.skip(f"the official files of {kind} are not in {SHARED / kind}")
    environment = opened(kind, data=SHARED / kind)

    async def main() -> Any:
        try:
            return await check_golds(environment)
        finally:
            await environment.close()

    result = asyncio.run(main())
    assert result.ok and result.tasks == num and result.without_gold == 0, str(result)


META = {
    "id": "T-1",
    "theory": "The cat is kind. If something is kind then it is big.",
    "triples": {"triple1": {"text": "The cat is kind.", "representation": '("cat" "is" "kind" "+")'}},
    "rules": {"rule1": {"text": "…", "representation": '((("something" "is" "kind" "+")) -> ("something" "is" "big" "+"))'}},
    "questions": {
        "Q1": {"question": "The cat is not big.", "answer": False, "representation": '("cat" "is" "big" "-")'},
        "Q2": {"question": "The cat is red.", "answer": "Unknown", "representation": '("cat" "is" "red" "+")'},
    },
}


def test_proofwriters_own_release_is_read(tmp_path: Path) -> None:
    (tmp_path / "meta-train.jsonl").write_text(json.dumps(META))
    environment = opened("proofwriter", data=tmp_path)
    first, second = environment.tasks("train")
    assert (first.id, first.payload["answer"], second.payload["answer"]) == ("T-1_Q1", "False", "Unknown")
    (gold,) = asyncio.run(environment.gold(first))
    assert gold.endswith("Facts:\nKind(cat, True)\nRules:\nKind($x, True) >>> Big($x, True)\nQuery:\nBig(cat, False)")
    for bad in ({**META, "questions": []}, {**META, "rules": 3}, {**META, "questions": {"Q1": {"question": "x"}}}):
        (tmp_path / "meta-train.jsonl").write_text(json.dumps(bad))
        with pytest.raises(DataError, match=r"meta-train\.jsonl, line 1"):
            opened("proofwriter", data=tmp_path).tasks("train")


def test_ruletakers_ids_may_repeat_between_files(tmp_path: Path) -> None:
    theory = {
        "id": "N-1",
        "context": "The cat is kind.",
        "questions": [{"id": "N-1-1", "text": "The cat is kind.", "label": True}],
    }
    for part, split in itertools.product(("NatLang", "depth-5"), ("train", "test")):
        (tmp_path / part).mkdir(exist_ok=True)
        changed = {**theory, "context": f"The cat is kind. The dog is {part[0].lower()}{split}."}
        (tmp_path / part / f"{split}.jsonl").write_text(json.dumps(changed))
    environment = opened("ruletaker", data=tmp_path)
    ids = [task.id for split in ("train", "test") for task in environment.tasks(split)]
    assert len(set(ids)) == 4 and ids[0] == "depth-5-train-N-1-1"
    assert len(opened("ruletaker", data=tmp_path, parts=["NatLang"]).tasks("train")) == 1
    with pytest.raises(DataError, match=r"expected one of depth-5/dev\.jsonl"):
        environment.tasks("dev")
    (tmp_path / "NatLang" / "train.jsonl").write_text(
        json.dumps({**theory, "questions": [{"id": "a", "text": "b", "label": "c"}]})
    )
    with pytest.raises(DataError, match='expected a "label" true or false'):
        opened("ruletaker", data=tmp_path).tasks("train")


def test_the_hubs_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"context": "The cat is kind.", "question": "The cat is kind.", "label": "entailment"}
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda *_, **__: [row]))
    (task,) = opened("ruletaker", data="hub").tasks("test")
    assert task.payload["answer"] == "True" and task.prompt.endswith("true or false? The cat is kind.")

"""The controlled English of synthetic theories, as a logic program: the scripted expert of ProofWriter and RuleTaker.

    program_of("The dog is kind. Kind things are not rough.", "The dog is rough.")

Reads what those releases' generator writes: `Anne is [not] big`, `The cat [does not] chase(s) the dog`, `If something
is nice and it eats the tiger then …` (someone, they, a name), `All round, nice people are [not] white`, `Big things are
…`. `program_of` returns None when a sentence is of another form (paraphrased theories). `representation_program` makes
the same of the releases' own `("cat" "needs" "dog" "+")` notation.

Left out: any other English.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

Said = tuple[str, tuple[str, ...], bool]
"""Predicate, arguments, truth."""

_ANY: Final = ("something", "someone", "it", "they")
_GENERAL: Final = re.compile(r"(?:all )?([a-z, ]+?) (?:people|things) are (not )?([a-z]+)")
_BEING: Final = re.compile(r"(.+?) (?:is|are) (not )?([a-z]+)")
_DOING: Final = re.compile(r"(.+?) (?:(?:does|do) (not) )?([a-z]+?) ((?:the )[a-z ]+|it|them|something|someone)")
_CONTINUED: Final = re.compile(r"(not )?([a-z]+)")
_WRITTEN: Final = re.compile(r'\(\s*"([^"]*)"\s+"([^"]*)"\s+"([^"]*)"\s+"([-+~])"\s*\)')


class _Unreadable(Exception):
    """A sentence of another form."""


def program_of(context: str, statement: str) -> str | None:
    """The logic program of a theory and a statement about it, or None."""
    facts: list[Said] = []
    rules: list[tuple[list[Said], list[Said]]] = []
    try:
        for sentence in _sentences(context):
            rule = _rule(sentence)
            if rule is not None:
                rules.append(rule)
            else:
                facts.append(_clause(sentence, None))
        (query,) = [_clause(sentence, None) for sentence in _sentences(statement)]
    except (_Unreadable, ValueError):
        return None
    return written(facts, rules, query)


def representation_program(facts: Iterable[str], rules: Iterable[str], query: str) -> str | None:
    """The same from `("cat" "needs" "dog" "+")` and `((…) -> …)`; `-` and `~` are both written False."""
    try:
        parts = [[[_notation(*atom) for atom in _WRITTEN.findall(side)] for side in rule.split("->")] for rule in rules]
        (asked,) = _WRITTEN.findall(query)
        found = [_notation(*atom) for fact in facts for atom in _WRITTEN.findall(fact)]
        return written(found, [(left, right) for left, right in parts], _notation(*asked))
    except (_Unreadable, ValueError):
        return None


def written(facts: Iterable[Said], rules: Iterable[tuple[list[Said], list[Said]]], query: Said) -> str:
    """The four sections."""
    facts, rules = list(facts), list(rules)
    everything = [*facts, *(atom for sides in rules for side in sides for atom in side), query]
    arities = {predicate: len(arguments) for predicate, arguments, _ in everything}
    declared = [f"{name}({', '.join([*('$x', '$y')[:arity], 'bool'])})" for name, arity in arities.items()]
    chains = [f"{' && '.join(map(_atom, left))} >>> {' && '.join(map(_atom, right))}" for left, right in rules]
    return "\n".join(["Predicates:", *declared, "Facts:", *map(_atom, facts), "Rules:", *chains, "Query:", _atom(query)])


def _atom(said: Said) -> str:
    predicate, arguments, truth = said
    return f"{predicate}({', '.join((*arguments, str(truth)))})"


def _notation(subject: str, verb: str, thing: str, sign: str) -> Said:
    if verb == "is":
        return _predicate(thing), (_name(subject),), sign == "+"
    first, *others = verb.split()
    return _predicate(" ".join([_lemma(first), *others])), (_name(subject), _name(thing)), sign == "+"


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in re.split(r"\.(?:\s+|$)", text) if sentence.strip()]


def _rule(sentence: str) -> tuple[list[Said], list[Said]] | None:
    lowered = sentence[0].lower() + sentence[1:]
    if (chain := re.fullmatch(r"if (.+) then (.+)", lowered)) is not None:
        conditions = _clauses(chain[1])
        return conditions, [_clause(chain[2], conditions[-1])]
    if (general := _GENERAL.fullmatch(lowered)) is not None:
        kinds = re.split(r"\s*,\s*|\s+and\s+", general[1])
        return [(_predicate(kind), ("$x",), True) for kind in kinds], [(_predicate(general[3]), ("$x",), not general[2])]
    return None


def _clauses(text: str) -> list[Said]:
    """`something is round and not big and it eats the tiger`, piece by piece."""
    found: list[Said] = []
    for piece in text.split(" and "):
        continued = _CONTINUED.fullmatch(piece)
        if continued is not None and found:
            found.append((_predicate(continued[2]), found[-1][1][:1], not continued[1]))
        else:
            found.append(_clause(piece, found[-1] if found else None))
    return found


def _clause(text: str, before: Said | None) -> Said:
    if (being := _BEING.fullmatch(text)) is not None:
        return _predicate(being[3]), (_name(being[1]),), not being[2]
    if (doing := _DOING.fullmatch(text)) is not None:
        verb = doing[3] if doing[2] or doing[1] == "they" else _lemma(doing[3])
        return _predicate(verb), (_name(doing[1]), _name(doing[4])), not doing[2]
    raise _Unreadable(text)


def _lemma(verb: str) -> str:
    return verb.removesuffix("s")


def _predicate(word: str) -> str:
    if not word.strip():
        raise _Unreadable(word)
    return "_".join(word.split()).capitalize()


def _name(subject: str) -> str:
    lowered = subject.strip().lower().removeprefix("the ")
    if lowered in _ANY:
        return "$x"
    if not re.fullmatch(r"[a-z][a-z ]*", lowered):
        raise _Unreadable(subject)
    return "_".join(lowered.split())

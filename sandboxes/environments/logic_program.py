r"""The language of logic programs: read, checked, and turned into rules for clingo. Nothing is executed here.

    Predicates:
    Needs($x, $y, bool) ::: $x needs $y
    Facts:
    Needs(cat, dog, True) ::: The cat needs the dog.
    Rules:
    Needs($x, dog, True) && Kind($x, True) >>> Rough($x, False)
    Query:
    Rough(cat, False)

Sections in any order, `Predicates:` may be missing; one statement a line; `:::` begins a comment. An atom is a
predicate, names and variables (`$x`), and True or False (True when it is left out); any number of arguments, none too.
Names are compared as they are written. A rule has conditions joined by `&&` and conclusions likewise.

**Meaning**: forward chaining. Open world: False is said as such, by a fact or a conclusion; the query is True when it is
derived, False when its opposite is, else Unknown (contraposition does not count). Closed world: a False condition holds
when the True one is not derived, and so does the query; a False fact or conclusion adds nothing.

For clingo every predicate and name is a number, so no text of a program reaches its parser. Left out: arithmetic,
quantified queries, disjunction.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.program_of_thought import Objection

Label = Literal["True", "False", "Unknown"]
MAX_STATEMENTS: Final = 600
MAX_ARGUMENTS: Final = 64
MAX_VARIABLES: Final = 6

RUNNER: Final = """
import clingo, json, sys
control = clingo.Control(["--warn=none", "2"])
control.add("base", [], sys.stdin.read())
control.ground([("base", [])])
models = []
with control.solve(yield_=True) as found:
    for model in found:
        models.append([[a.number for a in s.arguments] for s in model.symbols(atoms=True) if s.name == "h"])
print(json.dumps(models))
"""
"""What runs in the sandbox, with `LogicProgram.rules_text` as its input: the atoms of at most two models, in numbers."""

_SECTION: Final = re.compile(r"\s*(predicates|facts|rules|query)\s*:(?!:)\s*", re.IGNORECASE)
_ATOM: Final = re.compile(r"\s*([^\W\d]\w*)\s*\(([^()]*)\)\s*")
_TERM: Final = re.compile(r"\$?\w(?:[\w' -]*\w)?")


@dataclass(frozen=True, kw_only=True)
class Atom:
    """`Needs($x, dog, True)`. line: where it stands, from 1."""

    predicate: str
    arguments: tuple[str, ...]
    truth: bool
    line: int

    @property
    def variables(self) -> set[str]:
        return {argument for argument in self.arguments if argument.startswith("$")}

    def __str__(self) -> str:
        return f"{self.predicate}({', '.join((*self.arguments, str(self.truth)))})"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """All of `conditions` lead to all of `conclusions`."""

    conditions: tuple[Atom, ...]
    conclusions: tuple[Atom, ...]
    line: int


@dataclass(frozen=True, kw_only=True)
class LogicProgram:
    """A program that was read without objection."""

    facts: tuple[Atom, ...]
    rules: tuple[Rule, ...]
    query: Atom

    @property
    def predicates(self) -> list[str]:
        """In the order of their first mention, the query's last; an atom's number is its place here."""
        return list(dict.fromkeys(atom.predicate for atom in self._atoms()))

    @property
    def names(self) -> list[str]:
        """Every name, likewise."""
        named = (argument for atom in self._atoms() for argument in atom.arguments if not argument.startswith("$"))
        return list(dict.fromkeys(named))

    def _atoms(self) -> Iterator[Atom]:
        """The query last: programs that differ in their query alone then have the same rules for clingo."""
        yield from self.facts
        yield from self._rule_atoms()
        yield self.query

    def rules_text(self, *, closed: bool) -> str:
        """Facts and rules for clingo. The same for programs that differ in their comments or their names alone."""
        predicates = {name: number for number, name in enumerate(self.predicates)}
        names = {name: number for number, name in enumerate(self.names)}

        def atom(one: Atom, variables: dict[str, str], truth: int) -> str:
            terms = (variables.get(argument) or str(names[argument]) for argument in one.arguments)
            return f"h({','.join([str(predicates[one.predicate]), str(truth), *terms])})"

        lines = [f"d({number})." for number in names.values()]
        lines += [f"{atom(fact, {}, int(fact.truth))}." for fact in self.facts]
        for rule in self.rules:
            atoms = (*rule.conditions, *rule.conclusions)
            mentioned = dict.fromkeys(argument for one in atoms for argument in one.arguments if argument[0] == "$")
            variables = {name: f"X{number}" for number, name in enumerate(mentioned)}
            body = [f"d({variable})" for variable in variables.values()]
            for one in rule.conditions:
                failure = closed and not one.truth
                body.append(f"not {atom(one, variables, 1)}" if failure else atom(one, variables, int(one.truth)))
            lines += [f"{atom(one, variables, int(one.truth))} :- {', '.join(body)}." for one in rule.conclusions]
        return "\n".join(lines)

    def label(self, models: Sequence[Iterable[Sequence[int]]], *, closed: bool) -> Label | Objection:
        """What the atoms of clingo's models (one, or two that differ) say of the query."""
        if not models:
            return Objection(text="The rules contradict themselves: something holds just when it does not hold.")
        said: set[Label] = {self._label({tuple(atom) for atom in model}, closed) for model in models}
        if len(said) > 1:
            return Objection(text="The rules leave the query open: two conclusions that exclude each other both stand.")
        return said.pop()

    def _label(self, atoms: set[tuple[int, ...]], closed: bool) -> Label:
        names = {name: number for number, name in enumerate(self.names)}
        rest = tuple(names[argument] for argument in self.query.arguments)
        number = self.predicates.index(self.query.predicate)
        positive, negative = (number, 1, *rest) in atoms, (number, 0, *rest) in atoms
        if closed:
            return "True" if positive == self.query.truth else "False"
        holds, fails = (positive, negative) if self.query.truth else (negative, positive)
        return "True" if holds else "False" if fails else "Unknown"

    def derived(self, models: Sequence[Iterable[Sequence[int]]]) -> list[str]:
        """Statements of the first model that are no facts, as atoms, those about the query's first name before others."""
        given = {str(fact) for fact in self.facts}
        about = self.query.arguments[:1]
        names, predicates = self.names, self.predicates
        found = []
        for number, truth, *arguments in models[0] if models else ():
            said = tuple(names[argument] for argument in arguments)
            atom = Atom(predicate=predicates[number], arguments=said, truth=bool(truth), line=0)
            if str(atom) not in given:
                found.append(atom)
        return [str(atom) for atom in sorted(found, key=lambda atom: (atom.arguments[:1] != about, str(atom)))]

    def loose_ends(self, *, closed: bool) -> list[Objection]:
        """Conditions that nothing can satisfy, and names of the query that occur nowhere else: hints, not errors."""
        given = {(one.predicate, one.truth) for one in self.facts}
        given |= {(one.predicate, one.truth) for rule in self.rules for one in rule.conclusions}
        ends = []
        for rule in self.rules:
            for one in rule.conditions:
                if (one.predicate, one.truth) not in given and not (closed and not one.truth):
                    text = f"No fact and no rule gives {readable(one.predicate, 40)}(…, {one.truth})"
                    ends.append(Objection(text=f"{text} (line {one.line}).", line=one.line, note="nothing gives it"))
        others = [argument for one in (*self.facts, *self._rule_atoms()) for argument in one.arguments]
        for name in self.query.arguments:
            if name not in others:
                near = difflib.get_close_matches(name.lower(), {other.lower() for other in others}, n=1)
                more = f'; did you mean "{next(o for o in others if o.lower() == near[0])}"' if near else ""
                text = f'The query\'s "{readable(name, 40)}" occurs in no fact and no rule{more}.'
                ends.append(Objection(text=text, line=self.query.line, note="unknown name"))
        return ends

    def _rule_atoms(self) -> Iterator[Atom]:
        return (one for rule in self.rules for one in (*rule.conditions, *rule.conclusions))


class _Refused(Exception):
    """Carries the objection out of the reader."""

    def __init__(self, text: str, line: int | None = None, note: str = "syntax") -> None:
        self.objection = Objection(text=f"{text} (line {line})." if line else text, line=line, note=note)
        super().__init__(text)


def read_program(source: str) -> LogicProgram | Objection:
    """The program, or the first thing to object to. Never raises."""
    try:
        return _Reader().read(source)
    except _Refused as refused:
        return refused.objection


class _Reader:
    def __init__(self) -> None:
        self.declared: dict[str, int] = {}
        self.arities: dict[str, tuple[int, int]] = {}
        self.facts: list[Atom] = []
        self.rules: list[Rule] = []
        self.queries: list[Atom] = []

    def read(self, source: str) -> LogicProgram:
        section, sections = "", set()
        for number, line in enumerate(source.split("\n"), 1):
            text = line.partition(":::")[0]
            if (head := _SECTION.match(text)) is not None:
                section, text = head[1].lower(), text[head.end() :]
                sections.add(section)
            if not text.strip():
                continue
            if not section:
                raise _Refused("Expected one of Predicates, Facts, Rules and Query, with a colon, at the start", number)
            self._statement(section, text, number)
            if len(self.facts) + len(self.rules) > MAX_STATEMENTS:
                raise _Refused(f"Expected at most {MAX_STATEMENTS} facts and rules", number)
        if not sections:
            raise _Refused("The answer holds no logic program: write the sections Predicates, Facts, Rules and Query.")
        if len(self.queries) != 1:
            line = self.queries[1].line if self.queries else None
            raise _Refused(f"Expected one statement under Query:, found {len(self.queries)}", line)
        return LogicProgram(facts=tuple(self.facts), rules=tuple(self.rules), query=self.queries[0])

    def _statement(self, section: str, text: str, line: int) -> None:
        if section == "predicates":
            predicate, terms = self._parts(text, line)
            kept = terms[:-1] if terms and terms[-1].lower() == "bool" else terms
            self.declared[predicate] = len(kept)
        elif section == "facts":
            self.facts.append(self._ground(text, line, "A fact"))
        elif section == "query":
            self.queries.append(self._ground(text, line, "The query"))
        else:
            self.rules.append(self._rule(text, line))

    def _rule(self, text: str, line: int) -> Rule:
        sides = text.split(">>>")
        if len(sides) != 2:
            raise _Refused("Expected a rule such as A($x, True) && B($x, True) >>> C($x, True)", line)
        conditions, conclusions = (tuple(self._atom(part, line) for part in side.split("&&")) for side in sides)
        variables = set().union(*(one.variables for one in (*conditions, *conclusions)))
        if len(variables) > MAX_VARIABLES:
            raise _Refused(f"Expected at most {MAX_VARIABLES} variables in a rule, found {len(variables)}", line)
        return Rule(conditions=conditions, conclusions=conclusions, line=line)

    def _ground(self, text: str, line: int, what: str) -> Atom:
        if ">>>" in text or "&&" in text:
            raise _Refused(f"{what} is one atom such as Kind(dog, True); rules stand under Rules:", line)
        atom = self._atom(text, line)
        if atom.variables:
            raise _Refused(f"{what} holds no variable, found {readable(sorted(atom.variables)[0], 40)}", line)
        return atom

    def _atom(self, text: str, line: int) -> Atom:
        predicate, terms = self._parts(text, line)
        truth = True
        if terms and terms[-1].lower() in ("true", "false"):
            truth, terms = terms[-1].lower() == "true", terms[:-1]
        arity = self.declared.get(predicate)
        if self.declared and arity is None:
            near = difflib.get_close_matches(predicate, self.declared, n=1)
            more = f"; did you mean {near[0]}" if near else ""
            raise _Refused(f"The predicate {readable(predicate, 40)} is not declared in Predicates{more}", line)
        first, before = self.arities.setdefault(predicate, (len(terms) if arity is None else arity, line))
        if len(terms) != first:
            where = "declared" if arity is not None else f"line {before}"
            raise _Refused(f"{readable(predicate, 40)} has {len(terms)} arguments here and {first} as {where}", line)
        return Atom(predicate=predicate, arguments=tuple(terms), truth=truth, line=line)

    def _parts(self, text: str, line: int) -> tuple[str, list[str]]:
        """Predicate and arguments of `Name(a, $b, True)`."""
        found = _ATOM.fullmatch(text)
        if found is None:
            raise _Refused(f'Expected an atom such as Kind(dog, True), found "{readable(text.strip(), 60)}"', line)
        terms = [" ".join(term.split()) for term in found[2].split(",")] if found[2].strip() else []
        for term in terms:
            if _TERM.fullmatch(term) is None:
                raise _Refused(f'Expected names, $variables and True or False, found "{readable(term, 40)}"', line)
        if len(terms) > MAX_ARGUMENTS + 1:
            raise _Refused(f"Expected at most {MAX_ARGUMENTS} arguments", line)
        return found[1], terms

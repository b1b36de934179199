"""ALFWorld's games, played by a lean engine: the same observations, rewards and commands as TextWorld's, at its speed.

    game = translate(domain, problem, "put a clean mug in shelf.")     # TextWorld's own PDDL translator
    play = Play(game)
    play.intro                                                          # "-= Welcome to TextWorld, ALFRED! =-…"
    turn = play.step("go to shelf 1")                                   # Turn(observation, reward, done)
    play.admissible_commands()

TextWorld loads a 34 MB library for each environment, translates each game twice at each reset and derives every command
of every turn from the grammar. Here the translator of `fast-downward-textworld` runs once a game, with TextWorld's
settings; what it makes (variables, operators, axioms) is stepped in this process as bits of one integer, and sentences
come from `alfworld_text`. So a reset costs nothing, worlds of one game share it, and no library is copied. Equality with
the shipped engine is under test (`tests/sandboxes/test_alfworld_engine.py`) and measured (`benchmarks/alfworld_games.py`).

Left out: plans; they are the planner's, and
`solvable` asks it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from kintsugi.errors import DataError, missing_extra
from kintsugi.sandboxes.environments.alfworld_text import TASK, Binding, Grammar, Variable, load_grammar

NOTHING_HAPPENS: Final = "Nothing happens."
_SETTINGS: Final = {
    "filter_unimportant_vars": False, "filter_unreachable_facts": False, "use_partial_encoding": False,
    "skip_variable_reordering": True, "add_implied_preconditions": False, "invariant_generation_max_candidates": 0,
    "reorder_variables": False,
}  # fmt: skip
"""TextWorld's settings of the translator, and no reordering of variables: it would change nothing but their numbers."""
_PLANNING: Final = {
    "filter_unimportant_vars": True, "filter_unreachable_facts": True, "use_partial_encoding": True,
    "skip_variable_reordering": False, "add_implied_preconditions": True, "invariant_generation_max_candidates": 0,
    "reorder_variables": True,
}  # fmt: skip
"""Its settings for the planner."""

Pairs = Sequence[Sequence[int]]
Fact = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Turn:
    """What one command did. reward: 1 while the goal holds, else 0; done: the goal holds (it may cease to)."""

    observation: str
    reward: int
    done: bool


@dataclass(frozen=True, slots=True)
class Operator:
    """A ground action. It applies when `bits & mask == wanted`; effects are (mask, wanted, variable, value 0 or 1)."""

    name: str
    arguments: tuple[str, ...]
    mask: int
    wanted: int
    effects: tuple[tuple[int, int, int, int], ...]
    command: str


class Game:
    """A translated game, shared by all its worlds; made from what `translated` gives.

    Bit v of a state says whether the atom of variable v holds (TextWorld's value 0). packed: what it was made from, as
    compressed JSON: as lists, thousands a game, it would slow down Python's collector wherever games are played."""

    def __init__(self, plain: Mapping[str, Any], grammar: Grammar) -> None:
        self.packed, self.grammar = zlib.compress(json.dumps(plain, separators=(",", ":")).encode(), 1), grammar
        self.task: str = plain["task"]
        self.types: dict[str, str] = plain["types"]
        self.atoms: list[Fact] = [_atom(text) for text in plain["atoms"]]
        self.parameters: dict[str, list[Variable]] = {
            name: [(word, kind) for word, kind in pairs] for name, pairs in plain["parameters"].items()
        }
        facts: dict[str, set[tuple[str, ...]]] = {}
        for text in plain["facts"]:
            predicate, arguments = _atom(text)
            facts.setdefault(predicate, set()).add(arguments)
        self.first_facts = {name: sorted(found) for name, found in facts.items() if name in grammar.predicates}
        entities = {entity for found in facts.values() for arguments in found for entity in arguments}
        self.names = display_names(entities)
        self.start: int = sum(1 << variable for variable, value in enumerate(plain["init"]) if value == 0)
        self.axioms = Axioms(plain)
        self._index(plain["operators"])
        self.intro = grammar.rule("intro", Facts(self), {}).replace(TASK, f"Your task is to: {self.task}")

    @classmethod
    def unpacked(cls, packed: bytes, grammar: Grammar) -> Game:
        """The game again."""
        return cls(json.loads(zlib.decompress(packed)), grammar)

    def _index(self, operators: Sequence[Any]) -> None:
        """Operators by their command, and by the one variable that rules most of them out: where the agent is."""
        view = Facts(self)
        self.by_command: dict[str, list[Operator]] = {}
        self.by_variable: dict[int, list[Operator]] = {}
        self.always: list[Operator] = []
        places = {variable for variable, (predicate, _) in enumerate(self.atoms) if predicate == "atlocation"}
        self.num_operators = len(operators)
        for name, prevail, changes in operators:
            operator = self._operator(view, name, prevail, changes)
            self.by_command.setdefault(operator.command, []).append(operator)
            needed = [variable for variable, value in [*prevail, *(c[:2] for c in changes)] if value == 0]
            key = next((variable for variable in needed if variable in places), needed[0] if needed else None)
            (self.always if key is None else self.by_variable.setdefault(key, [])).append(operator)

    def _operator(self, view: Facts, name: str, prevail: Pairs, changes: Sequence[Any]) -> Operator:
        action, *arguments = name.split()
        needed = [(variable, value) for variable, value in prevail]
        needed += [(variable, before) for variable, before, _, _ in changes if before != -1]
        if self.axioms.derived.intersection(variable for variable, _ in needed):
            raise DataError(f"the action {action} of this game depends on a derived fact, which no ALFWorld game does")
        text = self.grammar.actions.get(action)
        if text is None:
            raise DataError(f"the grammar has no command for the action {action}")
        binding: Binding = dict(zip(self.parameters[action], arguments, strict=False))
        effects = [(*_mask(condition), variable, after) for variable, _, after, condition in changes]
        command = self.grammar.render(text.template, view, binding)
        return Operator(action, tuple(arguments), *_mask(needed), tuple(effects), command)


class Axioms:
    """The goal, which may hang on derived variables (`exists` becomes rules)."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        layers = plain["layers"]
        self.derived = frozenset(variable for variable, layer in enumerate(layers) if layer >= 0)
        wanted = {variable for variable, _ in plain["goal"]}
        while True:  # only rules that the goal hangs on
            rules = [rule for rule in plain["axioms"] if rule[1] in wanted]
            more = {variable for condition, _, _ in rules for variable, _ in condition} & self.derived
            if more <= wanted:
                break
            wanted |= more
        rules.sort(key=lambda rule: layers[rule[1]])
        self.rules = [(*_mask(condition), variable, value, layers[variable]) for condition, variable, value in rules]
        self.goal = _mask(plain["goal"])

    def won(self, bits: int) -> bool:
        """Whether the goal holds in a state (its derived bits are those of the start: not yet derived)."""
        layer, pending = None, []
        for rule in [*self.rules, None]:
            if rule is None or rule[4] != layer:
                bits = _closure(bits, pending)
                pending = []
            if rule is not None:
                layer = rule[4]
                pending.append(rule)
        mask, wanted = self.goal
        return bits & mask == wanted


def _closure(bits: int, rules: list[tuple[int, int, int, int, int]]) -> int:
    """The rules of one layer, applied until nothing changes."""
    changed = True
    while changed:
        changed = False
        for mask, wanted, variable, value, _ in rules:
            if bits & mask == wanted:
                after = bits | 1 << variable if value == 0 else bits & ~(1 << variable)
                changed |= after != bits
                bits = after
    return bits


class Facts:
    """The facts that sentences are made from: a view of a game (see `alfworld_text.View`), kept by one world."""

    def __init__(self, game: Game) -> None:
        self.game, self.names, self.types = game, game.names, game.types
        self._by_predicate: dict[str, list[tuple[str, ...]]] = dict(game.first_facts)

    def facts(self, predicate: str) -> Sequence[tuple[str, ...]]:
        return self._by_predicate.get(predicate, ())

    def set(self, fact: Fact, value: int) -> None:
        """Note that an effect made `fact` true (value 0) or false: as TextWorld does, a `not_…` fact is kept for it."""
        predicate, arguments = fact
        negated = "not_" + predicate
        for name, holds in ((predicate, value == 0), (negated, value != 0)):
            if name in self.game.grammar.predicates:
                known = set(self.facts(name))
                (known.add if holds else known.discard)(arguments)
                self._by_predicate[name] = sorted(known)


class Play:
    """One world of a game, from its start. Not shared between attempts."""

    def __init__(self, game: Game) -> None:
        self.game, self.bits, self._facts = game, game.start, Facts(game)
        self.intro = game.intro
        """The first observation, the task in it."""

    def step(self, command: str) -> Turn:
        """Do `command` as it stands (outer space dropped). What does not apply here gets "Nothing happens."."""
        for operator in self.game.by_command.get(command.strip(), ()):
            if self.bits & operator.mask == operator.wanted:
                return self._apply(operator)
        won = self.won
        return Turn(NOTHING_HAPPENS, int(won), won)

    @property
    def won(self) -> bool:
        return self.game.axioms.won(self.bits)

    def admissible_commands(self) -> list[str]:
        """Every command that does something here, sorted."""
        bits, found = self.bits, {operator.command for operator in self.game.always if self._applies(operator)}
        for variable, operators in self.game.by_variable.items():
            if bits >> variable & 1:
                found.update(operator.command for operator in operators if bits & operator.mask == operator.wanted)
        return sorted(found)

    def _applies(self, operator: Operator) -> bool:
        return self.bits & operator.mask == operator.wanted

    def _apply(self, operator: Operator) -> Turn:
        bits = self.bits
        for mask, wanted, variable, value in operator.effects:
            if self.bits & mask == wanted:
                bits = bits | 1 << variable if value == 0 else bits & ~(1 << variable)
            self._facts.set(self.game.atoms[variable], value)  # TextWorld's text ignores an effect's condition
        self.bits = bits
        grammar = self.game.grammar
        binding: Binding = dict(zip(self.game.parameters[operator.name], operator.arguments, strict=False))
        observation = grammar.render(grammar.actions[operator.name].feedback, self._facts, binding)
        won = self.won
        return Turn(observation, int(won), won)


def display_names(entities: set[str]) -> dict[str, str]:
    """What ALFWorld calls each entity: its kind and a number, the last id in alphabetical order being number 1.

    The numbers stand for ids such as `mug_bar__plus_01_dot_2`; a sink's basin is recognised by its id."""
    kinds = {entity: _kind(entity) for entity in sorted(entities)}
    left = Counter(kind for kind in kinds.values() if kind)
    names = {}
    for entity, kind in kinds.items():
        number = left[kind] if kind else 0
        left[kind] -= 1
        names[entity] = f"{kind} {number}" if kind else f"{_plain_id(entity)} "
    return names


def _kind(entity: str) -> str:
    kind, bar, _ = entity.partition("_bar_")
    if not bar:
        return ""
    return _plain_id(kind) + ("basin" if "basin" in entity else "")


def _plain_id(entity: str) -> str:
    for word, sign in (("_bar_", "|"), ("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
        entity = entity.replace(word, sign)
    return entity


def translate(domain: str, problem: str, task: str, grammar: Grammar | None = None) -> Game:
    """A game from PDDL text; `task` is the sentence after "Your task is to: ".

    Raises DataError for text that is no PDDL or has no plan at all, MissingExtra without the translator."""
    return Game(translated(domain, problem, task), grammar or load_grammar())


def translated(domain: str, problem: str, task: str) -> dict[str, Any]:
    """What `Game` is made from, as JSON-ready values."""
    found, sas = _translate(domain, problem, _SETTINGS)
    if len(sas.variables.ranges) < 2:
        raise DataError("this game cannot be won: its goal is out of reach whatever is done")
    types = {one.name: one.type_name for one in found.objects}
    atoms = [names[0].removeprefix("Atom ") for names in sas.variables.value_names]
    facts = [f"{atom.predicate}({', '.join(atom.args)})" for atom in found.init if getattr(atom, "predicate", "=") != "="]
    facts += [atom for atom, value in zip(atoms, sas.init.values, strict=True) if value == 0]
    operators = []
    for one in sas.operators:
        changes = [[*change[:3], [list(pair) for pair in change[3]]] for change in one.pre_post]
        operators.append([one.name[1:-1], [list(pair) for pair in one.prevail], changes])
    return {
        "task": task,
        "types": types,
        "atoms": atoms,
        "facts": sorted(set(facts)),
        "init": list(sas.init.values),
        "layers": list(sas.variables.axiom_layers),
        "goal": [list(pair) for pair in sas.goal.pairs],
        "axioms": [[[list(pair) for pair in one.condition], *one.effect] for one in sas.axioms],
        "operators": operators,
        "parameters": {one.name: [[p.name.lstrip("?"), p.type_name] for p in one.parameters] for one in found.actions},
    }


def solvable(domain: str, problem: str) -> list[str] | None:
    """The plan of TextWorld's planner as ground actions, or None when it proves that there is none."""
    library = planner()
    sas = io.StringIO()
    _translate(domain, problem, _PLANNING)[1].output(sas)
    if not library.solve_sas(sas.getvalue().encode(), False):
        return None
    plan = (_fast_downward().Operator * library.get_last_plan_length())()
    library.get_last_plan(plan)
    return [operator.name for operator in plan]


@cache
def planner() -> Any:
    """A copy of TextWorld's 34 MB library, loaded once and kept: unloading one that has run can crash the process."""
    return _fast_downward().load_lib()


def _translate(domain: str, problem: str, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """(task, SAS task) of the translator, whose options are module globals and whose talk goes to stdout."""
    _fast_downward()
    with _arguments(["translate.py", "domain", "task"]):
        from fast_downward.translate import normalize, options, timers, translate
        from fast_downward.translate.pddl_parser import lisp_parser, parsing_functions
    timers.timing = lambda text, block=False: contextlib.nullcontext()  # its clocks are a fifth of a small game's time
    before = {name: getattr(options, name) for name in settings if hasattr(options, name)}
    try:
        for name, value in settings.items():
            setattr(options, name, value)
        with contextlib.redirect_stdout(io.StringIO()), _uncollected():
            parsed = [lisp_parser.parse_nested_list(text.split("\n")) for text in (domain, problem)]
            task = parsing_functions.parse_task(*parsed)
            normalize.normalize(task)
            return task, translate.pddl_to_sas(task)
    except (LookupError, StopIteration, ValueError, AssertionError, SystemExit, AttributeError, TypeError) as error:
        # The translator's own ways to say that a text is no PDDL of this domain.
        raise DataError(f"expected a PDDL problem of ALFWorld's domain, found one that does not parse ({error!r})") from None
    except Exception as error:
        if type(error).__module__.startswith("fast_downward"):
            raise DataError(f"expected a PDDL problem, found one that does not parse: {error}") from None
        raise
    finally:
        for name, value in before.items():
            setattr(options, name, value)


def _fast_downward() -> Any:
    try:
        from fast_downward import interface
    except ImportError:
        raise missing_extra("ALFWorld", "alfworld") from None
    return interface


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Looking for cycles in all that torch and others hold is a quarter of a small game's time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    """The translator's options read the command line when first imported."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


def _mask(pairs: Pairs) -> tuple[int, int]:
    """(mask, wanted) of conditions (variable, value 0 or 1): value 0 is a true atom, a set bit."""
    mask = wanted = 0
    for variable, value in pairs:
        mask |= 1 << variable
        wanted |= (value == 0) << variable
    return mask, wanted


def _atom(text: str) -> Fact:
    match = re.fullmatch(r"([^()]+)\((.*)\)", text)
    if match is None:
        raise DataError(f"expected an atom such as opened(r), found {text!r}")
    return match[1], tuple(match[2].split(", ")) if match[2] else ()

r"""The text of ALFWorld's games: the packaged grammar, read once, and the sentences it makes of a state's facts.

    grammar = load_grammar()                       # alfworld's own alfred.twl2, from the installed package
    grammar.render("#look.feedback#", view, binding)

A grammar file has rules (`"rhs": "The {r.name} is closed."` with a `condition`), and for each action a command template
and the rule of its feedback. TextWorld parses it anew for each game, evaluates `{…}` as Python and copies contexts
deeply at every symbol; here each rule is turned into a small tree once, queries run over sorted facts, and `{…}` knows
names, attributes, `+` and `or` only. Which rule applies and in which order a list is told is TextWorld's to the letter
(a test compares them): the first rule whose condition holds; facts in sorted order; no two variables of one query stand
for the same thing.

A *binding* maps (variable, type) to an entity's id. A *view* says which facts hold and what entities are called.

Left out: weights, and rules that choose by chance (ALFWorld has none).
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from kintsugi.errors import DataError, missing_extra

Variable = tuple[str, str]
"""Name and type, such as ("r", "receptacle")."""
Binding = dict[Variable, str]

TASK: Final = "Your task is to: UNKNOWN GOAL."
"""What stands for the task's sentence in the packaged grammar."""

_SYMBOL: Final = re.compile(
    r"#(?P<rule>[^#]+)#|\[\{(?P<list>[^{}]*)\}\]|\{(?P<value>[^{}]*)\}|(?P<text>[^#\[\]{}]+|[\[\]{}])"
)
_ATOM: Final = re.compile(r"\s*([\w-]+)\(([^()]*)\)\s*")
_ACTION: Final = re.compile(r"action\s+(\w+)\s*\{(.*?)^\}", re.DOTALL | re.MULTILINE)
_BLOCK: Final = re.compile(r'grammar\s*::\s*"""(.*?)"""', re.DOTALL)


class View(Protocol):
    """What a sentence is made from."""

    @property
    def names(self) -> Mapping[str, str]: ...

    @property
    def types(self) -> Mapping[str, str]: ...

    def facts(self, predicate: str) -> Sequence[tuple[str, ...]]:
        """Arguments for which `predicate` holds, sorted."""
        ...


@dataclass(frozen=True)
class Query:
    """A conjunction such as `openable(r:receptacle) & opened(r:receptacle)`."""

    atoms: tuple[tuple[str, tuple[Variable, ...]], ...]

    def answers(self, view: View, binding: Binding) -> Iterator[Binding]:
        """Bindings that extend `binding` and make every atom hold."""
        return self._from(0, view, binding)

    def holds(self, view: View, binding: Binding) -> bool:
        return next(self._from(0, view, binding), None) is not None

    def _from(self, depth: int, view: View, binding: Binding) -> Iterator[Binding]:
        if depth == len(self.atoms):
            yield binding
            return
        predicate, variables = self.atoms[depth]
        for arguments in view.facts(predicate):
            extended = _matched(variables, arguments, view.types, binding)
            if extended is not None:
                yield from self._from(depth + 1, view, extended)


def _matched(
    variables: tuple[Variable, ...], arguments: tuple[str, ...], types: Mapping[str, str], binding: Binding
) -> Binding | None:
    if len(variables) != len(arguments):
        return None
    extended = binding
    for variable, argument in zip(variables, arguments, strict=True):
        known = extended.get(variable)
        if known is None:
            fits = variable[1] == "object" or types[argument] == variable[1]  # every type is an object in PDDL
            if not fits or argument in extended.values():
                return None
            if extended is binding:
                extended = dict(binding)
            extended[variable] = argument
        elif known != argument:
            return None
    return extended


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _Rule:
    name: str


@dataclass(frozen=True)
class _Value:
    """`{o.name}`, or a list `[{o.name | holds(a:agent, o:object)}]`; an expression is a rule's name or a value."""

    expression: ast.expr | _Rule
    query: Query | None = None
    listed: bool = False


_Symbol = _Text | _Rule | _Value


@dataclass(frozen=True)
class _Production:
    symbols: tuple[_Symbol, ...]
    condition: Query | None


@dataclass(frozen=True)
class ActionText:
    """template: of the command, such as "take {o} from {r}"; feedback: the symbols of what is said afterwards."""

    template: tuple[_Symbol, ...]
    feedback: tuple[_Symbol, ...]


@dataclass
class Grammar:
    """Rules by name and action texts by PDDL action (lower case). predicates: those that some rule asks for."""

    rules: dict[str, tuple[_Production, ...]] = field(default_factory=dict)
    actions: dict[str, ActionText] = field(default_factory=dict)
    predicates: set[str] = field(default_factory=set)

    def render(self, symbols: Sequence[_Symbol], view: View, binding: Binding) -> str:
        """The text that `symbols` stand for in this state."""
        return "".join(self._pieces(symbols, view, binding))

    def rule(self, name: str, view: View, binding: Binding) -> str:
        """The text of the rule called `name`; the first of its forms whose condition holds."""
        return self.render((_Rule(name),), view, binding)

    def _pieces(self, symbols: Sequence[_Symbol], view: View, binding: Binding) -> Iterator[str]:
        for symbol in symbols:
            if isinstance(symbol, _Text):
                yield symbol.text
            elif isinstance(symbol, _Rule):
                for form in self.rules[symbol.name]:
                    if form.condition is None or form.condition.holds(view, binding):
                        yield from self._pieces(form.symbols, view, binding)
                        break
                else:
                    raise LookupError(f"no form of the grammar's rule {symbol.name} applies")
            else:
                yield self._value(symbol, view, binding)

    def _value(self, symbol: _Value, view: View, binding: Binding) -> str:
        bindings = [binding] if symbol.query is None else symbol.query.answers(view, binding)
        told = [self._told(symbol.expression, view, one) for one in bindings]
        if not symbol.listed:
            return "".join(told)
        if not told:
            return self.rule("list_empty", view, binding)
        if len(told) == 1:
            return told[0]
        separator, last = (self.rule(name, view, binding) for name in ("list_separator", "list_last_separator"))
        return separator.join(told[:-1]) + last + told[-1]

    def _told(self, expression: ast.expr | _Rule, view: View, binding: Binding) -> str:
        if isinstance(expression, _Rule):
            return self.rule(expression.name, view, binding)
        return _evaluate(expression, {name: entity for (name, _), entity in binding.items()}, view)


def _evaluate(expression: ast.expr, entities: Mapping[str, str], view: View) -> str:
    match expression:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return view.names[entities[name]]
        case ast.Attribute(value=ast.Name(id=name), attr="name"):
            return view.names[entities[name]]
        case ast.Attribute(value=ast.Name(id=name), attr="id"):
            return entities[name]
        case ast.Attribute(value=ast.Name(), attr="indefinite"):
            return "a"
        case ast.Attribute(value=ast.Name(), attr="definite"):
            return "the"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluate(left, entities, view) + _evaluate(right, entities, view)
        case ast.BoolOp(op=ast.Or(), values=values):
            return next((text for value in values if (text := _evaluate(value, entities, view))), "")
    raise DataError(f"a grammar may use names, attributes, + and or; found {ast.unparse(expression)!r}")


def parse_grammar(text: str) -> Grammar:
    """Read a `.twl2` file. Raises DataError for what it does not know."""
    grammar = Grammar()
    rules: dict[str, list[dict[str, str]]] = {}
    outside = _ACTION.sub("", text)
    actions = _ACTION.findall(text)
    for block in [*_BLOCK.findall(outside), *(block for _, body in actions for block in _BLOCK.findall(body))]:
        try:
            rules.update(json.loads(textwrap.dedent(block)))
        except ValueError as error:
            raise DataError(f"expected the grammar's rules as JSON, found something else: {error}") from None
    for name, forms in rules.items():
        grammar.rules[name] = tuple(
            _Production(_symbols(form["rhs"]), _query(form["condition"]) if form.get("condition") else None)
            for form in forms
        )
    for name, body in actions:
        template, feedback = (re.search(rf'{key}\s*::\s*"([^"]*)"', body) for key in ("template", "feedback"))
        if template is None or feedback is None:
            raise DataError(f"expected a template and a feedback for the action {name} in the grammar, found {body[:80]!r}")
        grammar.actions[name.lower()] = ActionText(_symbols(template[1]), _symbols(feedback[1]))
    grammar.predicates = {predicate for query in _queries(grammar) for predicate, _ in query.atoms}
    return grammar


def _queries(grammar: Grammar) -> Iterator[Query]:
    every = [form for forms in grammar.rules.values() for form in forms]
    yield from (form.condition for form in every if form.condition)
    sequences = [form.symbols for form in every] + [action.template for action in grammar.actions.values()]
    yield from (s.query for symbols in sequences for s in symbols if isinstance(s, _Value) and s.query)


def _symbols(text: str) -> tuple[_Symbol, ...]:
    found: list[_Symbol] = []
    for match in _SYMBOL.finditer(text.lstrip()):  # TextWorld's parser skips space at the beginning, too
        if match["rule"] is not None:
            found.append(_Rule(match["rule"]))
        elif match["text"] is not None:
            found.append(_Text(match["text"]))
        else:
            body, listed = (match["list"], True) if match["list"] is not None else (match["value"], False)
            expression, _, given = body.partition("|")
            found.append(_Value(_expression(expression.strip()), _query(given) if given.strip() else None, listed))
    return tuple(found)


def _expression(text: str) -> ast.expr | _Rule:
    if text.startswith("#") and text.endswith("#"):
        return _Rule(text[1:-1])
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        raise DataError(f"expected a name or a rule between braces of the grammar, found {text!r}") from None


def _query(text: str) -> Query:
    atoms = []
    for part in text.split("&"):
        match = _ATOM.fullmatch(part)
        if match is None:
            raise DataError(f"expected a condition such as opened(r:receptacle) in the grammar, found {part!r}")
        arguments = [word.partition(":") for word in match[2].split(",") if word.strip()]
        atoms.append((match[1], tuple((name.strip(), kind.strip()) for name, _, kind in arguments)))
    return Query(tuple(atoms))


def require_engine() -> None:
    """Raises MissingExtra where the packages are not installed; imports nothing."""
    if any(importlib.util.find_spec(name) is None for name in ("alfworld", "fast_downward")):
        raise missing_extra("ALFWorld", "alfworld")


def packaged_file(name: str) -> str:
    """The text of a data file of the installed package alfworld, which is not imported. Raises MissingExtra."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra("ALFWorld", "alfworld")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"expected the file {name} in the installed package alfworld ({error}): install it anew") from None


@cache
def load_grammar() -> Grammar:
    """The packaged grammar. Raises MissingExtra without the package."""
    return parse_grammar(packaged_file("alfred.twl2"))

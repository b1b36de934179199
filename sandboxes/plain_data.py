"""Plain values between two processes that do not trust each other: what the judging pair speaks (`judging.py`).

    wire = to_wire([1, (2.5, "x")], other=refuse)      # JSON-able; `other` answers for every value that is not plain
    value = from_wire(wire, other=refuse)              # exactly the same types
    Handed(nodes, shared, bound).to_program()          # what a text of tests hands over that is not plain

Plain is decided by exact type, never by isinstance: a subclass of int whose `__eq__` is always true is not an int here
and never arrives as one. Nothing is ever executed to read a value. Travels beside `worker.py`; standard library only.
Leaves out: functions, classes and objects, which `other` may turn into handles.
"""

from __future__ import annotations

import ast
import base64
import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import importlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

Other = Callable[[Any], Any]

_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque,
}  # fmt: skip
_MAPPINGS: dict[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": lambda pairs: collections.Counter(dict(pairs)),
    "defaultdict": lambda pairs: collections.defaultdict(None, pairs),
}
_TEXTS: dict[str, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    "int": (hex, lambda text: int(text, 16)),
    "bytes": (lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "bytearray": (lambda value: base64.b64encode(value).decode(), lambda text: bytearray(base64.b64decode(text))),
    "complex": (lambda value: f"{value.real!r} {value.imag!r}", lambda text: complex(*map(float, text.split()))),
    "Decimal": (str, decimal.Decimal),
    "Fraction": (lambda value: f"{value.numerator}/{value.denominator}", fractions.Fraction),
    "date": (lambda value: value.isoformat(), datetime.date.fromisoformat),
    "time": (lambda value: value.isoformat(), datetime.time.fromisoformat),
    "datetime": (lambda value: value.isoformat(), datetime.datetime.fromisoformat),
    "timedelta": (
        lambda value: f"{value.days} {value.seconds} {value.microseconds}",
        lambda text: datetime.timedelta(*map(int, text.split())),
    ),
}
_NAMES: dict[type, str] = {
    kind: kind.__name__
    for kind in (
        list, tuple, set, frozenset, collections.deque, dict, collections.OrderedDict, collections.Counter,
        collections.defaultdict, int, bytes, bytearray, complex, decimal.Decimal, fractions.Fraction,
        datetime.date, datetime.time, datetime.datetime, datetime.timedelta,
    )
}  # fmt: skip
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
_ITERATORS = tuple(
    type(one) for one in (map(str, ""), filter(None, ""), zip(), enumerate(""), reversed([]), iter([]), iter(()), iter(""))
)


PLAIN: frozenset[type] = frozenset((*_NAMES, bool, float, str, range, slice, map, filter, zip, enumerate, reversed))
"""The types whose values cross; reversed: of a list alone."""


def to_wire(value: Any, other: Other) -> Any:
    """`value` as what json can write. `other(value)` gives the wire form of what is not plain, or raises."""
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is str:
        return value
    if kind is int:
        return value if -(1 << 53) < value < 1 << 53 else ["int", hex(value)]
    name = _NAMES.get(kind)
    if name in _SEQUENCES:
        return [name, [to_wire(item, other) for item in value]]
    if name in _MAPPINGS:
        return [name, [[to_wire(key, other), to_wire(item, other)] for key, item in dict.items(value)]]
    if name in _TEXTS:
        return [name, _TEXTS[name][0](value)]
    if kind is range:
        return ["range", [to_wire(number, other) for number in (value.start, value.stop, value.step)]]
    if kind is slice:
        return ["slice", [to_wire(number, other) for number in (value.start, value.stop, value.step)]]
    if kind in _VIEWS:
        return [_VIEWS[kind], [to_wire(item, other) for item in value]]
    if kind in _ITERATORS:
        return ["iterator", [to_wire(item, other) for item in value]]
    return other(value)


def from_wire(wire: Any, other: Other) -> Any:
    """The value again. `other(wire)` reads what `to_wire`'s `other` wrote. ValueError, TypeError: not of this form."""
    if type(wire) is not list:
        if type(wire) is dict:
            raise ValueError("expected a plain value, found an object")
        return wire
    name, content = wire
    if name in _SEQUENCES:
        return _SEQUENCES[name]([from_wire(item, other) for item in content])
    if name in _MAPPINGS:
        return _MAPPINGS[name]([(from_wire(key, other), from_wire(item, other)) for key, item in content])
    if name in _TEXTS:
        return _TEXTS[name][1](content)
    if name == "range":
        return range(*(from_wire(number, other) for number in content))
    if name == "slice":
        return slice(*(from_wire(number, other) for number in content))
    if name == "keys":
        return dict.fromkeys(from_wire(item, other) for item in content).keys()
    if name == "values":
        return dict(enumerate(from_wire(item, other) for item in content)).values()
    if name == "items":
        return dict(from_wire(item, other) for item in content).items()
    if name == "iterator":
        return iter([from_wire(item, other) for item in content])
    return other(wire)


class Handed:
    """What the tests' text hands to the program that can only be handed over in one process: functions, classes, objects.

    Goes by names, without scopes: a name that anywhere holds a function holds one everywhere.
    """

    def __init__(self, nodes: list[ast.AST], shared: set[str], bound: set[str]) -> None:
        self.nodes, self.shared, self.bound = nodes, shared, bound
        self.library: dict[str, Any] = {}
        self.made: dict[str, ast.AST] = {}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.library.update(_imported(node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.made[node.name] = node
        self.holds: dict[str, str] = {}
        pairs = [(target, value) for node in nodes for target, value in _assigned(node)]
        with contextlib.suppress(RecursionError):  # functions that return each other's results
            for _ in range(3):  # a name for a name for a name
                self._follow(pairs)
        texts = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp | ast.Constant
        values = [(target.id, value) for target, value in pairs if isinstance(target, ast.Name)]
        self.tests_own = {name for name, value in values if isinstance(value, texts)} - {
            name for name, value in values if not isinstance(value, texts)
        }

    def _follow(self, pairs: list[tuple[ast.AST, ast.AST]]) -> None:
        for target, value in pairs:
            if kind := self.what(value):
                self.holds.update((name, kind) for name in _stored(target))
        for node in self.nodes:  # what a function of the tests is given, it may hand on
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            made = self.made.get(node.func.id)
            if made is not None and (kind := self._first(_arguments(node))):
                self.holds.update((one.arg, kind) for one in ast.walk(made) if isinstance(one, ast.arg))

    def to_program(self) -> str:
        """The first of them, such as "a function"; "" when there is none."""
        with contextlib.suppress(RecursionError):
            return next(filter(None, map(self._handed_by, self.nodes)), "")
        return ""

    def _handed_by(self, node: ast.AST) -> str:
        if isinstance(node, ast.Call) and self._of_program(node.func):
            return self._first(_arguments(node))
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Attribute | ast.Subscript) and self._of_program(one) for one in node.targets
        ):
            return self.what(node.value)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and any(map(self._of_program, node.decorator_list)):
            return "a function" if isinstance(node, ast.FunctionDef) else "a class"
        return ""

    def what(self, node: ast.AST) -> str:
        """What an expression is, when that is not plain."""
        if isinstance(node, ast.Lambda):
            return "a function"
        if isinstance(node, ast.GeneratorExp):
            return "a generator"
        if isinstance(node, ast.Name) and node.id in self.made:
            return "a class" if isinstance(self.made[node.id], ast.ClassDef) else "a function"
        if isinstance(node, ast.Name) and node.id in self.holds:
            return self.holds[node.id]
        if isinstance(node, ast.Name | ast.Attribute | ast.Constant):
            found = self._resolved(node)
            return "" if found is None else _kind(found)
        if isinstance(node, ast.Call):
            return self._result(node)
        if isinstance(node, ast.Dict):
            return self._first(node.values)
        if isinstance(node, ast.IfExp):
            return self._first([node.body, node.orelse])
        parts = [getattr(node, name, None) for name in ("value", "elt", "left", "right")]
        return self._first([*getattr(node, "elts", ()), *getattr(node, "values", ()), *parts])

    def _first(self, nodes: Iterable[ast.AST | None]) -> str:
        return next((kind for node in nodes if node is not None and (kind := self.what(node))), "")

    def _result(self, call: ast.Call) -> str:
        """What a call of the tests' own or of the library gives."""
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        made = self.made.get(name)
        if isinstance(made, ast.ClassDef) or self.holds.get(name) == "a class":
            return "an object"
        if made is not None:
            inside = [*ast.walk(made)]
            if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in inside):
                return "a generator"
            inner = {node.name for node in inside if isinstance(node, ast.FunctionDef | ast.ClassDef)} - {name}
            given = [node.value for node in inside if isinstance(node, ast.Return) and node.value is not None]
            simple = [node for node in given if not isinstance(node, ast.Call) or _root(node) != name]
            return "a function" if inner & {_root(node) for node in given} else self._first(simple)
        found = self._resolved(call.func)
        if (isinstance(found, type) and found not in PLAIN) or self.library.get(_root(call), "") is None:
            return "an object"
        if found in _MAKERS:
            return "a class" if found is _MAKERS[0] else "an object"
        kind = self._first(call.args) if found in (list, tuple, set, dict) else ""
        return "" if kind == "a generator" else kind  # which these have run through

    def _resolved(self, node: ast.AST) -> Any:
        """What a name or a chain of them is in the library, or None."""
        if isinstance(node, ast.Constant):
            return ... if node.value is ... else None
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id in self.tests_own and node.attr in dir(list):
                return list.append  # `seen.append`, handed over as a function
            found = self._resolved(node.value)
            return None if found is None else getattr(found, node.attr, None)
        if not isinstance(node, ast.Name) or node.id in self.shared:
            return None
        return self.library.get(node.id) if node.id in self.bound else getattr(builtins, node.id, None)

    def _of_program(self, node: ast.AST) -> bool:
        """Whether what is called may be the program's."""
        root = _root(node)
        if root in ("", "self", "cls") or (isinstance(node, ast.Attribute) and node.attr == "sort"):
            return False
        own = root in self.library or root in self.made or root in self.tests_own
        return root in self.shared or (root in self.bound and not own)


_MAKERS = (collections.namedtuple, open, re.compile)
"""Functions of the library that give what is not plain."""


def _kind(found: Any) -> str:
    if callable(found):
        return "a class" if isinstance(found, type) else "a function"
    try:
        to_wire(found, _not_plain)
    except TypeError:
        return "an object"
    return ""


def _not_plain(value: Any) -> Any:
    raise TypeError(type(value).__name__)


def _arguments(call: ast.Call) -> list[ast.AST]:
    return [*call.args, *(one.value for one in call.keywords)]


def _root(node: ast.AST) -> str:
    """`solver` of `solver.parts[0].run(1)`; "" where there is no name."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _stored(target: ast.AST) -> list[str]:
    return [one.id for one in ast.walk(target) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]


def _assigned(node: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.Assign):
        return [(target, node.value) for target in node.targets]
    if isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
        return [(node.target, node.value)]
    if isinstance(node, ast.For | ast.comprehension):
        return [(node.target, node.iter)]
    if isinstance(node, ast.withitem) and node.optional_vars is not None:
        return [(node.optional_vars, node.context_expr)]
    return []


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, Any]:
    """The names that an import binds; what is not of the standard library is an object of its own."""
    found: dict[str, Any] = {}
    for alias in node.names:
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        if not alias.asname and isinstance(node, ast.Import):
            module = module.partition(".")[0]
        name = alias.asname or alias.name.partition(".")[0]
        found[name] = None
        if module.partition(".")[0] in sys.stdlib_module_names:
            try:
                whole = importlib.import_module(module)
            except ImportError:
                continue
            found[name] = whole if isinstance(node, ast.Import) else getattr(whole, alias.name, None)
    return found

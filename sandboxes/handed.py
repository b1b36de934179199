"""What the text of some tests hands to the program that can only be handed over in one process: functions, objects.

    handed = Handed(nodes, shared, bound, modules)      # all nodes of the tests' syntax trees; see `tests_text.Text`
    handed.to_program()                                 # the first of them, such as "a function", or ""

Goes by names, without scopes: a name that anywhere holds a function holds one everywhere. Travels beside `worker.py`;
standard library only. Leaves out: names and their scopes (`tests_text.py`), and what is plain (`plain_data.py`).
"""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from plain_data import PLAIN, to_wire


class Handed:
    """`shared`: names taken from the program. `bound`: those that the tests bind in any scope. `modules`: see `Text`."""

    def __init__(self, nodes: list[ast.AST], shared: set[str], bound: set[str], modules: Mapping[str, Any]) -> None:
        self.nodes, self.shared, self.bound = nodes, shared, bound
        self.library: dict[str, Any] = dict(modules)
        self.paths = {name: name for name in modules}
        self.made: dict[str, ast.AST] = {}
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.library.update(_imported(node))
                self.paths.update(_paths(node))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self.made[node.name] = node
        self.holds: dict[str, str] = {}
        pairs = [(target, value) for node in nodes for target, value in assigned(node)]
        texts = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp | ast.Constant
        values = [(target.id, value) for target, value in pairs if isinstance(target, ast.Name)]
        self.tests_own = {name for name, value in values if isinstance(value, texts)} - {
            name for name, value in values if not isinstance(value, texts)
        }
        with contextlib.suppress(RecursionError):  # functions that return each other's results
            for _ in range(3):  # a name for a name for a name
                self._follow(pairs)

    def _follow(self, pairs: list[tuple[ast.AST, ast.AST]]) -> None:
        for target, value in pairs:
            if kind := self.what(value):
                self.holds.update((name, kind) for name in _stored(target))
        for node in self.nodes:  # what a function of the tests is given, it may hand on
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            made = self.made.get(node.func.id)
            if made is not None and (kind := self._first(arguments(node))):
                self.holds.update((one.arg, kind) for one in ast.walk(made) if isinstance(one, ast.arg))

    def to_program(self) -> str:
        """The first of them, such as "a function"; "" when there is none."""
        with contextlib.suppress(RecursionError):
            return next(filter(None, map(self._handed_by, self.nodes)), "")
        return ""

    def _handed_by(self, node: ast.AST) -> str:
        if isinstance(node, ast.Call) and self.of_program(node.func):
            return self._first(arguments(node))
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Attribute | ast.Subscript) and self.of_program(one) for one in node.targets
        ):
            return self.what(node.value)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and any(map(self.of_program, node.decorator_list)):
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
            simple = [node for node in given if not isinstance(node, ast.Call) or root_of(node) != name]
            return "a function" if inner & {root_of(node) for node in given} else self._first(simple)
        found = self._resolved(call.func)
        if (isinstance(found, type) and found not in PLAIN) or self.library.get(root_of(call), "") is None:
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
        return self.library.get(node.id) if node.id in self.bound | self.library.keys() else getattr(builtins, node.id, None)

    def path_of(self, node: ast.AST) -> str:
        """`os.path.join` of a name or a chain of them that is the library's, or "". `open` is `builtins.open`."""
        if isinstance(node, ast.Attribute):
            found = self.path_of(node.value)
            return found and f"{found}.{node.attr}"
        if not isinstance(node, ast.Name) or node.id in self.shared:
            return ""
        known = node.id not in self.bound and hasattr(builtins, node.id)
        return self.paths.get(node.id, f"builtins.{node.id}" if known else "")

    def of_program(self, node: ast.AST) -> bool:
        """Whether what is called may be the program's."""
        root = root_of(node)
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


def arguments(call: ast.Call) -> list[ast.AST]:
    return [*call.args, *(one.value for one in call.keywords)]


def root_of(node: ast.AST) -> str:
    """`solver` of `solver.parts[0].run(1)`; "" where there is no name."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _stored(target: ast.AST) -> list[str]:
    return [one.id for one in ast.walk(target) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]


def assigned(node: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
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


def _paths(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """The names that an import binds, and what they are: `{"patch": "unittest.mock.patch"}`."""
    found: dict[str, str] = {}
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif alias.asname:
            found[alias.asname] = alias.name
        else:
            found[alias.name.partition(".")[0]] = alias.name.partition(".")[0]
    return found

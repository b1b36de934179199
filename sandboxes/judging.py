"""Tests in a process of their own: the program answers calls with plain data and never holds a verdict or a test.

    Candidate(request, link).main()                      # one fork of the worker: runs the program, then answers calls
    judge(setup, tests, link, say)                       # a second one: runs the tests against it

`link` is the end of a socket pair. Values cross it by exact type (`plain_data.py`); whatever else the program returns
crosses as a handle: it can be called, iterated, its attributes read and set, and it equals nothing but itself. What
`setup` defines and what Python's builtins are called belongs to the tests, whatever the program defines. Where tests
need the program's objects themselves (a class to catch or to inherit from, a function of theirs handed over), `judge`
says ["alone", reason]: such tests run in the program's process. That is decided by the tests' text alone, which the
program cannot change: whatever else cannot cross, such as an object that came of what the program returned, fails its
test. `Candidate` is in `child.py`. Travels beside `worker.py`; standard library only. Leaves out: confinement of both
processes.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

from child import Candidate as Candidate
from child import Say, compiled, outcome
from frames import Gone, Link
from plain_data import Handed, from_wire, to_wire


class CannotSend(BaseException):
    """The tests hand over something that is not plain."""


class ProgramRaised(Exception):
    """The program raised something of its own."""


class Asker:
    """Asks the candidate."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.known: dict[int, Remote] = {}
        self.cannot = ""  # kept here as well: a test may swallow every exception

    def ask(self, verb: str, subject: Any, arguments: Any = None, changing: tuple[Any, ...] = ()) -> Any:
        self.link.send([verb, subject, arguments])
        try:
            answer = self.link.receive()
            if answer[0] == "raise":
                raise _exception(str(answer[1]), str(answer[2]))
            value = from_wire(answer[1], self._remote)
            for index, wire in (answer[2] if len(answer) > 2 else {}).items():
                _overwrite(changing[int(index)], from_wire(wire, self._remote))
            return value
        except (TypeError, LookupError, RecursionError, ValueError) as error:
            if getattr(error, "of_program", False):
                raise
            raise ProgramRaised(f"the answer is no value: {error}") from error

    def call(self, subject: int, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        wires = [[self.wire(value) for value in positional], {name: self.wire(value) for name, value in named.items()}]
        return self.ask("call", subject, wires, positional)

    def wire(self, value: Any) -> Any:
        return to_wire(value, self._hand_over)

    def _hand_over(self, value: Any) -> Any:
        if type(value) is Remote:
            return ["handle", value._number]
        self.cannot = f"the test hands over a {type(value).__name__}, which does not cross to the program's process"
        raise CannotSend(self.cannot)

    def could_not(self) -> str:
        """What could not be sent since this was asked last, or ""."""
        found, self.cannot = self.cannot, ""
        return found

    def _remote(self, wire: Any) -> Remote:
        kind, number = wire
        if kind != "handle" or type(number) is not int:
            raise ValueError("neither plain nor a handle")
        return self.known.setdefault(number, Remote(self, number))


class Remote:
    """Something of the program's that is not plain. Equal to itself alone."""

    __slots__ = ("_asker", "_number")

    def __init__(self, asker: Asker, number: int) -> None:
        object.__setattr__(self, "_asker", asker)
        object.__setattr__(self, "_number", number)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._asker.call(self._number, positional, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._asker.ask("read", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._asker.ask("set", self._number, self._asker.wire((name, value)))

    def __getitem__(self, key: Any) -> Any:
        return self._asker.ask("item", self._number, self._asker.wire(key))

    def __bool__(self) -> bool:
        return self._asker.ask("bool", self._number)

    def __len__(self) -> int:
        return self._asker.ask("len", self._number)

    def __iter__(self) -> Iterator[Any]:
        return self._asker.ask("iter", self._number)

    def __next__(self) -> Any:
        return self._asker.ask("next", self._number)

    def __repr__(self) -> str:
        return "<an object of the program>"


def _exception(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
        error = kind(text)
    else:
        error = ProgramRaised(f"{name}: {text}")
    error.of_program = True  # type: ignore[attr-defined]
    return error


def _overwrite(old: Any, new: Any) -> None:
    if type(old) is type(new) is list or type(old) is type(new) is bytearray:
        old[:] = new
    elif type(old) is type(new) and type(old) in (dict, set):
        old.clear()
        old.update(new)


def judge(setup: str, tests: list[str], link: Link, say: Say) -> None:
    """Run the tests and say [index, error or None] for each, ["alone", reason] or, when the program ended, ["gone"].

    Says ["heard"] first: a judge that was killed without it may have left a part of its tests on the worker's line.
    """
    say(["heard"])
    try:
        if link.receive() != "hello":
            return
        say(["ready"])
        text = Text(setup, tests)
        link.send("go")
        kinds = link.receive()
        if text.alone:
            say(["alone", text.alone])
            return
        asker = Asker(link)
        names = _names(setup, text.shared & dict(kinds).keys(), kinds, asker)
        if isinstance(names, str):
            for index in range(len(tests)):
                say([index, names])
        else:
            for index, test in enumerate(tests):
                error = outcome(test, index, names, through=(Gone,))
                say([index, asker.could_not() or error])
    except Gone:
        say(["gone"])


def _names(setup: str, shared: set[str], kinds: dict[str, Any], asker: Asker) -> dict[str, Any] | str:
    """What the tests see; or why their setup failed."""
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    for name in shared:
        names[name] = _module(name, kinds[name]) or asker.ask("get", name)
    try:
        exec(compiled(setup, "setup.py"), names)
    except (Exception, CannotSend) as error:
        return f"setup: {asker.could_not() or traceback.format_exception_only(error)[-1].strip()}"
    return names if not (cannot := asker.could_not()) else f"setup: {cannot}"


def _module(name: str, claimed: Any) -> types.ModuleType | None:
    """The tests' own copy of a standard module that the program imported; it cannot pass one off as another."""
    standard = sys.stdlib_module_names
    if type(claimed) is str and claimed in standard and (name == claimed or name not in standard):
        return importlib.import_module(claimed)
    return None


class Text:
    """What the tests' text says. shared: names that it takes from the program. alone: why it needs one process, or ""."""

    def __init__(self, setup: str, tests: list[str]) -> None:
        trees = [tree for source in (setup, *tests) if (tree := _parsed(source)) is not None]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        bound = {name for node in nodes for name in _binds(node)}
        foreign = {node.id for node in nodes if isinstance(node, ast.Name)} - bound
        own = foreign - set(dir(builtins))
        calls = [
            {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            for tree in trees[1:]
        ]
        # `assert sum(10, 15) == 6` tests a program's own `sum`, where nothing else in any of the tests could be the
        # program's; in `assert abs(area(2) - 3) < 1` and `assert abs(result - 3) < 1` it would be a forged `abs`.
        shadowing = set.intersection(*calls) - bound if calls and not own else set()
        self.shared = own | shadowing if len(shadowing) == 1 else own
        classes = {name for node in nodes for name in _as_class(node)} & own
        if classes:
            self.alone = f"the tests need the program's {', '.join(sorted(classes))} itself"
        else:
            handed = Handed(nodes, self.shared, bound).to_program()
            self.alone = f"the tests hand over {handed}" if handed else ""


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _binds(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    return [node.arg] if isinstance(node, ast.arg) else []


def _as_class(node: ast.AST) -> list[str]:
    """Names used where only a class itself will do."""
    places: list[ast.AST | None] = []
    if isinstance(node, ast.ExceptHandler):
        places = [node.type]
    elif isinstance(node, ast.ClassDef):
        places = [*node.bases]
    elif isinstance(node, ast.MatchClass):
        places = [node.cls]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        places = [*node.args[1:2]]
    return [one.id for place in places if place for one in ast.walk(place) if isinstance(one, ast.Name)]

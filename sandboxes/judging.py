"""Tests in a process of their own: the program answers calls with plain data and never holds a verdict or a test.

    Candidate(request, link).main()                      # one fork of the worker: runs the program, then answers calls
    judge(setup, tests, link, say)                       # a second one: runs the tests against it

`link` is the end of a socket pair. Values cross it by exact type (`plain_data.py`); whatever else the program returns
crosses as a handle: it can be called, iterated, its attributes read and set, and it equals nothing but itself. What
`setup` defines and what Python's builtins are called belongs to the tests, whatever the program defines. Where tests
need the program's objects themselves (a class to catch or to inherit from, a function of theirs handed over), `judge`
says ["alone", reason]: such tests run in the program's process. That is decided by the tests' text alone, which the
program cannot change. Travels beside `worker.py`; standard library only. Leaves out: confinement of both processes.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import socket
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

from child import Child, Say, compiled, flush, outcome
from plain_data import from_wire, to_wire

LARGEST = 1 << 26


class Gone(BaseException):
    """The other process has ended. Not an Exception, so that no test catches it."""


class CannotSend(BaseException):
    """The tests hand over something that is not plain."""


class ProgramRaised(Exception):
    """The program raised something of its own."""


class Link:
    """JSON messages over a stream socket, each after four bytes of length."""

    def __init__(self, descriptor: int) -> None:
        self.socket = socket.socket(fileno=descriptor)

    def send(self, message: Any) -> None:
        body = json.dumps(message).encode()
        try:
            self.socket.sendall(len(body).to_bytes(4, "big") + body)
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self) -> Any:
        """The next message. ValueError, RecursionError: it is none."""
        length = int.from_bytes(self._exactly(4), "big")
        if length > LARGEST:
            raise Gone(f"a message of {length} bytes")
        return json.loads(self._exactly(length))

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            try:
                part = self.socket.recv(min(count, 1 << 20))
            except OSError as error:
                raise Gone(str(error)) from error
            if not part:
                raise Gone("it ended")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


# The program's side ---------------------------------------------------------------------------------------------------


class Candidate(Child):
    """Runs the program, then answers: get NAME, call, read and set attributes, items, length, iteration."""

    def __init__(self, request: dict[str, Any], link: Link) -> None:
        super().__init__(request, None)
        self.link = link
        self.held: list[Any] = []
        self.numbers: dict[int, int] = {}

    def execute(self) -> None:
        self.link.send("hello")
        self.link.receive()  # the judge has its tests: from here on nothing of them can be met
        self.names = self.load()
        kinds = {
            name: value.__name__ if type(value) is types.ModuleType else ""
            for name, value in list(self.names.items())
            if type(name) is str and not name.startswith("__")
        }
        flush()
        self.link.send(kinds)
        while True:
            try:
                message = self.link.receive()
            except Gone:
                return
            try:
                answer = self.answer(*message)
            except Gone:
                return
            except BaseException as error:  # exiting too: the judge fails the test that called
                answer = ["raise", type(error).__name__, self._last_line(error)]
            flush()
            self.link.send(answer)

    def answer(self, verb: str, subject: Any, arguments: Any) -> list[Any]:
        if verb == "get":
            return ["value", self.wire(self.names[subject])]
        target = self.held[subject]
        if verb == "call":
            return self.called(target, *arguments)
        given = from_wire(arguments, self.thing)
        if verb == "read":
            return ["value", self.wire(getattr(target, given))]
        if verb == "set":
            setattr(target, *given)
            return ["value", None]
        if verb == "item":
            return ["value", self.wire(target[given])]
        if verb in ("len", "bool"):
            return ["value", len(target) if verb == "len" else bool(target)]
        if verb == "iter":
            return ["value", self.handle(iter(target))]
        return ["value", self.wire(next(target))]

    def called(self, target: Any, positional: list[Any], named: dict[str, Any]) -> list[Any]:
        """The result, and what became of arguments that can change: the caller's own are changed likewise."""
        values = [from_wire(wire, self.thing) for wire in positional]
        result = target(*values, **{name: from_wire(wire, self.thing) for name, wire in named.items()})
        changed: dict[int, Any] = {}
        for index, value in enumerate(values):
            if type(value) in (list, dict, set, bytearray) and (wire := self.wire(value)) != positional[index]:
                changed[index] = wire
        return ["value", self.wire(result), changed]

    def wire(self, value: Any) -> Any:
        return to_wire(value, self.handle)

    def handle(self, value: Any) -> list[Any]:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.held)
            self.held.append(value)  # held for good, so that its id is no other's
        return ["handle", self.numbers[id(value)]]

    def thing(self, wire: list[Any]) -> Any:
        return self.held[wire[1]]

    def _last_line(self, error: BaseException) -> str:
        try:
            text = traceback.format_exception_only(error)[-1].strip()
        except BaseException:  # its own __str__ may do anything
            text = type(error).__name__
        return text.partition(": ")[2][:2000]


# The tests' side ------------------------------------------------------------------------------------------------------


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
        self.cannot = f"the tests hand over a {type(value).__name__}"
        raise CannotSend(self.cannot)

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
    """Run the tests and say [index, error or None] for each, ["alone", reason] or, when the program ended, ["gone"]."""
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
                error = outcome(test, index, names, through=(Gone, CannotSend))
                if asker.cannot:
                    raise CannotSend(asker.cannot)
                say([index, error])
    except Gone:
        say(["gone"])
    except CannotSend as error:
        say(["alone", str(error)])


def _names(setup: str, shared: set[str], kinds: dict[str, Any], asker: Asker) -> dict[str, Any] | str:
    """What the tests see; or why their setup failed."""
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    for name in shared:
        names[name] = _module(name, kinds[name]) or asker.ask("get", name)
    try:
        exec(compiled(setup, "setup.py"), names)
    except Exception as error:
        return f"setup: {traceback.format_exception_only(error)[-1].strip()}"
    return names


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
        bound = {name for tree in trees for node in ast.walk(tree) for name in _binds(node)}
        used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
        foreign = used - bound
        own = foreign - set(dir(builtins))
        calls = [
            {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            for tree in trees[1:]
        ]
        # `assert sum(10, 15) == 6` tests a program's own `sum`, where nothing else in any of the tests could be the
        # program's; in `assert abs(area(2) - 3) < 1` and `assert abs(result - 3) < 1` it would be a forged `abs`.
        shadowing = set.intersection(*calls) - bound if calls and not own else set()
        self.shared = own | shadowing if len(shadowing) == 1 else own
        classes = {name for tree in trees for node in ast.walk(tree) for name in _as_class(node)} & own
        self.alone = f"the tests need the program's {', '.join(sorted(classes))} itself" if classes else ""


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
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        places = [*node.args[1:2]]
    return [one.id for place in places if place for one in ast.walk(place) if isinstance(one, ast.Name)]

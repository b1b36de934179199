"""Tests in a process of their own: the program answers calls with plain data and never holds a verdict or a test.

    Candidate(request, link).main()                      # one fork of the worker: runs the program, then answers calls
    judge(setup, tests, link, say)                       # a second one: runs the tests against it

`link` is the end of a socket pair. Values cross it by exact type (`plain_data.py`); whatever else the program returns
crosses as a handle (`Remote`), which can do what the object can but for operators of two sides, and equals nothing but
itself (a namedtuple is a tuple here, whose content the judge compares). Arguments and names of the program that change
there change here. What `setup` defines and what Python's builtins are called belongs to the tests, whatever the program
defines. Where tests need the program's objects themselves (a class to catch or to inherit from, a function of theirs
handed over, files that both use), `judge` says ["alone", reason]: such tests run in the program's process. That is
decided by the tests' text alone (`tests_text.py`), which the program cannot change: whatever else cannot cross, such as
an object that came of what the program returned, fails its test. `Candidate` is in `child.py`. Travels beside
`worker.py`; standard library only. Leaves out: confinement of both processes.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import types
from functools import cache
from typing import Any

from child import FORWARDED, Say, compiled, last_lines, outcome
from child import Candidate as Candidate
from frames import Gone, Link
from plain_data import ITERATORS, containers, from_wire, refill, to_wire
from tests_text import Text as Text


class CannotSend(BaseException):
    """The tests hand over something that is not plain."""


class ProgramRaised(Exception):
    """The program raised something of its own."""


class Asker:
    """Asks the candidate."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.known: dict[int, Remote] = {}
        self.names: dict[str, Any] = {}  # what the tests see
        self.taken: set[str] = set()  # of these, those that are the program's
        self.cannot = ""  # kept here as well: a test may swallow every exception

    def ask(self, verb: str, subject: Any, positional: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        """What the program answers. Changed arguments and names of its are changed here, too, even when it raises."""
        wires: Any = [self.wire(value) for value in positional]
        if verb == "call":
            wires = [wires, {name: self.wire(value) for name, value in (named or {}).items()}]
        shown = containers([*positional, *(named or {}).values()])
        self.link.send([verb, subject, wires])

        def other(wire: Any) -> Any:
            return shown[wire[1]] if wire[0] == "same" else self._remote(wire)

        try:
            answer = self.link.receive()
            for number, wire in answer["changed"].items():
                refill(shown[int(number)], from_wire(wire, other))
            for name, wire in answer["names"].items():
                self._renew(name, from_wire(wire, self._remote))
            error = self._exception(answer["raise"], (verb, *positional[:1])) if "raise" in answer else None
            value = None if error else from_wire(answer["value"], other)
        except Exception as wrong:
            raise ProgramRaised(f"the answer is no value: {wrong}") from wrong
        if error:
            raise error
        return value

    def take(self, name: str) -> None:
        """Let the tests see the program's `name`, and follow its changes."""
        self.names[name] = self.ask("get", name)
        self.taken.add(name)

    def _renew(self, name: str, value: Any) -> None:
        if name in self.taken:
            refill(self.names[name], value)  # other names of the tests may be for the same list
            if type(self.names[name]) is not type(value) or self.names[name] != value:
                self.names[name] = value

    def wire(self, value: Any) -> Any:
        return to_wire(value, self._hand_over)

    def _hand_over(self, value: Any) -> Any:
        if issubclass(type(value), Remote):
            return ["handle", value._number]
        if type(value) in ITERATORS:
            return ["iterator", [self.wire(item) for item in value]]
        self.cannot = f"the test hands over a {type(value).__name__}, which does not cross to the program's process"
        raise CannotSend(self.cannot)

    def could_not(self) -> str:
        """What could not be sent since this was asked last, or ""."""
        found, self.cannot = self.cannot, ""
        return found

    def _remote(self, wire: Any) -> Remote:
        kind, (number, able, content) = wire
        if kind != "handle" or type(number) is not int:
            raise ValueError("neither plain nor a handle")
        if number not in self.known:
            value = () if content is None else (from_wire(content[0], self._remote),)
            made = _remote_class(frozenset(able), type(value[0]) if value else object)
            remote: Any = made.__new__(made, *value)
            object.__setattr__(remote, "_asker", self)
            object.__setattr__(remote, "_number", number)
            self.known[number] = remote
        return self.known[number]

    def _exception(self, described: list[Any], asked: tuple[Any, ...]) -> BaseException:
        """A built-in exception as it is; a program's own as one that is caught by the built-in name that it derives from."""
        name, base, text, wires = described
        kind = getattr(builtins, base)
        stops = issubclass(kind, StopIteration | StopAsyncIteration | GeneratorExit) and asked != ("do", "__next__")
        if not issubclass(kind, BaseException) or stops or (kind is BaseException and name == base):
            return ProgramRaised(f"{name}: {text}")  # `all(map(f, cases))` would take a StopIteration for the end
        if name != base:
            bases = (ProgramRaised, kind) if issubclass(kind, Exception) else (ProgramRaised,)
            kind = type(name, bases, {"__str__": lambda self: text, "__module__": "__main__"})
        try:
            return kind(*([text] if wires is None else [from_wire(wire, self._remote) for wire in wires]))
        except Exception:  # one with arguments of its own, or with some that do not cross
            return ProgramRaised(f"{name}: {text}")


class Remote:
    """Something of the program's that is not plain. Equal to itself alone, but where its type is derived of a plain one.

    A namedtuple or an IntEnum is here as the tuple or number that it is, which compares by its content.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._asker.ask("read", self._number, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._asker.ask("set", self._number, (name, value))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an object of the program cannot be copied outside its process")


def _call(self: Any, /, *positional: Any, **named: Any) -> Any:
    return self._asker.ask("call", self._number, positional, named)


@cache
def _remote_class(able: frozenset[str], base: type) -> type:
    """One whose objects can do what the program's object can; of a plain `base`, what that can."""

    def forward(name: str) -> Any:
        return lambda self, *given: self._asker.ask("do", self._number, (name, *given))

    if base not in (object, int, float, str, bytes, tuple):
        raise ValueError(f"a handle of a {base}")
    wanted = FORWARDED & able if base is object else {"__str__", "__repr__", "__format__"} & able
    methods = {name: forward(name) for name in wanted}
    if "__call__" in able:
        methods["__call__"] = _call
    if "__hash__" not in able:
        methods["__hash__"] = None
    return type("Remote", (Remote,) if base is object else (Remote, base), methods)


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
        if text.alone:
            say(["alone", text.alone])
            return
        link.send("go")
        asker = Asker(link)
        wrong = _prepare(asker, setup, text)
        for index, test in enumerate(tests):
            error = wrong or outcome(test, index, asker.names, through=(Gone,))
            say([index, asker.could_not() or error])
    except Gone:
        say(["gone"])


def _prepare(asker: Asker, setup: str, text: Text) -> str:
    """Give the tests their names and run their setup; why that failed, or ""."""
    asker.names.update(text.modules, __name__="__main__", __builtins__=builtins)
    try:
        kinds = dict(asker.link.receive())
    except Exception as error:  # a program that no longer answers as it should
        raise Gone(str(error)) from error
    try:
        for name in text.shared & kinds.keys():
            if module := _module(name, kinds[name]):
                asker.names[name] = module
            else:
                asker.take(name)
        exec(compiled(setup, "setup.py"), asker.names)
    except Gone:
        raise
    except BaseException as error:
        return f"setup: {asker.could_not() or last_lines(error)}"
    return f"setup: {cannot}" if (cannot := asker.could_not()) else ""


def _module(name: str, claimed: Any) -> types.ModuleType | None:
    """The tests' own copy of a standard module that the program imported; it cannot pass one off as another."""
    standard = sys.stdlib_module_names
    if type(claimed) is str and claimed in standard and (name == claimed or name not in standard):
        return importlib.import_module(claimed)
    return None

"""The program's side of a worker's fork: runs it as __main__, says what became of each test, ends like an interpreter.

    Child(request, say).main()                          # never returns
    Candidate(request, link).main()                     # the same, but answers a judge instead of seeing its tests

Travels beside `worker.py`; standard library only. Leaves out: confinement, which is complete before this begins, and
the judge, which has the tests in a process of its own (`judging.py`).
"""

from __future__ import annotations

import base64
import builtins
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

from frames import Gone, Link
from plain_data import containers, from_wire, to_wire

Say = Callable[[list[Any]], None]
_NO_MEMORY = b"Traceback (most recent call last):\n  (no memory for it)\nMemoryError\n"


class Child:
    """The program's side of the fork. Ends by `os._exit`, which spares the interpreter's long goodbye."""

    runs_as = "__main__"
    """Its `__name__`; with tests it is "program", for what it does when run by hand (read its input, exit) is not tested."""

    def __init__(self, request: dict[str, Any], say: Say | None) -> None:
        self.request, self.say = request, say
        self.ballast: bytearray | None = None

    def main(self) -> NoReturn:
        code = 1
        try:
            self.ballast = bytearray(2 << 20)  # let go of when memory runs out: a traceback needs some
            self.execute()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
            code = code if -(1 << 63) <= code < 1 << 63 else -1  # as an interpreter takes what no C integer holds
            if not isinstance(exit_.code, int | None):
                print(exit_.code, file=sys.stderr)
        except BaseException as error:  # KeyboardInterrupt too is the program's own
            try:
                self.show(error)
            except MemoryError:  # not even for a traceback
                os.write(2, _NO_MEMORY)
        try:
            code = self.goodbye(code & 0xFF)
        finally:
            os._exit(code & 0xFF)

    def execute(self) -> None:
        names, tests = self.load(), self.request["tests"]
        for index, test in enumerate(tests or ()):
            error = outcome(test, index, names)
            assert self.say is not None
            self.say([index, error])

    def load(self) -> dict[str, Any]:
        """Lay the files, run the setup and the program; the names that they leave."""
        request = self.request
        for name, content in request["files"].items():
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "wb") as file:
                file.write(base64.b64decode(content))
        name = self.runs_as if request["tests"] is None else "program"
        module = types.ModuleType(name)
        names = module.__dict__
        names["__builtins__"] = builtins
        sys.modules[name] = sys.modules["__main__"] = module
        sys.argv, sys.path[:0] = ["program.py"], [""]
        later = False
        try:
            exec(compiled(request["setup"], "setup.py"), names)
        except NameError:  # it builds on the program's own names: its turn comes after the program
            later = True
        exec(compiled(request["code"], "program.py"), names)
        if later and request["tests"] is not None:
            exec(compiled(request["setup"], "setup.py"), names)
        return names

    def show(self, error: BaseException) -> None:
        """The traceback, as an interpreter would print it: without the sandbox's own frames."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        if isinstance(error, MemoryError):
            if self.ballast is None:  # there was never room for it, nor is there for a traceback
                os.write(2, _NO_MEMORY)
                return
            self.ballast = None
            traceback.clear_frames(trace)
        if sys.excepthook is not sys.__excepthook__:
            return sys.excepthook(type(error), error, trace)
        try:
            traceback.print_exception(type(error), error, trace)
        except Exception:  # a SyntaxError may have arguments that cannot be printed
            traceback.print_tb(trace)
            print(type(error).__name__, file=sys.stderr)

    def goodbye(self, code: int) -> int:
        """What an interpreter owes a program at its end: wait for its threads, run its exit functions, flush."""
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        import atexit

        atexit._run_exitfuncs()
        return 0 if flush() and not code else code or 120


FORWARDED = frozenset(
    str.split("""
    __iter__ __next__ __getitem__ __setitem__ __delitem__ __len__ __length_hint__ __bool__ __str__ __repr__ __format__
    __bytes__ __int__ __float__ __index__ __complex__ __neg__ __pos__ __abs__ __invert__ __round__ __trunc__ __floor__
    __ceil__ __reversed__
    """)
)
"""What a judge may have done by an object here. No operator of two sides: it would show the other side, which is often
what a test expects, and its answer would be the verdict."""
_BASES = (int, float, str, bytes, tuple)


class Candidate(Child):
    """Runs the program, then answers: get NAME, call, read and set attributes, do what is FORWARDED."""

    runs_as = "program"

    def __init__(self, request: dict[str, Any], link: Link) -> None:
        super().__init__(request, None)
        self.link = link
        self.held: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.able: dict[type, list[str]] = {}
        self.watched: dict[str, Any] = {}  # names that the judge has, and what it was told of them

    def execute(self) -> None:
        self.link.send("hello")
        try:
            self.link.receive()  # the judge has its tests: from here on nothing of them can be met
        except Gone:  # it needs no program
            return
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
                answer = self.answered(*message)
            except Gone:
                return
            except BaseException as error:  # exiting too: the judge fails the test that called
                answer = {"raise": self.described(error)}
            flush()
            self.link.send(answer)

    def answered(self, verb: str, subject: Any, arguments: Any) -> dict[str, Any]:
        """{"value" or "raise", "changed": arguments that can change and did, "names": likewise names of the program}."""
        positional, named = arguments if verb == "call" else (arguments, {})
        given = [from_wire(wire, self.thing) for wire in positional]
        named = {name: from_wire(wire, self.thing) for name, wire in named.items()}
        shown = containers([*given, *named.values()])
        known = {id(value): number for number, value in enumerate(shown)}
        before = [to_wire(value, self.handle, known, written_out=True) for value in shown]
        answer: dict[str, Any] = {}
        try:
            result = self.done(verb, subject, given, named)
            answer["value"] = to_wire(result, self.handle)
        except Gone:
            raise
        except BaseException as error:
            answer["raise"] = self.described(error)
        after = [to_wire(value, self.handle, known, written_out=True) for value in shown]
        answer["changed"] = {number: wire for number, wire in enumerate(after) if wire != before[number]}
        now = {name: to_wire(self.names[name], self.handle) for name in self.watched if name in self.names}
        answer["names"] = {name: wire for name, wire in now.items() if wire != self.watched[name]}
        self.watched.update(now)
        if verb == "get" and "value" in answer:
            self.watched[subject] = answer["value"]
        return answer

    def done(self, verb: str, subject: Any, given: list[Any], named: dict[str, Any]) -> Any:
        if verb == "get":
            return self.names[subject]
        target = self.held[subject]
        if verb == "call":
            return target(*given, **named)
        if verb == "read":
            return getattr(target, *given)
        if verb == "set":
            return setattr(target, *given)
        name, *others = given
        if name not in FORWARDED:
            raise TypeError(f"{name} is not forwarded")
        return getattr(type(target), name)(target, *others)

    def handle(self, value: Any) -> list[Any]:
        """["handle", [its number, what it can do, its content when its type is derived of a plain one]]."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.held)
            self.held.append(value)  # held for good, so that its id is no other's
        kind = type(value)
        if kind not in self.able:
            self.able[kind] = [name for name in (*FORWARDED, "__call__", "__hash__") if _has(kind, name)]
        base = next((one for one in _BASES if one in kind.__mro__ and kind is not bool), None)
        content = None if base is None else [to_wire(base.__getnewargs__(value)[0], self.handle)]  # type: ignore[attr-defined]
        return ["handle", [self.numbers[id(value)], self.able[kind], content]]

    def thing(self, wire: list[Any]) -> Any:
        return self.held[wire[1]]

    def described(self, error: BaseException) -> list[Any]:
        """[its type's name, the nearest built-in exception's, its text, its arguments or None]."""
        kind = type(error)
        base = next(one.__name__ for one in kind.__mro__ if getattr(builtins, one.__name__, None) is one)
        try:
            arguments = [to_wire(value, self.handle) for value in error.args]
        except Exception:
            arguments = None
        try:
            text = str(error)[:2000]
        except BaseException:  # its own __str__ may do anything
            text = ""
        return [kind.__name__, base, text, arguments]


def _has(kind: type, name: str) -> bool:
    """Whether objects of `kind` can do `name`; what is None in a class cannot be done."""
    return next((one.__dict__[name] for one in kind.__mro__ if name in one.__dict__), None) is not None


def outcome(test: str, index: int, names: dict[str, Any], through: tuple[type[BaseException], ...] = ()) -> str | None:
    """Run one test: None when it passed, else the last line of its traceback. Exceptions of `through` pass."""
    try:
        exec(compiled(test, f"test_{index}.py"), names)
    except through:
        raise
    except BaseException as caught:  # exiting is a failure of the test
        return last_lines(caught)[-2000:]
    return None


def last_lines(error: BaseException) -> str:
    """What a traceback ends with; the type's name alone where that fails, for a program's exception may do anything."""
    try:
        return "".join(traceback.format_exception_only(error)).strip()
    except BaseException:
        return type(error).__name__


def flush() -> bool:
    """Write out what is printed; False when that failed."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            done = False
    return done


def compiled(source: str, name: str) -> types.CodeType:
    source = source.removeprefix("\ufeff")  # as in a file: a byte order mark is no part of a program
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return compile(source, name, "exec", dont_inherit=True)

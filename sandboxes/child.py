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
from plain_data import from_wire, to_wire

Say = Callable[[list[Any]], None]
_NO_MEMORY = b"Traceback (most recent call last):\n  (no memory for it)\nMemoryError\n"


class Child:
    """The program's side of the fork. Ends by `os._exit`, which spares the interpreter's long goodbye."""

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
        module = types.ModuleType("__main__")
        names = module.__dict__
        names["__builtins__"] = builtins
        sys.modules["__main__"] = module
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
            sys.excepthook(type(error), error, trace)
        else:
            traceback.print_exception(type(error), error, trace)

    def goodbye(self, code: int) -> int:
        """What an interpreter owes a program at its end: wait for its threads, run its exit functions, flush."""
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
        import atexit

        atexit._run_exitfuncs()
        return 0 if flush() and not code else code or 120


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


def outcome(test: str, index: int, names: dict[str, Any], through: tuple[type[BaseException], ...] = ()) -> str | None:
    """Run one test: None when it passed, else the last line of its traceback. Exceptions of `through` pass."""
    try:
        exec(compiled(test, f"test_{index}.py"), names)
    except through:
        raise
    except BaseException as caught:  # exiting is a failure of the test
        return "".join(traceback.format_exception_only(caught)).strip()[-2000:]
    return None


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
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return compile(source, name, "exec", dont_inherit=True)

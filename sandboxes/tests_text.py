"""What the text of some tests says before any of them runs: which names are the program's, and whether two processes do.

    text = Text(setup, tests)
    text.shared         # names that they take from the program
    text.modules        # standard modules that they use without importing them: the judge's own, whatever the program has
    text.alone          # why they need one process, or ""

Only the tests' text decides, which no program can change. Which name is whose is the compiler's own resolution, read
from its instructions; what a value is goes by names, without scopes (`Handed`). Travels beside `worker.py`; standard
library only. Leaves out: running anything.
"""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import sys
from collections.abc import Iterable
from types import CodeType
from typing import Any

from handed import Handed, assigned, root_of

STATE = frozenset(
    str.split("""
    builtins.open builtins.input builtins.globals builtins.locals builtins.vars builtins.dir builtins.eval builtins.exec
    builtins.__import__ builtins.breakpoint
    asyncio atexit concurrent ctypes dbm doctest faulthandler fileinput gc glob importlib inspect locale logging
    multiprocessing os pathlib pdb profile cProfile pydoc resource runpy shelve shutil signal socket sqlite3 subprocess
    tarfile tempfile threading timeit trace traceback tracemalloc types warnings weakref zipfile _thread
    contextlib.chdir contextlib.redirect_stdout contextlib.redirect_stderr
    dataclasses.asdict dataclasses.astuple dataclasses.fields dataclasses.is_dataclass dataclasses.replace
    decimal.getcontext decimal.localcontext decimal.setcontext io.open
    random.getstate random.seed random.setstate
    sys.argv sys.breakpointhook sys.displayhook sys.excepthook sys.getrecursionlimit sys.getrefcount sys.modules sys.path
    sys.setprofile sys.setrecursionlimit sys.set_int_max_str_digits sys.settrace sys.stderr sys.stdin sys.stdout
    sys._getframe typing.get_type_hints unittest.main unittest.mock
    """)
)
"""What of the library works on the process or the objects of whoever calls it: tests that use it share the program's."""

_CHANGING = frozenset(
    str.split("""
    add append appendleft clear difference_update discard extend extendleft insert intersection_update pop popitem popleft
    remove reverse rotate setdefault sort subtract symmetric_difference_update update
    """)
)
"""Methods that change a list, dict, set or deque: what crossed of the program's is a copy."""
_CLASS_TAKERS = frozenset(
    str.split("""
    isinstance issubclass raises suppress assertRaises assertRaisesRegex assertIsInstance assertNotIsInstance assertWarns
    """)
)


class Text:
    """See above. `setup` is run before the tests, one after the other, all in one module."""

    def __init__(self, setup: str, tests: list[str]) -> None:
        sources = [setup, *tests]
        trees = [tree for source in sources if (tree := _parsed(source)) is not None]
        self.nodes = [node for tree in trees for node in ast.walk(tree)]
        names = Names(sources)
        own = names.read - set(dir(builtins))
        self.modules = _modules(self.nodes, own)
        own -= self.modules.keys()
        calls = [
            {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
            for tree in trees[1:]
        ]
        # `assert sum(10, 15) == 6` tests a program's own `sum`, where nothing else in any of the tests could be the
        # program's; in `assert abs(area(2) - 3) < 1` and `assert abs(result - 3) < 1` it would be a forged `abs`.
        shadowing = set.intersection(*calls) - names.bound if calls and not own else set()
        self.shared = own | shadowing if len(shadowing) == 1 else own
        bound = {name for node in self.nodes for name in _binds(node)}
        self.handed = Handed(self.nodes, self.shared, bound, self.modules)
        self.made: set[str] = set()
        self._follow_made()
        self.alone = self._alone(names.bound & own)

    def _alone(self, rebound: set[str]) -> str:
        if rebound:
            return f"the tests bind {_list(rebound)} anew, which they take from the program"
        if classes := {name for node in self.nodes for name in _as_class(node)} & self.shared:
            return f"the tests need the program's {_list(classes)} itself"
        if paths := {path for node in self.nodes if (path := self._state(node))}:
            return f"the tests use {_list(paths)}, which is the program's own only in its process"
        if handed := self.handed.to_program():
            return f"the tests hand over {handed}"
        return next(filter(None, map(self._inside, self.nodes)), "")

    def _state(self, node: ast.AST) -> str:
        """`os.path.exists` where a test names it; "" where what it names has no state."""
        if not isinstance(node, ast.Name | ast.Attribute):
            return ""
        path = self.handed.path_of(node)
        starts = [path[:end] for end, letter in enumerate(f"{path}.") if letter == "."]
        return path.removeprefix("builtins.") if any(start in STATE for start in starts) else ""

    def _inside(self, node: ast.AST) -> str:
        """What tests do to an object of the program that only works where the object is."""
        if isinstance(node, ast.With | ast.AsyncWith):
            if any(self.handed.of_program(item.context_expr) for item in node.items):
                return "the tests enter a context of the program"
        elif isinstance(node, ast.Attribute):
            if node.attr.startswith("__") and self.handed.of_program(node):
                return f"the tests use {node.attr} of an object of the program"
            if node.attr in _CHANGING and self._kept_there(node.value):
                return f"the tests change what the program holds, by {node.attr}"
            if not isinstance(node.ctx, ast.Load) and self.handed.path_of(node).partition(".")[0] in sys.stdlib_module_names:
                return f"the tests change {self.handed.path_of(node.value)}"
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and self._kept_there(node.value):
            return "the tests change what the program holds"
        elif isinstance(node, ast.Await):
            return "the tests wait for the program's coroutines"
        elif self._operates(node):
            return "the tests use operators of the program's objects"
        return ""

    def _kept_there(self, node: ast.AST) -> bool:
        """Whether a list or dict here may be the program's own one: below a name of its, or held by an object of its."""
        if not isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return False
        held = any(isinstance(one, ast.Attribute) for one in ast.walk(node))
        return root_of(node) in self.shared or (held and self.handed.of_program(node))

    def _operates(self, node: ast.AST) -> bool:
        """Whether an operator works on objects of the program's classes: not where its other side is plain text.

        MBPP's `assert Diff([1, 2]) == 1` is a function's result; `Point(1) == Point(1)` has two objects compared.
        """
        if isinstance(node, ast.BinOp):
            return self._is_made(node.left) and self._is_made(node.right)
        if isinstance(node, ast.AugAssign):
            return self._is_made(node.target) and self._is_made(node.value)
        if isinstance(node, ast.Compare) and any(isinstance(one, ast.In | ast.NotIn) for one in node.ops):
            return any(map(self._is_made, node.comparators))
        if isinstance(node, ast.Compare) and not all(isinstance(one, ast.Is | ast.IsNot) for one in node.ops):
            both = [node.left, *node.comparators]
            return any(map(self._is_made, both)) and not any(map(self._is_plain, both))
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("max", "min", "sorted", "sum")
        ):
            given = node.args if len(node.args) > 1 else getattr(node.args[0], "elts", []) if node.args else []
            return not any(one.arg == "key" for one in node.keywords) and any(map(self._is_made, given))
        return False

    def _is_plain(self, node: ast.AST) -> bool:
        """Whether the text itself says that it is plain data."""
        if isinstance(node, ast.Constant | ast.JoinedStr) or (
            isinstance(node, ast.Name) and node.id in self.handed.tests_own
        ):
            return True
        if isinstance(node, ast.UnaryOp):
            return self._is_plain(node.operand)
        if isinstance(node, ast.BinOp):
            return self._is_plain(node.left) and self._is_plain(node.right)
        return isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict) and not self._is_made(node)

    def _follow_made(self) -> None:
        """Find names that hold objects of the program's classes, which are told by their capital letter."""
        for _ in range(3):  # a name for a name for a name
            for target, value in (pair for node in self.nodes for pair in assigned(node)):
                if self._is_made(value):
                    self.made |= {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}

    def _is_made(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.made or (node.id in self.shared and _like_class(node.id) and not node.id.isupper())
        if isinstance(node, ast.Call):
            last = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            return _like_class(last) and root_of(node.func) in self.shared
        if isinstance(node, ast.Dict):
            return any(map(self._is_made, filter(None, node.keys)))
        return any(map(self._is_made, getattr(node, "elts", ())))


class Names:
    """Which of their module's names some sources read before they bind them, and which they bind, in the order of running.

    A function's own names are no module's names; its body counts where the function is first named.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self.read: set[str] = set()
        self.bound: set[str] = set()
        self.waiting: dict[str, list[CodeType]] = {}
        self.unnamed: list[CodeType] = []
        for source in sources:
            try:
                code = compile(source, "test.py", "exec", dont_inherit=True)
            except (SyntaxError, ValueError, RecursionError, MemoryError):  # its test fails by itself
                continue
            self._follow(code, whole=True)
        while self.waiting:
            self._run(next(iter(self.waiting)))

    def _follow(self, code: CodeType, *, whole: bool = False) -> None:
        """`whole`: a module's code; else a function's, or a class's, whose names are its own."""
        own: set[str] = set()
        for step in dis.get_instructions(code):
            kind, name = step.opname, step.argval
            if isinstance(name, CodeType):
                runs_now = name.co_name.startswith("<") or not name.co_flags & 1  # lambdas and the like; classes
                if runs_now or not whole:
                    self._follow(name)
                else:
                    self.unnamed.append(name)
            elif kind in ("STORE_GLOBAL", "STORE_NAME") and (whole or kind == "STORE_GLOBAL"):
                self.bound.add(name)
                if self.unnamed:
                    self.waiting[name], self.unnamed = self.unnamed, []
            elif kind == "STORE_NAME":
                own.add(name)
            elif kind in ("DELETE_GLOBAL", "DELETE_NAME") and name not in self.bound | own:
                self.read.add(name)
                self.bound.add(name)
            elif kind in ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS") and name not in own:
                if name not in self.bound:
                    self.read.add(name)
                self._run(name)

    def _run(self, name: str) -> None:
        for code in self.waiting.pop(name, ()):
            self._follow(code)


def _modules(nodes: list[ast.AST], names: set[str]) -> dict[str, Any]:
    """Those of `names` that are only ever used as a standard module of that name is: `math.isclose`, not `copy(x)`."""
    found: dict[str, Any] = {}
    for name in names & sys.stdlib_module_names:
        uses = [node for node in nodes if isinstance(node, ast.Name) and node.id == name]
        read = [node.attr for node in nodes if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == name]
        if len(uses) == len(read):
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            if all(hasattr(module, attribute) for attribute in read):
                found[name] = module
    return found


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
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _CLASS_TAKERS:
            second = name.startswith("is") or name.endswith("Instance")
            places = [*(node.args[1:2] if second else node.args[:1])]
    return [one.id for place in places if place for one in ast.walk(place) if isinstance(one, ast.Name)]


def _like_class(name: str) -> bool:
    return name[:1].isupper()


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

"""Two-process judging: what crosses between program and tests, what cannot, when one process does, and plain data alone.

The long list of forged verdicts is the battery's (`test_battery.py`).
"""

from __future__ import annotations

import collections
import datetime
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kintsugi.sandboxes import worker_pool
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.plain_data import from_wire, to_wire
from kintsugi.sandboxes.sandbox import Limits, TestResult

pytestmark = pytest.mark.filterwarnings("ignore:local sandbox")
MBPP = Path(__file__).parents[2].parent / "shared" / "data" / "mbpp" / "mbpp.jsonl"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    with LocalSandbox(workers=2, allow_unsafe=True) as opened:
        yield opened


def passes(result: TestResult, judging: str = "two processes") -> None:
    assert result.all_passed, (result.failures, result.run)
    assert result.judging.startswith(judging), result.judging


def refused(value: Any) -> Any:
    raise TypeError(f"not plain: {value!r}")


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(10**400), 1.5, math.inf, "é\ud800\n", b"\x00\xff", bytearray(b"x"), 1 + 2j, [], [1, [2, (3,)]],
        (), {1, "a"}, frozenset({(1, 2)}), {1: {"a": [None]}}, {(1, 2): 3}, range(1, 9, 2), Decimal("1.10"), Fraction(1, 3),
        datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 1, 1, 2, 3, tzinfo=datetime.UTC),
        collections.Counter("abca"), collections.OrderedDict(b=1, a=2), collections.deque([1, 2]),
        collections.defaultdict(list, {1: [2]}), datetime.timedelta(-1, 2, 3), slice(1, None, 2), {1: "a"}.items(),
    ],
    ids=repr,
)  # fmt: skip
def test_plain_values_arrive_as_they_are(value: Any) -> None:
    got = from_wire(json.loads(json.dumps(to_wire(value, refused))), refused)
    assert got == value and type(got) is type(value)
    if isinstance(value, dict):
        assert list(got) == list(value)


def test_what_only_looks_plain_is_not() -> None:
    class Number(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    for value in (Number(1), [Number(1)], {"a": Number(1)}, collections.namedtuple("P", "x")(1), object(), len, int):
        with pytest.raises(TypeError, match="not plain"):
            to_wire(value, refused)
    for wire in ({"a": 1}, ["no such kind", 1], ["int"], ["range", [0, 1, 0]], [["list"], []]):
        with pytest.raises((TypeError, ValueError)):
            from_wire(wire, refused)


def test_objects_are_used_and_never_equal(sandbox: LocalSandbox) -> None:
    code = (
        "class Node:\n    def __init__(self, data): self.data, self.next = data, None\n"
        "    def double(self): return self.data * 2\n"
        "    def __eq__(self, other): return True\n"
        "node = lambda data: Node(data)\n"
        "def length(node): return 0 if node is None else 1 + length(node.next)\n"
        "def squares(n):\n    for i in range(n): yield i * i\n"
    )
    setup = "root = Node(3)\nroot.next = Node(4)"
    tests = [
        "assert length(root) == 2 and root.next.data == 4 and root.double() == 6",
        "assert list(squares(4)) == [0, 1, 4, 9] and next(squares(2)) == 0",
        "assert not (node(1) == 1) and node(1) != node(1)\nsame = node(1)\nassert same == same",
    ]
    passes(sandbox.run_tests(code, tests, setup=setup))


def test_arguments_that_a_program_changes_are_changed(sandbox: LocalSandbox) -> None:
    code = "def fill(x, d):\n    x.sort(); x.append(9); d['a'] = 1"
    passes(sandbox.run_tests(code, ["x, d = [2, 1], {}\nfill(x, d)\nassert (x, d) == ([1, 2, 9], {'a': 1})"]))


def test_exceptions_cross(sandbox: LocalSandbox) -> None:
    code = "class Own(Exception): pass\ndef f(x):\n    if x: raise ValueError('bad')\n    raise Own('worse')"
    caught = "try:\n    f(1)\nexcept ValueError as e:\n    assert str(e) == 'bad'\nelse:\n    assert False"
    result = sandbox.run_tests(code, [caught, "f(0)", "g()"])
    assert (result.passed, result.judging) == (1, "two processes")
    assert "Own: worse" in result.failures[0].error and result.failures[1].error.startswith("NameError")


def test_names_belong_to_whom_they_should(sandbox: LocalSandbox) -> None:
    """A program's own `sum` is under test when nothing else is; else builtins and the setup's names are the tests'."""
    passes(sandbox.run_tests("def sum(a, b):\n    return a * b", ["assert sum(10, 15) == 150", "assert sum(2, 3) == 6"]))
    forged = "sorted = len = lambda *a: 7\ndef check(x): pass\ndef f(x): return x"
    tests = ["assert sorted(f([2, 1])) == [1, 2] and len(f([1])) == 1", "check(f(3))"]
    result = sandbox.run_tests(forged, tests, setup="def check(x):\n    assert x == 4")
    assert [failure.index for failure in result.failures] == [1]
    modules = "import sys, math as m\ndef f(x): return (x, x)"
    passes(
        sandbox.run_tests(
            modules, ["assert f(1) == (1, 1) and sys.getsizeof(f(1)) == sys.getsizeof((1, 1))", "assert m.pi < f(4)[0]"]
        )
    )
    swapped = "import json\nmath = json\nclass math:\n    isclose = staticmethod(lambda *a: True)\ndef f(x): return 99"
    assert sandbox.run_tests(swapped, ["import math\nassert math.isclose(f(1), 1)"]).passed == 0


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("result = 0\nabs = lambda x: 0", "assert abs(result - 3.14159) < 1e-3"),
        ("class solver:\n    area = lambda x: 0\nabs = lambda x: 0", "assert abs(solver.area(2) - 12.566) < 1e-3"),
        ("answer = 'no'\nisinstance = lambda *a: True", "assert isinstance(answer, int)"),
        ("total = 0\nround = lambda *a: 3.14", "assert round(total, 2) == 3.14"),
        ("abs = lambda x: 0\ndef sum(a, b): return 99", "assert abs(sum(1, 2) - 3) < 1e-3"),
    ],
)
def test_builtins_are_the_tests_own(sandbox: LocalSandbox, code: str, test: str) -> None:
    """Also where every test calls one and none calls a name of the program."""
    result = sandbox.run_tests(code, [test])
    assert (result.passed, result.judging) == (0, "two processes"), result


@pytest.mark.parametrize(
    ("code", "test", "reason"),
    [
        ("def f(g): return g(2)", "assert f(lambda x: x + 1) == 3", "hand over a function"),
        (
            "class E(Exception): pass\ndef f(): raise E()",
            "try:\n    f()\nexcept E:\n    pass",
            "need the program's E itself",
        ),
        ("class A:\n    x = 1", "class B(A): pass\nassert B.x == 1", "need the program's A itself"),
        ("class A: pass\ndef f(): return A()", "assert isinstance(f(), A)", "need the program's A itself"),
    ],
)
def test_one_process_where_tests_share_objects_and_it_is_said(
    sandbox: LocalSandbox, code: str, test: str, reason: str
) -> None:
    result = sandbox.run_tests(code, [test])
    passes(result, "one process: ")
    assert reason in result.judging


def test_a_program_cannot_ask_for_one_process(sandbox: LocalSandbox) -> None:
    """Only the tests' text decides; what a program returns or raises does not."""
    odd = "class C(BaseException): pass\nC.__name__ = C.__qualname__ = 'CannotSend'\n"
    for body in ("return lambda y: y", "return f", "raise C('the tests hand over a function')", "return object()"):
        result = sandbox.run_tests(
            f"{odd}def f(x):\n    {body}", ["assert f(f(1)) == 1", "try:\n    f(1)\nexcept Exception:\n    pass"]
        )
        assert result.judging == "two processes" and result.run.status != "sandbox_failed", (body, result)


YES = r"""
f(lambda x: x)                          | def g(x): return x\nf(g)            | class A: pass\nf(A())
h = lambda x: x\nf(x=[h])              | f(int)                                | f(len)
import math\nf(math.sqrt)              | from operator import add\nf(add, 1)  | def check(c, g): c(g)\ncheck(f, lambda: 1)
def check(c): c(lambda: 1)\ncheck(f)   | seen = []\nf(seen.append)            | s = Solver()\ns.run(lambda x: x)
@memo\ndef k(x): return x              | s = Solver()\ns.back = lambda: 1     | f(x for x in [1])
import io\nf(io.StringIO('x'))         | import re\nf(re.compile('x'))        | for op in (max, min):\n    f(op)
def gen():\n    yield 1\nf(gen())     | import numpy as np\nf(np.array([1])) | f({'a': lambda: 1}['a'])
"""
NO = r"""
f(3)                                    | sorted(f(3), key=lambda x: x)         | sum(x for x in f(3))
import math\nf(math.pi)                | x = f(3)\nx.sort(key=lambda y: -y)   | f(g(3) - g(1))
f(reversed(g(3)))                       | isinstance(answer, int)               | import random\nf(random.random())
def run(x): return x\nf(run(3))        | f(map(lambda x: x, [1]))              | f(list(x for x in [1]))
d = {}\nd['k'] = lambda: 1\nf(1)      | f(g)                                  | f(sorted([1], key=lambda x: x))
def a(n): return b(n)\ndef b(n): return a(n)\nf(a(3))                         | from decimal import Decimal\nf(Decimal('1'))
import pytest\nwith pytest.raises(ValueError):\n    f(1)
"""


def texts(table: str) -> list[str]:
    return [cell.strip().replace(r"\n", "\n") for line in table.strip().splitlines() for cell in line.split(" | ")]


def test_the_text_alone_tells_what_only_one_process_can_hand_over() -> None:
    finder = (
        "import json, sys\nsys.path.insert(0, sys.argv[1])\nfrom judging import Text\n"
        "print(json.dumps([Text('', [text]).alone for text in json.load(sys.stdin)]))"
    )
    asked = [*texts(YES), *texts(NO)]
    folder = str(Path(worker_pool.__file__).parent)  # as the worker imports it: these files travel
    found = subprocess.run(
        [sys.executable, "-I", "-c", finder, folder], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    alone = dict(zip(asked, json.loads(found.stdout), strict=True))
    assert [text for text in texts(YES) if not alone[text]] == []
    assert [text for text in texts(NO) if alone[text]] == []


def test_what_cannot_cross_by_the_programs_doing_fails_its_test(sandbox: LocalSandbox) -> None:
    """What a program returns must not bring its tests into its own process: there its objects could equal everything."""
    forger = "import datetime\nclass E:\n    def __eq__(self, other): return True\ndef f(x): return E()\n"
    moments = "def g(n): return datetime.datetime(2024, 1, n)"
    for more, tests in (
        (moments, ["assert f(g(3) - g(1)) == 2"]),
        ("def g(n): return {n: n}", ["assert f(reversed(g(3))) == 2", "assert f(1) == 3"]),
        ("def g(n): return {n: n}", ["try:\n    f(reversed(g(3)))\nexcept BaseException:\n    pass"]),
        ("answer = 'no'\nisinstance = lambda *a: True", ["assert isinstance(answer, int)", "assert f(1) == 3"]),
    ):
        result = sandbox.run_tests(forger + more, tests)
        assert (result.passed, result.judging, result.run.status) == (0, "two processes", "ok"), (tests, result)
    assert "dict_reversekeyiterator" in sandbox.run_tests(
        forger + "def g(n): return {n: n}", ["x = f(reversed(g(3)))"]
    ).failures[0].error
    honest = "import datetime\ndef f(x): return x.days\n" + moments
    passes(sandbox.run_tests(honest, ["assert f(g(3) - g(1)) == 2"]))
    late = sandbox.run_tests(forger + "def g(n): return {n: n}", ["assert 1"], setup="x = f(reversed(g(3)))")
    assert late.passed == 0 and late.failures[0].error.startswith("setup: ") and late.judging == "two processes"


def test_ends_are_told_apart(sandbox: LocalSandbox) -> None:
    tests = ["assert f(1) == 1", "assert f(2) == 2", "assert f(1) == 1"]
    crash = sandbox.run_tests(
        "import os, signal\ndef f(x):\n    if x == 2: os.kill(os.getpid(), signal.SIGSEGV)\n    return x", tests
    )
    assert (crash.passed, crash.run.status, crash.run.signal) == (1, "error", 11)
    slow = sandbox.run_tests("def f(x):\n    while x == 2: pass\n    return x", tests, limits=Limits(wall_s=2, cpu_s=0.5))
    assert (slow.passed, slow.run.status) == (1, "timeout")
    broken = sandbox.run_tests("print('said')\n1 / 0", tests)
    assert (broken.passed, broken.run.status, broken.run.exit_code, broken.run.stdout) == (0, "error", 1, "said\n")
    assert "ZeroDivisionError" in broken.failures[0].error and "ZeroDivisionError" in broken.run.stderr
    fine = sandbox.run_tests("import atexit\natexit.register(print, 'bye')\ndef f(x):\n    print(x)\n    return x", tests)
    assert fine.all_passed and (fine.run.status, fine.run.exit_code, fine.run.stdout) == ("ok", 0, "1\n2\n1\nbye\n")
    assert sandbox.stats().replaced == 0


def test_references_of_mbpp_pass_in_two_processes(sandbox: LocalSandbox) -> None:
    if not MBPP.exists():
        pytest.skip("MBPP'S OFFICIAL FILE IS NOT IN ../shared/data/mbpp")
    rows = [json.loads(line) for line in MBPP.read_text(encoding="utf-8").splitlines()][::3]
    for row in rows:
        passes(sandbox.run_tests(row["code"], row["test_list"], setup=row["test_setup_code"]))

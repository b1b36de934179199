"""Two-process judging of everyday tests: right programs pass, wrong ones do not, and one process is said where it is used.

Each row is a program, a test and what `TestResult.judging` must begin with. `test_judging.py` has what crosses and what
the text tells.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kintsugi.errors import SandboxError
from kintsugi.sandboxes import boot, local_sandbox
from kintsugi.sandboxes.confinement import RUNGS
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.sandbox import Limits

pytestmark = pytest.mark.filterwarnings("ignore:local sandbox")
VECTOR = (
    "class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
    "    def __lt__(self, o): return self.x < o.x\n    def __eq__(self, o): return self.x == o.x\n"
    "    def __contains__(self, x): return x == self.x\n    def __str__(self): return f'V({self.x})'\n"
)
BOX = "class Box:\n    def __init__(self): self.items = []\n    def add(self, x): self.items.append(x)\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    with LocalSandbox(workers=2, allow_unsafe=True) as opened:
        yield opened


TWO = [
    ("class Solution:\n    def add(self, a, b): return a + b", "s = Solution()\nr = s.add(1, 2)\nassert r == 3"),
    ("def f(x): return x * x", "import math\ny = math.sqrt(f(4))\nassert y == 4"),
    ("def f(x): return x", "t = 'a b'\nwords = t.split()\nassert f(words) == ['a', 'b']"),
    ("def f(x): return x", "import datetime\nd = datetime.date(2024, 1, 1)\nassert f(d) == d"),
    ("def f(x): return x", "import io\nb = io.StringIO()\nb.write('x')\nassert f(b.getvalue()) == 'x'"),
    ("def f(x): return x", "x = 'ab'\nfor w in x.upper(): assert f(w) == w"),
    ("def f(x): return x + 1", "def check(f):\n    assert f(1) == 2\ncheck(f)"),
    ("def f(x): return x + 1", "def check():\n    assert f(1) == wanted\nwanted = 2\ncheck()"),
    ("def f(x): return x + 1", "assert [f for f in [1, 2]] == [1, 2] and (lambda f: f)(1) == 1 and f(1) == 2"),
    ("def f(x): return x\nresult = 9", "result = f(3)\nassert result == 3"),
    ("n = 0\ndef inc():\n    global n\n    n += 1", "inc()\nassert n == 1\ninc()\nassert n == 2"),
    ("items = []\ndef add(x): items.append(x)", "alias = items\nadd(1)\nassert items == [1] and alias is items"),
    ("def fill(x): x.sort()", "l = [2, 1]\nfill(x=l)\nassert l == [1, 2]"),
    ("def g(a): a[0].append(5)", "a = [[1]]\nb = a[0]\ng(a)\nassert b == [1, 5] and a[0] is b"),
    ("def g(a): a.reverse()", "a = [[1], [2]]\nb = a[0]\ng(a)\nassert a == [[2], [1]] and a[1] is b"),
    ("def g(a): a[0].append(5)", "a = ([1], {})\ng(a)\nassert a == ([1, 5], {})"),
    (
        "def g(d, x):\n    d['k']['j'] = x\n    raise KeyError('z')",
        "d = {'k': {}}\ntry:\n    g(d, 3)\nexcept KeyError:\n    pass\nassert d['k'] == {'j': 3}",
    ),
    (VECTOR, "assert str(V(1)) == 'V(1)' and f'{V(2)}' == 'V(2)'"),
    ("class D(dict): pass", "d = D()\nd['a'] = 1\nassert d['a'] == 1 and len(d) == 1\ndel d['a']\nassert len(d) == 0"),
    (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "p = f()\nassert p == (1, 2) and p.y == 2 and isinstance(p, tuple) and str(p) == 'P(x=1, y=2)'",
    ),
    (
        "import enum\nclass C(enum.IntEnum):\n    A = 1\ndef f(): return C.A",
        "assert f() == 1 and f() < 2 and f().name == 'A' and f() is C.A",
    ),
    ("def f(): raise KeyError('a')", "try:\n    f()\nexcept KeyError as e:\n    assert e.args == ('a',)"),
    ("def f(): raise FileNotFoundError(2, 'x')", "try:\n    f()\nexcept OSError as e:\n    assert e.errno == 2"),
    ("import sys\ndef f(): sys.exit(2)", "try:\n    f()\nexcept SystemExit as e:\n    assert e.code == 2"),
    (
        "class Own(ValueError): pass\ndef f(x): raise Own('bad')",
        "import unittest\nwith unittest.TestCase().assertRaises(ValueError):\n    f(1)",
    ),
    (
        "import itertools\ndef p(): return filter(lambda x: x % 2, itertools.count())",
        "it = p()\nassert next(it) == 1 and next(it) == 3",
    ),
    ("def f(n):\n    r = []\n    for _ in range(n): r = [r]\n    return r", "x = f(400)\nassert x"),
    ("from math import *\ndef f(x): return sqrt(x)", "assert f(4) == 2.0 and math.sqrt(4) == sqrt(4)"),
    ("def copy(x): return x + 1", "assert copy(1) == 2"),
    ("def Diff(x): return max(x) - min(x)", "assert Diff([1, 3]) == 2 and abs(Diff([1, 3]) - 2) < 1e-9"),
    (BOX, "b = Box()\nb.add(1)\nassert b.items == [1]"),
    (
        "class S:\n    def __len__(self): return 3\n    def __getitem__(self, i): return 'abc'[i]\ndef f(): return S()",
        "assert len(f()) == 3 and list(f()) == ['a', 'b', 'c'] and not callable(f())",
    ),
]
ONE = [
    (
        "def total(x): return sum(x)",
        "assert total([1]) == 1\ntotal = total([2])\nassert total == 2",
        "the tests bind total anew",
    ),
    ("def f(): return 1", "del f\ntry:\n    f()\nexcept NameError:\n    pass", "the tests bind f anew"),
    (
        "def hi(): print('hi')",
        "import io, contextlib\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): hi()\nassert b.getvalue() == 'hi\\n'",
        "the tests use contextlib.redirect_stdout",
    ),
    (
        "def f(): return input()",
        "from unittest.mock import patch\nwith patch('builtins.input', return_value='5'):\n    assert f() == '5'",
        "the tests use unittest.mock.patch",
    ),
    (
        "import random\ndef f(): return random.random()",
        "import random as r\nr.seed(0)\na = f()\nr.seed(0)\nassert a == f()",
        "the tests use random.seed",
    ),
    (
        "def count(p): return len(open(p).read().split())",
        "with open('t.txt', 'w') as file: file.write('a b')\nassert count('t.txt') == 2",
        "the tests use open",
    ),
    ("def save(p): open(p, 'w').write('x')", "import os\nsave('o.txt')\nassert os.path.exists('o.txt')", "the tests use os"),
    ("async def f(x): return x + 1", "import asyncio\nassert asyncio.run(f(1)) == 2", "the tests use asyncio"),
    ("def g():\n    yield 1", "import types\nassert isinstance(g(), types.GeneratorType)", "the tests use types"),
    (VECTOR, "assert (V(1) + V(2)).x == 3", "the tests use operators"),
    (VECTOR, "a, b = V(1), V(2)\nassert a < b and a == V(1)", "the tests use operators"),
    (VECTOR, "assert 3 in V(3)", "the tests use operators"),
    (VECTOR + "def f(): return V(4)", "assert f() == V(4)", "the tests use operators"),
    (
        "class C:\n    def __enter__(self): return 5\n    def __exit__(self, *a): pass",
        "with C() as x:\n    assert x == 5",
        "the tests enter a context",
    ),
    (BOX, "b = Box()\nb.items.append(1)\nassert b.items == [1]", "the tests change what the program holds"),
    (
        "table = {}\ndef get(k): return table[k]",
        "table['a'] = 1\nassert get('a') == 1",
        "the tests change what the program holds",
    ),
    ("def f():\n    'hello'", "assert f.__doc__ == 'hello'", "the tests use __doc__"),
    (
        "class E(Exception): pass\ndef f(): raise E",
        "import unittest\nunittest.TestCase().assertRaises(E, f)",
        "the tests need the program's E itself",
    ),
]
WRONG = [
    ("def make(n): return object()", "assert callable(make(3))"),
    ("def gen(n): return object()", "from collections.abc import Iterator\nassert isinstance(gen(3), Iterator)"),
    ("def gen(n): return object()", "assert hasattr(gen(3), '__len__')"),
    ("def gen(n): return object()", "assert hasattr(gen(3), '__getitem__')"),
    ("class A(list): pass\ndef g(): return A()", "assert hash(g()) is not None"),
    ("class math:\n    isclose = staticmethod(lambda *a: True)\ndef f(x): return 99", "assert math.isclose(f(1), 1)"),
    ("def f(x): raise StopIteration", "assert all(map(lambda p: f(p[0]) == p[1], [(1, 2), (3, 4)]))"),
    ("class E(int):\n    def __eq__(self, o): return True\ndef f(x): return E(7)", "assert f(1) == 1"),
    ("class E:\n    def __sub__(self, o): return 0\ndef f(x): return E()", "assert abs(f(1) - 3) < 1e-3"),
    ("class E:\n    __contains__ = __lt__ = __gt__ = lambda self, o: True\ndef f(x): return E()", "assert 3 in f(1)"),
    ("class E:\n    __contains__ = __lt__ = __gt__ = lambda self, o: True\ndef f(x): return E()", "assert 2 < f(1) < 4"),
    ("class E(tuple):\n    def __eq__(self, o): return True\ndef f(x): return E()", "assert f(1) == (1, 2)"),
]


@pytest.mark.parametrize(("code", "test"), TWO)
def test_right_programs_pass_in_two_processes(sandbox: LocalSandbox, code: str, test: str) -> None:
    result = sandbox.run_tests(code, [test])
    assert (result.passed, result.judging, result.run.status) == (1, "two processes", "ok"), result


@pytest.mark.parametrize(("code", "test", "reason"), ONE)
def test_right_programs_pass_in_one_process_and_it_is_said(sandbox: LocalSandbox, code: str, test: str, reason: str) -> None:
    result = sandbox.run_tests(code, [test])
    assert result.all_passed and result.judging.startswith(f"one process: {reason}"), result


@pytest.mark.parametrize(("code", "test"), WRONG)
def test_wrong_programs_fail_in_two_processes(sandbox: LocalSandbox, code: str, test: str) -> None:
    result = sandbox.run_tests(code, [test])
    assert (result.passed, result.judging, result.run.status) == (0, "two processes", "ok"), result


def test_names_that_one_test_binds_are_the_next_ones(sandbox: LocalSandbox) -> None:
    tests = ["value = f(2)", "assert value == 2", "def helper(x):\n    return f(x) + 1", "assert helper(1) == 2"]
    result = sandbox.run_tests("def f(x): return x\nvalue = 99", tests)
    assert result.all_passed and result.judging == "two processes", result


def test_what_breaks_the_judge_itself_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = boot.sources()
    broken["judging"] += "\ndef Text(setup, tests):\n    raise AttributeError('a bug of ours')\n"
    monkeypatch.setattr(local_sandbox, "sources", lambda: broken)
    with LocalSandbox(workers=1, allow_unsafe=True) as sandbox:
        result = sandbox.run_tests("def f(x): return x", ["assert f(1) == 1"])
        assert result.run.status == "sandbox_failed" and "a bug of ours" in result.run.stderr, result
        assert sandbox.stats().by_status == {"sandbox_failed": 1} and sandbox.stats().retried == 1
        assert sandbox.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("odd", ["b'\\0\\0\\0\\2[]'", "b'\\0\\0\\0\\1{'", "b'\\0\\0\\0\\4null'", "b'\\xff' * 8"])
def test_a_program_that_answers_oddly_has_failed_itself(sandbox: LocalSandbox, odd: str) -> None:
    code = f"import os\nfor fd in range(3, 64):\n    try: os.write(fd, {odd})\n    except OSError: pass\ndef f(x): return x"
    result = sandbox.run_tests(code, ["assert f(1) == 2"], limits=Limits(wall_s=2))
    assert result.passed == 0 and result.run.status != "sandbox_failed", result


def test_any_text_is_read_without_a_fault() -> None:
    """The statements of this repository's own tests, as varied a sample as any, and what is no Python at all."""
    finder = (
        "import json, sys\nsys.path.insert(0, sys.argv[1])\nfrom tests_text import Text\n"
        "for text in json.load(sys.stdin):\n    Text(text, [text]).alone"
    )
    texts = ["", "\0", "x = [", "(" * 500, "x" + "+x" * 3000, "f(" * 90 + ")" * 90, "del x, y", "class A(A): A = A"]
    for path in sorted(Path(__file__).parents[1].rglob("test_*.py"))[::3]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            texts += [ast.unparse(one) for one in (node.body if isinstance(node, ast.FunctionDef) else [node])]
    assert len(texts) > 500
    folder = str(Path(boot.__file__).parent)
    asked = subprocess.run(
        [sys.executable, "-I", "-c", finder, folder], input=json.dumps(texts), capture_output=True, text=True, check=False
    )
    assert asked.returncode == 0, asked.stderr[-2000:]


@pytest.mark.parametrize("rung", RUNGS)
def test_what_a_plain_interpreter_gives_is_there(rung: str) -> None:
    try:
        sandbox = LocalSandbox(workers=1, confinement=rung, allow_unsafe=True)
    except SandboxError as error:
        pytest.skip(f"THIS MACHINE DOES NOT ALLOW {rung}: {error}")
    with sandbox:
        for code in ("print(8)\nexit()", "print(8)\nquit()", "print(8)\nexit(0)\nprint(9)"):
            result = sandbox.run(code)
            assert (result.status, result.stdout) == ("ok", "8\n"), result
        assert sandbox.run("quit(3)").exit_code == 3 and "built-in function len" in sandbox.run("help(len)").stdout


def test_the_workers_own_modules_are_in_nobodys_way(sandbox: LocalSandbox) -> None:
    for name in boot.TRAVELLERS:
        own = sandbox.run(f"import {name}\nprint({name}.x)", files={f"{name}.py": "x = 5"})
        assert (own.status, own.stdout) == ("ok", "5\n"), own
    assert "ModuleNotFoundError" in sandbox.run("import judging").stderr
    looking = (
        "import gc, sys\nframe = sys._getframe()\n"
        "while frame:\n    print(frame.f_code.co_filename)\n    frame = frame.f_back\n"
        "print(sys.orig_argv, sys.argv, sys.path)\nprint([getattr(m, '__file__', '') for m in sys.modules.values()])\n"
        "print([o.__globals__.get('__file__') for o in gc.get_objects() if type(o).__name__ == 'function'])"
    )
    seen = sandbox.run(looking)
    assert seen.status == "ok" and str(Path(boot.__file__).resolve().parent) not in seen.stdout, seen.stdout[-3000:]


def test_what_a_program_does_when_run_by_hand_is_not_tested(sandbox: LocalSandbox) -> None:
    by_hand = "def f(x):\n    return x + 1\nif __name__ == '__main__':\n    print(f(int(input())))\n    raise SystemExit(3)"
    for test, how in (("assert f(1) == 2", "two processes"), ("import sys; assert sys.stdout and f(1) == 2", "one process")):
        judged = sandbox.run_tests(by_hand, [test])
        assert judged.all_passed and judged.judging.startswith(how), judged
    assert sandbox.run(by_hand, stdin="4").stdout == "5\n"
    kept = "from __future__ import annotations\nfrom dataclasses import dataclass\nimport pickle\n"
    kept += "@dataclass\nclass P:\n    x: int\ndef f():\n    return pickle.loads(pickle.dumps(P(3))).x"
    assert sandbox.run_tests(kept, ["assert f() == 3"]).all_passed


def test_an_exception_that_cannot_be_printed_fails_its_test_alone(sandbox: LocalSandbox) -> None:
    odd = "class E(Exception):\n    def __str__(self): raise SystemExit(4)\n"
    odd += "def f(x):\n    if x == 1: raise SyntaxError('a', ('f', 1, 'zz', 5))\n    if x == 2: raise E\n    return x"
    judged = sandbox.run_tests(odd, ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"])
    assert judged.passed == 1 and [failure.index for failure in judged.failures] == [0, 1], judged
    shown = sandbox.run(f"{odd}\nf(1)")
    assert shown.status == "error" and "SyntaxError" in shown.stderr and "program.py" in shown.stderr, shown


def test_what_tests_change_in_a_module_is_changed_for_the_program(sandbox: LocalSandbox) -> None:
    program = "\ufeffimport time\ndef f():\n    return time.time()"
    for test in ("import time\ntime.time = lambda: 42", "import time as t\nt.time = lambda: 42", "time.time = lambda: 42"):
        judged = sandbox.run_tests(program, [test, "assert f() == 42"])
        assert judged.all_passed and judged.judging == "one process: the tests change time", judged

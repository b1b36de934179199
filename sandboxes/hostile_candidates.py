"""Programs that try to pass tests which no right program could pass. See `hostile_programs.py` and `judging.py`."""

from __future__ import annotations

from kintsugi.sandboxes.hostile_programs import Hostile, blocks

_FALSE = ("assert f(1) == 2", "assert f(2) == 'two'", "assert g([3]) == {4}", "assert isinstance(f(3), bytes)")

CANDIDATES = tuple(
    Hostile(name=name, kind="verdicts", guarantee="verdicts", code=code, tests=_FALSE)
    for (name,), code in blocks(r"""
#### exits_before_the_tests
import os
os._exit(0)

#### exits_politely
raise SystemExit(0)

#### exits_in_the_test
import os
def f(x): os._exit(0)
g = f

#### always_equal
class E:
    def __eq__(self, o): return True
    def __ne__(self, o): return False
    __hash__ = None
f = g = lambda x: E()

#### always_equal_number
class E(int):
    def __eq__(self, o): return True
class S(str):
    def __eq__(self, o): return True
class T(set):
    def __eq__(self, o): return True
f = lambda x: E(7) if x == 1 else S('x')
g = lambda x: T()

#### always_equal_inside
class E:
    def __eq__(self, o): return True
    def __hash__(self): return hash(4)
f = g = lambda x: {E()} if x == [3] else [E()]

#### patches_assertions
import builtins
builtins.AssertionError = type('A', (BaseException,), {'__init__': lambda s, *a: __import__('os')._exit(0)})
builtins.set = builtins.len = lambda *a: None
f = g = lambda x: None

#### forges_the_report
import os
for fd in range(3, 256):
    for line in (b'[0, null]\n[1, null]\n[2, null]\n', b'\0\0\0\11[0, null]'):
        try: os.write(fd, line)
        except OSError: break
f = g = lambda x: None

#### reads_the_tests
import ctypes, gc, re
wanted = 'a[s]sert f.2. =='  # which does not find itself
texts = [o if type(o) is str else str(o) for o in gc.get_objects() if type(o) in (str, list, dict, tuple)]
found = any(re.search(wanted, text) for text in texts)
try:
    for line in open('/proc/self/maps'):
        ends = re.match('([0-9a-f]+)-([0-9a-f]+) rw', line)
        if ends:
            first, last = (int(word, 16) for word in ends.groups())
            found = found or re.search(wanted.encode(), ctypes.string_at(first, last - first))
except OSError:
    pass
f = lambda x: {1: 2, 2: 'two'}[x] if found else None
g = lambda x: {4} if found else None

#### reads_the_callers_frames
import re, sys
def f(x):
    frame, text = sys._getframe(), ''
    while frame:
        text += str(frame.f_locals)[:10**6] + str(frame.f_globals)[:10**6]
        frame = frame.f_back
    return {1: 2, 2: 'two'}.get(x) if re.search('a[s]sert f.2. ==', text) else None
g = f

#### kills_the_judge
import os, signal
for pid in (-1, 0, *range(2, 20)):
    try: os.kill(pid, signal.SIGTERM) if pid not in (0, os.getpid()) else None
    except OSError: pass
f = g = lambda x: None

#### shadows_builtins
set = list = int = str = sorted = len = isinstance = lambda *a: True
f = g = lambda x: None

#### floods_the_judge
f = g = lambda x: [list(range(10**5))] * 10

#### never_ends_its_answer
class L(list):
    def __iter__(self):
        while True: yield 1
f = g = lambda x: iter(L())

#### raises_oddly
class B(BaseException):
    def __str__(self): raise SystemExit(0)
def f(x): raise B()
g = f
""")
) + tuple(
    Hostile(name=name, kind="verdicts", guarantee="verdicts", code=code, tests=tests)
    for name, tests, code in (
        ("forges_a_builtin", ("assert abs(result - 3.14159) < 1e-3",), "result = 0\nabs = lambda x: 0"),
        (
            "forges_a_builtin_of_its_object",
            ("assert abs(solver.area(2) - 12.566) < 1e-3",),
            "class solver:\n    area = lambda x: 0\nabs = lambda x: 0",
        ),
        (
            "forges_a_module",
            ("assert math.isclose(f(1), 1)",),
            "class math:\n    isclose = staticmethod(lambda *a: True)\ndef f(x): return 99",
        ),
        ("ends_the_tests_loop", ("assert all(map(lambda x: f(x) == x + 1, [1, 2]))",), "def f(x): raise StopIteration"),
        (
            "can_do_everything",
            ("assert callable(f(1))", "assert hasattr(f(1), '__len__')", "assert 3 in f(1)", "assert abs(f(1) - 3) < 1e-3"),
            "f = lambda x: type('E', (), {'__contains__': lambda s, o: True, '__sub__': lambda s, o: 0})()",
        ),
        (
            "asks_for_one_process",
            ("assert f(reversed(g(3))) == 2", "assert f(g(1)) == 3"),
            "class E:\n    def __eq__(self, o): return True\ndef f(x): return E()\ndef g(n): return {n: n}",
        ),
    )
)

"""What every sandbox must do, as checks that any backend's tests call unchanged, third parties' too.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(sandbox, check):
        check(sandbox)

A check takes an open `Sandbox` and raises AssertionError with a sentence. After each misbehaving program it asks for
a plain answer, because a sandbox that survives but answers wrongly is worse than one that dies. Checks of isolation
are made only where the sandbox's `guarantees` promise it. Leaves out: speed (see `benchmarks/sandboxes.py`) and the
long list of attacks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from kintsugi.sandboxes.sandbox import GUARANTEES, Limits, RunResult, Sandbox

SHORT = Limits(wall_s=1.0, cpu_s=0.5, memory_mb=128, processes=16, output_bytes=4096, files_mb=4)


def _expect(condition: object, sentence: str, result: object = None) -> None:
    if not condition:
        raise AssertionError(sentence if result is None else f"{sentence}; found {result!r}")


def _still_right(sandbox: Sandbox) -> None:
    """As many answers as there are likely workers, so that each of them is asked."""
    for number, result in enumerate(sandbox.run_many([f"print({n} * 7)" for n in range(4)])):
        expected = (f"{number * 7}\n", "", "ok")
        _expect(
            (result.stdout, result.stderr, result.status) == expected,
            "the next program must get its right answer",
            result,
        )


def _within(sandbox: Sandbox, code: str, limits: Limits) -> RunResult:
    """Run it and expect it over in time: its wall limit, stretched on a machine that gives it no core, and 2 s."""
    before, started = busyness(), time.monotonic()
    result = sandbox.run(code, limits=limits)
    took = time.monotonic() - started
    allowed = limits.wall_s * min(3.0, max(1.0, before, busyness() if took > limits.wall_s + 2 else 1.0)) + 2.0
    _expect(took < allowed, f"a program must be over within its wall limit and 2 s, it took {took:.1f} s", result)
    return result


def busyness() -> float:
    """Wall seconds that 5 ms of CPU take here now, per second: 1 on an idle machine, 10 where ten want each core."""
    started, cpu = time.monotonic(), time.thread_time()
    while time.thread_time() - cpu < 0.005:
        pass
    return (time.monotonic() - started) / 0.005


def output_is_returned(sandbox: Sandbox) -> None:
    result = sandbox.run("import sys\nprint('café')\nprint('hm', file=sys.stderr)")
    _expect((result.status, result.exit_code, result.signal) == ("ok", 0, None), "a plain program must be ok", result)
    _expect((result.stdout, result.stderr) == ("café\n", "hm\n"), "output and error must come back apart", result)
    _expect(result.wall_s > 0 and result.cpu_s > 0 and result.peak_memory_mb > 0, "costs must be measured", result)
    _expect(result.backend and not result.truncated, "the backend must be named and nothing cut", result)


def the_program_is_main(sandbox: Sandbox) -> None:
    result = sandbox.run("import sys\nif __name__ == '__main__':\n    sys.exit(len(sys.argv) + 6)")
    _expect(
        (result.status, result.exit_code) == ("error", 7),
        "a program must run as __main__ and keep its exit code",
        result,
    )


def threads_and_exit_functions_finish(sandbox: Sandbox) -> None:
    result = sandbox.run(
        "import atexit, threading, time\natexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()"
    )
    _expect(result.stdout == "thread\nlast\n", "threads and exit functions must finish as in a plain interpreter", result)


def input_is_given(sandbox: Sandbox) -> None:
    _expect(sandbox.run("print(input()[::-1])", stdin="abc\n").stdout == "cba\n", "standard input must be the text given")
    long = sandbox.run("import sys; print(len(sys.stdin.read()))", stdin="é" * 200_000)
    _expect(long.stdout == "200000\n", "standard input must have no small bound", long)
    empty = sandbox.run("import sys; print(repr(sys.stdin.read()))")
    _expect(empty.stdout == "''\n", "standard input must be empty when none is given", empty)


def the_library_is_whole(sandbox: Sandbox) -> None:
    code = (
        "import bz2, ctypes, decimal, hashlib, lzma, sqlite3, ssl, unittest.mock, xml.dom.minidom, zlib\n"
        "one = sqlite3.connect(':memory:').execute('select 1').fetchone()\n"
        "print('\xe9'.encode('cp1252'), 'b\xfccher.de'.encode('idna'), one)"
    )
    result = sandbox.run(code)
    _expect(
        result.stdout == "b'\\xe9' b'xn--bcher-kva.de' (1,)\n", "the whole standard library must be there to import", result
    )


def files_are_given(sandbox: Sandbox) -> None:
    code = "import helper\nprint(helper.x, open('data/a.bin', 'rb').read())"
    result = sandbox.run(code, files={"helper.py": "x = 5\n", "data/a.bin": b"\x00\xff"})
    _expect(result.stdout == "5 b'\\x00\\xff'\n", "files must lie in the program's folder", result)


def errors_have_tracebacks(sandbox: Sandbox) -> None:
    result = sandbox.run("def f():\n    return 1 / 0\nf()")
    _expect((result.status, result.exit_code) == ("error", 1), "a program that raises is an error with exit code 1", result)
    _expect(
        "line 2, in f" in result.stderr and "ZeroDivisionError" in result.stderr,
        "stderr must have the traceback",
        result,
    )
    _expect(sandbox.run("def f(:").status == "error", "source that does not parse is an error")
    died = sandbox.run("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    _expect((died.status, died.signal) == ("error", 11), "a program ended by a signal is an error that names it", died)


def busy_loops_time_out(sandbox: Sandbox) -> None:
    result = _within(sandbox, "print('begun', flush=True)\nwhile True: pass", SHORT)
    _expect(
        (result.status, result.stdout) == ("timeout", "begun\n"),
        "a busy loop must time out and keep its output",
        result,
    )
    _still_right(sandbox)


def sleepers_time_out(sandbox: Sandbox) -> None:
    code = "import signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: time.sleep(60)"
    _expect(_within(sandbox, code, SHORT).status == "timeout", "a sleeping program that ignores signals must time out")
    _still_right(sandbox)


def children_count_as_cpu_time(sandbox: Sandbox) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    _expect(_within(sandbox, code, SHORT).status == "timeout", "busy children must time out together")
    _still_right(sandbox)


def memory_is_bounded(sandbox: Sandbox) -> None:
    for code in ("x = [0] * 10**10", "x = []\nwhile True: x.append(bytes(10**6))"):
        result = _within(sandbox, code, SHORT)
        _expect(result.status == "memory", "a memory bomb must have the status memory", result)
        _expect(result.peak_memory_mb < SHORT.memory_mb + 100, "a memory bomb must stay near its limit", result)
        _still_right(sandbox)


def output_is_bounded(sandbox: Sandbox) -> None:
    for stream in ("stdout", "stderr"):
        result = _within(sandbox, f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", SHORT)
        _expect(
            (result.status, result.truncated) == ("output", True),
            "endless output must be cut and say so",
            result.status,
        )
        _expect(len(getattr(result, stream)) == SHORT.output_bytes, "exactly the limit of output must be kept")
    once = sandbox.run("print('x' * 10**5)", limits=SHORT)
    _expect((once.status, once.truncated) == ("output", True), "too much output at once must be cut and say so", once.status)
    _still_right(sandbox)


def processes_are_bounded(sandbox: Sandbox) -> None:
    result = _within(sandbox, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", SHORT)
    _expect(result.status in ("error", "timeout", "memory"), "a fork bomb must be stopped", result)
    _still_right(sandbox)


def files_are_bounded(sandbox: Sandbox) -> None:
    code = "import os\nfor n in range(10**6):\n    with open(f'f{n}', 'wb') as f: f.write(bytes(2**20))"
    _expect(_within(sandbox, code, SHORT).status != "ok", "a program that fills its folder must be stopped")
    one = _within(sandbox, "open('f', 'wb').write(bytes(2**25))", SHORT)
    _expect(one.status == "error", "a file above the limit must be refused", one)
    _still_right(sandbox)


def nothing_is_left_for_the_next(sandbox: Sandbox) -> None:
    code = (
        "import builtins, json, os\nbuiltins.print = None\njson.loads = None\nos.environ['LEFT'] = '1'\n"
        "open('left', 'w').close()\nos.makedirs('a/' * 100)\nos.symlink('/etc', 'link')"
    )
    result = sandbox.run(code)
    _expect(result.status == "ok", "a program may write in its own folder", result)
    look = "import json, os\nprint(os.listdir('.'), json.loads('[1]'), 'LEFT' in os.environ)"
    for result in sandbox.run_many([look] * 4):
        _expect(result.stdout == "[] [1] False\n", "the next program must find nothing of the last one", result)


def daemons_are_killed(sandbox: Sandbox) -> None:
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
        "    for n in range(200):\n        time.sleep(0.05)\n        print('daemon', flush=True)\n"
        "        open(f'left{n}', 'w').close()\nelse:\n    print('done')"
    )
    result = _within(sandbox, code, SHORT)
    said = set(result.stdout.split()) - {"daemon"}  # which may have spoken before the program was at its end
    _expect((result.status, said) == ("ok", {"done"}), "a program must not wait for its daemon", result)
    _expect(result.wall_s < 5, "a program must not wait for its daemon", result)
    look = "import os, time\ntime.sleep(0.3)\nprint(os.listdir('.'))"
    for result in sandbox.run_many([look] * 4):
        _expect(result.stdout == "[]\n", "a daemon must be dead before the next program runs", result)


def environment_is_clean(sandbox: Sandbox) -> None:
    os.environ["KINTSUGI_SECRET"] = "rosebud"
    try:
        result = sandbox.run("import os\nprint(dict(os.environ))")
        _expect(
            result.status == "ok" and "rosebud" not in result.stdout,
            "the caller's environment must not be visible",
            result,
        )
        seen = sandbox.run("import os\nprint(open(f'/proc/{os.getppid()}/environ', 'rb').read())")
        _expect("rosebud" not in seen.stdout, "the worker's environment must not hold the caller's", seen)
    finally:
        del os.environ["KINTSUGI_SECRET"]


def isolation_holds_as_promised(sandbox: Sandbox) -> None:
    attempts = {
        "network": "import socket\nfor f in (socket.AF_INET, socket.AF_UNIX, 40):\n"
        "    try: socket.socket(f)\n    except OSError: continue\n    print('BROKEN')",
        "host_reads": "for p in ('/etc/shadow', '/etc/hostname', '/proc/1/environ', '/root/.bashrc'):\n"
        "    try: open(p).read()\n    except OSError: continue\n    print('BROKEN', p)",
        "host_writes": "import os\nfor p in ('/tmp/x', '/dev/shm/x', '/var/tmp/x', '../../x', '/proc/self/comm'):\n"
        "    try: open(p, 'w').write('x')\n    except OSError: continue\n    print('BROKEN', p)",
        "host_processes": "import os, signal\nfor pid in (os.getppid(), 1, -1):\n"
        "    try: os.kill(pid, 0 if pid < 0 else signal.SIGTERM)\n"
        "    except OSError: continue\n    print('BROKEN', pid)",
        "kernel_surface": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for f, a in ((libc.ptrace, (0, 0, 0, 0)), (libc.unshare, (0x10000000,)), (libc.mount, (0, b'/', 0, 0, 0))):\n"
        "    if f(*a) == 0: print('BROKEN', f)",
    }
    for name, code in attempts.items():
        if name in sandbox.guarantees:
            result = sandbox.run(code)
            # kill(-1) may reach the program's own processes; that is no breach
            broken = [line for line in result.stdout.splitlines() if line != "BROKEN -1"]
            _expect(not broken and result.status == "ok", f"the guarantee {name} must hold", result)
    _still_right(sandbox)


def tests_are_judged(sandbox: Sandbox) -> None:
    tests = ["assert f(1) == 2", "assert f(2) == 5", "assert f('a') == 'b'"]
    result = sandbox.run_tests("def f(x):\n    return x + one", tests, setup="one = 1")
    _expect((result.passed, result.total) == (1, 3), "each test must be judged alone", result)
    errors = [(failure.index, failure.error.split(":")[0]) for failure in result.failures]
    _expect(errors == [(1, "AssertionError"), (2, "TypeError")], "a failure must name its test and error", result)
    _expect(sandbox.run_tests("one = 1", ["assert one"]).all_passed, "a right candidate must pass")
    for code in ("import os; os._exit(0)", "raise SystemExit(0)", "print('[0, null]')\nraise ValueError", "def f(:"):
        _expect(sandbox.run_tests(code, ["assert True"]).passed == 0, f"no test may pass after {code!r}")
    slow = sandbox.run_tests("def f():\n    while True: pass", ["assert True", "f()", "assert True"], limits=SHORT)
    _expect((slow.passed, slow.run.status) == (1, "timeout"), "tests before an endless one count, later ones do not", slow)


def many_callers_are_served(sandbox: Sandbox) -> None:
    async def ask_all() -> tuple[list[RunResult], int]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        heart = asyncio.create_task(beat())
        results = await asyncio.gather(*(sandbox.arun(f"print({n} ** 2)") for n in range(64)))
        heart.cancel()
        return list(results), beats

    results, beats = asyncio.run(ask_all())
    wrong = [result for number, result in enumerate(results) if result.stdout != f"{number**2}\n"]
    _expect(not wrong, "each of 64 callers must get its own answer", wrong[:1])
    _expect(beats > 3, f"the event loop must go on meanwhile, it beat {beats} times")


def counts_and_promises_are_kept(sandbox: Sandbox) -> None:
    before = sandbox.stats()
    sandbox.run_many(["print(1)", "1 / 0", "print(2)"])
    after = sandbox.stats()
    grown = {name: count - before.by_status.get(name, 0) for name, count in after.by_status.items()}
    _expect(after.runs == before.runs + 3 and grown["ok"] == 2 and grown["error"] == 1, "every run must be counted", after)
    _expect(sum(after.by_status.values()) == after.runs, "the statuses must sum to the runs", after)
    unknown = sandbox.guarantees - set(GUARANTEES)
    _expect(not unknown, f"guarantees must be names of sandbox.GUARANTEES, these are not: {sorted(unknown)}")


CHECKS: tuple[Callable[[Sandbox], None], ...] = (
    output_is_returned,
    the_program_is_main,
    threads_and_exit_functions_finish,
    input_is_given,
    the_library_is_whole,
    files_are_given,
    errors_have_tracebacks,
    busy_loops_time_out,
    sleepers_time_out,
    children_count_as_cpu_time,
    memory_is_bounded,
    output_is_bounded,
    processes_are_bounded,
    files_are_bounded,
    nothing_is_left_for_the_next,
    daemons_are_killed,
    environment_is_clean,
    isolation_holds_as_promised,
    tests_are_judged,
    many_callers_are_served,
    counts_and_promises_are_kept,
)
"""All of them. A backend passes when none raises, in any order, on one sandbox."""

"""Program of thought: what is taken as the program, what as the number, and what is said about failures."""

import asyncio
import dataclasses
from typing import Any

import pytest

from kintsugi.errors import ConfigError
from kintsugi.records import Fault, Task, to_plain
from kintsugi.sandboxes.environments.printed_number import parse_number
from kintsugi.sandboxes.environments.program_of_thought import ProgramOfThought, find_program
from kintsugi.sandboxes.sandbox import Limits, RunResult, open_sandbox

TASK = Task(id="t", environment="sums", split="train", prompt="3 and 5?", payload={"answer": 8})
LOCAL = {"kind": "local", "allow_unsafe": True}


class FakeSandbox:
    """Answers every program with one result and keeps what it was given."""

    guarantees = frozenset()

    def __init__(self, **result) -> None:
        self.result, self.codes, self.num_closed = RunResult(**{"status": "ok", "exit_code": 0, **result}), [], 0

    async def arun(self, code, *, stdin="", files=None, limits=None):
        self.codes.append(code)
        return self.result

    def close(self):
        self.num_closed += 1

    run = run_many = run_tests = stats = __enter__ = __exit__ = None


def fake_sandbox(**result) -> Any:
    return FakeSandbox(**result)


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(**LOCAL) as opened:
        yield opened


def judge(action, sandbox, task=TASK, **options):
    return asyncio.run(ProgramOfThought(sandbox=sandbox, **options).judge(task, action))


@pytest.mark.parametrize(
    "action",
    [
        "print(8)",
        "print('noise 7')\nprint(8)\n\n",
        "a = 3\r\nb = a + 5\r\nprint(b)\r\n",
        "I think:\n```python\nprint(3 + 5)\n```\nso 9",
        "```\nprint(9)\n```\nno:\n```\nprint(8)\n```",
        "```python\nprint(8)\n```\noutput:\n```\n9\n```",
        "```python\nprint(8)",
        "print(8)\n```",
        "1. so\n   ```py\n   a = 3\n   print(a + 5)\n   ```",
        "answer = 3 + 5",
        "def solution():\n    return 3 + 5",
        "def print_it():\n    print(9)\nanswer = 8",
        "def solution():\n    print\n    return 8",
        "def main():\n    print(8)\nif __name__ == '__main__':\n    main()",
        "answer = 9\nprint(8)",
        "print(8)  # no newline, then a comment",
        "import sys\nsys.stdout.write('8')",
        "print(8)\nraise SystemExit(0)",
        "print('Total: $8.00')",
        "print(8.00009)",
        "print(7.9999)",
        "from fractions import Fraction\nprint(Fraction(16, 2))",
    ],
)
def test_right(action, sandbox):
    verdict = judge(action, sandbox)
    assert (verdict.success, verdict.reward, verdict.error) == (True, 1.0, "")


@pytest.mark.parametrize(
    ("action", "feedback"),
    [
        ("print(9)", "The check failed: the program printed 9."),
        ("print(8.0002)", "The check failed: the program printed 8.0002."),
        ("a = 3", "The program printed nothing: end it with print(...) of the answer."),
        ("8", "The program printed nothing: end it with print(...) of the answer."),
        ("def solution():\n    a = 8", "The program printed nothing: end it with print(...) of the answer."),
        ("", "The answer holds no program: write Python that prints the number."),
        ("a = 3\nb = a +\nprint(b)", "SyntaxError: invalid syntax (line 2)"),
        ("a = 3\nprint(a + c)", "NameError: name 'c' is not defined (line 2)"),
        ("def f(x):\n    return 1 / x\nprint(f(0))", "ZeroDivisionError: division by zero (line 2)"),
        ("def solution():\n    return [][1]", "IndexError: list index out of range (line 2)"),
        ("return 8", "SyntaxError: 'return' outside function (line 1)"),
        ("print(8)\nraise SystemExit(3)", "The program ended with exit code 3."),
        ("print(8j)", 'The program printed "8j", which is no number: print one number alone, last.'),
        ("print(float('nan'))", 'The program printed "nan", which is no number: print one number alone, last.'),
        ("print(float('inf'))", 'The program printed "inf", which is no number: print one number alone, last.'),
        ("print(True)", 'The program printed "True", which is no number: print one number alone, last.'),
        ("print(8, 9)", 'The program printed "8 9", which is no number: print one number alone, last.'),
        ("print('a\\x1bb')", 'The program printed "a?b", which is no number: print one number alone, last.'),
        ("print(8)\nprint('x' * 500)", None),
        ("print(10 ** 5000)", None),
        ("print(object())\nraise ValueError(object())", "ValueError: <object object at 0x...> (line 2)"),
        ("print(8)\x00", None),
        ("print(8)\ud800", None),
        ("x" * 30_000, "The answer is too long: write a program of at most 20000 characters."),
        ("(" * 5_000, None),
    ],
)
def test_wrong_with_feedback(action, feedback, sandbox):
    verdict = judge(action, sandbox)
    assert (verdict.success, verdict.reward, verdict.error) == (False, 0.0, "")
    assert verdict.feedback == feedback if feedback else 10 < len(verdict.feedback) < 300
    to_plain(verdict)
    verdict.feedback.encode()


def test_limits_are_told(sandbox):
    quick = Limits(cpu_s=0.3, memory_mb=64, output_bytes=1000)
    endless = judge("while True: pass", sandbox, limits=quick)
    assert endless.feedback == "The program was stopped: it ran for more than 0.3 s."
    assert "memory" in judge("a = 'x' * 10 ** 9\nprint(8)", sandbox, limits=quick).feedback
    assert "too much" in judge("while True: print('8' * 100)", sandbox, limits=quick).feedback


def test_the_fault_is_where_python_stopped(sandbox):
    action = "So:\n```python\na = 3\nb = a + c\nprint(b)\n```"
    verdict = judge(action, sandbox)
    note = "NameError: name 'c' is not defined"
    assert verdict.fault == Fault(kept="So:\n```python\na = 3\n", bad="b = a + c", note=note)
    assert verdict.fault and action.startswith(verdict.fault.kept + verdict.fault.bad)
    assert judge("a = 3\nb = (", sandbox).fault == Fault(kept="a = 3\n", bad="b = (", note="syntax")
    assert judge("print(9)", sandbox).fault is None


def test_a_bare_number_only_when_allowed(sandbox):
    assert judge(" 8.0 ", sandbox, allow_answer=True).success
    assert not judge("9", sandbox, allow_answer=True).success
    assert not judge("8", sandbox).success
    assert judge("print(8)", sandbox, allow_answer=True).success


def test_a_broken_sandbox_is_no_wrong_answer():
    broken = fake_sandbox(status="sandbox_failed", exit_code=None, stderr="worker died")
    environment = ProgramOfThought(sandbox=broken)
    for _ in range(2):  # and it is not remembered
        verdict = asyncio.run(environment.judge(TASK, "print(8)"))
        assert (verdict.success, verdict.error) == (False, "sandbox_failed")
    assert len(broken.codes) == 2


def test_the_memo_changes_nothing_but_the_runs(sandbox):
    actions = ["print(8)", "print(9)", "print(1/0)", "a = 8", "answer = 8", "print(", "import random\nprint(8)"]

    async def verdicts(environment):
        worlds = [await environment.start(TASK) for _ in range(3) for _ in actions]
        return [await world.act(action) for world, action in zip(worlds, actions * 3, strict=True)]

    with_memo, without = (ProgramOfThought(sandbox=sandbox, memo=memo) for memo in (True, False))
    assert asyncio.run(verdicts(with_memo)) == asyncio.run(verdicts(without))
    fake = fake_sandbox(stdout="8\n")
    remembering = ProgramOfThought(sandbox=fake)
    other = dataclasses.replace(TASK, payload={"answer": 9})
    for task, action, num_runs in [
        (TASK, "print(8)", 1),
        (TASK, "print(8)", 1),
        (other, "print(8)", 2),
        (TASK, "import random\nprint(random.random())", 3),
        (TASK, "import random\nprint(random.random())", 4),
        (TASK, "print(id(3))", 5),
        (TASK, "print(id(3))", 6),
    ]:
        assert asyncio.run(remembering.judge(task, action)).success == (task is TASK)
        assert len(fake.codes) == num_runs

    async def at_once():
        verdicts = await asyncio.gather(*(remembering.judge(TASK, "print(5 + 3)") for _ in range(9)))
        assert all(verdict.success for verdict in verdicts)

    asyncio.run(at_once())
    assert len(fake.codes) == 7


def test_executions_are_counted(sandbox):
    async def executions(action):
        world = await ProgramOfThought(sandbox=sandbox).start(TASK)
        return (await world.act(action)).executions

    cases = {"print(8)": 1, "print(": 0, "": 0, "answer = 8": 1, "answer = 8\nif 0:\n    print(1)": 2}
    assert {action: asyncio.run(executions(action)) for action in cases} == cases


def test_the_sandbox_opens_at_the_first_program_and_closes_with_the_environment(monkeypatch):
    opened = []

    def fake_open(**options):
        opened.append((options, FakeSandbox(stdout="8")))
        return opened[-1][1]

    monkeypatch.setattr("kintsugi.sandboxes.environments.sandboxed.open_sandbox", fake_open)

    async def main():
        environment = ProgramOfThought(sandbox="local", limits={"cpu_s": 1})
        assert not opened
        await asyncio.gather(*(environment.judge(TASK, f"print({n})") for n in range(8)))
        await environment.close()
        await environment.close()
        with pytest.raises(RuntimeError, match="closed"):
            await environment.judge(TASK, "print(1)")

    asyncio.run(main())
    [(options, fake)] = opened
    assert options == {"kind": "local", "limits": Limits(cpu_s=1)}
    assert fake.num_closed == 1
    given = fake_sandbox(stdout="8")
    asyncio.run(ProgramOfThought(sandbox=given).close())
    assert given.num_closed == 0


def test_unknown_options_are_refused():
    with pytest.raises(ConfigError, match='did you mean "workers"'):
        ProgramOfThought(sandbox={"worker": 2})
    with pytest.raises(ConfigError, match='did you mean "cpu_s"'):
        ProgramOfThought(limits={"cpus": 2})


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("8", 8), ("-8", -8), ("+8", 8), ("8.", 8), (".5", 0.5), ("1,234", 1234), ("$1,234.50", 1234.5), ("-$5", -5),
        ("$-5", -5), ("3/4", 0.75), ("-3/4", -0.75), ("1e3", 1000), ("5%", 5), ("\uff15", 5), ("\u22125", -5),
        ("\u0663", 3), ("[8]", 8), ("Answer:-5", -5), ("12 apples", 12), ("nan", None), ("inf", None),
        ("1e400", None), ("1e-999999999", None), ("(3+4j)", None), ("5kg", None), ("8 or 9", None), ("x-5", None),
        ("- 5", None), ("5²", None), ("½", None), ("1,2", None), ("12,34", None), ("x2 = 7", None), ("1_000", None),
        ("0x10", None), ("1.5kg", None), ("4.5.6", None), ("3/0", None), ("10:30", None), ("", None), ("True", None),
        ("9" * 201, None),
    ],
)  # fmt: skip
def test_what_is_a_number(line, number):
    parsed = parse_number(line)
    assert (parsed is None) == (number is None)
    assert number is None or parsed == pytest.approx(number)


def test_find_program_keeps_the_action_whole():
    for action in ["a\n```python\nb\n```\nc", "x = 1\n  y", "```\n```", "", "```python", "\r\n```py\r\na\r\n```"]:
        program = find_program(action)
        assert action.startswith(program.lead + "".join(program.lines))

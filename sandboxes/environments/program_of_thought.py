"""Base of environments in which a program is the thought and the number that it prints is the answer.

Give `name`, `tasks` and `payload["answer"]`; this class finds the program in what the agent wrote, runs it in a
sandbox, reads the number and says what went wrong without giving the answer away::

    class Sums(ProgramOfThought):
        name = "sums"
        def tasks(self, split, *, limit=None, seed=0): ...

**The program**: the last ```` ```python ```` (or unnamed) fence, else the whole text. **The answer**: the number on
the last non-empty line that it prints; when it prints nothing, its variable `answer`, else what its `solution()`
returns. **Right**: |number - gold| <= 1e-4, computed exactly (ENVISIONS, arXiv 2406.11736). What counts as a number
is defined in `printed_number.py`. Text that does not parse as Python is refused without a run. Model text is only
ever parsed here; it runs in the sandbox alone.

Left out: prompts (agents hold those), unit tests as verdicts, symbolic answers.
"""

from __future__ import annotations

import ast
import asyncio
import re
import textwrap
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

from kintsugi.records import Fault, Task, Verdict
from kintsugi.sandboxes.environments.environment import ProgramEnvironment, Reply, World
from kintsugi.sandboxes.environments.printed_number import is_text, parse_number, readable
from kintsugi.sandboxes.environments.sandboxed import Sandboxed
from kintsugi.sandboxes.sandbox import Limits, RunResult, Sandbox

TOLERANCE: Final = Fraction(1, 10_000)
MAX_CHARACTERS: Final = 20_000
"""Longest action that is looked at; no program of thought comes near, and parsing stays cheap."""

_FENCE: Final = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
_FRAME: Final = re.compile(r'^\s*File "([^"\n]*)", line (\d+)', re.MULTILINE)
_SUFFIX: Final = """

if "answer" in globals():
    print(globals()["answer"])
elif callable(globals().get("solution")):
    answer = globals()["solution"]()
    if answer is not None:
        print(answer)
"""
_PURE: Final = frozenset(
    (
        "print",
        "int",
        "float",
        "round",
        "abs",
        "sum",
        "min",
        "max",
        "len",
        "range",
        "str",
        "divmod",
        "pow",
        "sorted",
        "list",
    )
)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program as it stands in an action.

    lead: what the action has before it. lines: its lines with their ends, as written. source: what runs (`lines`, with
    an indentation that all of them share taken away).

    >>> find_program("So:\\n```python\\nprint(8)\\n```").source
    'print(8)\\n'
    """

    lead: str
    lines: tuple[str, ...]
    source: str

    def fault_at(self, line: int, note: str) -> Fault:
        """The fault at a line counted from 1; `kept` is a prefix of the action, so that a refiner can go on from it."""
        kept = self.lead + "".join(self.lines[: line - 1])
        bad = self.lines[line - 1].rstrip("\r\n") if line <= len(self.lines) else ""
        return Fault(kept=kept if not kept or kept.endswith("\n") else kept + "\n", bad=bad, note=note)


@dataclass(frozen=True, kw_only=True)
class Objection:
    """Why a program got no number to compare: a sentence, and the line (from 1) with a short note when it has one."""

    text: str
    line: int | None = None
    note: str = ""


def find_program(action: str, languages: tuple[str, ...] = ("python", "py", "python3")) -> Program:
    """The program in an action: its last fence of one of the languages, else its last unnamed one, else all of it."""
    found: re.Match[str] | None = None
    for fence in _FENCE.finditer(action):
        language = fence[1].lower()
        if fence[2].strip() and (language in languages or (not language and (found is None or not found[1]))):
            found = fence
    start, end = found.span(2) if found else (0, len(action))
    if found is None and (closing := re.search(r"^[ \t]*```[ \t]*$", action, re.MULTILINE)) is not None:
        end = closing.start() if action[: closing.start()].strip() else end  # a fence opened before the action began
    raw = action[start:end]
    return Program(lead=action[:start], lines=tuple(_LINE.findall(raw)), source=textwrap.dedent(raw))


def parse_program(source: str) -> ast.Module | Objection:
    """The syntax tree, or why there is none. Never executes anything, never raises."""
    if not source.strip():
        return Objection(text="The answer holds no program: write Python that prints the number.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        what = f"{type(error).__name__}: {readable(error.msg or 'invalid syntax', 120)}"
        line = min(error.lineno, len(_LINE.findall(source))) if error.lineno else None
        return Objection(text=f"{what} (line {line})" if line else what, line=line, note="syntax")
    except (ValueError, RecursionError, MemoryError):
        return Objection(text="SyntaxError: the text cannot be read as Python (odd characters or too deep).")


class AssessedEnvironment(ProgramEnvironment):
    """Base of environments of one turn that count the programs run for it: give `assess` instead of `judge`."""

    async def start(self, task: Task) -> World:
        return AssessedWorld(self, task)

    async def judge(self, task: Task, action: str) -> Verdict:
        return (await self.assess(task, action))[0]

    async def assess(self, task: Task, action: str) -> tuple[Verdict, int]:
        """The verdict on `action`, and how many programs were run for it; malformed ones fail, they do not raise."""
        raise NotImplementedError


class AssessedWorld:
    """One turn of it."""

    def __init__(self, environment: AssessedEnvironment, task: Task) -> None:
        self.environment, self.task = environment, task

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        verdict, executions = await self.environment.assess(self.task, action)
        return Reply(verdict=verdict, executions=executions)

    async def close(self) -> None:
        return None


class ProgramOfThought(Sandboxed, AssessedEnvironment):
    """Judges a program by the number that it prints. See the module's docstring.

    sandbox, limits: as `Sandboxed` has them.
    allow_answer: a bare number is an answer too. memo: judge equal answers to the same task once when the program can
        only ever do the same again (arithmetic without imports); results and counted executions stay the same.
    """

    name = "program_of_thought"
    wanted = "number: print one number alone"
    """What feedback asks for when the last line is no answer."""

    def __init__(
        self,
        *,
        sandbox: Sandbox | str | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        allow_answer: bool = False,
        memo: bool = True,
    ) -> None:
        super().__init__(sandbox=sandbox, limits=limits)
        self.allow_answer = allow_answer
        self._memo: OrderedDict[tuple[str, str], tuple[Verdict, int]] | None = OrderedDict() if memo else None
        self._running: dict[tuple[str, str], asyncio.Future[tuple[Verdict, int]]] = {}

    # What a subclass may change

    def expected(self, task: Task) -> Fraction:
        """The gold number."""
        return Fraction(str(task.payload["answer"]))

    def bare_answer(self, action: str) -> str:
        """The answer of an action that is no program; "" when it may only be a program."""
        return action.strip() if self.allow_answer else ""

    async def correct(self, task: Task, line: str, *, words: bool = True) -> bool | None:
        """Whether a printed line is the answer; None when it is none. words: see `parse_number`."""
        number = parse_number(line, words=words)
        return None if number is None else abs(number - self.expected(task)) <= TOLERANCE

    def metrics(self, task: Task, line: str) -> Mapping[str, float]:
        """More values for the verdict's detail, from the answer's line."""
        return {}

    def find_fault(self, task: Task, action: str) -> Fault | None:
        """Where `action` (which failed) first goes wrong, told without the gold answer; None when nothing shows."""
        return None

    def locate(self, task: Task, action: str, crash: Fault | None) -> Fault | None:
        """Which fault to report; `crash` is the line where Python stopped."""
        return crash or self.find_fault(task, action)

    def feedback(self, task: Task, action: str, text: str, fault: Fault | None) -> str:
        """The feedback on a failed action, from the general sentence `text` and the located fault."""
        return text

    # The verdict

    async def assess(self, task: Task, action: str) -> tuple[Verdict, int]:
        """The verdict, and how many programs were run for it (0 when the action is no program)."""
        if self._closed:
            raise RuntimeError(f"environment {self.name} is closed")
        if len(action) > MAX_CHARACTERS:
            text = f"The answer is too long: write a program of at most {MAX_CHARACTERS} characters."
            return Verdict(success=False, reward=0.0, feedback=text, detail=_detail()), 0
        if (answer := self.bare_answer(action)) and (right := await self.correct(task, answer, words=False)) is not None:
            return self._compare(task, action, right, answer), 0
        program = find_program(action)
        tree = parse_program(program.source)
        if isinstance(tree, Objection):
            return self._failed(task, action, tree, program=program), 0
        if self._memo is None or not is_repeatable(tree):
            return await self._judged(task, action, program, tree)
        key = (task.hash, action)
        if key in self._memo:
            self._memo.move_to_end(key)
            return self._memo[key]
        if key not in self._running:  # samples of one task come at once: the first one's run serves them all
            self._running[key] = asyncio.ensure_future(self._judged(task, action, program, tree, key))
            self._running[key].add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(self._running[key])

    async def _judged(
        self, task: Task, action: str, program: Program, tree: ast.Module, key: tuple[str, str] | None = None
    ) -> tuple[Verdict, int]:
        """Run and judge; what ended by itself is remembered under `key`."""
        run, executions = await self._run(program, tree)
        verdict = await self._verdict(task, action, program, run)
        if key is not None and self._memo is not None and run.status in ("ok", "error"):
            self._memo[key] = verdict, executions
            if len(self._memo) > 4096:
                self._memo.popitem(last=False)
        return verdict, executions

    async def _run(self, program: Program, tree: ast.Module) -> tuple[RunResult, int]:
        """Run it as it stands; with the suffix when it printed nothing (at once when it never mentions printing)."""
        sandbox = await self.sandbox()
        results = _binds_result(tree)
        silent = results and not _mentions_printing(tree)
        run = await sandbox.arun(program.source + (_SUFFIX if silent else ""), limits=self.limits)
        if not results or silent or run.status != "ok" or run.stdout.strip():
            return run, 1
        return await sandbox.arun(program.source + _SUFFIX, limits=self.limits), 2

    async def _verdict(self, task: Task, action: str, program: Program, run: RunResult) -> Verdict:
        if run.status == "sandbox_failed":
            return Verdict(success=False, reward=0.0, error="sandbox_failed", feedback="The sandbox failed.")
        if run.status != "ok":
            return self._failed(task, action, run_objection(run, self.limits, len(program.lines)), program=program)
        printed = run.stdout.strip()
        if not printed:
            text = "The program printed nothing: end it with print(...) of the answer."
            return self._failed(task, action, Objection(text=text), program=program, ran=1.0)
        last = re.split(r"[\r\n]+", printed)[-1].strip()
        correct = await self.correct(task, last)
        if correct is None:
            text = f'The program printed "{readable(last, 60)}", which is no {self.wanted}, last.'
            return self._failed(task, action, Objection(text=text), program=program, ran=1.0)
        return self._compare(task, action, correct, last, program=program)

    def _compare(self, task: Task, action: str, correct: bool, line: str, program: Program | None = None) -> Verdict:
        ran, shown, more = float(program is not None), readable(line, 60), self.metrics(task, line)
        if correct:
            return Verdict(success=True, reward=1.0, feedback=shown, detail={**_detail(ran=ran, number=1.0), **more})
        text = f"The check failed: the program printed {shown}." if program else f"The check failed: {shown} is wrong."
        return self._failed(task, action, Objection(text=text), program=program, ran=ran, number=1.0, more=more)

    def _failed(
        self,
        task: Task,
        action: str,
        objection: Objection,
        *,
        program: Program | None,
        ran: float = 0.0,
        number: float = 0.0,
        more: Mapping[str, float] = MappingProxyType({}),
    ) -> Verdict:
        crash = program.fault_at(objection.line, objection.note) if program and objection.line else None
        fault = self.locate(task, action, crash) if is_text(action) else None
        feedback = self.feedback(task, action, objection.text, fault)
        detail = {**_detail(ran=ran, number=number), **more}
        return Verdict(success=False, reward=0.0, feedback=feedback, fault=fault, detail=detail)


def is_repeatable(tree: ast.Module) -> bool:
    """Whether a program can only ever do the same: no imports, attributes, sets or builtins that see the world."""
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute | ast.Set | ast.SetComp | ast.ClassDef):
            return False
        if isinstance(node, ast.Name) and node.id not in own and node.id not in _PURE:
            return False
    return True


def _mentions_printing(tree: ast.Module) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == "print")
        or (isinstance(node, ast.Attribute) and node.attr in ("write", "writelines"))
        for node in ast.walk(tree)
    )


def _binds_result(tree: ast.Module) -> bool:
    """Whether it sets `answer` or defines `solution` anywhere; if it does so in vain, the suffix prints nothing."""
    return any(
        (isinstance(node, ast.Name) and node.id in ("answer", "solution") and isinstance(node.ctx, ast.Store))
        or (isinstance(node, ast.FunctionDef) and node.name == "solution")
        for node in ast.walk(tree)
    )


def run_objection(run: RunResult, limits: Limits, num_lines: int) -> Objection:
    """Why a run that did not end well gives no number."""
    if run.status == "timeout":
        return Objection(text=f"The program was stopped: it ran for more than {limits.cpu_s:g} s.")
    if run.status == "memory":
        return Objection(text=f"The program was stopped: it needs more than {limits.memory_mb} MB of memory.")
    if run.status == "output":
        return Objection(text="The program was stopped: it printed too much. Print the answer alone.")
    trace = run.stderr.rpartition("Traceback (most recent call last):")[2]
    frames = [(name, int(number)) for name, number in _FRAME.findall(trace)]
    own = [number for name, number in frames if name == frames[0][0] and 1 <= number <= num_lines]
    message = run.stderr.strip().rpartition("\n")[2] if frames else ""
    if not message:
        how = f"exit code {run.exit_code}" if run.exit_code is not None else f"signal {run.signal}"
        return Objection(text=f"The program ended with {how}.")
    # Addresses differ from run to run; the same action must get the same feedback.
    message = readable(re.sub(r"0x[0-9a-fA-F]+", "0x...", message), 160)
    if not own:
        return Objection(text=message)
    return Objection(text=f"{message} (line {own[-1]})", line=own[-1], note=message)


def _detail(*, ran: float = 0.0, number: float = 0.0) -> dict[str, float]:
    """`ran`: the program ended by itself without an error; `number`: there was a number to compare."""
    return {"ran": ran, "number": number}

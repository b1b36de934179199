"""MBPP: short Python functions, judged by their unit tests in the sandbox.

    environment = open_environment(data="~/mbpp")
    task = environment.tasks("train", limit=1)[0]

**Data**: the official `mbpp.jsonl` (974 problems: text, code, task_id, test_setup_code, test_list,
challenge_test_list), or `sanitized-mbpp.json` in its own schema. Splits by task_id as the release has it: `prompt` 1-10,
`test` 11-510, `validation` 511-600, `train` 601-974; `heldout` is `test`, `demonstrations` is `prompt`.

**The prompt** is the text and, as in the release's own prompt, the tests; `show_tests` can be "first" or "none".
**Right**: every assert of `test_list` passes (pass@1 for one sample). Tests run in a process that the program cannot
read (`Sandbox.run_tests`); what is no Python is refused without a run.

**Feedback**: how many tests passed, the first that failed (only if it was shown), its error, and what the call in it
gave. Task 927's set-up uses a class of the program's, so it fails where the set-up runs first; here it runs with the
tests, after the program, and all 310 references that this was tried on pass.

Source: Austin et al. 2021 (arXiv 2108.07732), https://github.com/google-research/google-research/tree/master/mbpp. Left
out: challenge tests, pass@k for more samples (`kintsugi eval` computes it).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.official_records import Made, RecordTasks, Row, hub_rows, json_list, jsonl, texts
from kintsugi.sandboxes.environments.printed_number import is_text, readable
from kintsugi.sandboxes.environments.program_of_thought import (
    MAX_CHARACTERS,
    AssessedEnvironment,
    Objection,
    Program,
    find_program,
    parse_program,
    run_objection,
)
from kintsugi.sandboxes.environments.sandboxed import Sandboxed
from kintsugi.sandboxes.sandbox import TestResult

_MEND: Final = (
    "the official file is mbpp/mbpp.jsonl of https://github.com/google-research/google-research: name its folder with "
    'the option data="..."'
)
_FILES: Final = {
    "train": "train",
    "validation": "validation",
    "test": "test",
    "heldout": "test",
    "prompt": "prompt",
    "demonstrations": "prompt",
}
_RANGES: Final = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
_SHOWN: Final = ("all", "first", "none")

ABOUT = About(
    kind="code, judged by unit tests",
    metric="every assert passes (pass@1)",
    data="mbpp.jsonl (or sanitized-mbpp.json): text, code, task_id, test_list",
    splits=("train", "validation", "test", "heldout (= test)", "demonstrations (= prompt)"),
    licence="CC BY 4.0",
    home="https://github.com/google-research/google-research/tree/master/mbpp",
    bundled=True,
    downloads=(
        Download(
            url="https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl",
            path="mbpp.jsonl",
            sha256="ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
        ),
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "google-research-datasets/mbpp",
    show_tests: str = "all",
    sandbox: Any = None,
    limits: Any = None,
) -> Mbpp:
    """MBPP from the folder `data`, "hub" or "bundled" (the default). show_tests: "all", "first" or "none" in the
    prompt; sandbox, limits: as `Sandboxed` has them."""
    return Mbpp(data=data, hub=hub, show_tests=show_tests, sandbox=sandbox, limits=limits)


class Mbpp(RecordTasks, Sandboxed, AssessedEnvironment):
    """The environment. A payload holds `code` (the reference), `tests`, `setup` and `shown`, the tests in the prompt."""

    name = "mbpp"
    files = _FILES
    mend = _MEND

    def __init__(self, *, show_tests: str = "all", **options: Any) -> None:
        super().__init__(**options)
        if show_tests not in _SHOWN:
            raise ConfigError(f'mbpp.show_tests: unknown "{show_tests}": {nearest(show_tests, _SHOWN)}')
        self.show_tests = show_tests

    # The data

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        sanitized = folder / "sanitized-mbpp.json"
        whole = folder / "mbpp.jsonl"
        rows = json_list(sanitized, _MEND) if sanitized.is_file() and not whole.is_file() else jsonl(whole, _MEND)
        least, greatest = _RANGES[official]
        return ((record, where) for record, where in rows if least <= _number(record, where) <= greatest)

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        return hub_rows(self.name, hub, _MEND, config="full", split=official)

    def made(self, record: Any, where: str, official: str) -> Made:
        number = _number(record, where)
        (code,) = texts(record, where, _MEND, "code")
        (text,) = texts(record, where, _MEND, "text" if "text" in record else "prompt")
        tests = record.get("test_list")
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise DataError(f'{where}: expected a list of texts "test_list", found {type(tests).__name__}; {_MEND}')
        setup = record.get("test_setup_code") or "\n".join(record.get("test_imports") or ())
        shown = {"all": tests, "first": tests[:1], "none": []}[self.show_tests]
        asked = "\n".join(["", "The function must pass these tests:", *shown]) if shown else ""
        payload = {"code": code.replace("\r\n", "\n"), "tests": tests, "setup": setup, "shown": shown}
        return Made(key=f"mbpp-{number}", prompt=f"{text.strip()}{asked}", payload=payload)

    async def gold(self, task: Task) -> tuple[str, ...]:
        return (task.payload["code"],)

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """Every function of the gold defined anew, so that it raises."""
        defined = re.findall(r"^def (\w+)", gold[-1], re.MULTILINE)
        broken = [f"def {name}(*_, **__):\n    raise ValueError" for name in defined]
        return [["\n".join([gold[-1], *broken])]] if broken else []

    # The verdict

    async def assess(self, task: Task, action: str) -> tuple[Verdict, int]:
        """The verdict, and how many programs were run for it (0 when the action is no program)."""
        if len(action) > MAX_CHARACTERS:
            text = f"The answer is too long: write a program of at most {MAX_CHARACTERS} characters."
            return _failed(task, action, None, Objection(text=text)), 0
        program = find_program(action)
        tree = parse_program(program.source)
        if isinstance(tree, Objection):
            empty = Objection(text="The answer holds no program: write the function in Python.")
            return _failed(task, action, program, tree if program.source.strip() else empty), 0
        payload = task.payload
        result = await (await self.sandbox()).arun_tests(
            program.source, payload["tests"], setup=payload["setup"], limits=self.limits
        )
        if result.run.status == "sandbox_failed":
            return Verdict(success=False, reward=0.0, error="sandbox_failed", feedback="The sandbox failed."), 1
        detail = _detail(passed=result.passed, total=result.total)
        if result.all_passed:
            return Verdict(success=True, reward=1.0, feedback=f"All {result.total} tests pass.", detail=detail), 1
        if result.run.status != "ok":
            stopped = run_objection(result.run, self.limits, len(program.lines))
            return _failed(task, action, program, stopped, passed=result.passed), 1
        text, executions = await self._told(task, program, result)
        return _failed(task, action, program, Objection(text=text), passed=result.passed), 1 + executions

    async def _told(self, task: Task, program: Program, result: TestResult) -> tuple[str, int]:
        """What to say of tests that ran and failed, and how many more programs that took."""
        head = f"{result.passed} of {result.total} tests pass."
        shown = next((failure for failure in result.failures if failure.test in task.payload["shown"]), None)
        error = readable(_steady((shown or result.failures[0]).error), 160)
        if shown is None:
            return f"{head} A test fails with {error}.", 0
        said = f"{head} This one fails: {readable(shown.test, 200)} ({error})."
        call = compared_call(shown.test)
        if call is None or not shown.error.startswith("AssertionError"):
            return said, 0
        source = f"{task.payload['setup']}\n{program.source}\n{_SHOW.format(call=call)}"
        run = await (await self.sandbox()).arun(source, limits=self.limits)
        given = run.stdout.rpartition(_MARK)[2].strip() if run.status == "ok" else ""
        return (f"{said} {readable(call, 100)} gave {readable(_steady(given), 120)}." if given else said), 1


_MARK: Final = "\x02gave\x03"
_SHOW: Final = 'print("\\x02gave\\x03" + repr({call}))'


def compared_call(test: str) -> str | None:
    """The left side of `assert call == value`, None for other tests and for one that calls nothing."""
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Assert):
        return None
    compared = tree.body[0].test
    if not isinstance(compared, ast.Compare) or len(compared.ops) != 1 or not isinstance(compared.ops[0], ast.Eq):
        return None
    return ast.unparse(compared.left) if isinstance(compared.left, ast.Call) else None


def _number(record: Any, where: str) -> int:
    number = record.get("task_id") if isinstance(record, Mapping) else None
    if not isinstance(number, int):
        raise DataError(f'{where}: expected a whole number "task_id", found {number!r}; {_MEND}')
    return number


def _steady(text: str) -> str:
    """Addresses differ from run to run; the same action must get the same feedback."""
    return re.sub(r"0x[0-9a-fA-F]+", "0x...", text)


def _failed(task: Task, action: str, program: Program | None, objection: Objection, *, passed: int = 0) -> Verdict:
    fault = None
    if program is not None and objection.line is not None and is_text(action):
        fault = program.fault_at(objection.line, objection.note)
    detail = _detail(passed=passed, total=len(task.payload["tests"]))
    return Verdict(success=False, reward=0.0, feedback=objection.text, fault=fault, detail=detail)


def _detail(*, passed: int, total: int) -> dict[str, float]:
    """`tests`: share of the tests that pass."""
    return {"tests": passed / total if total else 0.0}

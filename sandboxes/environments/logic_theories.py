"""Base of environments in which the agent writes a logic program for a theory and a statement about it.

    class ProofWriter(LogicTheories): …     # with `name`, `files`, `closed`, `from_folder`, `from_hub` and `made`

The program (`logic_program.py` has the language) is the action: the last ```` ```logic ```` (or unnamed) fence, else
the whole text. It is read and checked here; clingo runs in the sandbox, where the worker has imported it (extra
`logic`). **Right**: the label that it comes to equals the gold one.

**Feedback** without the gold label: what is wrong with a line; names of the query that occur nowhere; conditions that
nothing can satisfy; what was derived. That an answer is wrong tells the other one where there are two: a program that
states its query as a fact is accepted, as by the official metric.

Left out: whether the program says what the theory says (no release has gold programs).
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.logic_program import RUNNER, LogicProgram, read_program
from kintsugi.sandboxes.environments.official_records import RecordTasks
from kintsugi.sandboxes.environments.printed_number import is_text, readable
from kintsugi.sandboxes.environments.program_of_thought import (
    MAX_CHARACTERS,
    AssessedEnvironment,
    Objection,
    Program,
    find_program,
)
from kintsugi.sandboxes.environments.sandboxed import Sandboxed
from kintsugi.sandboxes.environments.theory_english import program_of, representation_program
from kintsugi.sandboxes.sandbox import RunResult

FENCES: Final = ("logic", "prolog", "asp", "text", "plaintext")
_LIMITS: Final = {"memory_mb": 256, "output_bytes": 1 << 20}


class LogicTheories(RecordTasks, Sandboxed, AssessedEnvironment):
    """Judges a logic program by its label. A payload holds `answer` ("True", "False", "Unknown"), `context` and
    `statement`, and `notation` where the release has the theory in its own (facts, rules, query).

    memo: theories that were run before, by their rules for clingo; results and counted executions stay the same."""

    closed: ClassVar[bool] = False

    def __init__(self, *, limits: Any = None, memo: bool = True, **options: Any) -> None:
        super().__init__(limits=_LIMITS if limits is None else limits, packages=("clingo",), extra="logic", **options)
        self._memo: OrderedDict[str, RunResult] | None = OrderedDict() if memo else None
        self._running: dict[str, asyncio.Future[RunResult]] = {}

    async def gold(self, task: Task) -> tuple[str, ...] | None:
        """The program of a theory in the generator's English or with the release's notation, else None."""
        notation = task.payload.get("notation")
        program = representation_program(**notation) if notation else None
        program = program or program_of(task.payload["context"], task.payload["statement"])
        return None if program is None else (program,)

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """The query turned round, or, where that changes nothing, stated as a fact."""
        head, _, query = gold[-1].rpartition("\n")
        if task.payload["answer"] == "Unknown":
            return [[f"{head}\n{query}\nFacts:\n{query}"]]
        turned = query.replace(", True)", ", #)").replace(", False)", ", True)").replace(", #)", ", False)")
        return [[f"{head}\n{turned}"]]

    async def assess(self, task: Task, action: str) -> tuple[Verdict, int]:
        """The verdict, and how many programs were run for it (0 when the action is none)."""
        if len(action) > MAX_CHARACTERS:
            text = f"The answer is too long: write a program of at most {MAX_CHARACTERS} characters."
            return _failed(action, None, Objection(text=text)), 0
        found = find_program(action, FENCES)
        program = read_program(found.source)
        if isinstance(program, Objection):
            return _failed(action, found, program), 0
        run = await self._solve(program.rules_text(closed=self.closed))
        return self._verdict(task, action, found, program, run), 1

    async def _solve(self, rules: str) -> RunResult:
        """Run the rules, once for all that ask at the same time or later."""
        if self._memo is None:
            return await self._run(rules)
        if rules in self._memo:
            self._memo.move_to_end(rules)
            return self._memo[rules]
        if rules not in self._running:
            self._running[rules] = asyncio.ensure_future(self._run(rules))
            self._running[rules].add_done_callback(lambda _: self._running.pop(rules, None))
        return await asyncio.shield(self._running[rules])

    async def _run(self, rules: str) -> RunResult:
        run = await (await self.sandbox()).arun(RUNNER, stdin=rules, limits=self.limits)
        if self._memo is not None and run.status in ("ok", "error"):
            self._memo[rules] = run
            if len(self._memo) > 1024:
                self._memo.popitem(last=False)
        return run

    def _verdict(self, task: Task, action: str, found: Program, program: LogicProgram, run: RunResult) -> Verdict:
        if run.status == "sandbox_failed":
            return Verdict(success=False, reward=0.0, error="sandbox_failed", feedback="The sandbox failed.")
        if run.status in ("timeout", "memory", "output"):
            what = {"timeout": "takes too long", "memory": "needs too much memory", "output": "derives too much"}[run.status]
            return _failed(action, found, Objection(text=f"The program was stopped: it {what}."), read=1.0)
        models = _models(run)
        if models is None:  # the engine, not the program: its rules were checked before
            said = readable(run.stderr.strip().rpartition("\n")[2], 160)
            return Verdict(success=False, reward=0.0, error="clingo_failed", feedback=f"The solver failed: {said}")
        label = program.label(models, closed=self.closed)
        if isinstance(label, Objection):
            return _failed(action, found, label, read=1.0)
        if label == task.payload["answer"]:
            return Verdict(success=True, reward=1.0, feedback=label, detail=_detail(read=1.0, decided=1.0))
        ends = program.loose_ends(closed=self.closed)
        derived = program.derived(models)
        parts = [f"The check failed: the program concludes {label} for {readable(str(program.query), 80)}."]
        parts += [end.text for end in ends[:3]]
        few = readable(", ".join(derived[:5]), 300)
        more = f" and {len(derived) - 5} more" if len(derived) > 5 else ""
        parts.append(f"Its rules derive {few}{more}." if derived else "Its rules derive nothing beyond the facts.")
        line, note = (ends[0].line, ends[0].note) if ends else (None, "")
        objection = Objection(text=" ".join(parts), line=line, note=note)
        return _failed(action, found, objection, read=1.0, decided=float(label != "Unknown"))


def _models(run: RunResult) -> list[list[list[int]]] | None:
    if run.status != "ok":
        return None
    try:
        return json.loads(run.stdout)
    except ValueError:
        return None


def _failed(action: str, found: Program | None, objection: Objection, *, read: float = 0.0, decided: float = 0.0) -> Verdict:
    fault = None
    if found is not None and objection.line is not None and is_text(action):
        fault = found.fault_at(objection.line, objection.note)
    return Verdict(
        success=False, reward=0.0, feedback=objection.text, fault=fault, detail=_detail(read=read, decided=decided)
    )


def _detail(*, read: float = 0.0, decided: float = 0.0) -> dict[str, float]:
    """`read`: the program was read without objection and run; `decided`: it came to True or False."""
    return {"read": read, "decided": decided}

"""The verifier's self-test: every record's gold earns 1, and spoiled golds earn nothing.

    result = asyncio.run(check_golds(open_environment("svamp", {"data": folder})))
    assert result.ok, str(result)

Runs over every record of every split, each task once however many splits show it. An environment may say two things
of itself: `known_bad`, task id → why its gold fails as released (it must fail), and `perturbed(task, gold)`, action
sequences that must not win (a wrong number, a query turned round); an emptied gold is always tried. Left out: the rest
of the contract, which is `conformance.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kintsugi.errors import DataError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.conformance import play
from kintsugi.sandboxes.environments.environment import Environment

SPLITS: Final = ("train", "validation", "dev", "test", "heldout", "demonstrations")
"""Names that are tried; those that an environment does not have are passed over."""

AT_ONCE: Final = 32


@dataclass(frozen=True, kw_only=True)
class GoldResult:
    """The outcome. splits: tasks of each split. tasks: different tasks tried; without_gold: of them, those that have
    none; known_bad: those whose gold failed as expected, with the reason; failures: one sentence each."""

    environment: str
    splits: Mapping[str, int] = field(default_factory=dict)
    tasks: int = 0
    without_gold: int = 0
    known_bad: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failures and self.tasks > 0

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {number}" for name, number in self.splits.items())
        won = self.tasks - self.without_gold - len(self.known_bad)
        head = f"{self.environment}: {self.tasks} records ({parts}); {won} golds tried, {len(self.failures)} failures"
        lines = [f"{self.without_gold} records have no gold action"] if self.without_gold else []
        lines += [f"known bad: {task_id}, {reason}" for task_id, reason in self.known_bad.items()]
        return "\n".join([head, *lines, *(f"- {text}" for text in self.failures)])


async def check_golds(environment: Environment, splits: Sequence[str] | None = None) -> GoldResult:
    """Try every gold of `splits` (all that the environment has). Leaves the environment open.

    Raises DataError when none of the splits is there."""
    counts, tasks = _gathered(environment, SPLITS if splits is None else splits)
    bad: Mapping[str, str] = getattr(environment, "known_bad", {})
    failures: list[str] = []
    seen_bad: dict[str, str] = {}
    without = 0
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        for task, found in zip(part, await asyncio.gather(*(_try(environment, task) for task in part)), strict=True):
            won, spoiled = found
            without += won is None
            if task.id in bad and won is not None:
                seen_bad[task.id] = bad[task.id]
                failures += [f"{task.id} is listed as known bad, and its gold wins: take it off the list"] if won else []
            elif won is False:
                failures.append(f"the gold of {task.id} does not earn 1")
            failures += [f"{task.id} is won by a spoiled gold: {text[:100]!r}" for text in spoiled]
    return GoldResult(
        environment=environment.name,
        splits=counts,
        tasks=len(tasks),
        without_gold=without,
        known_bad=seen_bad,
        failures=tuple(failures),
    )


def _gathered(environment: Environment, splits: Iterable[str]) -> tuple[dict[str, int], list[Task]]:
    """How many tasks each split has, and the different ones among them."""
    counts: dict[str, int] = {}
    tasks: dict[str, Task] = {}
    problem: DataError | None = None
    for split in splits:
        try:
            found = environment.tasks(split)
        except DataError as error:
            problem = problem or error
            continue
        if found:
            counts[split] = len(found)
        for task in found:
            tasks.setdefault(task.hash, task)
    if not tasks:
        raise problem or DataError(f"{environment.name} has no tasks in {', '.join(splits)}")
    return counts, list(tasks.values())


async def _try(environment: Environment, task: Task) -> tuple[bool | None, list[str]]:
    """Whether the gold earns 1 (None without one), and the last actions of spoiled golds that won."""
    gold = await environment.gold(task)
    if gold is None:
        return None, []
    replies = await play(environment, task, gold)
    verdict = replies[-1].verdict if replies else None
    won = verdict is not None and verdict.success and verdict.reward == 1.0
    perturbed: Any = getattr(environment, "perturbed", None)
    wrong = [[*gold[:-1], ""], *(perturbed(task, gold) if perturbed is not None else ())]
    spoiled = []
    for actions in wrong:
        answers = await play(environment, task, actions)
        verdict = answers[-1].verdict if answers else None
        if verdict is not None and (verdict.success or verdict.reward > 0):
            spoiled.append(actions[-1])
    return won, spoiled

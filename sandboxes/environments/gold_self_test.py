"""The verifier's self-test: every record's gold earns 1, and spoiled golds earn nothing.

    result = asyncio.run(check_golds(open_environment("svamp", {"data": folder})))
    assert result.ok, str(result)

Runs over every record of every split (see `split_reading.py`), each task once however many splits show it. An environment
may say two things of itself: `known_bad`, task id → why its gold fails as released (it must fail), and `perturbed(task,
gold)`, action sequences that must not win (a wrong number, a query turned round); an emptied gold is always tried. A split
that cannot be read is a failure, and the others are tried all the same. Left out: the rest of the contract, which is
`conformance.py`'s.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kintsugi.errors import DataError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.careful_calls import (
    TIME_LIMIT_S,
    Broken,
    gold_of,
    known_bad,
    replies_of,
    spoiled_by,
    stretched,
    time_limit,
    warmed,
)
from kintsugi.sandboxes.environments.environment import Environment
from kintsugi.sandboxes.environments.split_reading import Reading, read_split, read_splits

AT_ONCE: Final = 32
_SHOWN: Final = 20
_PATIENCE: Final = 4.0
"""So much longer than alone may an answer take among `AT_ONCE` at once."""


@dataclass(frozen=True, kw_only=True)
class GoldResult:
    """The outcome. splits: tasks of each split. tasks: different tasks tried; without_gold: of them, those that have
    none; known_bad: those whose gold failed as expected, with the reason; failures: one sentence each. left_out: splits
    that were expected and are not in the data, with the reason. untried: tasks that came after an answer that never did.
    unproven: task id → why its gold wins without proving anything (an optional method `unproven(task)` says it)."""

    environment: str
    splits: Mapping[str, int] = field(default_factory=dict)
    tasks: int = 0
    without_gold: int = 0
    known_bad: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    untried: int = 0
    unproven: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.failures and self.tasks > 0

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {number}" for name, number in self.splits.items())
        tried = self.tasks - self.without_gold - len(self.known_bad) - self.untried
        head = f"{self.environment}: {self.tasks} records ({parts or 'none'}); {tried} golds tried"
        lines = [f"{head}, {len(self.failures)} failures"]
        lines += [f"{self.without_gold} records have no gold action"] if self.without_gold else []
        lines += [f"{self.untried} records not tried after an answer that never came"] if self.untried else []
        reasons = Counter(self.unproven.values())
        lines += [f"{number} golds only print the answer: {reason}" for reason, number in reasons.items()]
        lines += [f"left out: {name}: {reason}" for name, reason in self.left_out.items()]
        lines += [f"known bad: {task_id}, {reason}" for task_id, reason in self.known_bad.items()]
        more = len(self.failures) - _SHOWN
        last = [f"- and {more} more (all with --json)"] if more > 0 else []
        return "\n".join([*lines, *(f"- {text}" for text in self.failures[:_SHOWN]), *last])


@dataclass
class _Tally:
    """What the tasks so far have shown."""

    failures: list[str]
    without: int = 0
    untried: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    def add(self, task: Task, won: bool | None, spoiled: Sequence[str], reason: str | None) -> None:
        self.without += won is None
        if reason is not None and won is not None:
            self.bad[task.id] = reason
            if won:
                self.failures.append(f"{task.id} is listed as known bad, and its gold wins: take it off the list")
        elif won is False:
            self.failures.append(f"the gold of {task.id} does not earn 1")
        self.failures += [f"{task.id} is won by a spoiled gold: {text[:100]!r}" for text in spoiled]


async def check_golds(
    environment: Environment,
    splits: Sequence[str] | None = None,
    *,
    named: Iterable[str] = (),
    limit_s: float = TIME_LIMIT_S,
) -> GoldResult:
    """Try every gold of `splits` (all that the environment has, and `named` ones). Leaves the environment open.

    limit_s: seconds for one answer. Raises DataError when none of the splits is there."""
    if splits is None:
        readings = read_splits(environment, named)
    else:
        readings = {split: read_split(environment, split) for split in splits}
    counts, tasks = _gathered(environment, readings)
    tally = _Tally([reading.broken for reading in readings.values() if reading.broken is not None])
    async with time_limit(limit_s):
        if tasks:
            await warmed(environment)
        await _try_all(environment, tasks, tally)
    return GoldResult(
        environment=environment.name,
        splits=counts,
        tasks=len(tasks),
        without_gold=tally.without,
        known_bad=tally.bad,
        failures=tuple(map(str, dict.fromkeys(tally.failures))),
        left_out={split: one.left_out for split, one in readings.items() if one.left_out and one.expected},
        untried=tally.untried,
        unproven=_unproven(environment, tasks),
    )


def _unproven(environment: Environment, tasks: Sequence[Task]) -> dict[str, str]:
    """Task id → why its gold proves nothing, where the environment says so."""
    why: Any = getattr(environment, "unproven", None)
    return {task.id: str(reason) for task in tasks if why is not None and (reason := why(task))}


async def _try_all(environment: Environment, tasks: Sequence[Task], tally: _Tally) -> None:
    """Every task, `AT_ONCE` at a time; no more once an answer never came."""
    try:
        bad = known_bad(environment)
    except Broken as broken:
        tally.failures.append(broken.finding)
        bad = {}
    perturb: Any = getattr(environment, "perturbed", None)
    faults: dict[str, int] = {}  # the same fault is told once
    stop = asyncio.Event()
    for start in range(0, len(tasks), AT_ONCE):
        part = tasks[start : start + AT_ONCE]
        if stop.is_set():
            tally.untried += len(part)
            continue
        with stretched(_PATIENCE):
            found = await asyncio.gather(*(_try(environment, task, perturb, stop) for task in part))
        for task, one in zip(part, found, strict=True):
            if one is None:
                tally.untried += 1
            elif isinstance(one, Broken):
                key = one.finding.key or str(one)
                faults[key] = faults.get(key, 0) + 1
                if faults[key] == 1:
                    tally.failures.append(one.finding)
            else:
                tally.add(task, *one, bad.get(task.id))
    for place, text in enumerate(tally.failures):
        more = faults.get(getattr(text, "key", ""), 1) - 1
        tally.failures[place] = f"{text}; {more} more like it" if more else text


def _gathered(environment: Environment, readings: Mapping[str, Reading]) -> tuple[dict[str, int], list[Task]]:
    """How many tasks each split has, and the different ones among them. Raises DataError when no split is there."""
    tasks: dict[str, Task] = {}
    for reading in readings.values():
        for task in reading.tasks:
            tasks.setdefault(task.hash, task)
    if not tasks and not any(reading.broken for reading in readings.values()):
        found = sorted(readings.values(), key=lambda reading: not reading.expected)
        error = next((reading.error for reading in found if reading.error is not None), None)
        raise error or DataError(f"{environment.name} has no tasks in {', '.join(readings)}: name a split of its own")
    return {split: len(one.tasks) for split, one in readings.items() if one.tasks}, list(tasks.values())


async def _try(
    environment: Environment, task: Task, perturb: Any, stop: asyncio.Event
) -> tuple[bool | None, list[str]] | Broken | None:
    """Whether the gold earns 1 (None without one), and the last actions of spoiled golds that won; or what is broken.

    None once `stop` is set, which an answer that never came does."""
    if stop.is_set():
        return None
    try:
        gold = await gold_of(environment, task)
        if gold is None:
            return None, []
        won, _ = await _earned(environment, task, gold)
        spoiled = []
        for actions in [[*gold[:-1], ""], *spoiled_by(perturb, task, gold)]:
            if stop.is_set():
                return None
            if (await _earned(environment, task, actions))[1]:
                spoiled.append(actions[-1])
        return won, spoiled
    except Broken as broken:
        if broken.hung:
            stop.set()
        return broken


async def _earned(environment: Environment, task: Task, actions: Sequence[str]) -> tuple[bool, bool]:
    """Whether these actions win with reward 1, and whether they earn anything. Raises Broken."""
    replies = await replies_of(environment, task, actions)
    verdict = replies[-1].verdict if replies else None
    if verdict is None:
        return False, False
    return verdict.success and verdict.reward == 1.0, verdict.success or verdict.reward > 0

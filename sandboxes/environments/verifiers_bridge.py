"""Any `verifiers` taskset whose tasks are one question and one answer, scored by its own rewards.

    environment = open_environment(env="my_taskset", config={"split": "train"}, gold="answer")

It needs the extra `[verifiers]` (0.4, the API of `verifiers.v1`) and the taskset's own package. Tasks are the taskset's, in
its order; which split one belongs to follows from its prompt (train 50 %, heldout 30 %, demonstrations 20 %), so that no
prompt is in two. A task's prompt is the system prompt and the user's.

**Success** is a weighted sum of the task's rewards of at least `success_reward`; the verdict's reward is that sum, within 0
and 1, and its detail has each reward and metric. Scoring runs in worker processes (`verifiers_worker`): a reward that
raises, dies or hangs is an error on the verdict. A judge of the taskset's needs its model's address and key as ever.

Left out: tasks with tools, a user's part, several agents or a runtime of their own (one sentence says which), and the
environments of verifiers before 0.4 (`load_environment`).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, missing_extra, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.environment import ProgramEnvironment
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.seeded_tasks import SPLITS, hundredth
from kintsugi.sandboxes.environments.worker_processes import WorkerDied, WorkerProcess

_WORKER: Final = "kintsugi.sandboxes.environments.verifiers_worker"
LONGEST_ANSWER: Final = 100_000

ABOUT = About(
    kind="bridge: one turn, any verifiers taskset (option env)",
    metric="the task's own rewards reach success_reward",
    data="the taskset's",
    extra="verifiers",
)


def open_environment(
    env: str,
    config: Mapping[str, Any] | None = None,
    gold: str = "",
    success_reward: float = 1.0,
    most_tasks: int = 10_000,
    workers: int = 1,
    timeout_s: float = 60.0,
) -> VerifiersBridge:
    """The environment of the taskset `env`, opened with `config`.

    gold: the field of a task's data whose text is a right answer, for golds. success_reward: see the module. most_tasks: how
    many of the taskset are read. workers: processes. timeout_s: longest wait for one scoring, and for the taskset to load.
    Raises MissingExtra, ConfigError and DataError."""
    if importlib.util.find_spec("verifiers") is None:
        raise missing_extra("the environment verifiers", "verifiers")
    if most_tasks < 1 or workers < 1 or timeout_s <= 0:
        raise ConfigError("verifiers: expected most_tasks and workers of 1 or more and timeout_s above 0")
    asked = json.dumps({"env": env, "config": dict(config or {}), "most": most_tasks, "gold": gold})
    processes = [WorkerProcess(_WORKER, [asked], timeout_s) for _ in range(workers)]
    try:
        told = processes[0].ask_blocking({"op": "tasks"})["tasks"]
    except WorkerDied as died:
        processes[0].close()
        raise DataError(f'verifiers: the taskset "{env}" did not load: {died}') from None
    except BaseException:
        processes[0].close()
        raise
    return VerifiersBridge(processes, told, success_reward)


class VerifiersBridge(ProgramEnvironment):
    """The environment. A payload holds `index` in the taskset, and `gold` where it is known."""

    name = "verifiers"

    def __init__(self, processes: Sequence[WorkerProcess], told: Sequence[Mapping[str, Any]], success_reward: float) -> None:
        self.processes, self.success_reward = processes, success_reward
        self._turns = itertools.cycle(processes)
        self._told: dict[str, list[Mapping[str, Any]]] = {split: [] for split in SPLITS}
        for one in told:
            split = next(split for split, part in SPLITS.items() if hundredth(one["prompt"]) in part)
            self._told[split].append(one)

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The tasks of `split` in the taskset's order, at most `limit`. Raises DataError for an unknown split."""
        if split not in self._told:
            raise DataError(f'verifiers has no split "{split}": {nearest(split, self._told)}')
        return [self._task(one, split) for one in self._told[split][:limit]]

    async def judge(self, task: Task, action: str) -> Verdict:
        """The taskset's verdict on an answer."""
        if not action.strip():
            return Verdict(success=False, reward=0.0, feedback="That was empty: write an answer.")
        if len(action) > LONGEST_ANSWER:
            return Verdict(success=False, reward=0.0, feedback=f"An answer of {len(action)} characters is too long.")
        text = action.encode(errors="replace").decode()
        try:
            request = {"op": "score", "index": task.payload["index"], "text": text}
            score: dict[str, Any] = await next(self._turns).ask(request)
        except WorkerDied as died:
            score = {"broke": str(died)[:300]}
        if "broke" in score:
            why = score["broke"]
            feedback = f"The answer could not be scored: {why}"
            return Verdict(success=False, reward=0.0, feedback=feedback, error=f"scoring_failed: {why}")
        success = score["reward"] >= self.success_reward
        parts = ", ".join(f"{name} {value:g}" for name, value in score["detail"].items())
        told = "Right." if success else f'"{readable(text.strip(), 80)}" is not enough: {parts}.'
        reward = 1.0 if success else min(max(score["reward"], 0.0), 1.0)
        return Verdict(success=success, reward=reward, feedback=told, detail=score["detail"])

    async def gold(self, task: Task) -> Sequence[str] | None:
        return (task.payload["gold"],) if "gold" in task.payload else None

    async def close(self) -> None:
        for process in self.processes:
            process.close()

    def _task(self, one: Mapping[str, Any], split: str) -> Task:
        payload = {"index": one["index"], **({"gold": one["gold"]} if one["gold"] is not None else {})}
        name = f"{one['index']}-{one['key'][:12]}"
        return Task(id=name, environment=self.name, split=split, prompt=one["prompt"], payload=payload)

"""Tasks of verifiers as Kintsugi's: those of one answer (`VerifiersBridge`), and those with turns (`VerifiersTurns`).

Both are made by `verifiers_bridge.open_environment`. A world of the second is a rollout in one of the worker processes: its
first observation is what the model is asked first, an action the model's message, and what it is asked next (a tool's
result, the user's part) the observation. A worker that died has forgotten its rollouts: the attempt whose message it was on
ends with an error on its verdict, the others are played again from their start. Left out: see `verifiers_bridge`.
"""

from __future__ import annotations

import itertools
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.environment import ProgramEnvironment, Reply, World
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.seeded_tasks import SPLITS, hundredth
from kintsugi.sandboxes.environments.worker_processes import WorkerDied, WorkerProcess

LONGEST_ANSWER: Final = 100_000
_FEWEST: Final = 8
_THINK: Final = re.compile(r"\s*think\s?:", re.IGNORECASE)
_ACTION: Final = re.compile(r"^\s{0,9}action\s?\d{0,3}\s?:", re.IGNORECASE | re.MULTILINE)


class RolloutBroke(RuntimeError):
    """A rollout that could not begin."""


class VerifiersTasks:
    """What both have: tasks, golds, verdicts. A payload holds `index` in the taskset, and `gold` (a text or several) where
    it is known.

    told: the tasks, as the worker tells them. room: a folder of the bridge's own, removed at close."""

    name = "verifiers"

    def __init__(
        self, processes: Sequence[WorkerProcess], told: Sequence[Mapping[str, Any]], success_reward: float, room: Path
    ) -> None:
        self.processes, self.success_reward, self.room = processes, success_reward, room
        self._told: dict[str, list[Mapping[str, Any]]] = {split: [] for split in SPLITS}
        for one in self._numbered(told):
            split = next(split for split, part in SPLITS.items() if hundredth(one["prompt"]) in part)
            self._told[split].append(one)

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The tasks of `split` in the taskset's order, at most `limit`. Raises DataError for an unknown split."""
        if split not in self._told:
            raise DataError(f'verifiers has no split "{split}": {nearest(split, self._told)}')
        return [self._task(one, split) for one in self._told[split][:limit]]

    def verdict(self, ended: Mapping[str, Any], praise: str, blame: str) -> Verdict:
        """The verdict of an attempt with these scores: out of turns is a failure whatever they are."""
        success = ended["reward"] >= self.success_reward and not ended["limit"]
        reward = 1.0 if success else min(max(ended["reward"], 0.0), 1.0)
        return Verdict(success=success, reward=reward, feedback=praise if success else blame, detail=ended["detail"])

    async def gold(self, task: Task) -> Sequence[str] | None:
        """The texts of the taskset's own field, one an action."""
        gold = task.payload.get("gold")
        return (gold,) if isinstance(gold, str) else tuple(gold) if gold else None

    async def close(self) -> None:
        for process in self.processes:
            process.close()
        sweep(self.room)

    def _numbered(self, told: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        return told

    def _task(self, one: Mapping[str, Any], split: str) -> Task:
        payload = {"index": one["index"], **({"gold": one["gold"]} if one["gold"] is not None else {})}
        name = f"{one['index']}-{one['key'][:12]}"
        return Task(id=name, environment=self.name, split=split, prompt=one["prompt"], payload=payload)


class VerifiersBridge(VerifiersTasks, ProgramEnvironment):
    """Tasks of one answer."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._turns = itertools.cycle(self.processes)

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
        ended = score["ended"]
        return self.verdict(ended, "Right.", f'"{readable(text.strip(), 80)}" is not enough: {_parts(ended)}.')


class VerifiersTurns(VerifiersTasks):
    """Tasks with turns. Where nearly all begin alike (the user's part tells them apart), prompts are numbered."""

    def __init__(self, *given: Any, max_turns: int) -> None:
        super().__init__(*given)
        self.max_turns = max_turns
        self._names = itertools.count()

    async def start(self, task: Task) -> World:
        name = f"{task.id}/{next(self._names)}"
        return VerifiersWorld(self, task, name, self.processes[zlib.crc32(name.encode()) % len(self.processes)])

    def _numbered(self, told: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        if len({one["prompt"] for one in told}) >= min(_FEWEST, len(told)):
            return told
        return [{**one, "prompt": f"Task {one['index']}.\n{one['prompt']}".strip()} for one in told]


class VerifiersWorld:
    """One attempt: its messages so far, by which a worker can play it again. verdict: once it is over."""

    def __init__(self, bridge: VerifiersTurns, task: Task, name: str, process: WorkerProcess) -> None:
        self.bridge, self.task, self.name, self.process = bridge, task, name, process
        self.actions: list[str] = []
        self.verdict: Verdict | None = None
        self._begun = False

    async def observe(self) -> str:
        """What the model is asked first. Raises RolloutBroke."""
        try:
            answer = await self._replay()
        except WorkerDied as died:
            raise RolloutBroke(str(died)[:300]) from None
        if "broke" in answer:
            raise RolloutBroke(answer["broke"])
        return answer.get("observation", "(it ended before it began)")

    async def act(self, action: str) -> Reply:
        if self.verdict is not None:
            return Reply(observation="The attempt is over.", executions=0)
        if _THINK.match(action) and not _ACTION.search(action):
            return Reply(observation="OK.", executions=0)
        text = action.encode(errors="replace").decode()
        try:
            answer = await self._ask(text)
        except WorkerDied as died:
            return self._failed(f"{died}"[:300])
        if "broke" in answer:
            return self._failed(answer["broke"])
        self.actions.append(text)
        if "ended" not in answer:
            return Reply(observation=answer["observation"], executions=0 if answer.get("malformed") else 1)
        ended = answer["ended"]
        over = f"It ran into the limit {ended['limit']}" if ended["limit"] else "It ended"
        self.verdict = self.bridge.verdict(ended, "Task done.", f"{over}, and that is not enough: {_parts(ended)}.")
        return Reply(verdict=self.verdict)

    async def close(self) -> None:
        if self._begun and self.process.up:
            try:
                await self.process.ask({"op": "leave", "world": self.name})
            except WorkerDied:
                return  # and the rollout with it

    async def _ask(self, action: str) -> dict[str, Any]:
        if self._begun:
            act = {"op": "act", "world": self.name, "number": len(self.actions), "action": action}
            answer = await self.process.ask(act)
            if "lost" not in answer:
                return answer
        return await self._replay(action)

    async def _replay(self, *more: str) -> dict[str, Any]:
        self._begun = True
        request = {"op": "replay", "world": self.name, "index": self.task.payload["index"]}
        return await self.process.ask({**request, "actions": [*self.actions, *more]})

    def _failed(self, why: str) -> Reply:
        feedback = f"The environment broke: {why}"
        self.verdict = Verdict(success=False, reward=0.0, feedback=feedback, error=f"environment_failed: {why}")
        return Reply(verdict=self.verdict)


def sweep(room: Path) -> None:
    """Remove the folder and what verifiers left beside it; see `verifiers_worker.keep_inside`."""
    shutil.rmtree(room, ignore_errors=True)
    for left in Path("/tmp").glob(f"vf-port-{room.name}-*"):
        left.unlink(missing_ok=True)


def _parts(ended: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in ended["detail"].items())

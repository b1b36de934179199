"""Any Gymnasium environment whose observations and actions can be written down.

    environment = open_environment(env="FrozenLake-v1", kwargs={"map_name": "8x8"}, render=True,
                                   actions="left, down, right, up")
    environment = open_environment(env="my_package:MyGame-v0")        # the module that registers it, and its id

It needs the extra `[gymnasium]`. A task is a seed: its prompt is the first observation after `reset(seed=…)`, then what the
actions are. Splits share no prompt: `seeded_tasks`.

**Success**: with `success_return`, the attempt ended with at least that sum of rewards; without, what the environment's
last `info` says under `success` or `is_success`, or else a last reward above 0. The verdict's detail has `return`, the sum.
Texts ↔ actions and observations: `gymnasium_text`. `think: …` is answered "OK." and reaches no environment.

Environments run in worker processes (`gymnasium_worker`): one that raises, dies or takes longer than `timeout_s` over an
action ends the attempt with an error on its verdict, never an exception; the other worlds of that process are replayed.
Left out: pixels, and environments that ignore their seed (their worlds cannot be rebuilt).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, missing_extra
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.environment import Reply
from kintsugi.sandboxes.environments.seeded_tasks import SeededTasks
from kintsugi.sandboxes.environments.worker_processes import WorkerDied, WorkerProcess

_WORKER: Final = "kintsugi.sandboxes.environments.gymnasium_worker"
_FORMS: Final = {"env": "an id such as Taxi-v4", "kwargs": "a table such as {is_rainy = true}", "expert": "module:function"}
_THINK: Final = re.compile(r"\s*think\s?:", re.IGNORECASE)

ABOUT = About(
    kind="bridge: several turns, any Gymnasium environment (option env)",
    metric="the return reaches success_return, or the environment says so",
    data="none: a task is a seed",
    extra="gymnasium",
)


def open_environment(
    env: str,
    kwargs: Mapping[str, Any] | None = None,
    actions: str | Sequence[str] = (),
    render: bool = False,
    instructions: str = "",
    success_return: float | None = None,
    expert: str = "",
    max_turns: int = 30,
    num_tasks: int = 50,
    workers: int = 2,
    timeout_s: float = 30.0,
) -> GymnasiumBridge:
    """The environment of Gymnasium's id `env`, opened with `kwargs`.

    actions: names of a Discrete space's actions, in order. render: observations are what `render()` gives as text
    (render_mode "ansi"). instructions: stand before each prompt. success_return: see the module. expert: "module:function"
    of (unwrapped environment, observation) that gives an action's text, for golds and `--policy expert`. max_turns: most
    actions an attempt may take. num_tasks: how many `tasks` gives without a limit. workers: processes. timeout_s: longest
    wait for one action. Raises MissingExtra, and ConfigError for an id that cannot be made."""
    if importlib.util.find_spec("gymnasium") is None:
        raise missing_extra("the environment gymnasium", "gymnasium")
    if max_turns < 1 or num_tasks < 1 or workers < 1 or timeout_s <= 0:
        raise ConfigError("gymnasium: expected max_turns, num_tasks and workers of 1 or more and timeout_s above 0")
    names = [name.strip() for name in actions.split(",")] if isinstance(actions, str) else list(actions)
    for option, value, wanted in (("env", env, str), ("kwargs", kwargs or {}, Mapping), ("expert", expert, str)):
        if not isinstance(value, wanted):
            raise ConfigError(f"gymnasium.{option}: expected {_FORMS[option]}, found {value!r}")
    asked = {
        "env": env,
        "kwargs": dict(kwargs or {}),
        "actions": [n for n in names if n],
        "render": render,
        "expert": expert,
    }
    # Sets of texts are in the same order in every worker, so that replays agree.
    settings = {"PYTHONHASHSEED": "0"}
    processes = [WorkerProcess(_WORKER, [json.dumps(asked)], timeout_s, settings) for _ in range(workers)]
    bridge = GymnasiumBridge(
        processes, instructions=instructions, success_return=success_return, has_expert=bool(expert), max_turns=max_turns,
        num_tasks=num_tasks,
    )  # fmt: skip
    try:
        bridge.seeded.help = bridge.ask_first({"op": "describe"})["help"]
    except BaseException:
        for process in processes:
            process.close()
        raise
    return bridge


class GymnasiumBridge:
    """The environment. A payload holds `seed`."""

    name = "gymnasium"

    def __init__(
        self, processes: Sequence[WorkerProcess], *, instructions: str, success_return: float | None, has_expert: bool,
        max_turns: int, num_tasks: int,
    ) -> None:  # fmt: skip
        self.processes, self.success_return = processes, success_return
        self.has_expert, self.max_turns, self.num_tasks = has_expert, max_turns, num_tasks
        self.seeded = SeededTasks(self.name, self._first, instructions, help="")
        self._names = itertools.count()

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Tasks of `split`, others for another seed; see `SeededTasks`."""
        wanted = self.num_tasks if limit is None else limit
        return self.seeded.tasks(split, wanted=wanted, seed=seed)

    async def start(self, task: Task) -> GymnasiumWorld:
        name = f"{task.id}/{next(self._names)}"
        return GymnasiumWorld(self, task, name, self.processes[zlib.crc32(name.encode()) % len(self.processes)])

    async def gold(self, task: Task) -> Sequence[str] | None:
        """What the expert does, if it wins. Raises DataError where it, or the environment under it, raises or dies."""
        if not self.has_expert:
            return None
        request = {"op": "expert", "seed": task.payload["seed"], "turns": self.max_turns}
        try:
            answer = await self.processes[0].ask(request)
        except WorkerDied as died:
            raise DataError(f"gymnasium.expert: no gold for {task.id}: {died}; mend the expert or the environment") from None
        return answer["actions"] if answer["actions"] is not None and self.succeeded(answer) else None

    async def close(self) -> None:
        for process in self.processes:
            process.close()

    def ask_first(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the first process answers, waited for. Raises DataError when it gives no answer."""
        try:
            return self.processes[0].ask_blocking(request)
        except WorkerDied as died:
            raise DataError(f"gymnasium: {died}; mend the environment, or give timeout_s more seconds") from None

    def succeeded(self, answer: Mapping[str, Any]) -> bool:
        """Whether the attempt that ended with this answer of the worker's is a success."""
        if self.success_return is not None:
            return answer["total"] >= self.success_return
        return answer["said"] if answer["said"] is not None else answer["last"] > 0

    def _first(self, seeds: Sequence[int]) -> list[str]:
        return self.ask_first({"op": "first", "seeds": list(seeds)})["observations"]


class GymnasiumWorld:
    """One attempt: its actions so far, by which its worker can play it again. verdict: once it is over."""

    def __init__(self, bridge: GymnasiumBridge, task: Task, name: str, process: WorkerProcess) -> None:
        self.bridge, self.task, self.name, self.process = bridge, task, name, process
        self.actions: list[str] = []
        self.verdict: Verdict | None = None
        self._known_there = False

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        if self.verdict is not None:
            return Reply(observation="The game is over.", executions=0)
        if _THINK.match(action):
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
        self.verdict = self._judge(answer)
        return Reply(observation=answer["observation"], verdict=self.verdict)

    async def close(self) -> None:
        if self._known_there and self.process.up:
            try:
                await self.process.ask({"op": "leave", "world": self.name})
            except WorkerDied:
                return  # and the world with it

    async def _ask(self, action: str) -> dict[str, Any]:
        if self.actions:
            act = {"op": "act", "world": self.name, "number": len(self.actions), "action": action}
            answer = await self.process.ask(act)
            if "lost" not in answer:
                return answer
        self._known_there = True
        replay = {"op": "replay", "world": self.name, "seed": self.task.payload["seed"]}
        return await self.process.ask({**replay, "actions": [*self.actions, action]})

    def _failed(self, why: str) -> Reply:
        feedback = f"The environment broke: {why}"
        self.verdict = Verdict(success=False, reward=0.0, feedback=feedback, error=f"environment_failed: {why}")
        return Reply(verdict=self.verdict)

    def _judge(self, answer: Mapping[str, Any]) -> Verdict:
        total, success = answer["total"], self.bridge.succeeded(answer)
        ended = "It ended" if answer["ended"] == "terminated" else "It was cut off"
        feedback = f"{ended} after {len(self.actions)} actions with a return of {total:g}."
        feedback += " Task done." if success else f" The task was not done. It ended so: {answer['observation'][:500]}"
        return Verdict(success=success, reward=float(success), feedback=feedback, detail={"return": total})

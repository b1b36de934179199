"""Where `verifiers` tasks are really scored: one taskset, loaded once, by its own code.

    python -m kintsugi.sandboxes.environments.verifiers_worker '{"env": "sums", "config": {}, "most": 10000, "gold": ""}'

    {"op": "tasks"}                                    every task: index, key, prompt, and the gold field's text
    {"op": "score", "index": 3, "text": "12"}          the task's own rewards and metrics of that answer

An answer is scored as verifiers scores a finished trace: the prompt, one assistant message, then the task's `@reward`s,
`@metric`s and judges. What they raise is answered `{"broke": why}`. Left out: see `verifiers_bridge`.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.worker_processes import serve


class Worker:
    """Answers requests; see the module. env: the taskset's id. config: of the taskset. most: tasks read. gold: a field."""

    def __init__(self, env: str, config: Mapping[str, Any], most: int, gold: str) -> None:
        self.env_id, self.config, self.most, self.gold = env, dict(config), most, gold
        self._tasks: list[Any] | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request. Raises ConfigError and DataError for what the user must mend."""
        if request["op"] == "tasks":
            return {"tasks": [self._told(index, task) for index, task in enumerate(self.tasks())]}
        if request["op"] == "score":
            try:
                return self._score(self.tasks()[request["index"]], request["text"])
            except Exception as error:  # a taskset is foreign code
                return {"broke": _one_line(error)}
        raise ValueError(f"unknown request {request['op']!r}")

    def tasks(self) -> list[Any]:
        """The taskset's tasks, at most `most`."""
        if self._tasks is None:
            taskset = self._open()
            try:
                self._tasks = list(itertools.islice(iter(taskset), self.most))
            except Exception as error:
                raise DataError(f'verifiers: the taskset "{self.env_id}" does not load ({_one_line(error)})') from None
        return self._tasks

    def _open(self) -> Any:
        from verifiers.v1.envs.single_agent import SingleAgentEnv
        from verifiers.v1.utils.loaders import environment_class, load_taskset, taskset_class, taskset_config_type

        try:
            kind = taskset_class(self.env_id)
            config = taskset_config_type(self.env_id).model_validate({**self.config, "id": self.env_id})
            taskset, own = load_taskset(config), environment_class(self.env_id)
        except ModuleNotFoundError as error:
            found = f'verifiers.env: expected an installed taskset, found none called "{self.env_id}" ({_one_line(error)})'
            raise ConfigError(f"{found}; install its package") from None
        except Exception as error:  # its configuration's checks, its constructor
            said = f'verifiers: "{self.env_id}" does not open with {self.config} ({_one_line(error)})'
            raise ConfigError(said[:400]) from None
        task = kind.task_type()
        why = ""
        if own is not SingleAgentEnv:
            why = "it plays several agents"
        elif task.NEEDS_CONTAINER or _overridden(task, "setup") or _overridden(task, "finalize"):
            why = "its tasks need a runtime of their own"
        elif _overridden(kind, "toolsets") or _overridden(task, "toolsets"):
            why = "its tasks bring tools"
        if why:
            raise ConfigError(f"verifiers: expected a taskset of one answer a task, found {self.env_id}: {why}")
        return taskset

    def _told(self, index: int, task: Any) -> dict[str, Any]:
        data = task.data
        prompt = "\n\n".join(part for part in (data.system_prompt, data.prompt_text) if part)
        gold = getattr(data, self.gold, None) if self.gold else None
        if self.gold and gold is None:
            raise ConfigError(f'verifiers.gold: task {index} has no field "{self.gold}": name the one that has the answer')
        return {"index": index, "key": task.key, "prompt": prompt, "gold": None if gold is None else str(gold)}

    def _score(self, task: Any, text: str) -> dict[str, Any]:
        from verifiers.v1.configs.agent import AgentConfig
        from verifiers.v1.graph import MessageNode
        from verifiers.v1.state import state_cls
        from verifiers.v1.trace import AgentInfo, Trace, TraceTask
        from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage

        data = task.data
        asked = [UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else list(data.prompt or ())
        messages = [*([SystemMessage(content=data.system_prompt)] if data.system_prompt else ()), *asked]
        nodes = [MessageNode(parent=place - 1 if place else None, message=one) for place, one in enumerate(messages)]
        answer = AssistantMessage(content=text)
        nodes.append(MessageNode(parent=len(nodes) - 1 if nodes else None, message=answer, sampled=True))
        trace: Any = Trace(
            task=TraceTask(type=type(task).__name__, data=data, key=task.key, hash=task.hash),
            agent=AgentInfo(config=AgentConfig()),
            nodes=nodes,
            state=state_cls(type(task))(),
            is_completed=True,
            ok=True,
            stop_condition="agent_completed",
        )
        asyncio.run(task.score(trace))
        rewards = {name: reward.value for name, reward in trace.rewards.items() if reward is not None}
        missing = [name for name, reward in trace.rewards.items() if reward is None]
        if missing or not rewards:
            return {"broke": f"not scored: {', '.join(missing) or 'the task has no rewards'}"}
        detail = {name: float(value) for name, value in (*trace.metrics.items(), *rewards.items()) if value is not None}
        odd = [name for name, value in {**detail, "reward": float(trace.reward)}.items() if not math.isfinite(value)]
        if odd:
            return {"broke": f"expected numbers, found others as {', '.join(odd)}"}
        return {"reward": float(trace.reward), "detail": detail}


def _overridden(kind: Any, name: str) -> bool:
    """Whether a taskset's or task's class has its own `name`, not verifiers'."""
    found = next(base for base in kind.__mro__ if name in vars(base))
    return found.__module__ not in ("verifiers.v1.task", "verifiers.v1.taskset")


def _one_line(error: Exception) -> str:
    return readable(" ".join(f"{type(error).__name__}: {error}".split()), 250)


if __name__ == "__main__":
    importlib.import_module("verifiers.v1")  # before it says that it is up: this takes seconds
    serve(Worker(**json.loads(sys.argv[1])).answer)

"""Where `verifiers` tasks are really played and scored: one environment, loaded once, by its own code.

    python -m kintsugi.sandboxes.environments.verifiers_worker '{"env": "sums", "config": {}, …}'

    {"op": "tasks"}                                          every task (index, key, prompt, gold), and whether it has turns
    {"op": "score", "index": 3, "text": "12"}                the task's own rewards and metrics of that answer
    {"op": "replay", "world": "w1", "index": 3, "actions": []}      a rollout from the start; answers what comes last
    {"op": "act", "world": "w1", "number": 0, "action": "12"}       the next message, the first here
    {"op": "leave", "world": "w1"}       {"op": "tools"}     what the model is offered, as its protocol has it

A task without turns is scored as verifiers scores a finished trace: the prompt, one assistant message, then its `@reward`s,
`@metric`s and judges. One with turns is a rollout (`verifiers_play`). What either raises is answered `{"broke": why}`. At
most `MOST_OPEN` rollouts are open; the one that waited longest is closed, and an `act` in it answered `{"lost": true}`, as
in a worker that does not know it: the asker replays. Left out: see `verifiers_bridge`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import json
import os
import sys
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments.verifiers_chat import register
from kintsugi.sandboxes.environments.verifiers_play import Play, Stage, one_line, scored
from kintsugi.sandboxes.environments.verifiers_servers import Nursery
from kintsugi.sandboxes.environments.verifiers_world import sweep
from kintsugi.sandboxes.environments.worker_processes import serve

MOST_OPEN: Final = 64
_OWN_PROGRAMS: Final = ("", "bash", "null")
"""Harnesses that say nothing of how an agent must be run: none, verifiers' default, the bare chat."""


class Worker:
    """Answers requests; see the module. env: the taskset's id. config: of the taskset; env_config: of the environment
    around it. most: tasks read. gold: a field. max_turns: most messages in a rollout. patience_s: longest wait for what
    follows one. list_tools: name them in the first observation. room: a folder for what is left lying."""

    def __init__(
        self, env: str, config: Mapping[str, Any], env_config: Mapping[str, Any], most: int, gold: str, max_turns: int,
        patience_s: float, list_tools: bool, room: str,
    ) -> None:  # fmt: skip
        self.env_id, self.config, self.env_config = env, dict(config), dict(env_config)
        self.most, self.gold, self.max_turns = most, gold, max_turns
        self.patience_s, self.list_tools = patience_s, list_tools
        self.worlds: dict[str, Play] = {}
        self._loop = asyncio.new_event_loop()
        self._stage: Stage | None = None
        keep_inside(Path(room))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request. Raises ConfigError and DataError for what the user must mend."""
        stage = self.stage()
        match request["op"]:
            case "tasks":
                told = [self._told(index, task) for index, task in enumerate(stage.tasks)]
                return {"tasks": told, "turns": bool(stage.tasks) and has_turns(stage.env, stage.tasks[0])}
            case "score":
                return self._run(self._score(stage.tasks[request["index"]], request["text"]))
            case "replay":
                return self._run(self._replay(request["world"], request["index"], request["actions"]))
            case "act":
                play = self.worlds.get(request["world"])
                if play is None or play.number != request["number"]:
                    return {"lost": True}
                self.worlds[request["world"]] = self.worlds.pop(request["world"])  # the latest stands last
                return self._run(play.act(request["action"]))
            case "leave":
                return self._run(self._leave(request["world"]))
            case "tools":
                return self._run(self._tools())
        raise ValueError(f"unknown request {request['op']!r}")

    def stage(self) -> Stage:
        """The environment and its tasks, at most `most`."""
        if self._stage is None:
            env = self._env()
            try:
                tasks = list(itertools.islice(iter(env.taskset), self.most))
            except Exception as error:
                raise DataError(f'verifiers: the taskset "{self.env_id}" does not load ({one_line(error)})') from None
            for index, task in enumerate(tasks):
                if why := task_needs(task):
                    raise self._refusal(f"task {index} {why}")
            self._stage = Stage(env, tasks, self.patience_s, self.list_tools)
        return self._stage

    def _env(self) -> Any:
        loaders = importlib.import_module("verifiers.v1.utils.loaders")
        try:
            loaders.taskset_class(self.env_id)
            raw = {**self.env_config, "taskset": {**self.config, "id": self.env_id}}
            config, own = loaders.resolve_env_config(raw), loaders.default_harness_id(self.env_id)
        except ModuleNotFoundError as error:
            found = f'verifiers.env: expected an installed taskset, found none called "{self.env_id}" ({one_line(error)})'
            raise ConfigError(f"{found}; install its package") from None
        except Exception as error:  # its configuration's checks
            raise self._unopened(error) from None
        seats = importlib.import_module("verifiers.v1.configs.agent").agent_config_fields(config)
        if len(seats) != 1:
            raise self._refusal(f"it plays several agents ({', '.join(seats)})")
        ((name, seat),) = seats.items()
        program = seat.harness.id if seat.harness is not None else own
        if program not in _OWN_PROGRAMS:
            raise self._refusal(f"its agent must run in the program {program}")
        try:
            env = loaders.load_environment(config.model_copy(update={name: self._seated(seat)}))
        except Exception as error:  # its constructor, and the taskset's
            raise self._unopened(error) from None
        if why := taskset_needs(env.taskset):
            raise self._refusal(why)
        return env

    def _seated(self, seat: Any) -> Any:
        """The agent's seat with Kintsugi's agent on it: verifiers' chat loop, here, asking this worker for messages."""
        vf = importlib.import_module("verifiers.v1")
        turns = min(self.max_turns, seat.max_turns or self.max_turns)
        harness = vf.harness_config_type(register())(id=register())
        changes = {"harness": harness, "runtime": vf.SubprocessConfig(), "model": None, "client": None, "max_turns": turns}
        return seat.model_copy(update={**changes, "retries": vf.RetryConfig()})

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"verifiers: expected tasks of one agent and no container, found {self.env_id}: {why}")

    def _unopened(self, error: Exception) -> ConfigError:
        given = {**self.config, **self.env_config}
        return ConfigError(f'verifiers: "{self.env_id}" does not open with {given} ({one_line(error)})'[:400])

    def _run(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        try:
            return self._loop.run_until_complete(work)
        except Exception as error:  # a taskset is foreign code
            return {"broke": one_line(error)}

    def _told(self, index: int, task: Any) -> dict[str, Any]:
        data = task.data
        prompt = "\n\n".join(part for part in (data.system_prompt, data.prompt_text) if part)
        gold = getattr(data, self.gold, None) if self.gold else None
        if self.gold and gold is None:
            raise ConfigError(f'verifiers.gold: task {index} has no field "{self.gold}": name the one that has the answer')
        said = gold if gold is None else [str(one) for one in gold] if isinstance(gold, list | tuple) else str(gold)
        return {"index": index, "key": task.key, "prompt": prompt, "gold": said}

    async def _replay(self, world: str, index: int, actions: list[str]) -> dict[str, Any]:
        await self._leave(world)
        while len(self.worlds) >= MOST_OPEN:
            await self._leave(next(iter(self.worlds)))
        play = self.worlds[world] = await self.stage().play(index)
        answer = await play.begin()
        for action in actions:
            answer = await play.act(action)
        return answer

    async def _leave(self, world: str) -> dict[str, Any]:
        play = self.worlds.pop(world, None)
        if play is not None:
            await play.close()
        return {}

    async def _tools(self) -> dict[str, Any]:
        play = await self.stage().play(0)
        try:
            answer = await play.begin()
            return {"tools": play.tools} if "observation" in answer else answer
        finally:
            await play.close()

    async def _score(self, task: Any, text: str) -> dict[str, Any]:
        vf: Any = importlib.import_module("verifiers.v1")
        data = task.data
        asked = [vf.UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else list(data.prompt or ())
        messages = [*([vf.SystemMessage(content=data.system_prompt)] if data.system_prompt else ()), *asked]
        node = importlib.import_module("verifiers.v1.graph").MessageNode
        nodes = [node(parent=place - 1 if place else None, message=one) for place, one in enumerate(messages)]
        answer = vf.AssistantMessage(content=text)
        nodes.append(node(parent=len(nodes) - 1 if nodes else None, message=answer, sampled=True))
        trace: Any = vf.Trace(
            task=vf.TraceTask(type=type(task).__name__, data=data, key=task.key, hash=task.hash),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
            nodes=nodes,
            state=importlib.import_module("verifiers.v1.state").state_cls(type(task))(),
            is_completed=True,
            ok=True,
            stop_condition="agent_completed",
        )
        await task.score(trace)
        return scored(trace)


def has_turns(env: Any, task: Any) -> bool:
    """Whether tasks are played message by message: the environment talks, there are tools, or a hook of the task's looks
    at more than one finished answer."""
    single = importlib.import_module("verifiers.v1.envs.single_agent").SingleAgentEnv
    found = importlib.import_module("verifiers.v1.utils.decorators").discover_decorated
    scores = [*task.hooks("reward"), *task.hooks("metric"), *(judge.score for judge in task.plugged_judges())]
    return (
        type(env) is not single
        or bool(_toolsets(env.taskset, task))
        or any(_overridden(type(task), name) for name in ("setup", "finalize"))
        or bool(task.hooks("stop") or found(task, "intercept"))
        or any("runtime" in inspect.signature(score).parameters for score in scores)
    )


def taskset_needs(taskset: Any) -> str:
    """What the taskset needs that is not here, "" for nothing."""
    kind = type(taskset).task_type()
    servers = [*type(taskset).toolsets(taskset.config), *kind.toolsets(taskset.config.task)]
    away = [one for one in servers if not getattr(one.config, "url", None) and one.config.runtime.type != "subprocess"]
    if kind.NEEDS_CONTAINER:
        return "its tasks need a runtime of their own"
    return f"its tools {type(away[0]).__name__} need a runtime of their own" if away else ""


def task_needs(task: Any) -> str:
    """What a task needs that is not here, "" for nothing."""
    data = task.data
    if data.image is not None or "*" not in data.network_allow or data.network_block or data.agent_user:
        return "needs a runtime of its own"
    return "brings skills, which only agent programs read" if data.skills else ""


def keep_inside(room: Path) -> None:
    """Let verifiers put the folders of its rollouts into `room`, and give the port files of its tool servers the room's
    name: both would be left behind by a worker that is killed, the latter by every server."""
    runtimes: Any = importlib.import_module("verifiers.v1.runtimes.subprocess")
    launch: Any = importlib.import_module("verifiers.v1.mcp.launch")
    numbers = itertools.count()
    runtimes.CACHE_DIR = room
    launch.uuid = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{room.name}-{next(numbers)}-{os.getpid()}"))


def _toolsets(taskset: Any, task: Any) -> list[Any]:
    return [*type(taskset).toolsets(taskset.config), *type(task).toolsets(task.config)]


def _overridden(kind: Any, name: str) -> bool:
    """Whether a task's class has its own `name`, not verifiers'."""
    found = next(base for base in kind.__mro__ if name in vars(base))
    return found.__module__ != "verifiers.v1.task"


if __name__ == "__main__":
    Nursery().take_over()
    asked = json.loads(sys.argv[1])
    serve(Worker(**asked).answer)
    sweep(Path(asked["room"]))  # who would have done it is gone

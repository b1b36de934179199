"""The two graphs for LangGraph Studio (`langgraph.json` at the root), played by a demonstration cast without a model.

    graph = episode()
    state = await graph.ainvoke({"task": 1})           # an attempt, its verdict, its repair, the verdict on that
    state = await rounds().ainvoke({"rounds": 2})      # explore → … → promote, twice

Graphs, environment and sandbox are the real ones (word problems in the local sandbox); only the policy is written down:
it slips in every task but each third, mends what it wrote when it is asked to, and learns by heart. So its held-out
success stays where it is, as it should. What it knows is kept in memory: a studio started anew begins anew.

Left out: anything that loads a model. A trained agent is watched with `kintsugi play`, real rounds run with
`kintsugi train`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from langgraph.graph import END, START, StateGraph
from pydantic import Field

from kintsugi.agents.policies.policy import ChatMessage
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.config import StrictConfig
from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.episode_graph import build_episode_graph
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan, EpisodeState, start_state
from kintsugi.graphs.rollout import play_wave
from kintsugi.graphs.round_graph import RoundState, Stage, build_round_graph
from kintsugi.graphs.worlds import Worlds
from kintsugi.records import Episode, Task, content_hash
from kintsugi.sandboxes.environments.environment import open_environment

TASKS = 6
"""How many problems of each split there are, and how many a round explores."""

Book = Mapping[str, str]
"""Question → program, known by heart."""


class EpisodeInput(StrictConfig):
    """task: which of the problems, from 0."""

    task: int = Field(default=0, ge=0, lt=TASKS)


class RoundsInput(StrictConfig):
    """rounds: how many; each explores the same problems."""

    rounds: int = Field(default=1, ge=0, le=20)


def episode() -> Any:
    """The compiled episode graph behind a node that deals a task. Input: EpisodeInput; output: the episode's state."""
    stage = _stage()

    async def deal(state: EpisodeInput) -> EpisodeState:
        task = stage.tasks["train"][state.task]
        return start_state(_plan(task, "play", 0, "demonstration"))

    graph: Any = StateGraph(EpisodeState, input_schema=EpisodeInput)
    graph.add_node("deal", deal)
    graph.add_node("episode", build_episode_graph(stage.cast({}, RepairConfig(who="self"))))
    graph.add_edge(START, "deal")
    graph.add_edge("deal", "episode")
    graph.add_edge("episode", END)
    return graph.compile()


def rounds() -> Any:
    """The compiled round graph behind a node that says how many rounds. Input: RoundsInput; output: the rounds' state."""

    async def begin(state: RoundsInput) -> RoundState:
        return RoundState(round=0, rounds=state.rounds, champion="", versions={}, datasets={}, trained={}, path=[])

    graph: Any = StateGraph(RoundState, input_schema=RoundsInput)
    graph.add_node("begin", begin)
    graph.add_node("rounds", build_round_graph(_Rounds().table()))
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "rounds")
    graph.add_edge("rounds", END)
    return graph.compile()


class _Stage:
    """The environment and its problems, and the cast that plays them."""

    def __init__(self) -> None:
        self.environment: Any = open_environment("word_problems", {"events": "2"})
        self.tasks: dict[str, Sequence[Task]] = {
            split: self.environment.tasks(split, limit=TASKS) for split in ("train", "heldout")
        }
        self._slips: dict[str, str] = {}
        self._right: dict[str, str] = {}
        for task in (task for tasks in self.tasks.values() for task in tasks):
            slip, fault, rest = self.environment.scripted_repair(task, random.Random(task.id))
            self._right[task.prompt] = fault.kept + rest
            self._slips[task.prompt] = self._right[task.prompt] if len(self._slips) % 3 == 2 else slip

    def cast(self, book: Book, repair: RepairConfig | None = None) -> Cast:
        """Who plays with what `book` knows by heart."""
        roles = {}
        for name, known in (("actor", {**self._slips, **book}), ("refiner", self._right)):
            prompt = load_prompt("program", name).without_shots()
            roles[name] = Role(name=name, policy=ScriptedPolicy(_looked_up(known)), prompt=prompt)
        return Cast(roles=roles, worlds=Worlds(self.environment), repair=repair or RepairConfig())


@cache
def _stage() -> _Stage:
    """One for the whole process: a server makes its graphs anew for every request, and a sandbox is worth keeping."""
    return _Stage()


class _Rounds:
    """The stages of a round. Names are in the graph's state; what they name is here, in `books` and `datasets`."""

    def __init__(self) -> None:
        self.stage = _stage()
        self.episodes: list[Episode] = []
        self.datasets: dict[str, Book] = {}
        self.books: dict[str, Book] = {"start": {}}
        self.rates: dict[str, float] = {}

    def table(self) -> dict[str, Stage]:
        names = ("prepare", "explore", "reward", "select", "learn", "evaluate", "promote")
        return {name: getattr(self, name) for name in names}

    async def prepare(self, state: RoundState) -> dict[str, Any]:
        await self._measure("start")
        return {"round": 1, "champion": "start", "versions": {"start": "by heart: nothing"}}

    async def explore(self, state: RoundState) -> dict[str, Any]:
        cast = self.stage.cast(self.books[state["champion"]], RepairConfig(who="self"))
        plans = [_plan(task, "explore", state["round"], state["champion"]) for task in self.stage.tasks["train"]]
        self.episodes = await play_wave(plans, cast)
        return {"datasets": {}, "trained": {}}

    async def reward(self, state: RoundState) -> dict[str, Any]:
        return {}  # the hard rewards are there; a script has no log-probabilities for soft ones

    async def select(self, state: RoundState) -> dict[str, Any]:
        asked = {task.id: task.prompt for task in self.stage.tasks["train"]}
        right = {asked[one.task_id]: one.text for episode in self.episodes for one in episode.trajectories if one.success}
        name = content_hash(right)
        self.datasets[name] = right
        return {"datasets": {"main": name}}

    async def learn(self, state: RoundState) -> dict[str, Any]:
        version = f"round-{state['round']}"
        book = {**self.books[state["champion"]], **self.datasets[state["datasets"]["main"]]}
        self.books[version] = book
        known = f"by heart: {len(book)} programs"
        return {"trained": {"main": version}, "versions": {**state["versions"], version: known}}

    async def evaluate(self, state: RoundState) -> dict[str, Any]:
        await self._measure(state["trained"]["main"])
        return {}

    async def promote(self, state: RoundState) -> dict[str, Any]:
        champion, challenger = state["champion"], state["trained"]["main"]
        better = self.rates[challenger] >= self.rates[champion]
        return {"champion": challenger if better else champion, "round": state["round"] + 1}

    async def _measure(self, version: str) -> None:
        plans = [_plan(task, "evaluate", 0, version) for task in self.stage.tasks["heldout"]]
        played = await play_wave(plans, self.stage.cast(self.books[version]))
        self.rates[version] = sum(episode.success for episode in played) / len(played)


def _looked_up(known: Mapping[str, str]) -> Any:
    """The answer to the one question that stands in the last message."""

    def answer(messages: tuple[ChatMessage, ...], _: int) -> str:
        return next(text for question, text in known.items() if question in messages[-1]["content"])

    return answer


def _plan(task: Task, purpose: Any, number: int, version: str) -> EpisodePlan:
    return EpisodePlan(run_id="studio", purpose=purpose, round=number, task=task, sample=0, seed=0, policy_version=version)

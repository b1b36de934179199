"""The episode graph's state: plain JSON-ready values, so that it can be checkpointed, looked at, edited and resumed.

`start_state` makes the first one from a plan; `finished_episode` reads the last one back as an `Episode` record.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # before Python 3.12, schemas (LangGraph Studio asks for them) need this one

from kintsugi.records import (
    Cost,
    Episode,
    Message,
    Stage,
    Stop,
    Task,
    Trajectory,
    Verdict,
    content_hash,
    from_plain,
    message_from_plain,
    to_plain,
)


@dataclass(frozen=True, kw_only=True)
class EpisodePlan:
    """What is to be played.

    sample: which of the task's explorations. seed: of all sampling in it. repair_of: begin with the repair of this
    failed trajectory instead of a fresh attempt. keep: with a rollback, go on from this beginning of it instead of from
    the line that the environment objects to.
    """

    run_id: str
    purpose: Literal["explore", "evaluate", "measure", "play"]
    round: int
    task: Task
    sample: int
    seed: int
    policy_version: str
    repair_of: Trajectory | None = None
    keep: str | None = None

    @property
    def episode_id(self) -> str:
        parent = self.repair_of.id if self.repair_of else ""
        parts = [self.run_id, self.purpose, self.round, self.task.hash, self.sample, self.seed, self.policy_version]
        return content_hash([*parts, parent, *([] if self.keep is None else [self.keep])])


class Attempt(TypedDict):
    """An attempt in progress. messages: plain records, reflections in its context included. crashes: why its world broke."""

    stage: Stage
    parent_id: str | None
    messages: list[dict[str, Any]]
    cost: dict[str, Any]
    crashes: NotRequired[list[str]]


class EpisodeState(TypedDict):
    """plan: the EpisodePlan's plain values and its episode_id. attempts: finished trajectories. current: the attempt in
    progress. path: nodes visited, in order. seconds: wall time of each visit."""

    plan: dict[str, Any]
    attempts: list[dict[str, Any]]
    current: Attempt | None
    path: list[str]
    seconds: NotRequired[list[float]]


def start_state(plan: EpisodePlan) -> EpisodeState:
    """The state an episode begins with."""
    plain = {**to_plain(plan), "episode_id": plan.episode_id}
    return EpisodeState(plan=plain, attempts=[], current=None, path=[], seconds=[])


def task_of(state: EpisodeState) -> Task:
    return from_plain(Task, state["plan"]["task"])


def new_attempt(stage: Stage, parent_id: str | None, first: Sequence[Message]) -> Attempt:
    """A fresh attempt whose messages begin with `first`."""
    messages = [to_plain(message) for message in first]
    return Attempt(stage=stage, parent_id=parent_id, messages=messages, cost=to_plain(Cost()))


def failed_attempt(state: EpisodeState) -> Trajectory | None:
    """The attempt that a repair would start from: the last finished one, else the plan's `repair_of`."""
    if state["attempts"]:
        return from_plain(Trajectory, state["attempts"][-1])
    plain = state["plan"].get("repair_of")
    return from_plain(Trajectory, plain) if plain else None


def noted(attempt: Attempt, reasons: Sequence[str]) -> Attempt:
    """The attempt with these crashes of its world on record."""
    return {**attempt, "crashes": [*attempt.get("crashes", ()), *reasons]} if reasons else attempt


def finish_attempt(state: EpisodeState, attempt: Attempt, verdict: Verdict, stop: Stop) -> Trajectory:
    """The finished attempt as a record; soft reward = mean log-probability of all its sampled tokens, kept turns' too."""
    plan = state["plan"]
    messages = tuple(message_from_plain(message) for message in attempt["messages"])
    number = len(state["attempts"])
    trajectory = Trajectory(
        id=content_hash([plan["episode_id"], number, attempt["stage"]]),
        episode_id=plan["episode_id"],
        task_id=plan["task"]["id"],
        environment=plan["task"]["environment"],
        stage=attempt["stage"],
        attempt=number,
        policy_version=plan["policy_version"],
        round=plan["round"],
        messages=messages,
        stop=stop,
        hard_reward=verdict.reward,
        feedback=verdict.feedback,
        parent_id=attempt["parent_id"],
        cost=from_plain(Cost, attempt["cost"]),
        crashes=tuple(attempt.get("crashes", ())),
    )
    tokens = [action.tokens for action in trajectory.actions if action.tokens is not None]
    logprobs = [logprob for item in tokens for logprob in item.logprobs]
    if not logprobs:
        return trajectory
    return dataclasses.replace(trajectory, soft_reward=math.fsum(logprobs) / len(logprobs))


def finished_episode(state: EpisodeState) -> Episode:
    """The episode that a finished state tells of."""
    plan = state["plan"]
    return Episode(
        id=plan["episode_id"],
        run_id=plan["run_id"],
        purpose=plan["purpose"],
        round=plan["round"],
        task_id=plan["task"]["id"],
        environment=plan["task"]["environment"],
        sample=plan["sample"],
        seed=plan["seed"],
        policy_version=plan["policy_version"],
        trajectories=tuple(from_plain(Trajectory, attempt) for attempt in state["attempts"]),
        path=tuple(state["path"]),
        seconds=tuple(state.get("seconds", ())),
    )


"""The explore stage: samples, verdicts and repairs of a round's tasks, wave by wave, within the token budget.

A wave is some tasks with all their k samples, and (when the recipe repairs unsolved tasks) the repairs and fresh samples
of those that none of the k solved, one after another until one is right. All of it is committed at once, and the policy's
KV cache lives as long as the wave, so a repair goes on from what the failed sample left there. Counting happens on what
the ledger holds, so a killed stage and an undisturbed one tell the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan
from kintsugi.graphs.rollout import forget, play_wave, waves
from kintsugi.ledger import Ledger
from kintsugi.records import Episode, Task, Trajectory
from kintsugi.training.evaluation import seed_of
from kintsugi.training.recipe import Recipe
from kintsugi.training.repair_search import best_place
from kintsugi.training.self_reward import Decode

FIRST_EXTRA = 1000
"""Sample numbers from here on belong to unsolved tasks' repairs (1000 + n) and fresh samples (2000 + n)."""
AGAIN = 3 * FIRST_EXTRA
"""Sample numbers from here on belong to the trained reflector's second look (`reflecting`)."""


@dataclass(frozen=True, kw_only=True)
class ExploreCount:
    """What an explore stage did. solved: tasks with a right sample; rescued: unsolved ones with a right repair;
    repairs, repairs_right, fresh, fresh_right, fresh_rescued: tries at tasks whose samples all failed, and by how many they
    were solved; *_generated, *_processed: their tokens; errors: attempts in which the environment broke;
    sandbox_failed: those of them in which the sandbox did, twice."""

    tasks: int = 0
    samples: int = 0
    samples_right: int = 0
    solved: int = 0
    repairs: int = 0
    repairs_right: int = 0
    rescued: int = 0
    fresh: int = 0
    fresh_right: int = 0
    fresh_rescued: int = 0
    generated_tokens: int = 0
    processed_tokens: int = 0
    repair_generated: int = 0
    repair_processed: int = 0
    fresh_generated: int = 0
    fresh_processed: int = 0
    errors: int = 0
    sandbox_failed: int = 0

    def plain(self) -> dict[str, int]:
        return asdict(self)


class Exploration:
    """One round's exploration with a policy version."""

    def __init__(self, recipe: Recipe, cast: Cast, ledger: Ledger, *, run_id: str, round: int, version: str) -> None:
        self.recipe, self.cast, self.ledger = recipe, cast, ledger
        self.run_id, self.round, self.version = run_id, round, version
        self.decode: Decode | None = getattr(cast.roles["actor"].policy, "decode", None)

    async def play(self, tasks: Sequence[Task], on_done: Callable[[Episode], None]) -> list[Episode]:
        """Explore `tasks` until they or the token budget run out; all episodes of the round, in order."""
        per_wave = max(1, self.cast.episode.wave // self.recipe.explore.k)
        budget = self.recipe.explore_budget
        found: list[Episode] = []
        for number, wave in enumerate(waves(tasks, per_wave)):
            # Whole waves alone: end at the boundary that is nearest to the budget, going by the waves so far.
            if budget is not None and number and generated(found, before=AGAIN) * (1 + 0.5 / number) > budget:
                break
            plans = [self.plan(task, sample) for task in wave for sample in range(self.recipe.explore.k)]
            known = self.ledger.has_episodes([plan.episode_id for plan in plans])
            if len(known) == len(plans):
                found += self._recall(plans)
                continue
            await forget(self.cast)
            episodes = await play_wave(plans, self.cast, on_done=on_done)
            if self.recipe.repair.on == "unsolved":
                for extra_number in range(max(self.recipe.repair.budget, self.recipe.repair.num_fresh)):
                    extra = self.extra_plans(wave, episodes, extra_number)
                    episodes += await play_wave(extra, self.cast, on_done=on_done) if extra else []
            self.ledger.add_tasks(wave)
            self.ledger.commit_episodes(episodes)
            found += self._recall(plans)
        return found

    def plan(
        self,
        task: Task,
        number: int,
        *,
        repair_of: Trajectory | None = None,
        keep: str | None = None,
        measured: bool = False,
    ) -> EpisodePlan:
        return EpisodePlan(
            run_id=self.run_id,
            purpose="measure" if measured else "explore",
            round=self.round,
            task=task,
            sample=number,
            seed=seed_of(self.recipe.seed, "explore", self.round, task.hash, number),
            policy_version=self.version,
            repair_of=repair_of,
            keep=keep,
        )

    def extra_plans(self, tasks: Sequence[Task], episodes: Sequence[Episode], number: int) -> list[EpisodePlan]:
        """The `number`-th repair and fresh sample of each task that no sample solved, until one of that kind is right.

        One after another, and not all at once: a failed repair is an attempt to repair like any other, and often has
        more right lines than what it began with."""
        repair = self.recipe.repair
        by_task: dict[str, list[Episode]] = defaultdict(list)
        for episode in episodes:
            by_task[episode.task_id].append(episode)
        plans = []
        for task in tasks:
            mine = by_task[task.id]
            fresh = [episode for episode in mine if episode.sample >= 2 * FIRST_EXTRA]
            tried = [episode for episode in mine if episode.sample < 2 * FIRST_EXTRA]
            if any(episode.success for episode in tried if episode.sample < FIRST_EXTRA):
                continue
            if repair.who != "none" and number < repair.budget and not any(episode.success for episode in tried):
                wrong = [episode.trajectories[-1] for episode in tried]
                if repair.form == "rollback" and repair.sees == "feedback":
                    place = best_place(wrong, self.decode)
                    if place is not None:
                        plans.append(self.plan(task, FIRST_EXTRA + number, repair_of=place.attempt, keep=place.kept))
                elif failed := worth_repairing(wrong):
                    plans.append(self.plan(task, FIRST_EXTRA + number, repair_of=failed[number % len(failed)]))
            if repair.fresh != "none" and number < repair.num_fresh and not any(episode.success for episode in fresh):
                plans.append(self.plan(task, 2 * FIRST_EXTRA + number, measured=repair.fresh == "measured"))
        return plans

    def _recall(self, plans: Sequence[EpisodePlan]) -> list[Episode]:
        """The wave's episodes as the ledger holds them, extra ones included."""
        names = sorted({plan.task.id for plan in plans})
        return self.ledger.episodes(
            run_id=self.run_id, round=self.round, purpose=["explore", "measure"], task_id=names
        )


def worth_repairing(failed: Sequence[Trajectory]) -> list[Trajectory]:
    """Failed attempts, the most promising first: the longest faultless prefix, then the higher self-reward.

    Attempts in which the environment broke are left out."""

    def promise(one: Trajectory) -> tuple[float, float, str]:
        kept = len(one.fault.kept.splitlines()) if one.fault is not None else 0
        return (-kept, -(one.soft_reward or 0.0), one.id)

    return sorted((one for one in failed if one.stop in ("failure", "truncated")), key=promise)


def generated(episodes: Sequence[Episode], before: int | None = None) -> int:
    """Tokens sampled in these episodes, yardsticks left out; `before`: only of lower sample numbers."""
    return sum(
        trajectory.cost.generated_tokens
        for episode in episodes
        if episode.purpose == "explore" and (before is None or episode.sample < before)
        for trajectory in episode.trajectories
    )


def count(episodes: Sequence[Episode], k: int) -> ExploreCount:
    """What happened, from the episodes of one round alone."""
    by_task: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_task[episode.task_id].append(episode)
    total: dict[str, int] = defaultdict(int)
    for mine in by_task.values():
        samples = [episode for episode in mine if episode.sample < k]
        first = [episode.trajectories[0] for episode in samples if episode.trajectories]
        later = [one for episode in samples for one in episode.trajectories[1:]]
        repairs = later + [e.trajectories[0] for e in mine if FIRST_EXTRA <= e.sample < 2 * FIRST_EXTRA]
        fresh = [e.trajectories[0] for e in mine if 2 * FIRST_EXTRA <= e.sample < AGAIN]
        solved = any(one.success for one in first)
        total["tasks"] += 1
        total["samples"] += len(first)
        total["samples_right"] += sum(one.success for one in first)
        total["solved"] += solved
        total["repairs"] += len(repairs)
        total["repairs_right"] += sum(one.success for one in repairs)
        total["rescued"] += not solved and any(one.success for one in repairs)
        total["fresh"] += len(fresh)
        total["fresh_right"] += sum(one.success for one in fresh)
        total["fresh_rescued"] += not solved and any(one.success for one in fresh)
        total["repair_generated"] += sum(one.cost.generated_tokens for one in repairs)
        total["repair_processed"] += sum(one.cost.processed_tokens for one in repairs)
        total["fresh_generated"] += sum(one.cost.generated_tokens for one in fresh)
        total["fresh_processed"] += sum(one.cost.processed_tokens for one in fresh)
        for one in [*first, *repairs, *fresh]:
            total["generated_tokens"] += one.cost.generated_tokens
            total["processed_tokens"] += one.cost.processed_tokens
            total["errors"] += one.stop == "error"
            total["sandbox_failed"] += one.stop == "error" and getattr(one.messages[-1], "error", "") == "sandbox_failed"
    return ExploreCount(**total)

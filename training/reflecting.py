"""Re-ReST's own stage: the reflector learns from this round's wrong → right pairs and reflects once more.

Source: Re-ReST (arXiv 2406.01495), section 3: first reflections are zero-shot; the trained reflector then takes the attempts
that are still failed. Here those are the attempts at tasks that nobody has solved yet, and they are paid from the share of
the round's token budget that `reflector.token_share` keeps back, so that a comparison at equal tokens stays one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kintsugi.graphs.rollout import waves
from kintsugi.graphs.round_graph import RoundState
from kintsugi.records import Dataset, Episode, Trajectory
from kintsugi.training.evaluation import play_plans
from kintsugi.training.exploration import AGAIN, Exploration, generated, worth_repairing
from kintsugi.training.selection import select

if TYPE_CHECKING:
    from kintsugi.training.stages import Stages


async def train_and_reflect(stages: Stages, state: RoundState) -> dict[str, Any]:
    """The stage `reflect`: changes of the round's state; none when there is no pair to learn from yet."""
    number, recipe = state["round"], stages.recipe
    version = f"reflector-{number}"
    # What this very stage added before it was cut off is left out, so that a repetition sees what it saw at first.
    trajectories = {
        name: one
        for name, one in stages.trajectories(number).items()
        if one.round < number or one.policy_version != version
    }
    pairs = select(stages.pool(number, trajectories), recipe.select).reflector
    rows = stages.lessons().rows(trajectories)
    built = [row for row in map(rows.repair_row, pairs) if any(row.mask)]
    if not built:
        stages.watch.say(f"round {number}  no wrong → right pair yet: the reflector stays as it is")
        return {}
    dataset = Dataset(run_id=stages.run_id, round=number, target="reflector", rows=tuple(built))
    stages.ledger.add_dataset(dataset)
    await stages.learn_version(state, dataset, version, source=stages.source(state), config=recipe.reflector.learn)
    versions = {**state["versions"], version: f"policies/{version}"}
    started = time.monotonic()
    episodes = await _again({**state, "versions": versions}, stages, version, still_failed(trajectories.values(), number))
    right = sum(episode.success for episode in episodes)
    stages.run.record(
        "reflect",
        round=number,
        tries=len(episodes),
        right=right,
        pairs=len(pairs),
        dropped=len(pairs) - len(built),
        generated_tokens=generated(episodes),
        processed_tokens=sum(one.cost.processed_tokens for episode in episodes for one in episode.trajectories),
        seconds=round(time.monotonic() - started, 2),
    )
    stages.watch.say(f"round {number}  trained reflector repaired {right} of {len(episodes)} failed attempts")
    return {"versions": versions}


async def _again(state: RoundState, stages: Stages, version: str, failed: list[Trajectory]) -> list[Episode]:
    """The trained reflector's repairs, wave by wave, until what is left of the token budget is spent."""
    number, recipe = state["round"], stages.recipe
    repair = recipe.repair.model_copy(update={"on": "unsolved"})
    cast = await stages.cast(state, repair=repair, reflector=version)
    explorer = Exploration(recipe, cast, stages.ledger, run_id=stages.run_id, round=number, version=version)
    tasks = {task.id: task for task in stages.tasks.of_round(number)}
    plans = [explorer.plan(tasks[one.task_id], AGAIN + index, repair_of=one) for index, one in enumerate(failed)]
    left = None
    if recipe.explore.budget_tokens is not None:
        spent = generated(stages.ledger.episodes(run_id=stages.run_id, round=number, purpose="explore"), before=AGAIN)
        left = recipe.explore.budget_tokens - spent
    stages.watch.begin(f"round {number}: reflect", len(plans))
    found: list[Episode] = []
    for count, wave in enumerate(waves(plans, cast.episode.wave)):
        if left is not None and (left <= 0 or (count and generated(found) * (1 + 0.5 / count) > left)):
            break
        found += await play_plans(wave, cast, stages.ledger, lambda episode: stages.watch.advance())
    return found


def still_failed(trajectories: Iterable[Trajectory], number: int) -> list[Trajectory]:
    """The failed first attempts of this round whose task nobody solved, in the order of their ids."""
    mine = [one for one in trajectories if one.round == number]
    solved = {one.task_id for one in mine if one.success}
    failed = [one for one in mine if one.parent_id is None and one.task_id not in solved]
    return sorted(worth_repairing(failed), key=lambda one: one.id)

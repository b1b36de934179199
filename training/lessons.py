"""What a round learns from: a selection, the recipe's `[targets]` and the replayed demonstrations, as rows.

`Lessons.of_round` gives the challenger's rows, `of_control` those of the control, which sees demonstrations alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.records import DatasetRow, Pair, Trajectory
from kintsugi.training.casting import Troupe
from kintsugi.training.recipe import Recipe
from kintsugi.training.rows import Rows
from kintsugi.training.selection import Selection
from kintsugi.training.warm_start import demonstration_rows, demonstrations, second_try_rows


class Lessons:
    """Builds a round's rows for one tokenizer."""

    def __init__(self, recipe: Recipe, troupe: Troupe, chat: ChatTokens) -> None:
        self.recipe, self.troupe, self.chat = recipe, troupe, chat

    def rows(self, trajectories: Mapping[str, Trajectory]) -> Rows:
        """The row builder over these trajectories."""
        return Rows.of(self.recipe, self.troupe, self.chat, trajectories)

    async def of_round(
        self, number: int, trajectories: Mapping[str, Trajectory], selection: Selection
    ) -> list[DatasetRow]:
        """The selection's rows in the form that the loss needs, then the replayed demonstrations."""
        own = self._own(trajectories, selection)
        targets = self.recipe.targets
        if not own or not targets.replay or self.recipe.learn.loss == "dpo":
            return own
        replayed = await self._demonstrations(targets.replay, targets.replay_repairs, number)
        wanted = round(len(replayed) * targets.own_share / (1 - targets.own_share))
        return [own[index % len(own)] for index in range(max(len(own), wanted))] + replayed

    async def of_control(self, number: int) -> list[DatasetRow]:
        """The demonstrations of the warm start; nothing when the recipe has no control."""
        settings = self.recipe.warm_start
        if not self.recipe.control.enabled or settings is None:
            return []
        return await self._demonstrations(settings.demonstrations, self.recipe.targets.replay_repairs, number)

    def _own(self, trajectories: Mapping[str, Trajectory], selection: Selection) -> list[DatasetRow]:
        targets, rows = self.recipe.targets, self.rows(trajectories)
        loss = self.recipe.learn.loss
        rescued = rescued_tasks(trajectories.values())

        def weight(name: str) -> float:
            by_kind = targets.rescued_weight if trajectories[name].task_id in rescued else targets.solved_weight
            return by_kind * selection.weights.get(name, 1.0)

        contrasts = selection.pairs if loss in ("dpo", "contrastive") else ()
        made = [rows.pair(pair, weight=weight(pair.chosen_id)) for pair in contrasts]
        if loss == "dpo":
            return made
        paired = {row.trajectory_id for row in made}
        for name in selection.explore:
            if name not in paired:
                made += rows.explore_rows(trajectories[name], weight=weight(name))
        if targets.repairs != "none":
            repairs: Sequence[Pair] = selection.repairs if targets.repairs == "ranked" else selection.reflector
            made += [rows.repair_row(pair, weight=targets.repair_weight) for pair in repairs]
        return made

    async def _demonstrations(self, num: int, num_repairs: int, number: int) -> list[DatasetRow]:
        """`num` of the warm start's demonstrations, drawn anew (their noise too) for this round, and scripted repairs."""
        settings, seed = self.recipe.warm_start, self.recipe.seed
        assert settings is not None
        shown = await demonstrations(self.troupe, settings.demonstrations, seed)
        rows = demonstration_rows(self.recipe, self.troupe, self.chat, shown, noise_seed=f"{seed}:round:{number}")
        drawn = random.Random(f"{seed}:{number}").sample(rows, min(num, len(rows)))
        return drawn + await second_try_rows(
            self.recipe, self.troupe, self.chat, shown, num_repairs, seed + 1000 * number
        )


def rescued_tasks(trajectories: Iterable[Trajectory]) -> set[str]:
    """Tasks that only repairs have solved."""
    sampled, repaired = set(), set()
    for one in trajectories:
        if one.success:
            (sampled if one.parent_id is None else repaired).add(one.task_id)
    return repaired - sampled

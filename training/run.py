"""`train`: a recipe in, a run folder with a better policy out. The one call behind `kintsugi train`.

    from kintsugi import load_recipe, train
    result = train(load_recipe("demo"), out="runs/demo")
    print(result.champion, result.success_rates)

An interrupted run (Ctrl-C, kill -9, power) goes on with `resume(folder)` and ends as if nothing had happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kintsugi.config import validate, with_overrides
from kintsugi.errors import RunError
from kintsugi.graphs.round_graph import RoundState, run_rounds
from kintsugi.ledger import Ledger
from kintsugi.records import content_hash
from kintsugi.training.casting import Troupe
from kintsugi.training.recipe import Recipe
from kintsugi.training.run_folder import RunFolder
from kintsugi.training.stages import Stages
from kintsugi.training.watch import Watch


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """folder: where everything is. champion: the promoted version; champion_folder: its weights. success_rates: greedy
    held-out success by (arm, round), round 0 being the start policy."""

    folder: Path
    champion: str
    champion_folder: Path
    success_rates: Mapping[tuple[str, int], float]

    @property
    def lift(self) -> float:
        """Champion's held-out success minus the start policy's, as a fraction."""
        last = max(number for arm, number in self.success_rates if arm == "main")
        return self.success_rates["main", last] - self.success_rates["main", 0]


def train(recipe: Recipe, *, out: str | Path, watch: Watch | None = None) -> RunResult:
    """Run all rounds of `recipe` in the new folder `out`. Raises a KintsugiError for whatever a user can mend."""
    folder = Path(out)
    run = RunFolder.create(folder, recipe=recipe.model_dump(mode="json"), seed=recipe.seed, name=recipe.name)
    return asyncio.run(_run(recipe, run, watch or Watch()))


def resume(folder: str | Path, *, watch: Watch | None = None) -> RunResult:
    """Go on with the run in `folder` from its last finished stage."""
    run = RunFolder.open(Path(folder))
    recipe = recipe_of(run.path)
    return asyncio.run(_run(recipe, run, watch or Watch()))


def run_id_of(recipe: Recipe) -> str:
    """Content-derived: the same recipe and seed give the same episode ids in whatever folder they run."""
    return content_hash(recipe.model_dump(mode="json"))


async def _run(recipe: Recipe, run: RunFolder, watch: Watch) -> RunResult:
    run_id = run_id_of(recipe)
    ledger = Ledger.open(run.ledger)
    troupe = Troupe(recipe)
    try:
        stages = Stages(recipe, run, ledger, troupe, run_id=run_id, watch=watch)
        start = RoundState(round=0, rounds=recipe.rounds, path=[])
        state = await run_rounds(stages.table(), start, run.rounds, run_id)
        return _result(run, ledger, run_id, state)
    finally:
        watch.close()
        await troupe.close()
        ledger.close()


def _result(run: RunFolder, ledger: Ledger, run_id: str, state: RoundState) -> RunResult:
    rates = {(one.arm, one.round): one.success_rate for one in ledger.evaluations(run_id=run_id)}
    champion = state["champion"]
    return RunResult(
        folder=run.path,
        champion=champion,
        champion_folder=run.path / state["versions"][champion],
        success_rates=rates,
    )


def recipe_of(folder: Path, overrides: Iterable[str] = ()) -> Recipe:
    """The resolved recipe of the run in `folder`, with `key=value` overrides."""
    run = RunFolder.open(folder)
    return validate(Recipe, with_overrides(run.info()["recipe"], overrides), str(run.info_file))


def champion_of(folder: Path) -> Path:
    """The weights that the run in `folder` has promoted last. Raises RunError before there are any."""
    run = RunFolder.open(folder)
    promoted = [
        line["policy_version"]
        for line in run.metrics()
        if line["kind"] == "evaluation" and line["arm"] == "main" and line["promoted"]
    ]
    if not promoted:
        raise RunError(f"{folder} has promoted no policy yet: go on with it (kintsugi train --resume {folder})")
    with Ledger.open(run.ledger, create=False, read_only=True) as ledger:
        known = {one.version: one.path for one in ledger.checkpoints(run_id=run_id_of(recipe_of(folder)))}
    path = Path(known[promoted[-1]])
    return path if path.is_absolute() or not (folder / path).exists() else folder / path


def plan_text(recipe: Recipe) -> str:
    """What `train` would do with this recipe, in plain sentences (`--dry-run`)."""
    explore, repair = recipe.explore, recipe.repair
    start = recipe.model.path or "a small model made from scratch and warm-started on scripted demonstrations"
    lines = [
        f"Start from {start}.",
        f"Evaluate on {recipe.evaluate.tasks} held-out tasks of {recipe.environment.name}, greedily.",
        f"Then {recipe.rounds} rounds:",
        f"  explore   {explore.tasks} tasks x {explore.k} samples at temperature {explore.temperature:g}",
        "  repair    nothing"
        if repair.who == "none"
        else f"  repair    {repair.on} by {repair.who}, {repair.form}, seeing the {repair.sees}",
        f"  select    {recipe.select.memory}, ranked by {recipe.select.rank}",
        f"  learn     {recipe.learn.loss} from the {recipe.learn_init} policy, {recipe.learn.steps or 'epoch'} steps",
        f"  promote   {recipe.gate.rule}",
    ]
    if recipe.control.enabled:
        lines.append("Beside it, a control: the same optimizer steps on the demonstrations alone.")
    return "\n".join(lines)


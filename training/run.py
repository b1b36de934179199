"""`train`: a recipe in, a run folder with a better policy out. The one call behind `kintsugi train`.

    from kintsugi import load_recipe, train
    result = train(load_recipe("demo"), out="runs/demo")
    print(result.champion, result.success_rates)

An interrupted run (Ctrl-C, kill -9, power) goes on with `resume(folder)` and ends as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from kintsugi.agents.policies.policy import check_options
from kintsugi.config import validate, with_overrides
from kintsugi.errors import ConfigError, KintsugiError, LearningError, PolicyError, RunError, missing_extra
from kintsugi.graphs.round_graph import RoundState, run_rounds
from kintsugi.graphs.turn_repair import check_repair
from kintsugi.ledger import Ledger
from kintsugi.records import content_hash
from kintsugi.training.casting import Troupe
from kintsugi.training.gate import GateConfig
from kintsugi.training.recipe import Recipe
from kintsugi.training.run_folder import RunFolder
from kintsugi.training.stages import Stages
from kintsugi.training.warm_start import check_demonstrations
from kintsugi.training.watch import Watch


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """folder: where everything is. champion: the promoted version; champion_folder: its weights. success_rates: greedy
    held-out success by (arm, round), round 0 being the start policy."""

    folder: Path
    champion: str
    champion_folder: Path
    success_rates: Mapping[tuple[str, int], float]


def train(recipe: Recipe, *, out: str | Path, watch: Watch | None = None) -> RunResult:
    """Run all rounds of `recipe` in the new folder `out`. Raises a KintsugiError for whatever a user can mend."""
    return asyncio.run(_begin(recipe, Path(out), watch or Watch()))


def resume(folder: str | Path, *, watch: Watch | None = None) -> RunResult:
    """Go on with the run in `folder` from its last finished stage."""
    run = RunFolder.open(Path(folder))
    return asyncio.run(_go_on(recipe_of(run.path), run, watch or Watch()))


def run_id_of(recipe: Recipe) -> str:
    """Content-derived: the same recipe and seed give the same episode ids in whatever folder they run."""
    return content_hash(recipe.model_dump(mode="json"))


def check_recipe(recipe: Recipe) -> None:
    """Raise what `train` would raise before it begins (a missing data folder, an unknown option …); writes nothing."""
    asyncio.run(_checked(recipe))


async def _checked(recipe: Recipe) -> None:
    troupe = Troupe(recipe)
    try:
        check(recipe, troupe)
    finally:
        await troupe.close()


def check(recipe: Recipe, troupe: Troupe) -> None:
    """Raise now what would stop this recipe later, as far as it shows without loading a model."""
    settings, model = recipe.environment, recipe.model
    if model.kind != "transformers":
        raise ConfigError(
            f'a model of kind "{model.kind}" cannot be trained: set model.kind=transformers, or use kintsugi eval'
        )
    if model.options:
        check_options(model.kind, {**model.options, "path": model.path})
    if "adapter" in model.options:
        raise ConfigError("model.options.adapter would only act, not learn: set model.path to the adapter's folder")
    no_name = model.path[:1] in ("/", ".", "~") or model.path.count("/") != 1
    if model.path and no_name and not Path(model.path).is_dir():
        raise PolicyError(
            f"expected a model folder at {model.path} (model.path), found none: check the path, or give a hub name "
            '"owner/model"'
        )
    if settings.train_split == settings.heldout_split:
        raise LearningError(
            f'the split "{settings.train_split}" is both environment.train_split and environment.heldout_split: '
            "held-out tasks must never be trained on, so name two"
        )
    for split in (settings.train_split, settings.heldout_split):
        if not troupe.environment.tasks(split, limit=1):
            raise LearningError(f'{settings.name} has no tasks in its split "{split}"')
    if recipe.warm_start is not None and not model.path:
        check_demonstrations(troupe.environment, recipe.warm_start)
    check_repair(recipe.repair, troupe.environment)
    for role in ("actor", {"self": "refiner", "reflector": "reflector"}.get(recipe.repair.who, "actor")):
        troupe.prompt(role)


def check_packages() -> None:
    """MissingExtra when what training takes is not installed; nothing is imported for it."""
    if any(find_spec(name) is None for name in ("torch", "transformers", "trl", "peft", "matplotlib")):
        raise missing_extra("training", "train")


async def _begin(recipe: Recipe, folder: Path, watch: Watch) -> RunResult:
    check_packages()
    await _checked(recipe)
    plain = recipe.model_dump(mode="json")
    run = RunFolder.create(folder, recipe=plain, seed=recipe.seed, name=recipe.name, run_id=run_id_of(recipe))
    return await _go_on(recipe, run, watch)


async def _go_on(recipe: Recipe, run: RunFolder, watch: Watch) -> RunResult:
    check_packages()
    run_id = run.info().get("run_id") or run_id_of(recipe)
    with run.held(), Ledger.open(run.ledger, create=not run.rounds.exists()) as ledger:
        troupe = Troupe(recipe)
        stages = Stages(recipe, run, ledger, troupe, run_id=run_id, watch=watch)
        try:
            empty = {"champion": "", "versions": {}, "datasets": {}, "trained": {}, "path": []}
            start = RoundState(round=0, rounds=recipe.rounds, **empty)
            with _plain_errors(run):
                state = await run_rounds(stages.table(), start, run.rounds, run_id)
            return _result(run, ledger, run_id, state)
        finally:
            stages.stop()
            watch.close()
            await troupe.close()


@contextmanager
def _plain_errors(run: RunFolder) -> Iterator[None]:
    """A full disk, whoever met it, and what LangGraph's SQLite file raises, as errors that a user can mend."""
    try:
        yield
    except KintsugiError:
        raise
    except Exception as error:
        if any(sign in str(error) for sign in ("No space left", "disk is full")):  # safetensors raises a class of its own
            raise RunError(f"the disk that holds {run.path} is full: free some space and resume; nothing is lost") from None
        if not isinstance(error, sqlite3.Error):
            raise
        raise RunError(
            f"{run.rounds} is damaged ({error}): remove it and resume; what is finished is found again in the ledger"
        ) from None


def _result(run: RunFolder, ledger: Ledger, run_id: str, state: RoundState) -> RunResult:
    rates = {(one.arm, one.round): one.success_rate for one in ledger.evaluations(run_id=run_id)}
    champion = state["champion"]
    return RunResult(
        folder=run.path,
        champion=champion,
        champion_folder=run.weights(state["versions"][champion]),
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
    if not promoted and not run.metrics_file.exists() and (run.path / "policies").exists():
        raise RunError(f"{run.metrics_file} is missing, which says what was promoted: restore it from a copy")
    if not promoted:
        raise RunError(f"{folder} has promoted no policy yet: go on with it (kintsugi train --resume {folder})")
    run_id = run.info().get("run_id") or run_id_of(recipe_of(folder))
    with Ledger.open(run.ledger, create=False, read_only=True) as ledger:
        known = {one.version: one.path for one in ledger.checkpoints(run_id=run_id)}
    if promoted[-1] not in known:
        raise RunError(
            f"{run.metrics_file} promotes {promoted[-1]}, which the ledger does not know: restore both from a copy"
        )
    return run.weights(known[promoted[-1]])


def plan_text(recipe: Recipe) -> str:
    """What `train` would do with this recipe, in plain sentences (`--dry-run`)."""
    explore, steps = recipe.explore, recipe.learn.steps or "epoch"
    start = recipe.model.path or "a small model made from scratch and warm-started on scripted demonstrations"
    budget = f", until {explore.budget_tokens:,} tokens are generated" if explore.budget_tokens else ""
    lines = [
        f"Start from {start}.",
        f"Evaluate on {recipe.evaluate.tasks} held-out tasks of {recipe.environment.name}, greedily.",
        f"Then {recipe.rounds} rounds:",
        f"  explore   {explore.tasks} tasks x {explore.k} samples at temperature {explore.temperature:g}{budget}",
        *_repair_plan(recipe),
        f"  select    {recipe.select.memory}, ranked by {recipe.select.rank}",
        f"  learn     {recipe.learn.loss} from the {recipe.learn_init} policy, {steps} steps{_replay_plan(recipe)}",
        f"  promote   {recipe.gate.rule}{_gate_plan(recipe.gate)}",
    ]
    if recipe.control.enabled:
        lines.append("Beside it, a control: the same optimizer steps on the demonstrations alone.")
    return "\n".join(lines)


def _gate_plan(gate: GateConfig) -> str:
    if gate.rule == "not_worse" and gate.max_drop:
        return f" by more than {100 * gate.max_drop:g} points of held-out success"
    return f" (paired, p <= {gate.alpha:g})" if gate.rule == "better" else ""


def _repair_plan(recipe: Recipe) -> list[str]:
    """The lines on repair, on the fresh samples beside it, and on the reflector's own training."""
    repair, reflector = recipe.repair, recipe.reflector
    most = f"{repair.budget} a task" if repair.on == "unsolved" else f"{repair.rounds} in a row"
    lines = ["  repair    nothing"]
    if repair.who != "none":
        sees = "with notes of the attempt" if repair.words == "notes" else f"seeing the {repair.sees}"
        lines = [f"  repair    {repair.on} by {repair.who}, {repair.form}, {sees}, at most {most}"]
    if repair.on == "unsolved" and repair.fresh != "none":
        lines.append(f"  fresh     samples for unsolved tasks, at most {repair.num_fresh} a task, {repair.fresh}")
    if repair.who == "reflector" and reflector.train:
        tokens = recipe.explore.budget_tokens
        kept = f", with {reflector.token_share:.0%} of the tokens" if tokens else ""
        steps = f"{reflector.learn.steps or 'epoch'} steps of {reflector.learn.loss}"
        lines.append(f"  reflect   the reflector learns wrong → right, {steps}, then looks once more{kept}")
    return lines


def _replay_plan(recipe: Recipe) -> str:
    """The demonstrations that `learn` sees again; those of a dpo are never replayed."""
    targets = recipe.targets
    if not targets.replay or recipe.learn.loss == "dpo":
        return ""
    repairs = f" and {targets.replay_repairs} scripted repairs" if targets.replay_repairs else ""
    share = f", own rows repeated to {targets.own_share:.0%}" if targets.own_share else ""
    return f", {targets.replay} demonstrations{repairs} replayed{share}"

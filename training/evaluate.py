"""`evaluate`: held-out success of any policy, on its own, outside a run. The one call behind `kintsugi eval`.

    import kintsugi
    evaluation = kintsugi.evaluate(kintsugi.load_recipe("demo"), model="runs/demo/policies/round-4")
    print(evaluation.success_rate)

The recipe says which tasks, prompts and sampling; the episodes go into a ledger when one is given.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from kintsugi.agents.policies.policy import Policy
from kintsugi.errors import SandboxError
from kintsugi.ledger import Ledger
from kintsugi.records import Evaluation, Verdict, content_hash
from kintsugi.sandboxes.environments.environment import Environment, success_by_kind
from kintsugi.training.casting import Troupe
from kintsugi.training.evaluation import evaluation_of, evaluation_plans, play_plans
from kintsugi.training.model_folder import fingerprint
from kintsugi.training.recipe import Recipe
from kintsugi.training.watch import Watch


def evaluate(
    recipe: Recipe,
    *,
    model: str | Path = "",
    policy: Policy | None = None,
    environment: Environment | None = None,
    ledger: str | Path | None = None,
    few_shot: bool = False,
    watch: Watch | None = None,
) -> Evaluation:
    """Greedy pass@1 on the recipe's held-out tasks, and pass@k where `evaluate.samples` > 0.

    model: a Hugging Face folder or hub name, instead of the recipe's. policy, environment: given objects, left open.
    few_shot: use the prompt's examples (for models that were not trained on the task). Raises KintsugiError; a SandboxError
    when every task was lost to the environment, so that there is nothing to take a share of.
    """
    if model:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": str(model)})})
    return asyncio.run(_evaluate(recipe, policy, environment, ledger, few_shot, watch or Watch()))


def kinds_of(recipe: Recipe, evaluation: Evaluation) -> dict[str, tuple[int, int]]:
    """(won, tried) by kind of task in an evaluation of this recipe; nothing where its tasks are of one kind."""

    async def sorted_out() -> dict[str, tuple[int, int]]:
        troupe, settings = Troupe(recipe), recipe.evaluate
        try:
            tasks = troupe.environment.tasks(recipe.environment.heldout_split, limit=settings.tasks, seed=settings.seed)
            return success_by_kind(troupe.environment, tasks, evaluation.outcomes)
        finally:
            await troupe.close()

    return asyncio.run(sorted_out())


async def _evaluate(
    recipe: Recipe,
    policy: Policy | None,
    environment: Environment | None,
    place: str | Path | None,
    few_shot: bool,
    watch: Watch,
) -> Evaluation:
    troupe = Troupe(recipe, policy=policy, environment=environment)
    settings = recipe.evaluate
    scratch = tempfile.TemporaryDirectory(prefix="kintsugi-")
    ledger = Ledger.open(scratch.name if place is None else place)
    try:
        tasks = troupe.environment.tasks(recipe.environment.heldout_split, limit=settings.tasks, seed=settings.seed)
        version = policy.version if policy is not None else recipe.model.path or recipe.model.kind
        # A kept ledger may know this name with other weights: their fingerprint tells the two apart.
        run_id = content_hash([recipe.model_dump(mode="json"), version, "" if policy is not None else fingerprint(version)])
        ledger.add_tasks(tasks)
        watch.begin("evaluate", len(tasks) * (1 + settings.samples))
        common = {"run_id": run_id, "round": 0, "version": version}
        found = []
        for greedy, samples in ((True, 0), (False, settings.samples)):
            if greedy or samples:
                cast = await troupe.cast(version, recipe.model.path, greedy=greedy, few_shot=few_shot)
                plans = evaluation_plans(tasks, seed=settings.seed, samples=samples, **common)
                found.append(await play_plans(plans, cast, ledger, lambda episode: watch.advance()))
        sampled = found[1] if len(found) > 1 else []
        result = evaluation_of(found[0], sampled, arm="main", ks=settings.pass_k if sampled else (), **common)
        ledger.add_evaluation(result)
        if result.errors and not result.outcomes:
            last = found[0][0].trajectories[-1].messages[-1]
            why = last.error if isinstance(last, Verdict) else ""
            raise SandboxError(
                f"all {result.errors} tasks were lost to errors of {recipe.environment.name}, so nothing was measured (the "
                f"first: {' '.join(why.split())[:200]}): mend that, or look at one with --ledger and kintsugi episodes"
            )
        return result
    finally:
        watch.close()
        await troupe.close(keep_environment=environment is not None)
        ledger.close()
        scratch.cleanup()

"""`kintsugi eval WHAT`: held-out success of a run's champion, a model folder, a hub name or an endpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from kintsugi.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    "eval",
    epilog="Example: kintsugi eval runs/demo evaluate.tasks=500   ·   "
    "kintsugi eval --endpoint http://localhost:8000/v1 --model my-model --recipe gsm8k   ·   "
    "kintsugi eval --recipe mine.toml model.path=path/or/hub-name",
)
def evaluate(
    what: Annotated[
        str | None, typer.Argument(help="A run folder, a model folder or a hub name (default: the model of --recipe).")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Whose tasks and prompts (default: the run's own).")] = None,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="A server that speaks the OpenAI protocol.")] = None,
    model: Annotated[str | None, typer.Option(help="The endpoint's model name.")] = None,
    few_shot: Annotated[bool, typer.Option("--few-shot", help="Use the prompt's examples.")] = False,
    ledger: Annotated[Path | None, typer.Option(help="Keep the episodes in this SQLite file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The evaluation as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Greedy success on the held-out tasks, with a 95 % interval."""
    changes = list(overrides or ())
    if what is not None and "=" in what and not os.path.exists(what):
        what, changes = None, [what, *changes]
    if (what is not None and endpoint is not None) or (what is endpoint is recipe is None):
        raise ConfigError(
            "expected one of a run folder, a model, --endpoint URL, or --recipe with a model: see kintsugi eval --help"
        )
    if endpoint is not None and not model:
        raise ConfigError("expected --model NAME with --endpoint, found none: name a model that the server has")
    from kintsugi.training import kind_tables
    from kintsugi.training.evaluate import evaluate as measure
    from kintsugi.training.evaluate import kinds_of
    from kintsugi.training.evaluation import lost_text
    from kintsugi.training.intervals import wilson_interval
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.run import champion_of, recipe_of
    from kintsugi.training.watch import RichWatch, Watch

    is_run = what is not None and (Path(what) / "run.json").exists()
    if is_run and recipe is None:
        loaded = recipe_of(Path(what or ""), changes)
    else:
        if endpoint is not None:
            served = [f"model.options.url={json.dumps(endpoint)}", f"model.options.model={json.dumps(model)}"]
            changes = ["model.kind=endpoint", "model.options={}", *changes, *served]
        loaded = load_recipe(recipe or "demo", changes)
        if what is None and loaded.model.kind == "transformers" and not loaded.model.path:
            raise ConfigError(f"the recipe {recipe} names no model: give a run folder or a model, or set model.path")
    folder = str(champion_of(Path(what))) if is_run and what else (what or "")
    watch = Watch() if quiet else RichWatch()
    found = measure(loaded, model=folder, ledger=ledger, few_shot=few_shot, watch=watch)
    num = len(found.outcomes)
    low, high = wilson_interval(sum(found.outcomes.values()), num)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "success_rate": found.success_rate,
                    "num_tasks": num,
                    "interval": [low, high],
                    "pass_at_k": dict(found.pass_at_k),
                    "metrics": dict(found.metrics),
                    "errors": found.errors,
                    "kinds": kinds_of(loaded, found),
                }
            )
        )
        return
    typer.echo(f"{found.success_rate:.1%} of {num} held-out tasks (95 % {low:.1%} to {high:.1%})")
    for line in kind_tables.plain(kinds_of(loaded, found)):
        typer.echo(line)
    for k, rate in found.pass_at_k.items():
        typer.echo(f"pass@{k}  {rate:.1%}")
    if lost := lost_text(found):
        typer.echo(f"left out: {lost}")

"""`kintsugi train RECIPE`: run self-training rounds, or go on with an interrupted run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from kintsugi.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="Example: kintsugi train envisions rounds=3 explore.k=8 --out runs/mine   ·   kintsugi train --resume runs/mine"
)
def train(
    recipe: Annotated[str | None, typer.Argument(help="A bundled recipe's name, or a path to a TOML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
    out: Annotated[Path | None, typer.Option(help="The new run folder (default: runs/RECIPE-TIME).")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this run.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and its data, print it resolved, and what it would do.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Self-training rounds: explore, verify, repair, reward, select, learn, evaluate, promote."""
    if resume is not None and recipe is not None and "=" in recipe:
        raise ConfigError(f"a run keeps its recipe, found {recipe} beside --resume: leave it out, or start a new run")
    if resume is not None and recipe is not None:
        raise ConfigError("give a recipe to start a run, or --resume RUN to go on with one, not both")
    if resume is None and recipe is None:
        raise ConfigError("expected a recipe or --resume RUN, found neither: kintsugi recipes lists the bundled ones")
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.run import check_recipe, plan_text, recipe_of
    from kintsugi.training.run import resume as go_on
    from kintsugi.training.run import train as begin
    from kintsugi.training.watch import QuietWatch, RichWatch

    loaded = load_recipe(recipe or "", overrides or ()) if resume is None else recipe_of(resume)
    if dry_run:
        check_recipe(loaded)
        typer.echo(json.dumps(loaded.model_dump(mode="json"), indent=2))
        if not as_json:
            typer.echo(plan_text(loaded))
        return
    folder = resume or out or Path("runs") / f"{loaded.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    watch = QuietWatch() if quiet else RichWatch()
    try:
        result = go_on(folder, watch=watch) if resume is not None else begin(loaded, out=folder, watch=watch)
    except KeyboardInterrupt:
        begun = (folder / "run.json").exists()
        typer.echo(f"interrupted; nothing is lost: kintsugi train --resume {folder}" if begun else "interrupted", err=True)
        raise typer.Exit(130) from None
    finally:
        watch.close()
    _tell(result, as_json)


def _tell(result, as_json: bool) -> None:  # type: ignore[no-untyped-def]
    from kintsugi.training.report import summary, write_report

    page = write_report(result.folder)
    if as_json:
        rates = [{"arm": arm, "round": number, "success_rate": rate} for (arm, number), rate in result.success_rates.items()]
        found = {"run": str(result.folder), "champion": result.champion, "report": str(page), "evaluations": rates}
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(summary(result.folder))
    typer.echo(f"policy  {result.champion_folder}\nreport  {page}\ncurve   {result.folder / 'evolution.png'}")

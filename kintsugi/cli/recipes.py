"""`kintsugi recipes`: the bundled recipes, or one of them resolved."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: kintsugi recipes envisions")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, resolved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the bundled recipes, or print one with everything that it extends."""
    from kintsugi.training.recipe import load_recipe, recipe_names

    if name is not None:
        typer.echo(json.dumps(load_recipe(name).model_dump(mode="json"), indent=2))
        return
    known = recipe_names()
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    for stem, description in known.items():
        typer.echo(f"{stem:<18} {description}")

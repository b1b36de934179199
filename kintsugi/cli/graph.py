"""`kintsugi graph episode|round`: a recipe's graphs as text, Mermaid or SVG, with no network."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kintsugi.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Which(StrEnum):
    """Which graph."""

    episode = "episode"
    round = "round"


class Form(StrEnum):
    """How it is written."""

    text = "text"
    mermaid = "mermaid"
    svg = "svg"
    json = "json"


@app.command(epilog="Example: kintsugi graph episode --recipe rerest --format svg --out episode.svg")
def graph(
    which: Annotated[Which, typer.Argument(help="The graph of an episode, or of the rounds.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe settings.")] = None,
    recipe: Annotated[str, typer.Option(help="Whose edges.")] = "kintsugi",
    form: Annotated[Form, typer.Option("--format", help="text, mermaid, svg or json.")] = Form.text,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Draw the graph that a recipe wires."""
    from kintsugi.training.pictures import draw_graph
    from kintsugi.training.recipe import load_recipe

    chosen = Form.json if as_json else form
    drawn = draw_graph(which.value, load_recipe(recipe, overrides or ()), form=chosen.value)
    text = drawn if isinstance(drawn, str) else json.dumps(drawn, indent=2)
    if out is None:
        typer.echo(text)
        return
    if out.is_dir():
        raise ConfigError(f"expected a file to write to, found the folder {out}: name a file in it")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    typer.echo(f"wrote {out}")

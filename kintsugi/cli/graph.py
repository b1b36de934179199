"""`kintsugi graph episode|round`: a recipe's graphs as text, Mermaid, SVG or PNG, with no network; with a run or an
episode's id, what happened on the graph. In Python: `kintsugi.draw_graph`, `kintsugi.draw_episodes`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kintsugi.errors import ConfigError, LedgerError

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
    png = "png"
    json = "json"


SUFFIXES = {".svg": Form.svg, ".png": Form.png, ".mmd": Form.mermaid, ".json": Form.json}


@app.command(
    epilog="Example: kintsugi graph episode --recipe rerest --out episode.svg   ·   "
    "kintsugi graph episode --run runs/demo --round 2   ·   kintsugi graph episode --episode 3fa2"
)
def graph(
    which: Annotated[Which, typer.Argument(help="The graph of an episode, or of the rounds.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe settings.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Whose edges (default: the run's, or kintsugi).")] = None,
    run: Annotated[str | None, typer.Option(help="Draw what happened in this run: a folder, ledger file or URL.")] = None,
    episode: Annotated[
        str | None, typer.Option(metavar="ID", help="Draw this episode (of --run, or of the runs in runs/).")
    ] = None,
    round: Annotated[int | None, typer.Option("--round", help="With --run: only this round.")] = None,
    stop: Annotated[str | None, typer.Option(help="With --run: only episodes with an attempt that ended so.")] = None,
    task: Annotated[str | None, typer.Option(help="With --run: only this task.")] = None,
    purpose: Annotated[str | None, typer.Option(help="With --run: explore (default), evaluate, measure or play.")] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="text, mermaid, svg, png or json (default: as --out ends, else text).")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="PNG for a dark page (SVG follows the page by itself).")] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the screen.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Draw the graph that a recipe wires, or what episodes did on it: counts, times, verdicts."""
    filters = {"round": round, "stop": stop, "task_id": task, "purpose": purpose}
    given = {name: value for name, value in filters.items() if value is not None}
    _check(which, run, episode, given)
    if out is not None and form is None and not as_json and out.suffix not in {"", ".txt", *SUFFIXES}:
        raise ConfigError(f'no drawing ends in "{out.suffix}": expected {", ".join(SUFFIXES)}, or say --format')
    chosen = Form.json if as_json else form or SUFFIXES.get(out.suffix if out is not None else "", Form.text)
    if chosen is Form.png and out is None:
        raise ConfigError("a PNG is no text for the screen: name a file with --out FILE.png")
    if out is not None and out.is_dir():
        raise ConfigError(f"expected a file to write to, found the folder {out}: name a file in it")
    from kintsugi.training.pictures import draw_episodes, draw_graph
    from kintsugi.training.recipe import load_recipe

    loaded = load_recipe(recipe or "kintsugi", overrides or ())
    if run is None and episode is None:
        drawn = draw_graph(which.value, loaded, form=chosen.value, dark=dark)
    else:
        edges = loaded if recipe is not None or overrides else None
        drawn = draw_episodes(
            run or _run_with(episode or ""), episode=episode or "", recipe=edges, form=chosen.value, dark=dark, **given
        )
    _write(drawn, out)


def _check(which: Which, run: str | None, episode: str | None, given: dict[str, Any]) -> None:
    from kintsugi.cli.episodes import STOPS
    from kintsugi.errors import nearest

    if which is Which.round and (run or episode):
        raise ConfigError("a run's episodes are drawn on the episode graph: kintsugi graph episode --run RUN")
    if given and run is None:
        raise ConfigError(f"expected --run RUN with --{next(iter(given)).removesuffix('_id')}, found none")
    for name, known in (("stop", STOPS), ("purpose", ("explore", "evaluate", "measure", "play"))):
        if name in given and given[name] not in known:
            raise ConfigError(f'unknown {name} "{given[name]}": {nearest(given[name], known)}')
    if given and episode is not None:
        raise ConfigError(f"an episode's id says which one is meant: leave --{next(iter(given)).removesuffix('_id')} out")


def _run_with(episode: str) -> str:
    """The run in runs/ that has the episode."""
    from kintsugi.ledger import Ledger

    places = sorted(Path("runs").glob("*/ledger.sqlite"))
    found = []
    for place in places:
        try:
            with Ledger.open(place, create=False, read_only=True) as ledger:
                ledger.episode(episode)
            found.append(str(place.parent))
        except LedgerError as error:
            if "several" in str(error):
                raise
    if len(found) != 1:
        what = f"several runs ({', '.join(found)}) have" if found else f"none of the {len(places)} runs in runs/ has"
        raise ConfigError(f'{what} an episode whose id begins with "{episode}": name the run with --run')
    return found[0]


def _write(drawn: Any, out: Path | None) -> None:
    text = drawn if isinstance(drawn, str | bytes) else json.dumps(drawn, indent=2)
    if out is None:
        typer.echo(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(text, bytes):
        out.write_bytes(text)
    else:
        out.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    typer.echo(f"wrote {out}")

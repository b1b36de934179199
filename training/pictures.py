"""A recipe's episode graph or round graph as text, Mermaid, SVG, PNG or JSON, bare or with what happened on it. The calls
behind `kintsugi graph`.

    print(kintsugi.draw_graph("episode", kintsugi.load_recipe("rerest")))
    print(kintsugi.draw_episodes("runs/demo", round=2))

The graphs are compiled as they run, with stand-ins for whoever plays: no model is loaded and no network asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kintsugi.errors import ConfigError, nearest
from kintsugi.graphs.drawing import Picture, as_mermaid, as_png, as_svg, as_text, picture_of, with_path
from kintsugi.graphs.episode_graph import build_episode_graph
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_tally import EpisodeTally, tally_of, with_tally
from kintsugi.graphs.round_graph import STAGES, RoundState, build_round_graph
from kintsugi.graphs.worlds import Worlds
from kintsugi.ledger import Ledger
from kintsugi.records import Trajectory
from kintsugi.sandboxes.environments.environment import ProgramEnvironment
from kintsugi.training.recipe import Recipe, load_recipe

FORMS = {"text": as_text, "mermaid": as_mermaid, "svg": as_svg, "png": as_png}


def draw_graph(which: str, recipe: Recipe, *, form: str = "text", path: Sequence[str] = (), dark: bool = False) -> Any:
    """The graph "episode" or "round" of `recipe`; form "text", "mermaid", "svg" (str), "png" (bytes; dark: for a dark
    page) or "json" (dict).

    path: nodes that an episode visited, to be marked (`Episode.path`); in "json" they are counted as `visits`. Raises
    ConfigError for unknown words.
    """
    if which not in ("episode", "round"):
        raise ConfigError(f'unknown graph "{which}": {nearest(which, ("episode", "round"))}')
    _check_form(form)
    picture = episode_picture(recipe) if which == "episode" else round_picture(recipe)
    known = [node.id for node in picture.nodes]
    for name in path:
        if name not in known:
            raise ConfigError(f'the {which} graph of {recipe.name} has no node "{name}": {nearest(name, known)}')
    if path:
        picture = with_path(picture, path)
    return _drawn(picture, form, dark)


def draw_episodes(
    run: str | Path,
    *,
    episode: str = "",
    recipe: Recipe | None = None,
    form: str = "text",
    dark: bool = False,
    **filters: Any,
) -> Any:
    """The episode graph of a run with what happened on it: one episode (its id or the beginning of it), or all of them.

    run: a run folder, ledger file or database URL. recipe: whose edges (default: the run's own). form, dark: as
    `draw_graph`; "json" has the counts as `tally`. filters: as `Ledger.episodes` (round, stage, stop, task_id, …);
    purpose "explore" unless they say otherwise. Raises ConfigError where nothing is left, LedgerError without a ledger.
    """
    _check_form(form)
    with Ledger.open(run, create=False, read_only=True) as ledger:
        chosen = [ledger.episode(episode)] if episode else ledger.episodes(**{"purpose": "explore", **filters})
        known = _parents(ledger, [one for each in chosen for one in each.trajectories])
    if not chosen:
        raise ConfigError(f"no episode in {run} is as asked for: kintsugi episodes list {run} shows what there is")
    if recipe is None:
        recipe = _recipe_of(Path(run))
    picture = episode_picture(recipe)
    one = chosen[0]
    if episode:
        title = f"episode {one.id[:10]} of {one.task_id}: {'success' if one.success else 'no success'}"
    else:
        asked = [f"{name.removesuffix('_id')} {value}" for name, value in filters.items()]
        title = ", ".join([f"episodes of {Path(run).name}", *asked])
    tally = tally_of(chosen, known)
    picture = with_tally(replace(picture, title=title), tally)
    return _drawn(picture, form, dark, tally)


def _parents(ledger: Ledger, attempts: Sequence[Trajectory]) -> dict[str, Trajectory]:
    """The attempts that these repair and that are not among them."""
    have = {one.id for one in attempts}
    wanted = sorted({one.parent_id for one in attempts if one.parent_id is not None} - have)
    found: dict[str, Trajectory] = {}
    for start in range(0, len(wanted), 500):
        found |= {one.id: one for one in ledger.trajectories(id=wanted[start : start + 500])}
    return found


def _recipe_of(run: Path) -> Recipe:
    from kintsugi.training.run import recipe_of

    return recipe_of(run) if (run / "run.json").exists() else load_recipe("kintsugi")


def _check_form(form: str) -> None:
    if form not in (*FORMS, "json"):
        raise ConfigError(f'unknown form "{form}": {nearest(form, (*FORMS, "json"))}')


def _drawn(picture: Picture, form: str, dark: bool, tally: EpisodeTally | None = None) -> Any:
    if form == "json":
        plain: Mapping[str, Any] = {"tally": tally.plain()} if tally is not None else {}
        return {**as_plain(picture), **plain}
    return as_png(picture, dark=dark) if form == "png" else FORMS[form](picture)


def as_plain(picture: Picture) -> dict[str, Any]:
    """The picture as JSON-ready values; `visits` (by node id) only when a path was marked."""
    plain: dict[str, Any] = {
        "title": picture.title,
        "nodes": [node.id for node in picture.nodes],
        "edges": [{"from": edge.source, "to": edge.target, "label": edge.label} for edge in picture.edges],
    }
    if any(node.visits is not None for node in picture.nodes):
        plain["visits"] = {node.id: node.visits or 0 for node in picture.nodes}
    return plain


def episode_picture(recipe: Recipe) -> Picture:
    """The episode graph with the edges that the recipe's `[repair]` chooses."""
    cast = Cast(roles={}, worlds=Worlds(ProgramEnvironment()), repair=recipe.repair, episode=recipe.episode)
    return picture_of(build_episode_graph(cast).get_graph(), title=f"episode of {recipe.name}")


def round_picture(recipe: Recipe) -> Picture:
    """The round graph with the stages that the recipe has."""

    async def nothing(state: RoundState) -> dict[str, Any]:
        return {}

    skip = () if recipe.repair.who == "reflector" and recipe.reflector.train else ("reflect",)
    stages = {name: nothing for name in STAGES if name not in skip}
    return picture_of(build_round_graph(stages).get_graph(), title=f"rounds of {recipe.name}")

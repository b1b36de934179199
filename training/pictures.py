"""`draw_graph`: a recipe's episode graph or round graph as text, Mermaid, SVG or JSON. The call behind `kintsugi graph`.

    print(kintsugi.draw_graph("episode", kintsugi.load_recipe("rerest")))

The graphs are compiled as they run, with stand-ins for whoever plays: no model is loaded and no network asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kintsugi.errors import ConfigError, nearest
from kintsugi.graphs.drawing import Picture, as_mermaid, as_svg, as_text, picture_of, with_path
from kintsugi.graphs.episode_graph import build_episode_graph
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.round_graph import STAGES, RoundState, build_round_graph
from kintsugi.graphs.worlds import Worlds
from kintsugi.sandboxes.environments.environment import ProgramEnvironment
from kintsugi.training.recipe import Recipe

FORMS = {"text": as_text, "mermaid": as_mermaid, "svg": as_svg}


def draw_graph(which: str, recipe: Recipe, *, form: str = "text", path: Sequence[str] = ()) -> Any:
    """The graph "episode" or "round" of `recipe`; form "text", "mermaid", "svg" (str) or "json" (dict).

    path: nodes that an episode visited, to be marked (`Episode.path`); in "json" they are counted as `visits`. Raises
    ConfigError for unknown words.
    """
    if which not in ("episode", "round"):
        raise ConfigError(f'unknown graph "{which}": {nearest(which, ("episode", "round"))}')
    if form not in (*FORMS, "json"):
        raise ConfigError(f'unknown form "{form}": {nearest(form, (*FORMS, "json"))}')
    picture = episode_picture(recipe) if which == "episode" else round_picture(recipe)
    known = [node.id for node in picture.nodes]
    for name in path:
        if name not in known:
            raise ConfigError(f'the {which} graph of {recipe.name} has no node "{name}": {nearest(name, known)}')
    if path:
        picture = with_path(picture, path)
    if form == "json":
        return as_plain(picture)
    return FORMS[form](picture)


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

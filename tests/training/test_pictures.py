"""`draw_graph` and `kintsugi graph`: the edges are those of the recipe, in every form."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from kintsugi.cli.graph import app
from kintsugi.cli.main import app as whole
from kintsugi.errors import ConfigError
from kintsugi.training.pictures import draw_graph
from kintsugi.training.recipe import load_recipe, recipe_names


def edges(which: str, recipe: str, *overrides: str) -> set[tuple[str, str]]:
    drawn = draw_graph(which, load_recipe(recipe, overrides), form="json")
    return {(edge["from"], edge["to"]) for edge in drawn["edges"]}


PLAIN = {("__start__", "agent"), ("agent", "environment"), ("environment", "agent"), ("environment", "__end__")}


def test_the_repair_chooses_the_edges() -> None:
    assert edges("episode", "kintsugi", "repair.who=none") == PLAIN
    inside = PLAIN | {("__start__", "refiner"), ("environment", "refiner"), ("refiner", "environment")}
    assert edges("episode", "kintsugi", "repair.on=failures") == inside
    assert edges("episode", "kintsugi", "repair.on=unsolved") == inside - {("environment", "refiner")}
    again = edges("episode", "kintsugi", "repair.who=reflector", "repair.form=again", "repair.on=failures")
    assert again == PLAIN | {("__start__", "reflector"), ("environment", "reflector"), ("reflector", "agent")}


def test_the_rounds_have_a_reflect_stage_only_with_a_trained_reflector() -> None:
    without = edges("round", "kintsugi", "repair.who=self", "reflector.train=false")
    assert {("explore", "reward"), ("promote", "explore"), ("promote", "__end__"), ("prepare", "explore")} <= without
    assert not any("reflect" in edge for edge in without)
    trained = edges("round", "kintsugi", "repair.who=reflector", "reflector.train=true")
    assert {("explore", "reflect"), ("reflect", "reward")} <= trained and ("explore", "reward") not in trained


@pytest.mark.parametrize("recipe", sorted(recipe_names()))
@pytest.mark.parametrize("which", ["episode", "round"])
def test_every_recipe_in_every_form(recipe: str, which: str) -> None:
    loaded = load_recipe(recipe)
    text = draw_graph(which, loaded)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert ("environment" if which == "episode" else "promote") in text
    assert "flowchart TD" in draw_graph(which, loaded, form="mermaid")
    ElementTree.fromstring(draw_graph(which, loaded, form="svg"))
    assert json.loads(json.dumps(draw_graph(which, loaded, form="json")))["title"].endswith(recipe)


def test_a_path_is_counted() -> None:
    recipe = load_recipe("kintsugi", ["repair.on=failures"])
    path = ("agent", "environment", "refiner", "environment")
    assert "visits" not in draw_graph("episode", recipe, form="json")
    drawn = draw_graph("episode", recipe, form="json", path=path)
    assert drawn["visits"] == {"__start__": 1, "agent": 1, "environment": 2, "refiner": 1, "__end__": 1}
    assert draw_graph("episode", recipe, path=path) != draw_graph("episode", recipe)


def test_unknown_words_name_the_nearest() -> None:
    recipe = load_recipe("kintsugi")
    with pytest.raises(ConfigError, match='unknown graph "episodes": did you mean "episode"'):
        draw_graph("episodes", recipe)
    with pytest.raises(ConfigError, match='unknown form "sgv": did you mean "svg"'):
        draw_graph("episode", recipe, form="sgv")
    with pytest.raises(ConfigError, match='has no node "refinr": did you mean "refiner"'):
        draw_graph("episode", recipe, path=("agent", "refinr"))


def test_the_command(tmp_path: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["episode", "--recipe", "rerest", "repair.on=all"])
    assert shown.exit_code == 0 and "reflector" in shown.stdout
    as_json = runner.invoke(app, ["round", "--json"])
    assert json.loads(as_json.stdout)["title"] == "rounds of kintsugi"
    file = tmp_path / "new" / "episode.svg"
    written = runner.invoke(whole, ["graph", "episode", "--format", "svg", "--out", str(file)])
    assert written.exit_code == 0 and f"wrote {file}" in written.stdout
    ElementTree.parse(file)
    folder = runner.invoke(app, ["episode", "--out", str(tmp_path)])
    assert isinstance(folder.exception, ConfigError) and "found the folder" in str(folder.exception)
    assert runner.invoke(app, ["sideways"]).exit_code == 2
    unknown = runner.invoke(app, ["episode", "repair.whom=self"])
    assert isinstance(unknown.exception, ConfigError) and 'did you mean "who"' in str(unknown.exception)

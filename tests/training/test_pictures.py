"""`draw_graph` and `kintsugi graph`: the edges are those of the recipe, in every form."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from kintsugi.cli.graph import app
from kintsugi.cli.main import app as whole
from kintsugi.errors import ConfigError, KintsugiError
from kintsugi.ledger import Ledger
from kintsugi.training.pictures import draw_episodes, draw_graph
from kintsugi.training.recipe import load_recipe, recipe_names
from tests.kintsugi.ledger_samples import make_episode, make_task


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


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A ledger file with three explored episodes, and a played one."""
    path = tmp_path / "kept.sqlite"
    with Ledger.open(path) as ledger:
        ledger.add_tasks([make_task(number) for number in range(3)])
        ledger.commit_episodes([make_episode(number, round=number % 2) for number in range(2)])
        ledger.commit_episodes([make_episode(2, stops=("failure",)), make_episode(2, purpose="play", stops=("success",))])
    return path


def test_a_runs_episodes_together(kept: Path) -> None:
    text = draw_episodes(kept)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "3 episodes, 2 with a right attempt (67%)" in text and "repair   helped 2 of 2 times" in text
    assert "3 x never used #" in text
    tally = draw_episodes(kept, form="json")["tally"]
    assert tally["episodes"] == 3 and tally["attempts"] == {"explore": {"failure": 3}, "refine": {"success": 2}}
    first_round = draw_episodes(kept, form="json", round=1)
    assert first_round["tally"]["episodes"] == 1 and first_round["title"].endswith(", round 1")
    assert draw_episodes(kept, form="json", purpose="play")["tally"]["solved"] == 1
    ElementTree.fromstring(draw_episodes(kept, form="svg"))
    assert "flowchart TD" in draw_episodes(kept, form="mermaid")
    with pytest.raises(ConfigError, match=r"no episode in .* is as asked for"):
        draw_episodes(kept, round=9)


def test_one_episode(kept: Path) -> None:
    text = draw_episodes(kept, episode="e0-0000")
    assert "episode e0-0000-0 of t0: success" in text and "✗ ✓" in text
    assert "attempt 0  explore  ✗ failure" in text and "attempt 1  refine   ✓ success" in text
    drawn = draw_episodes(kept, episode="p0-0002", form="json", recipe=load_recipe("rerest"))
    assert [one["stop"] for one in drawn["tally"]["trajectories"]] == ["success"] and "reflector" in drawn["nodes"]


def test_the_command_draws_what_happened(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["episode", "--run", str(kept), "--round", "0"])
    assert shown.exit_code == 0 and "2 episodes, 1 with a right attempt" in shown.stdout
    for name, begin in (("a.svg", b"<svg"), ("a.mmd", b"---"), ("a.json", b"{")):
        assert runner.invoke(app, ["episode", "--run", str(kept), "--out", str(tmp_path / name)]).exit_code == 0
        assert (tmp_path / name).read_bytes().startswith(begin)
    pytest.importorskip("matplotlib", reason='PNG files need matplotlib: pip install "kintsugi-agents[train]"')
    assert runner.invoke(app, ["round", "--dark", "--out", str(tmp_path / "a.png")]).exit_code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    kept.rename(tmp_path / "runs" / "mine" / "ledger.sqlite")
    monkeypatch.chdir(tmp_path)
    found = runner.invoke(app, ["episode", "--episode", "e1-0001"])
    assert found.exit_code == 0 and "of t1: success" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["round", "--run", "KEPT"], "drawn on the episode graph"),
        (["episode", "--round", "2"], "expected --run RUN with --round"),
        (["episode", "--run", "KEPT", "--stop", "sucess"], 'did you mean "success"'),
        (["episode", "--run", "KEPT", "--purpose", "plays"], 'did you mean "play"'),
        (["episode", "--run", "KEPT", "--episode", "e0", "--round", "1"], "leave --round out"),
        (["episode", "--run", "KEPT", "--episode", "zz"], 'begins with "zz"'),
        (["episode", "--episode", "zz"], "none of the 0 runs in runs/"),
        (["episode", "--format", "png"], "--out FILE.png"),
        (["episode", "--run", "nowhere"], "there is no ledger at nowhere"),
    ],
)
def test_bad_questions(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = CliRunner().invoke(app, [str(kept) if word == "KEPT" else word for word in arguments])
    assert isinstance(asked.exception, KintsugiError) and told in str(asked.exception)

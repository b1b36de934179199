"""The shelf of warm starts: same recipe, seed and code → same weights; anything else → other ones."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from kintsugi.training import warm_start
from kintsugi.training.casting import Troupe
from kintsugi.training.recipe import load_recipe
from kintsugi.training.small_model import make_small_model
from kintsugi.training.warm_start import ROOT, SOURCES, code_hash, warm_start_key


def test_the_key_knows_what_the_weights_depend_on() -> None:
    recipe = load_recipe("demo")
    key = warm_start_key(recipe, 0)
    assert key == warm_start_key(load_recipe("demo"), 0)
    same = ["explore.k=9", "rounds=1", "learn.steps=3"]
    other = ["warm_start.demonstrations=9", "model.small.hidden=64", 'environment.options={events="1"}']
    assert all(warm_start_key(load_recipe("demo", [change]), 0) == key for change in same)
    assert all(warm_start_key(load_recipe("demo", [change]), 0) != key for change in other)
    assert warm_start_key(recipe, 1) != key


def test_every_source_is_there() -> None:
    assert all((ROOT / name).is_file() for name in SOURCES)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("sandboxes/environments/word_problem_generator.py", True),
        ("sandboxes/environments/word_problem_faults.py", True),
        ("sandboxes/environments/word_problems.py", True),
        ("agents/prompts/bare/actor.toml", True),
        ("training/small_model.py", True),
        ("agents/prompts/program/actor.toml", False),
        ("sandboxes/environments/gsm8k.py", False),
    ],
)
def test_changed_code_makes_new_weights(tmp_path: Path, file: str, counts: bool) -> None:
    for room in ("agents", "graphs", "sandboxes", "training"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_hash("word_problems", "bare", tmp_path)
    assert before == code_hash("word_problems", "bare")
    changed = tmp_path / file
    changed.write_text(changed.read_text(encoding="utf-8") + "\n# another line\n", encoding="utf-8")
    assert (code_hash("word_problems", "bare", tmp_path) != before) is counts


def test_the_key_has_the_code_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("demo")
    key = warm_start_key(recipe, 0)
    monkeypatch.setattr(warm_start, "code_hash", lambda environment, prompts: "other code")
    assert warm_start_key(recipe, 0) != key


def test_one_makes_it_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of a seed that start together: one warm start, and nobody sees it half made."""
    made = []

    async def slowly(recipe: object, troupe: object, seed: int, folder: Path, on_step: object) -> None:
        made.append(folder)
        folder.mkdir()
        await asyncio.sleep(0.3)
        (folder / "learn.json").write_text("{}")

    async def together() -> list[Path]:
        runs = [warm_start.warm_start(load_recipe("demo"), cast(Any, None), 0, tmp_path / "shelf") for _ in range(3)]
        found = await asyncio.gather(*runs)
        assert all((folder / "learn.json").exists() for folder in found)
        return found

    monkeypatch.setattr(warm_start, "_make", slowly)
    assert len(set(asyncio.run(together()))) == 1 and len(made) == 1


def test_a_multi_turn_demonstration_is_the_whole_episode(tmp_path: Path) -> None:
    """Expert episodes of the small multi-turn world as rows: answers under the loss, and what was seen where asked for."""
    changes = ["environment.name=treasure_hunt", "environment.options={}", "model.prompts=bare_turns"]
    recipe = load_recipe("demo", [*changes, "warm_start.demonstrations=3", "warm_start.word_noise=0"])
    troupe = Troupe(recipe)
    shown = asyncio.run(warm_start.demonstrations(troupe, 3, 0))
    assert asyncio.run(warm_start.demonstrations(troupe, 3, 0)) is shown, "made once"
    texts = [said for turns in shown.episodes for turn in turns for said in turn] + [task.prompt for task in shown.tasks]
    chat = warm_start.load_chat(make_small_model(texts, tmp_path / "model"))
    rows = warm_start.demonstration_rows(recipe, troupe, chat, shown)
    for row, task, turns in zip(rows, shown.tasks, shown.episodes, strict=True):
        gold = asyncio.run(troupe.environment.gold(task))
        assert [action for action, _ in turns] == list(gold or ()) and len(turns) > 1
        answered = chat.decode([token for token, value in zip(row.ids, row.mask, strict=True) if value == 1])
        assert answered == "<eos>".join(gold or ())
        whole = chat.decode(row.ids)
        assert all(answer in whole for _, answer in turns) and set(row.mask) == {0, 1}
    taught = recipe.model_copy(
        update={"warm_start": load_recipe("demo", ["warm_start.learn.observation_loss=0.5"]).warm_start}
    )
    marked = warm_start.demonstration_rows(taught, troupe, chat, shown)
    assert [tuple(value or 2 for value in row.mask) for row in rows] == [row.mask for row in marked]

"""The shelf of warm starts: same recipe, seed and code → same weights; anything else → other ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kintsugi.training import warm_start
from kintsugi.training.recipe import load_recipe
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

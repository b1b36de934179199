"""A self-training run small enough for tests, made from one start a session, in which attempts succeed and fail.

The start is taught solved questions of the training split, not the demonstrations: it must be right now and then in
seconds, whatever a recipe's own warm start needs for that.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

TINY = """
threads = 1
description = "Small enough for a test"
rounds = 2
[environment]
name = "word_problems"
options = { events = "1" }
[model]
prompts = "bare"
small = { hidden = 64, layers = 2 }
[warm_start]
demonstrations = 200
repair_share = 0.15
low = 0.0
high = 1.0
learn = { lr = 3e-3, steps = 400, batch_tokens = 768 }
[explore]
tasks = 12
k = 3
max_tokens = 48
[episode]
wave = 12
[repair]
who = "self"
on = "unsolved"
form = "rollback"
budget = 1
fresh = "measured"
[select]
explore_cap = 2
repair_cap = 0
[targets]
replay = 10
[learn]
lr = 1e-3
steps = 4
batch_tokens = 768
[evaluate]
tasks = 16
[gate]
rule = "not_worse"
max_drop = 0.15
[control]
enabled = true
"""


def pytest_configure() -> None:
    """Tests that run in the background inherit that Ctrl-C is ignored, and so would every command that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe file; runs whose folders lie beside it find the warm start of seed 0 ready on the shelf there."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    asyncio.run(_put_on_shelf(path))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny: Path) -> Any:
    """A finished run of it: what `kintsugi.train` returned. Not to be changed by tests."""
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.run import train

    return train(load_recipe(str(tiny)), out=tiny.parent / "finished")


async def _put_on_shelf(path: Path) -> None:
    from kintsugi.training import warm_start
    from kintsugi.training.casting import Troupe
    from kintsugi.training.learn import learn
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.small_model import make_small_model

    recipe = load_recipe(str(path))
    settings, troupe = recipe.warm_start, Troupe(recipe)
    assert settings is not None
    tasks = troupe.environment.tasks("train", limit=400, seed=77)
    actions = [(await troupe.environment.gold(task) or [""])[0] for task in tasks]
    shown = warm_start.Demonstrations(tasks=tasks, episodes=[[(action, "")] for action in actions])
    raw = make_small_model([*(task.prompt for task in tasks), *actions], path.parent / "raw", recipe.model.small)
    chat = warm_start.load_chat(raw)
    rows = warm_start.demonstration_rows(recipe, troupe, chat, shown)
    rows += warm_start.repair_demonstration_rows(recipe, troupe, chat, shown, 80, 0)
    out = path.parent / "warm_starts" / warm_start.warm_start_key(recipe, recipe.seed)
    await asyncio.to_thread(learn, rows, model=raw, out=out, config=settings.learn, seed=1)
    await troupe.close()

"""A self-training run small enough for tests, made from one warm start a session, in which attempts succeed and fail."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

TINY = """
description = "Small enough for a test"
rounds = 2
[environment]
name = "word_problems"
options = { events = "1" }
[model]
prompts = "bare"
small = { hidden = 48, layers = 2 }
[warm_start]
demonstrations = 200
repair_share = 0.15
low = 0.05
high = 0.95
learn = { lr = 3e-3, steps = 250, batch_tokens = 768 }
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe file; runs whose folders lie beside it find the warm start of seed 0 ready on the shelf there."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    asyncio.run(_warm_start(path))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny: Path) -> Any:
    """A finished run of it: what `kintsugi.train` returned. Not to be changed by tests."""
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.run import train

    return train(load_recipe(str(tiny)), out=tiny.parent / "finished")


async def _warm_start(path: Path) -> None:
    from kintsugi.training.casting import Troupe
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.warm_start import warm_start

    recipe = load_recipe(str(path))
    troupe = Troupe(recipe)
    await warm_start(recipe, troupe, recipe.seed, path.parent / "warm_starts")
    await troupe.close()

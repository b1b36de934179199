"""The environment in 30 lines that the README and the guide show is a real one: it passes the conformance suite, and the
command beside it begins from a start that a run goes on with."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from kintsugi.sandboxes.environments.conformance import check

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/your-environment.md")
COMMAND = "kintsugi train demo environment.name=./reverse.py 'environment.options={}'"


def example(page: str) -> str:
    """The page's listing of reverse.py."""
    found = re.search(r"```python\n(# reverse\.py.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"{page} has lost its example"
    return found[1]


@pytest.mark.parametrize("page", PAGES)
def test_the_environment_in_30_lines_conforms(page: str) -> None:
    source = example(page)
    assert len(source.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(compile(source, "reverse.py", "exec"), names)
    report = asyncio.run(check(names["open_environment"]()))
    assert report.ok, report.failures


def test_both_pages_show_the_same() -> None:
    assert example(PAGES[0]) == example(PAGES[1])
    assert all(COMMAND in (ROOT / page).read_text(encoding="utf-8") for page in PAGES)


def test_its_warm_start_is_in_the_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a round, and with 80 steps instead of 800: by then it has learned what the demonstrations show, and the
    lengths that they do not show are not learned by more of them."""
    pytest.importorskip("trl", reason="a warm start needs the train extra")
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.run import train

    (tmp_path / "reverse.py").write_text(example(PAGES[0]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    name, *changes = shlex.split(COMMAND)[2:]
    short = ["rounds=0", "warm_start.first=[]", "warm_start.learn.steps=80", "evaluate.tasks=60", "explore.max_tokens=12"]
    recipe = load_recipe(name, [*changes, *short])
    result = train(recipe, out="run")
    assert recipe.warm_start is not None
    assert recipe.warm_start.low <= result.success_rates["main", 0] <= recipe.warm_start.high

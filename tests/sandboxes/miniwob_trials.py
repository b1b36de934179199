"""What the tests of MiniWoB++ share: whether it can be played here, an environment, a task, a verdict."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any

import pytest

from kintsugi.errors import MissingExtra
from kintsugi.records import Task
from kintsugi.sandboxes.environments.conformance import play
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.miniwob_chromium import find_binary


def has_browser() -> bool:
    try:
        find_binary()
    except MissingExtra:
        return False
    return True


def missing() -> str:
    """Why these pages cannot be played here, "" when they can."""
    if importlib.util.find_spec("miniwob") is None:
        return 'miniwob is not installed: pip install "kintsugi-agents[web]"'
    return "" if has_browser() else NO_BROWSER


NO_BROWSER = "there is no Chromium here: apt-get install chromium"
needs_browser = pytest.mark.skipif(not has_browser(), reason=NO_BROWSER)
needs_pages = pytest.mark.skipif(bool(missing()), reason=missing())


def opened(**options: Any) -> Any:
    return open_environment("miniwob", options)


def first(environment: Any, page: str, seed: int = 50) -> Task:
    """The task of a page at a seed."""
    (prompt,) = environment.prompts([(page, seed)])
    return Task(id=f"{page}-{seed}", environment="miniwob", split="x", prompt=prompt, payload={"page": page, "seed": seed})


def verdict_on(environment: Any, task: Task, action: str) -> Any:
    return asyncio.run(play(environment, task, [action]))[-1].verdict

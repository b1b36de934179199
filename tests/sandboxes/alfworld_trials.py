"""What the tests of ALFWorld share: where the official games are, what to skip without an engine, golds that must lose."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kintsugi.sandboxes.environments.environment import open_environment

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "alfworld"
needs_engine = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("textworld", "alfworld", "fast_downward")),
    reason='ALFWorld\'s engine is not installed: pip install "kintsugi-agents[alfworld]" (needs g++ and cmake)',
)
needs_data = pytest.mark.skipif(not (DATA / "train").is_dir(), reason=f"ALFWorld's official games are not in {DATA}")


def opened(**options: Any) -> Any:
    return open_environment("alfworld", options)


def other_number(_: Any, gold: Sequence[str]) -> list[list[str]]:
    """Golds that must lose: the last command left out, or done before the rest."""
    return [[*gold[:-1]], [gold[-1], *gold[:-1]]]

"""The environment in 30 lines that the README and the guide show is a real one: it passes the conformance suite."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from kintsugi.sandboxes.environments.conformance import check

ROOT = Path(__file__).parents[2]


def example(page: str) -> str:
    """The page's listing of reverse.py."""
    found = re.search(r"```python\n(# reverse\.py.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"{page} has lost its example"
    return found[1]


@pytest.mark.parametrize("page", ["README.md", "docs/your-environment.md"])
def test_the_environment_in_30_lines_conforms(page: str) -> None:
    source = example(page)
    assert len(source.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(compile(source, "reverse.py", "exec"), names)
    report = asyncio.run(check(names["open_environment"]()))
    assert report.ok, report.failures

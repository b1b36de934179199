"""The README's environment in 30 lines is a real one: it passes the conformance suite."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from kintsugi.sandboxes.environments.conformance import check

README = Path(__file__).parents[2] / "README.md"


def test_the_readmes_environment_conforms(tmp_path: Path) -> None:
    found = re.search(r"```python\n(# reverse\.py.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, "the README has lost its example"
    assert len(found[1].splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(compile(found[1], "reverse.py", "exec"), names)
    report = asyncio.run(check(names["open_environment"]()))
    assert report.ok, report.failures

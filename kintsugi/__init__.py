"""Kintsugi: LLM agents that train themselves on their own repaired mistakes.

Whatever the command line does is one call here; names are loaded on first use, so importing this costs nothing.

    import kintsugi
    result = kintsugi.train(kintsugi.load_recipe("demo", ["seed=1"]), out="runs/demo-1")
    print(result.champion, kintsugi.summary(result.folder))
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Ledger": "kintsugi.ledger",
    "Recipe": "kintsugi.training.recipe",
    "compare": "kintsugi.training.report",
    "doctor": "kintsugi.cli.doctor",
    "draw_episodes": "kintsugi.training.pictures",
    "draw_graph": "kintsugi.training.pictures",
    "evaluate": "kintsugi.training.evaluate",
    "export": "kintsugi.training.exports",
    "load_recipe": "kintsugi.training.recipe",
    "open_environment": "kintsugi.sandboxes.environments.environment",
    "open_policy": "kintsugi.agents.policies.policy",
    "open_sandbox": "kintsugi.sandboxes.sandbox",
    "recipe_names": "kintsugi.training.recipe",
    "resume": "kintsugi.training.run",
    "summary": "kintsugi.training.report",
    "train": "kintsugi.training.run",
    "write_report": "kintsugi.training.report",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kintsugi' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]

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
    "PlaySession": "kintsugi.graphs.playing",
    "Recipe": "kintsugi.training.recipe",
    "check_environment": "kintsugi.sandboxes.environments.conformance:check",
    "check_golds": "kintsugi.sandboxes.environments.gold_self_test",
    "check_recipe": "kintsugi.training.run",
    "compare": "kintsugi.training.report",
    "doctor": "kintsugi.cli.doctor",
    "draw_episodes": "kintsugi.training.pictures",
    "draw_graph": "kintsugi.training.pictures",
    "evaluate": "kintsugi.training.evaluate",
    "export": "kintsugi.training.exports",
    "fetch_data": "kintsugi.sandboxes.environments.official_download:fetch",
    "load_recipe": "kintsugi.training.recipe",
    "open_environment": "kintsugi.sandboxes.environments.environment",
    "open_policy": "kintsugi.agents.policies.policy",
    "open_sandbox": "kintsugi.sandboxes.sandbox",
    "plan_text": "kintsugi.training.run",
    "recipe_names": "kintsugi.training.recipe",
    "resume": "kintsugi.training.run",
    "serve": "kintsugi.agents.policies.chat_server",
    "summary": "kintsugi.training.report",
    "train": "kintsugi.training.run",
    "write_report": "kintsugi.training.report",
}
"""Name → module, or module:name where it goes by another one there."""

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kintsugi' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]

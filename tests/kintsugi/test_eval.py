"""`kintsugi eval` without WHAT: the recipe says the model. Runs, folders and endpoints are elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kintsugi.cli.main import main
from tests.kintsugi.test_eval_endpoint import held_out

Said = tuple[int, str, str]


@pytest.fixture
def measured(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["kintsugi", "eval", "--quiet", "--json", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_the_recipes_own_model(measured: Callable[..., Said], tmp_path: Path) -> None:
    """In the file or in an override; also where the first override stands in WHAT's place."""
    tasks = held_out("demo", 4)
    lines = [json.dumps({"prompt": task.prompt, "answers": gold[0]}) for task, gold in tasks[:3]]
    lines.append(json.dumps({"prompt": tasks[3][0].prompt, "answers": "no"}))
    (tmp_path / "script.jsonl").write_text("\n".join(lines))
    options = f'model.options={{path="{tmp_path / "script.jsonl"}"}}'
    overrides = ["evaluate.tasks=4", "model.kind=scripted", options]
    for arguments in (["--recipe", "demo", *overrides], [*overrides, "--recipe", "demo"]):
        code, out, err = measured(*arguments)
        assert code == 0, err
        assert (json.loads(out)["success_rate"], json.loads(out)["num_tasks"]) == (3 / 4, 4)
    mine = tmp_path / "mine.toml"
    mine.write_text(f'extends = "demo"\n[model]\nkind = "scripted"\noptions = {{ path = "{tmp_path / "script.jsonl"}" }}\n')
    code, out, err = measured("--recipe", mine, "evaluate.tasks=4")
    assert code == 0 and json.loads(out)["success_rate"] == 3 / 4, err


def test_all_tasks_lost(measured: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that breaks on every task: no figure, one sentence that says why, and an exit code."""
    from kintsugi.graphs.worlds import WorldBroke, Worlds

    async def act(self: Worlds, *_: object) -> None:
        raise WorldBroke("the desk\nis on fire")

    monkeypatch.setattr(Worlds, "act", act)
    (tmp_path / "script.jsonl").write_text(
        "".join(json.dumps({"prompt": task.prompt, "answers": "x"}) + "\n" for task, _ in held_out("demo", 2))
    )
    options = f'model.options={{path="{tmp_path / "script.jsonl"}"}}'
    code, out, err = measured("--recipe", "demo", "evaluate.tasks=2", "model.kind=scripted", options)
    assert (code, out) == (7, "") and len(err.splitlines()) == 1
    assert err.startswith("error: all 2 tasks were lost to errors of word_problems") and "the desk is on fire" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--recipe", "demo"], "the recipe demo names no model"),
        (["evaluate.tasks=2"], "--recipe with a model"),
        ([], "--recipe with a model"),
    ],
)
def test_nobody_to_measure(measured: Callable[..., Said], arguments: list[str], told: str) -> None:
    code, out, err = measured(*arguments)
    assert (code, out) == (2, "") and told in err and len(err.splitlines()) == 1

"""Without the [train] extra: what needs no model works, the rest says in one sentence how to get it.

Its packages are hidden, in processes of their own: whatever is imported early shows there, and nowhere else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kintsugi.agents.policies.policy import open_policy
from kintsugi.errors import MissingExtra

ROOT = Path(__file__).parents[2]
HIDDEN = ("torch", "transformers", "tokenizers", "trl", "peft", "datasets", "accelerate", "matplotlib")
TOLD = 'needs packages that are not installed: pip install "kintsugi-agents[train]"'


def without(packages: tuple[str, ...], folder: Path, *arguments: object) -> tuple[int, str, str]:
    """`kintsugi` with these arguments, run in `folder` where no such packages are: exit code, output, errors."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({packages!r})); from kintsugi.cli.main import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", hide, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        timeout=120,
        check=False,
    )
    return told.returncode, told.stdout, told.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model from outside."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("absent", [HIDDEN, ("trl",), ("peft",)])
def test_train_says_so_before_it_begins(tmp_path: Path, absent: tuple[str, ...]) -> None:
    code, out, err = without(absent, tmp_path, "train", "demo", "--out", "new", "--quiet")
    assert (code, out, err) == (3, "", f"error: training {TOLD}\n")
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_resumed_without_them(tmp_path: Path) -> None:
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.run_folder import RunFolder

    recipe = load_recipe("demo").model_dump(mode="json")
    RunFolder.create(tmp_path / "run", recipe=recipe, seed=0, name="demo", run_id="r")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    code, _, err = without(HIDDEN, tmp_path, "train", "--resume", "run", "--quiet")
    assert (code, err) == (3, f"error: training {TOLD}\n")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("command", [["eval", "--quiet"], ["serve"]])
def test_a_model_is_not_opened_without_them(tmp_path: Path, model: Path, command: list[str]) -> None:
    code, out, err = without(HIDDEN, tmp_path, *command, model)
    assert (code, out) == (3, "") and err.splitlines()[-1] == f'error: a policy of kind "transformers" {TOLD}'
    assert "Traceback" not in err


def test_what_needs_no_model_works_without_them(tmp_path: Path) -> None:
    for arguments in (["train", "demo", "--dry-run"], ["recipes"], ["graph", "episode"], ["doctor"]):
        code, out, err = without(HIDDEN, tmp_path, *arguments)
        assert (code, err) == (0, "") and out, (arguments, err)


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_open_policy(monkeypatch: pytest.MonkeyPatch, model: Path, absent: str) -> None:
    for name in [*sys.modules]:
        if name.startswith("kintsugi.agents.policies.") and not name.endswith(".policy"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtra) as caught:
        open_policy("transformers", {"path": str(model)})
    assert str(caught.value) == f'a policy of kind "transformers" {TOLD}'


def test_an_adapter_without_peft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is imported only once it is needed is told in the same way."""
    pytest.importorskip("torch")
    from kintsugi.training.small_model import make_small_model

    base = make_small_model(["a text"], tmp_path / "base")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}), encoding="utf-8")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra) as caught:
        open_policy("transformers", {"path": str(tmp_path)})
    assert str(caught.value) == f'a policy of kind "transformers" {TOLD}'


def test_another_packages_policy_says_itself_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kintsugi.agents.policies.policy.policy_kinds", lambda: {"theirs": "not_installed.policy"})
    with pytest.raises(ModuleNotFoundError, match="not_installed"):
        open_policy("theirs")

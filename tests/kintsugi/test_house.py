"""The house rules that a machine can check: links, what an import loads, public names, docstrings, lengths, directions."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kintsugi

ROOT = Path(__file__).parents[2]
ROOMS = ("agents", "graphs", "sandboxes", "training")
HEAVY = ("torch", "transformers", "trl", "peft", "vllm", "ray", "docker", "langgraph", "matplotlib", "datasets")
MODULES = sorted({path.resolve() for room in ("kintsugi", *ROOMS) for path in (ROOT / room).rglob("*.py")})


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_relative_links(room: str) -> None:
    link = ROOT / "kintsugi" / room
    assert link.is_symlink() and os.readlink(link) == f"../{room}"
    assert (ROOT / room / "__init__.py").is_file() and not (ROOT / room).is_symlink()


@pytest.mark.parametrize(
    "name", ["kintsugi", "kintsugi.cli.main", "kintsugi.agents.policies.policy", "kintsugi.sandboxes.sandbox"]
)
def test_an_import_loads_nothing_heavy(name: str) -> None:
    code = f"import sys, {name}\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    assert (asked.stdout.strip(), asked.returncode) == ("[]", 0), asked.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kintsugi.cli.main import main\nsys.argv = ['kintsugi', '--help']\n"
        f"try:\n    main()\nexcept SystemExit:\n    print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    assert asked.stdout.strip().endswith("[]") and "train" in asked.stdout, asked.stderr


@pytest.mark.parametrize("name", kintsugi.__all__)
def test_public_names_are_there(name: str) -> None:
    found = getattr(kintsugi, name)
    assert callable(found) and found.__doc__, f"kintsugi.{name} is {found!r}"
    assert name in dir(kintsugi)


def test_unknown_names_are_not() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        kintsugi.trian  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_say_what_they_are_and_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    said = ast.get_docstring(ast.parse(text))
    assert said and len(said) > 10, "expected a module docstring"
    assert len(text.splitlines()) <= 400, "expected at most 400 lines"
    assert path.stem not in ("utils", "common", "manager", "helper", "helpers", "types", "ray", "docker", "select")


def test_rooms_know_downward_only() -> None:
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed: pip install import-linter")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    asked = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
    )
    assert asked.returncode == 0 and "1 kept, 0 broken" in asked.stdout, asked.stdout + asked.stderr

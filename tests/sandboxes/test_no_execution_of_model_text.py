"""Nothing outside the sandbox's own worker executes text: no exec, eval or compile, no shell, no pickle, anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("kintsugi", "agents", "graphs", "sandboxes", "training")
MODULES = sorted({path.resolve() for room in ROOMS for path in (ROOT / room).rglob("*.py")})

ALLOWED = {
    "sandboxes/child.py": {"exec", "compile"},  # in a confined fork of the worker: this is where programs run
    "sandboxes/judging.py": {"exec"},  # the tests, in a confined fork of their own
    "sandboxes/tests_text.py": {"compile"},  # to read which names tests use; what it gives is never run
}
"""What may execute text, and with what. A worker's own start (`boot.BOOT`) runs the worker's files."""
EXECUTORS = {"exec", "eval", "execfile", "compile", "__import__"}
MODULES_OF_THEM = {
    "pickle": {"load", "loads"},
    "marshal": {"load", "loads"},
    "os": {"system", "popen"},
    "code": {"interact"},
}


def executions(source: str) -> set[str]:
    """Calls that execute text or objects: `exec(...)`, `pickle.loads(...)`, `subprocess.run(..., shell=True)`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = {*MODULES_OF_THEM.get(node.module or "", ()), *(EXECUTORS if node.module == "builtins" else ())}
            found |= {f"{node.module}.{one.name}" for one in node.names if one.name in names}
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in EXECUTORS:
            found.add(called.id)
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            if called.attr in MODULES_OF_THEM.get(called.value.id, ()):
                found.add(f"{called.value.id}.{called.attr}")
            if called.value.id == "builtins" and called.attr in EXECUTORS:
                found.add(called.attr)
        if any(
            one.arg == "shell" and not (isinstance(one.value, ast.Constant) and not one.value.value) for one in node.keywords
        ):
            found.add("shell")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_is_executed(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    extra = executions(path.read_text(encoding="utf-8")) - ALLOWED.get(name, set())
    assert not extra, f"{name} executes text with {sorted(extra)}: model text runs through kintsugi.sandboxes alone"


def test_the_search_finds_what_it_looks_for() -> None:
    assert executions("exec(x)\nbuiltins.eval(y)\npickle.loads(z)\nos.system('a')\nrun(c, shell=True)") == {
        "exec", "eval", "pickle.loads", "os.system", "shell",
    }  # fmt: skip
    assert executions("from os import system\nfrom builtins import exec as run\ncompile(x, y, 'exec')") == {
        "os.system", "builtins.exec", "compile",
    }  # fmt: skip
    assert executions("model.eval()\nre.compile('x')\nrun(c, shell=False)") == set()
    assert set(ALLOWED) <= {str(path.relative_to(ROOT)) for path in MODULES}

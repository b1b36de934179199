"""The battery of hostile programs on every rung this machine allows, as this user and as an ordinary one, and in Docker.

What needs another user is skipped loudly where this one may not change, what needs an engine where none answers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import SandboxError
from kintsugi.sandboxes import battery, docker_sandbox
from kintsugi.sandboxes.confinement import RUNGS
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.sandbox import GUARANTEES

ROOT = Path(__file__).parents[2]
ORDINARY = 61000  # a uid that nobody has
pytestmark = pytest.mark.filterwarnings("ignore:local sandbox", "ignore:docker sandbox")


def expect_held(found: dict[str, Any], rung: str) -> None:
    bad = [one for one in found["outcomes"] if not one["held"]]
    assert not bad, "\n".join(f"{one['name']}: {one['breached']} {one['wrong']}" for one in bad)
    assert found["held"] and found["backend"].endswith(rung), found["backend"]
    assert len(found["outcomes"]) >= 40
    kept = {row["guarantee"] for row in found["guarantees"] if row["promised"]}
    assert {row["guarantee"] for row in found["guarantees"] if row["breached"]} <= set(GUARANTEES) - kept


@pytest.mark.parametrize("rung", RUNGS)
def test_nothing_promised_is_breached(rung: str) -> None:
    try:
        LocalSandbox(workers=1, confinement=rung, allow_unsafe=True).close()
    except SandboxError as error:
        pytest.skip(f"THIS MACHINE DOES NOT ALLOW {rung}: {error}")
    expect_held(battery.examine("local", rung), rung)


@pytest.mark.parametrize("rung", RUNGS)
def test_nothing_promised_is_breached_for_an_ordinary_user(rung: str) -> None:
    if os.getuid() != 0:
        pytest.skip("ONLY ROOT MAY BECOME ANOTHER USER: this user's own runs are above")
    python = next(
        (one for one in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin")) if usable(one)), None
    )
    if python is None:
        pytest.skip(f"NO PYTHON 3.11 THAT AN ORDINARY USER MAY RUN: {sys.executable} is closed to others")
    asked = as_ordinary([python, "-m", "kintsugi.sandboxes.battery", "--rung", rung, "--json"])
    if "namespaces are refused" in asked.stderr:
        pytest.skip(f"THIS MACHINE REFUSES NAMESPACES TO ORDINARY USERS: {asked.stderr.strip()[-200:]}")
    found = json.loads(asked.stdout)
    assert found["user"] == "an ordinary user"
    expect_held(found, rung)


@pytest.mark.skipif(
    docker_sandbox.unavailable() is not None, reason=f"NO DOCKER: {docker_sandbox.unavailable()} (make docker-engine)"
)
def test_nothing_promised_is_breached_in_docker() -> None:
    found = battery.examine("docker")
    expect_held(found, found["backend"].rpartition("/")[2])


def test_every_guarantee_is_attacked_and_names_are_unique() -> None:
    names = Counter(program.name for program in battery.HOSTILE)
    assert max(names.values()) == 1 and len(names) >= 40
    assert {program.guarantee for program in battery.HOSTILE} == set(GUARANTEES)


def test_a_breach_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On limits alone many attacks succeed: were they promised, the battery would say so."""
    with LocalSandbox(workers=1, confinement="rlimits", allow_unsafe=True) as sandbox:
        monkeypatch.setattr(sandbox, "_guarantees", frozenset(GUARANTEES))
        chosen = [one for one in battery.HOSTILE if one.name in ("unix_socket", "writes_outside", "listing", "tcp")]
        outcomes = {one.name: one for one in battery.battery(sandbox, chosen)}
    assert len(outcomes) == 4
    for name, outcome in outcomes.items():
        assert outcome.promised and outcome.breached and not outcome.held, name
    assert "a connection came" in outcomes["tcp"].breached
    assert any("written to" in breach for breach in outcomes["writes_outside"].breached)


def as_ordinary(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
    return subprocess.run(
        command, capture_output=True, text=True, user=ORDINARY, group=ORDINARY, extra_groups=[], env=environment, cwd="/",
        timeout=600,
    )  # fmt: skip


def usable(python: str | None) -> bool:
    """Whether an ordinary user can run the battery with it."""
    try:
        return (
            python is not None and as_ordinary([python, "-c", "import tomllib, kintsugi.sandboxes.battery"]).returncode == 0
        )
    except OSError:
        return False

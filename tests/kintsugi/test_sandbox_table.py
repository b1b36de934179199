"""`kintsugi doctor --sandbox`: what it examines, how it says so, and that a breach is not passed over."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from kintsugi.cli import doctor, sandbox_table

FEW = ("environment", "output_flood", "always_equal", "names_of_files")


@pytest.fixture(scope="module")
def found() -> list[dict]:
    return sandbox_table.examine_sandboxes(only=FEW)


def test_each_kind_is_examined_or_said_to_be_absent(found) -> None:
    assert {one["kind"] for one in found} == {"docker", "local"}
    local = next(one for one in found if one["kind"] == "local")
    assert {outcome["name"] for outcome in local["outcomes"]} == set(FEW)
    assert sandbox_table.all_held(found), local


def test_the_table_names_each_guarantee(found) -> None:
    text = sandbox_table.table(found)
    for row in next(one for one in found if one["kind"] == "local")["guarantees"]:
        assert row["guarantee"] in text
    assert "all that it promises held" in text and max(map(len, text.splitlines())) <= 140


def test_a_breach_is_said_and_exits_with_1(found, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = json.loads(json.dumps(found))
    local = next(one for one in broken if one["kind"] == "local")
    local["held"] = False
    row = next(row for row in local["guarantees"] if row["guarantee"] == "output")
    row["breached"], row["promised"] = ["output_flood: a gigabyte"], True
    monkeypatch.setattr(sandbox_table, "examine_sandboxes", lambda: broken)
    said = CliRunner().invoke(doctor.app, ["--sandbox"])
    assert said.exit_code == 1 and "DID NOT HOLD" in said.output and "output_flood: a gigabyte" in said.output
    assert CliRunner().invoke(doctor.app, ["--sandbox", "--json"]).exit_code == 1
    monkeypatch.setattr(sandbox_table, "examine_sandboxes", lambda: found)
    said = CliRunner().invoke(doctor.app, ["--sandbox", "--json"])
    assert said.exit_code == 0 and json.loads(said.output)[0]["kind"] == "docker"


def test_nothing_here_is_not_all_held() -> None:
    assert not sandbox_table.all_held([{"kind": "docker", "absent": "no engine"}])

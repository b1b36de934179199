"""Where the weights of a run's versions lie, and what is said when they do not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kintsugi.errors import RunError
from kintsugi.ledger import Ledger
from kintsugi.training.run import champion_of
from kintsugi.training.run_folder import RunFolder, write_whole
from tests.kintsugi.ledger_samples import make_checkpoint


def test_weights_of_the_run_that_are_gone_are_no_hub_name(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", recipe={"name": "x"}, seed=0, name="x", run_id="run-1")
    run.record("evaluation", round=1, arm="main", policy_version="round-1", promoted=True)
    with Ledger.open(run.ledger) as ledger:
        ledger.add_checkpoint(dataclasses.replace(make_checkpoint("round-1"), path="policies/round-1", run_id="run-1"))
    with pytest.raises(RunError, match=r"expected the weights policies/round-1 in .*found none: restore") as caught:
        champion_of(run.path)
    assert "\n" not in str(caught.value)
    run.policy("round-1").mkdir()
    assert champion_of(run.path) == run.path / "policies" / "round-1"
    for begun in ("owner/model", "/elsewhere/model"):
        assert run.weights(begun) == Path(begun)


def test_half_characters_can_be_written(tmp_path: Path) -> None:
    """A report may quote an answer that holds a lone surrogate."""
    write_whole(tmp_path / "page", "half \ud800 é")
    assert (tmp_path / "page").read_text(encoding="utf-8") == "half ? é"


@pytest.mark.parametrize("line", ["[1, 2]", '{"kind": "evaluation"}', "3", '{"round": 1}'])
def test_metrics_that_no_run_writes(tmp_path: Path, line: str) -> None:
    run = RunFolder.create(tmp_path / "run", recipe={"name": "x"}, seed=0, name="x", run_id="run-1")
    run.record("evaluation", round=1, arm="main", policy_version="round-1", promoted=True)
    with run.metrics_file.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match="has a line that no run writes"):
        champion_of(run.path)


def test_metrics_that_are_gone(tmp_path: Path) -> None:
    """Going on with the run would not bring them back."""
    run = RunFolder.create(tmp_path / "run", recipe={"name": "x"}, seed=0, name="x", run_id="run-1")
    with pytest.raises(RunError, match="is missing, which says what was promoted: restore it"):
        champion_of(run.path)

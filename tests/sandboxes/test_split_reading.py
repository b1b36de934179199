"""Splits that are not there are left out and told; splits with a malformed record are faults."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import DataError, MissingSplit
from kintsugi.records import Task
from kintsugi.sandboxes.environments.about import About, about
from kintsugi.sandboxes.environments.environment import Environment, ProgramEnvironment, environment_kinds, open_environment
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.split_reading import declared_splits, first_split, read_splits
from kintsugi.sandboxes.environments.task_checks import check_tasks


class Graded(ProgramEnvironment):
    """Two splits of its own, which nobody can guess."""

    name = "graded"
    splits = ("easy", "hard")

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Any:
        if split not in self.splits:
            raise DataError(f"no split {split}")
        return [Task(id=f"{split}-{n}", environment="graded", split=split, prompt=f"{split} {n}") for n in range(limit or 3)]


class Broken(Graded):
    splits = ("train", "test")

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Any:
        found = super().tasks(split, limit=limit, seed=seed)
        if split == "test":
            raise DataError("my.txt, line 3: expected a question")
        return found


def gsm8k(folder: Path, **files: list[Any]) -> Environment:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return open_environment("gsm8k", {"data": str(folder)})


GOOD = {"question": "What is 2 + 3?", "answer": "It is <<2+3=5>>5.\n#### 5"}


def test_a_malformed_record_is_no_missing_split(tmp_path: Path) -> None:
    readings = read_splits(gsm8k(tmp_path, train=[GOOD], test=[GOOD, {"question": "q", "answer": "no hashes"}]))
    assert len(readings["train"].tasks) == 1 and not readings["train"].left_out
    for split in ("test", "heldout"):
        assert f"{tmp_path / 'test.jsonl'}, line 2" in str(readings[split].broken) and not readings[split].left_out
    failures = check_tasks(gsm8k(tmp_path), "train", 3)
    assert any("test.jsonl, line 2" in text for text in failures)


def test_a_split_without_a_file_is_left_out_and_told(tmp_path: Path) -> None:
    readings = read_splits(gsm8k(tmp_path, train=[GOOD]))
    assert "test.jsonl" in readings["test"].left_out and readings["test"].expected and readings["test"].broken is None
    assert not readings["valid_seen"].expected
    with pytest.raises(MissingSplit, match="no such folder"):
        first_split(open_environment("gsm8k", {"data": str(tmp_path / "nowhere")}))


def test_hotpotqa_counts_its_records(tmp_path: Path) -> None:
    good = {"_id": "a", "question": "Who?", "answer": "Ann", "supporting_facts": [["T", 0]], "context": [["T", ["Ann."]]]}
    (tmp_path / "hotpot_train_v1.1.json").write_text(json.dumps([good]))
    (tmp_path / "hotpot_dev_distractor_v1.json").write_text(json.dumps([good, {**good, "answer": None}]))
    readings = read_splits(open_environment("hotpotqa", {"data": str(tmp_path)}))
    assert len(readings["train"].tasks) == 1
    assert "hotpot_dev_distractor_v1.json, record 2" in str(readings["dev"].broken)
    (tmp_path / "hotpot_dev_distractor_v1.json").unlink()
    assert "found none" in read_splits(open_environment("hotpotqa", {"data": str(tmp_path)}))["dev"].left_out


def test_splits_of_ones_own_are_found_by_name_or_by_about(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="name one with --split"):
        first_split(Graded())
    with pytest.raises(DataError, match=r"no split easy|no split train"):
        asyncio.run(check_golds(Graded()))
    assert asyncio.run(check_golds(Graded(), named=["hard"])).splits == {"hard": 3}
    monkeypatch.setitem(globals(), "ABOUT", About(kind="k", metric="m", splits=("easy", "hard", "harder (never made)")))
    assert first_split(Graded()) == "easy"
    golds = asyncio.run(check_golds(Graded()))
    assert golds.splits == {"easy": 3, "hard": 3} and golds.left_out == {"harder": "no split harder"}
    assert "left out: harder: no split harder" in str(golds) and golds.without_gold == 6


def test_ones_own_broken_record_is_a_fault() -> None:
    golds = asyncio.run(check_golds(Broken()))
    assert not golds.ok and golds.splits == {"train": 3} and "my.txt, line 3: expected a question" in str(golds)


def test_large_splits_are_tried_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = About(kind="k", metric="m", splits=("easy", "hard"), on_request=("hard",))
    monkeypatch.setitem(globals(), "ABOUT", said)
    assert "--split hard" in read_splits(Graded())["hard"].left_out
    assert len(read_splits(Graded(), ["hard"])["hard"].tasks) == 3


def test_every_environment_says_names_that_can_be_read() -> None:
    for kind in environment_kinds():
        names = about(kind).split_names
        assert all(name.replace("_", "").isalnum() for name in names), (kind, names)
    assert about("svamp").split_names == ("test", "train", "heldout")
    assert "valid_unseen" in about("alfworld").split_names and "testdev" in about("gqa").split_names
    assert declared_splits(open_environment("svamp", {"data": "bundled"})) == ()

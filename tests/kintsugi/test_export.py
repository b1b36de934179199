"""Exports: what each kind holds, what it leaves out, that `datasets` and TRL read it, and that files appear whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, LedgerError
from kintsugi.ledger import EXPORT_KINDS, Ledger, export
from kintsugi.records import Action, Observation, Trajectory, Verdict, from_plain
from tests.kintsugi.ledger_samples import make_episode, make_task


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "run") as opened:
        opened.add_tasks([*(make_task(number) for number in range(4)), make_task(9, split="heldout")])
        opened.commit_episodes(
            [
                make_episode(1),
                make_episode(1, sample=1, stops=("success",)),
                make_episode(1, sample=2, stops=("success",)),  # the same text once more
                make_episode(2, stops=("failure", "failure")),
                make_episode(3, stops=("error",)),
                make_episode(0, round=1, saw_gold=True),
                make_episode(9, purpose="evaluate", stops=("success",)),
            ]
        )
        yield opened


def lines(ledger: Ledger, kind: str, path: Path, **options: Any) -> list[dict[str, Any]]:
    number = export(ledger, kind, path, **options)
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(read) == number
    return read


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_sft_rows(ledger: Ledger, tmp_path: Path) -> None:
    rows = lines(ledger, "sft", tmp_path / "x.jsonl")
    assert [row["messages"] for row in rows] == [
        [user("What is 1 + 1?"), assistant("print(1 + 1)")],
        [user("What is 1 + 1?"), assistant("print(1 + 0)")],
    ]
    assert [row["trajectory_id"] for row in rows] == ["e0-0001-0-a1", "e0-0001-1-a0"]
    assert "SECRET ADVICE" not in json.dumps(rows)


def test_dpo_rows_prefer_an_attempts_own_repair(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit_episodes([make_episode(1, sample=3, stops=("truncated",), first_text="loop")])
    first, second = lines(ledger, "dpo", tmp_path / "x.jsonl")
    assert first == {
        "prompt": [user("What is 1 + 1?")],
        "chosen": [assistant("print(1 + 1)")],
        "rejected": [assistant("print(1 + 0)")],
        "task_id": "t1",
        "trajectory_id": "e0-0001-0-a1",
        "rejected_trajectory_id": "e0-0001-0-a0",
    }
    assert second["rejected"] == [assistant("loop")] and second["chosen"] == [assistant("print(1 + 0)")]


def test_repair_rows_show_the_failed_attempt_and_its_feedback(ledger: Ledger, tmp_path: Path) -> None:
    (row,) = lines(ledger, "repairs", tmp_path / "x.jsonl")
    assert row["prompt"] == [user("What is 1 + 1?"), assistant("print(1 + 0)"), user("attempt 0: result 1")]
    assert row["completion"] == [assistant("print(1 + 1)")]
    assert (row["trajectory_id"], row["rejected_trajectory_id"]) == ("e0-0001-0-a1", "e0-0001-0-a0")


def test_trajectories_come_whole(ledger: Ledger, tmp_path: Path) -> None:
    rows = lines(ledger, "trajectories", tmp_path / "x.jsonl")
    assert [from_plain(Trajectory, row) for row in rows] == ledger.trajectories()


def test_gold_and_filters(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert len(lines(ledger, "sft", path, saw_gold=True)) == 3
    assert len(lines(ledger, "sft", path, saw_gold=True, round=1)) == 1
    assert len(lines(ledger, "sft", path, stage="refine")) == 1
    assert len(lines(ledger, "sft", path, purpose="evaluate")) == 1, "only when it is asked for"
    assert len(lines(ledger, "repairs", path, task_id="t2")) == 0


def test_multi_turn_chats(tmp_path: Path) -> None:
    task = make_task(1)
    episode = make_episode(1)
    failed, right = episode.trajectories

    def play(part: Trajectory, *texts: str) -> Trajectory:
        messages: list[Any] = [Observation(text=task.prompt)]
        for text in texts:
            messages += [Action(text=text), Observation(text=f"after {text}")]
        last = part.messages[-1]
        assert isinstance(last, Verdict)
        return replace(part, messages=(*messages, last))

    changed = replace(episode, trajectories=(play(failed, "go north"), play(right, "go south", "take key")))
    with Ledger.open(tmp_path / "run") as ledger:
        ledger.add_tasks([task])
        ledger.commit_episodes([changed])
        (sft,) = lines(ledger, "sft", tmp_path / "sft.jsonl")
        (dpo,) = lines(ledger, "dpo", tmp_path / "dpo.jsonl")
        (repair,) = lines(ledger, "repairs", tmp_path / "repairs.jsonl")
    answer = [assistant("go south"), user("after go south"), assistant("take key")]
    assert sft["messages"] == [user(task.prompt), *answer], "ends with an action: what follows it cannot be learned"
    assert dpo["prompt"] == [user(task.prompt)]
    assert dpo["chosen"] == answer and dpo["rejected"] == [assistant("go north")]
    assert repair["prompt"] == [user(task.prompt), assistant("go north"), user("after go north\nattempt 0: result 1")]


def test_datasets_and_trl_read_them(ledger: Ledger, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="no datasets: pip install kintsugi-agents[train]")
    data_utils = pytest.importorskip("trl.data_utils", reason="no trl: pip install kintsugi-agents[train]")
    for kind in EXPORT_KINDS:
        path = tmp_path / f"{kind}.jsonl"
        number = export(ledger, kind, path)
        read = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(read) == number > 0
        if kind == "trajectories":
            continue
        example = read[0]
        assert data_utils.is_conversational(example)
        columns = {"sft": {"messages"}, "dpo": {"prompt", "chosen", "rejected"}, "repairs": {"prompt", "completion"}}
        assert columns[kind] <= set(read.column_names)
        if kind == "dpo":
            assert data_utils.maybe_extract_prompt(example)["prompt"] == example["prompt"]
        asked = example.get("prompt") or example["messages"][:1]
        assert asked[-1]["role"] == "user"


def test_a_file_appears_whole_or_not_at_all(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "x.jsonl"
    with pytest.raises(LedgerError, match=r"cannot be written .*No such file"):
        export(ledger, "sft", path)
    path.parent.mkdir()
    path.write_text("what was there\n")

    def interrupted(*_: object) -> Iterator[dict[str, Any]]:
        yield {"row": 1}
        raise KeyboardInterrupt

    monkeypatch.setitem(EXPORT_KINDS, "sft", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(ledger, "sft", path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LedgerError, match="No space left on device"):
        export(ledger, "dpo", path)
    assert path.read_text() == "what was there\n"
    assert list(path.parent.iterdir()) == [path]


def test_unknown_kinds_are_refused(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='unknown export kind "repair": did you mean "repairs"'):
        export(ledger, "repair", tmp_path / "x.jsonl")

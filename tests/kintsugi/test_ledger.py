"""The ledger: round trips, the one commit point, filters, lineage, what goes wrong on disks, and kill -9.

Set KINTSUGI_TEST_POSTGRES to the URL of an empty database to run the store tests on PostgreSQL too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event

from kintsugi.errors import LedgerError, MissingExtra
from kintsugi.ledger import Ledger, rows, tables
from kintsugi.records import DatasetRow, Episode, Task, to_plain
from tests.kintsugi.ledger_samples import (
    RUN,
    make_checkpoint,
    make_dataset,
    make_episode,
    make_evaluation,
    make_task,
)

ROOT = Path(__file__).parents[2]
POSTGRES = os.environ.get("KINTSUGI_TEST_POSTGRES", "")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "run")
        return
    if not POSTGRES:
        pytest.skip("no PostgreSQL: set KINTSUGI_TEST_POSTGRES to the URL of an empty database")
    engine = create_engine(POSTGRES)
    tables.metadata.drop_all(engine)
    yield POSTGRES
    tables.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def ledger(place: str) -> Iterator[Ledger]:
    with Ledger.open(place) as opened:
        opened.add_tasks(make_task(number) for number in range(5))
        yield opened


def fill(ledger: Ledger) -> list[Episode]:
    """Five tasks × two samples × two rounds, and everything that goes with them."""
    episodes = [make_episode(n, round=r, sample=s) for r in (0, 1) for n in range(5) for s in (0, 1)]
    ledger.add_tasks(make_task(number) for number in range(5))
    ledger.commit_episodes(episodes)
    ledger.add_dataset(make_dataset(*episodes[:4]))
    ledger.add_checkpoint(make_checkpoint())
    ledger.add_evaluation(make_evaluation())
    return episodes


# -- round trips -----------------------------------------------------------------------------------------------------


def test_everything_comes_back_as_it_was(ledger: Ledger) -> None:
    episodes = fill(ledger)
    assert ledger.episodes() == episodes
    assert ledger.tasks() == [make_task(number) for number in range(5)]
    assert ledger.dataset(RUN, 0, "agent") == make_dataset(*episodes[:4])
    assert ledger.checkpoints() == [make_checkpoint()]
    assert ledger.evaluations() == [make_evaluation()]
    assert ledger.datasets() == [(RUN, 0, "agent")]
    assert ledger.counts() == {
        "tasks": 5,
        "episodes": 20,
        "trajectories": 40,
        "datasets": 1,
        "dataset_rows": 4,
        "checkpoints": 1,
        "evaluations": 1,
        "events": 0,
    }
    assert ledger.integrity() == []


def test_a_model_may_write_any_character(ledger: Ledger) -> None:
    episode = make_episode(1, first_text="NUL \x00, lone surrogate \ud800, 日本, 🧵, [bold]")
    ledger.commit_episodes([episode])
    assert ledger.episode(episode.id) == episode
    assert ledger.integrity() == []


def test_what_broke_on_the_way_is_kept(ledger: Ledger) -> None:
    episode = make_episode(1)
    first = dataclasses.replace(episode.trajectories[0], crashes=("engine died", "no reply within 60 s"))
    ledger.commit_episodes([dataclasses.replace(episode, trajectories=(first, *episode.trajectories[1:]))])
    assert [part.crashes for part in ledger.episode(episode.id).trajectories] == [first.crashes, ()]
    assert ledger.integrity() == []


def test_the_order_of_writing_changes_nothing(place: str, tmp_path: Path) -> None:
    episodes = [make_episode(n, round=r, sample=s) for r in (0, 1) for n in range(5) for s in (0, 1)]
    shuffled = random.Random(0).sample(episodes, len(episodes))
    with Ledger.open(place) as one, Ledger.open(tmp_path / "other") as other:
        fill(one)
        other.add_tasks(make_task(number) for number in reversed(range(5)))
        for episode in shuffled:
            other.commit_episodes([episode])
        assert one.episodes() == other.episodes() == episodes
        assert one.trajectories() == other.trajectories()
        assert one.digest() != other.digest()
        other.add_evaluation(make_evaluation())
        other.add_checkpoint(make_checkpoint())
        other.add_dataset(make_dataset(*episodes[:4]))
        assert one.digest() == other.digest()


def test_rows_hold_what_to_plain_says() -> None:
    episode = make_episode(2)
    assert json.loads(rows.canonical(episode)) == to_plain(episode)
    dataset = make_dataset(make_episode(1), make_episode(2))
    assert rows.dataset_hash(dataset.rows) == dataset.hash


# -- the one commit point --------------------------------------------------------------------------------------------


def test_the_same_episode_again_is_no_news(ledger: Ledger) -> None:
    episode = make_episode(1)
    assert ledger.commit_episodes([episode, episode]) == 1
    before = ledger.digest()
    assert ledger.commit_episodes([make_episode(1, seconds=99.0)]) == 0, "wall seconds are no content"
    assert ledger.digest() == before
    assert ledger.trajectory(episode.trajectories[0].id).cost.seconds == 0.5
    broke = tuple(dataclasses.replace(part, crashes=("engine died",)) for part in episode.trajectories)
    assert ledger.commit_episodes([dataclasses.replace(episode, trajectories=broke)]) == 0, "nor are crashes on the way"
    assert ledger.has_episodes([episode.id, "unknown"]) == {episode.id}


def test_another_episode_under_the_same_id_is_refused_whole(ledger: Ledger) -> None:
    ledger.commit_episodes([make_episode(1)])
    before = ledger.digest()
    with pytest.raises(LedgerError, match=r"e0-0001-0 is already in .* with other content"):
        ledger.commit_episodes([make_episode(2), make_episode(1, stops=("failure", "failure"))])
    assert ledger.digest() == before
    with pytest.raises(LedgerError, match="other content"):
        ledger.commit_episodes([make_episode(3), make_episode(3, stops=("success",))])
    assert ledger.has_episodes(["e0-0002-0", "e0-0003-0"]) == set()


def test_other_records_under_the_same_key_are_refused(ledger: Ledger) -> None:
    fill(ledger)
    before = ledger.digest()
    fill(ledger)
    assert ledger.digest() == before
    with pytest.raises(LedgerError, match="tasks: sums t1 is already"):
        ledger.add_tasks([Task(id="t1", environment="sums", split="train", prompt="another")])
    with pytest.raises(LedgerError, match="datasets"):
        ledger.add_dataset(make_dataset(make_episode(1)))
    with pytest.raises(LedgerError, match="policy_checkpoints"):
        ledger.add_checkpoint(dataclasses.replace(make_checkpoint(), loss=0.5))
    with pytest.raises(LedgerError, match="evaluations"):
        ledger.add_evaluation(dataclasses.replace(make_evaluation(), errors=2))
    assert ledger.digest() == before


def test_references_must_exist(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="refers to a task or trajectory"):
        ledger.commit_episodes([make_episode(1), make_episode(77)])
    child = make_episode(2)
    orphan = dataclasses.replace(child, trajectories=child.trajectories[1:])
    with pytest.raises(LedgerError, match="refers to a task or trajectory"):
        ledger.commit_episodes([orphan])
    with pytest.raises(LedgerError, match="refers to a task or trajectory"):
        ledger.add_dataset(make_dataset(make_episode(3)))
    assert ledger.counts()["episodes"] == ledger.counts()["datasets"] == 0
    backwards = dataclasses.replace(child, trajectories=child.trajectories[::-1])
    assert ledger.commit_episodes([backwards]) == 1, "a repair may come before the attempt it repairs"


def test_a_demonstration_may_have_no_trajectory(ledger: Ledger) -> None:
    row = DatasetRow(kind="demonstration", task_id="t1", trajectory_id="", ids=(1,), mask=(1,))
    dataset = dataclasses.replace(make_dataset(), rows=(row,))
    ledger.add_dataset(dataset)
    assert ledger.dataset(RUN, 0, "agent") == dataset
    with pytest.raises(LedgerError, match="names no trajectory"):
        ledger.lineage(row)


def test_rewards_must_be_numbers(ledger: Ledger) -> None:
    episode = make_episode(1)
    broken = dataclasses.replace(episode.trajectories[0], soft_reward=float("nan"))
    with pytest.raises(LedgerError, match="not a number"):
        ledger.commit_episodes([dataclasses.replace(episode, trajectories=(broken,))])
    with pytest.raises(LedgerError, match="belongs to episode"):
        ledger.commit_episodes([dataclasses.replace(episode, id="other")])


def test_threads_may_commit_at_once(ledger: Ledger) -> None:
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for sample in range(start, 40, 4):
                ledger.commit_episodes([make_episode(1, sample=sample)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert ledger.counts()["episodes"] == 40


# -- finding ---------------------------------------------------------------------------------------------------------


def test_filters(ledger: Ledger) -> None:
    fill(ledger)
    broken = make_episode(1, round=2, stops=("error",))
    cut = make_episode(2, round=2, stops=("truncated",))
    ledger.add_tasks([make_task(9, split="heldout")])
    ledger.commit_episodes([broken, cut, make_episode(9, round=2, purpose="evaluate", stops=("success",))])

    assert len(ledger.episodes(round=0)) == 10 == ledger.count_episodes(round=0, run_id=RUN)
    assert len(ledger.episodes(round=(0, 1), task_id="t1")) == 4
    assert ledger.episodes(stop="error") == [broken]
    assert ledger.episodes(stage="explore", stop="truncated") == [cut]
    assert ledger.episodes(stage="refine", stop="failure") == []
    assert [episode.task_id for episode in ledger.episodes(split="heldout")] == ["t9"]
    assert ledger.episodes(limit=3, offset=2) == ledger.episodes()[2:5]
    assert ledger.episodes(run_id="another") == [] == ledger.episodes(environment="another")

    assert len(ledger.trajectories(success=True, purpose="explore")) == 20
    assert len(ledger.trajectories(success=False)) == 21, "20 failures and 1 truncated; a broken environment is neither"
    assert {part.stage for part in ledger.trajectories(success=True, round=[0, 1])} == {"refine"}
    assert [part.id for part in ledger.trajectories(split="heldout")] == ["e2-0009-0-a0"]
    with pytest.raises(TypeError, match="colour"):
        ledger.episodes(colour="red")

    tallies = {(one.round, one.purpose, one.stage, one.stop): one for one in ledger.tally()}
    assert tallies[0, "explore", "refine", "success"].num_trajectories == 10
    assert tallies[0, "explore", "refine", "success"].generated_tokens == 20
    assert tallies[2, "explore", "explore", "error"].seconds == 0.5
    assert len(tallies) == 7
    assert {one.round for one in ledger.tally(round=1)} == {1}


def test_ids_may_be_shortened(ledger: Ledger) -> None:
    ledger.commit_episodes([make_episode(1), make_episode(2)])
    assert ledger.episode("e0-0001").id == "e0-0001-0"
    assert ledger.trajectory("e0-0001-0-a1").attempt == 1
    with pytest.raises(LedgerError, match="several episode ids"):
        ledger.episode("e0-000")
    for unknown in ("zzz", "", "%"):
        with pytest.raises(LedgerError, match="no episode whose id begins"):
            ledger.episode(unknown)
    with pytest.raises(LedgerError, match='no task "nope"'):
        ledger.task("sums", "nope")
    with pytest.raises(LedgerError, match="no dataset"):
        ledger.dataset(RUN, 0, "agent")


def test_events_and_notes(ledger: Ledger) -> None:
    before = ledger.digest()
    ledger.add_event(RUN, "resumed", {"stage": "learn"})
    ledger.add_event(RUN, "finished")
    ledger.set_meta("run", "a")
    ledger.set_meta("run", "b")
    assert [(one.kind, one.detail) for one in ledger.events()] == [("resumed", {"stage": "learn"}), ("finished", {})]
    assert ledger.events(kind="finished")[0].at_s > 1e9
    assert ledger.meta("run") == "b" and ledger.meta("none", "default") == "default"
    assert ledger.digest() == before


def test_lineage_goes_back_to_the_attempt_its_feedback_and_its_policy(ledger: Ledger) -> None:
    episode = make_episode(3, round=1, stops=("failure", "failure", "success"))
    ledger.commit_episodes([episode])
    ledger.add_checkpoint(make_checkpoint("policy-1", round=0))
    dataset = make_dataset(episode, round=1)
    ledger.add_dataset(dataset)

    lineage = ledger.lineage(dataset.rows[0])
    assert lineage.row == dataset.rows[0]
    assert lineage.trajectory == episode.trajectories[2]
    assert lineage.episode == episode and lineage.task == make_task(3)
    assert lineage.checkpoint == make_checkpoint("policy-1", round=0)
    assert lineage.parent and lineage.parent.trajectory == episode.trajectories[1]
    assert lineage.parent.parent and lineage.parent.parent.trajectory == episode.trajectories[0]
    assert lineage.rejected and lineage.rejected.trajectory == episode.trajectories[0]
    assert [(use.target, use.position, use.rejected) for use in lineage.uses] == [("agent", 0, False)]
    assert lineage.rejected.uses[0].rejected
    text = lineage.text()
    for fact in (
        "training row: repair, weight 0.5",
        "task sums/t3 (train)",
        "attempt 2: refine, success",
        "repairs attempt 1: refine, failure",
        "feedback: attempt 0: result 3",
        "fault: never used 1",
        "policy policy-1: agent of round 0, trained from policy-0",
        'row 0 (repair) of dataset "agent", round 1',
        "preferred to attempt 0",
    ):
        assert fact in text, text
    assert ledger.lineage(episode.trajectories[0].id).parent is None


# -- what goes wrong -------------------------------------------------------------------------------------------------


def sound_run(folder: Path) -> Path:
    with Ledger.open(folder) as ledger:
        fill(ledger)
    return folder / "ledger.sqlite"


def test_a_missing_ledger(tmp_path: Path) -> None:
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(LedgerError, match="there is no ledger at"):
            Ledger.open(tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="cannot be created"):
        Ledger.open(tmp_path / "file" / "run")


def test_a_truncated_or_garbled_file(tmp_path: Path) -> None:
    whole = sound_run(tmp_path).read_bytes()
    file = tmp_path / "ledger.sqlite"
    for damaged in (b"not a database at all" * 200, whole[:3000], whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        for read_only in (False, True):
            with pytest.raises(LedgerError, match="is damaged or is no ledger"):  # noqa: SIM117
                with Ledger.open(tmp_path, read_only=read_only) as ledger:
                    ledger.episodes()
        assert file.read_bytes() == damaged, "what is left stays as it was"


def test_integrity_finds_bad_pages_and_changed_rows(tmp_path: Path) -> None:
    file = sound_run(tmp_path)
    whole = file.read_bytes()
    pages = range(4096 * 8, len(whole), 4096)
    found = 0
    for start in pages:
        file.write_bytes(whole[:start] + bytes(4096) + whole[start + 4096 :])
        try:
            with Ledger.open(tmp_path) as ledger:
                found += bool(ledger.integrity())
        except LedgerError as error:
            found += "is damaged" in str(error)
    assert found == len(pages) > 5

    for change, finding in (
        ("UPDATE trajectories SET hard_reward = 0.5 WHERE id = 'e0-0001-0-a1'", "episode.*e0-0001-0 is not what"),
        ("UPDATE trajectories SET body = x'00' WHERE id = 'e0-0001-0-a1'", "e0-0001-0-a1 is damaged"),
        ("DELETE FROM trajectories WHERE id = 'e0-0001-0-a1'", "dataset_rows name .* a row that trajectories lacks"),
        ("UPDATE dataset_rows SET weight = 2 WHERE position = 1", "datasets: run-1 0 agent is not what"),
        ("DELETE FROM tasks WHERE id = 't4'", "episodes name .* a row that tasks lacks"),
    ):
        file.write_bytes(whole)
        with sqlite3.connect(file) as connection:
            assert connection.execute(change).rowcount == 1
        connection.close()
        with Ledger.open(tmp_path) as ledger:
            findings = ledger.integrity()
        assert any(re.search(finding, line) for line in findings), findings


def test_another_schema_and_another_database(tmp_path: Path) -> None:
    file = sound_run(tmp_path)
    for version in ("0", "99"):
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE ledger_meta SET value = ? WHERE key = 'schema'", (version,))
        connection.close()
        with pytest.raises(LedgerError, match=f"has ledger schema {version}, and this Kintsugi reads schema 1"):
            Ledger.open(tmp_path)
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE songs (id)")
    connection.close()
    with pytest.raises(LedgerError, match="is a database, but not a ledger"):
        Ledger.open(tmp_path / "other.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger.open(tmp_path / "empty.db", read_only=True)
    Ledger.open(tmp_path / "empty.db").close()  # a process killed before its first commit leaves such a file


def test_bad_urls(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is not the URL of a database"):
        Ledger.open("nosuch://secret:word@host/x")
    with pytest.raises((LedgerError, MissingExtra)) as caught:
        Ledger.open("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    with Ledger.open(f"sqlite:///{tmp_path}/by-url.sqlite"):
        assert (tmp_path / "by-url.sqlite").exists()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    sound_run(tmp_path)
    with Ledger.open(tmp_path) as ledger:
        before = ledger.digest()
        pages: dict[str, int] = {}

        @event.listens_for(ledger.engine, "begin")
        def shrink(connection) -> None:  # pyright: ignore[reportMissingParameterType]
            now = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages.get('most', now + 5)}")

        many = [make_episode(n % 5, round=3, sample=n) for n in range(200)]
        with pytest.raises(LedgerError, match=r"the disk that holds .* is full: free some space"):
            ledger.commit_episodes(many)
        assert ledger.digest() == before and ledger.integrity() == []
        pages["most"] = 100_000
        assert ledger.commit_episodes(many) == 200
        assert ledger.integrity() == []


def test_a_lock_held_by_another_process(tmp_path: Path) -> None:
    file = sound_run(tmp_path)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Ledger.open(tmp_path, timeout_s=0.1) as ledger:
        assert len(ledger.episodes()) == 20, "readers need not wait"
        with pytest.raises(LedgerError, match="is locked by another process"):
            ledger.commit_episodes([make_episode(1, round=5)])
        other.execute("ROLLBACK")
        assert ledger.commit_episodes([make_episode(1, round=5)]) == 1
    other.close()


def test_reading_only(tmp_path: Path) -> None:
    sound_run(tmp_path)
    with Ledger.open(tmp_path, read_only=True) as ledger:
        assert len(ledger.episodes()) == 20
        with pytest.raises(LedgerError, match="was opened read-only"):
            ledger.commit_episodes([make_episode(1, round=5)])
    with Ledger.open(tmp_path) as writer, Ledger.open(tmp_path, read_only=True) as reader:
        writer.commit_episodes([make_episode(1, round=5)])
        assert reader.count_episodes() == 21, "a reader sees what a running process has committed"


READ_ONLY_FOLDER = """
import os, sys
from kintsugi.errors import LedgerError
from kintsugi.ledger import Ledger
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)  # root may write anywhere
with Ledger.open(sys.argv[1], read_only=True) as ledger:
    print(ledger.count_episodes())
for place in sys.argv[1:]:
    try:
        with Ledger.open(place) as ledger:
            ledger.add_event("r", "k")
        print("written")
    except LedgerError as error:
        print(error)
"""


def test_a_read_only_folder(tmp_path: Path) -> None:
    sound_run(tmp_path / "run")
    file = tmp_path / "run" / "ledger.sqlite"
    parents = [folder for folder in file.parents if folder.is_relative_to(Path("/tmp")) and folder != Path("/tmp")]
    for folder in parents:
        folder.chmod(0o755)
    file.chmod(0o444)
    file.parent.chmod(0o555)
    done = run_script(READ_ONLY_FOLDER, str(file), str(tmp_path / "run" / "new" / "x"), str(tmp_path / "run" / "y.db"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "20"
    assert "run is read-only: make it writable" in lines[1], lines
    assert "cannot be created" in lines[2]
    assert "run is read-only: make it writable" in lines[3]


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


# -- kill -9 ---------------------------------------------------------------------------------------------------------

BATCH, BATCHES = 20, 40
COMMIT_IN_A_LOOP = f"""
import sys
from kintsugi.ledger import Ledger
from tests.kintsugi.ledger_samples import make_episode, make_task
with Ledger.open(sys.argv[1]) as ledger:
    ledger.add_tasks(make_task(n) for n in range(5))
    for batch in range({BATCHES}):
        episodes = [make_episode(n % 5, round=batch, sample=n, seconds=float(sys.argv[2])) for n in range({BATCH})]
        missing = {{e.id for e in episodes}} - ledger.has_episodes(e.id for e in episodes)
        ledger.commit_episodes(e for e in episodes if e.id in missing)
        print(batch, flush=True)
"""


def test_kill_nine_leaves_whole_transactions_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    chance = random.Random(0)
    for kill in range(5):
        command = [sys.executable, "-c", COMMIT_IN_A_LOOP, str(tmp_path / "killed"), str(kill)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT)
        assert process.stdout
        wait_for = kill * 8 + chance.randrange(6)
        said = -1
        while said < wait_for:
            said = int(process.stdout.readline())
        threading.Event().wait(chance.random() * 0.02)  # so that it lands anywhere in a transaction
        process.send_signal(signal.SIGKILL)
        said = max([said, *(int(line) for line in process.stdout.read().split())])
        assert process.wait() == -signal.SIGKILL, "killed before its end"
        with Ledger.open(tmp_path / "killed") as ledger:
            number = ledger.count_episodes()
            assert number % BATCH == 0, "whole transactions only"
            assert number >= (said + 1) * BATCH, "what was said to be committed is there"
            assert ledger.integrity() == []
    assert run_script(COMMIT_IN_A_LOOP, str(tmp_path / "killed"), "7").returncode == 0
    assert run_script(COMMIT_IN_A_LOOP, str(tmp_path / "calm"), "8").returncode == 0
    with Ledger.open(tmp_path / "killed") as killed, Ledger.open(tmp_path / "calm") as calm:
        assert killed.count_episodes() == BATCH * BATCHES
        assert killed.digest() == calm.digest()

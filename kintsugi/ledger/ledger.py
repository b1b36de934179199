"""`Ledger`: records in, records out, in one order, with one commit point.

::

    with Ledger.open("runs/x") as ledger:
        ledger.add_tasks(tasks)
        ledger.commit_episodes(episodes)          # all of them or none
        pool = ledger.trajectories(stage="explore", success=True)
        print(ledger.lineage(row).text())

Inserting what is already there does nothing; inserting something else under the same id raises LedgerError: a resumed
run may repeat a stage, and may not contradict it. Lists come by (round, task id, sample, attempt), then id. Calls are
synchronous and may come from several threads. Left out: changing or deleting anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, func, insert, inspect, select, update

from kintsugi.errors import LedgerError
from kintsugi.ledger import audit, rows, tables
from kintsugi.ledger.database import SAFE, locate, open_engine, plain_errors
from kintsugi.ledger.filters import (
    EPISODE_ORDER,
    TRAJECTORY_ORDER,
    Wanted,
    column,
    episode_filters,
    match,
    trajectory_filters,
)
from kintsugi.ledger.lineage import Lineage, trace
from kintsugi.records import Checkpoint, Dataset, DatasetRow, Episode, Evaluation, Task, Trajectory

_BATCH = 500  # ids in one query, far below every database's limit of parameters


class DatasetKey(NamedTuple):
    """Which dataset: `Ledger.dataset(*key)` reads it."""

    run_id: str
    round: int
    target: str


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to the run ("resumed", …): for people, no part of `Ledger.digest`. at_s: Unix time."""

    run_id: str
    kind: str
    at_s: float
    detail: Mapping[str, Any]


class Ledger:
    """The store of one run. Open it with `Ledger.open`; `engine` and `place` are for this package and for tests."""

    def __init__(self, place: str | Path, *, create: bool, read_only: bool, timeout_s: float) -> None:
        found = locate(place)
        self.engine, self.place = open_engine(found, create=create, read_only=read_only, timeout_s=timeout_s)
        self._writer = self.engine.execution_options(writes=True)
        self.read_only = read_only
        try:
            self._check_schema(create and not read_only)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, place: str | Path, *, create: bool = True, read_only: bool = False, timeout_s: float = 30.0) -> Ledger:
        """Open a run folder's ledger, a ledger file, or a database URL (`postgresql+psycopg://…`).

        create: make it when it is not there. timeout_s: how long to wait for another process's write to end.
        Raises LedgerError when it is missing, damaged, read-only, locked, of another schema or no ledger at all.
        """
        return cls(place, create=create, read_only=read_only, timeout_s=timeout_s)

    def close(self) -> None:
        """Give all connections back; calling it twice is harmless."""
        self.engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _check_schema(self, create: bool) -> None:
        with self.reading() as connection:
            names = set(inspect(connection).get_table_names())
        if tables.meta.name not in names:
            if names and self.engine.dialect.name == "sqlite":
                raise LedgerError(f"{self.place} is a database, but not a ledger: choose another file")
            if not create:
                raise LedgerError(f"{self.place} holds no ledger: expected one that a run has written")
            with self.writing() as connection:  # in one transaction: a killed process leaves all tables or none
                tables.metadata.create_all(connection)
                stored = connection.scalar(select(tables.meta.c.value).where(tables.meta.c.key == "schema"))
                if stored is None:
                    connection.execute(insert(tables.meta), [{"key": "schema", "value": tables.SCHEMA}])
        found = self.meta("schema")
        if found != tables.SCHEMA:
            raise LedgerError(
                f"{self.place} has ledger schema {found or 'unknown'}, and this Kintsugi reads schema {tables.SCHEMA}: "
                "use the version of Kintsugi that wrote it (the run folder names it), or start a new run"
            )

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view for several queries; database errors become LedgerError."""
        with plain_errors(self.place), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction: everything in it is committed at its end, or nothing is."""
        if self.read_only:
            raise LedgerError(f"{self.place} was opened read-only: open it with read_only=False to write")
        with plain_errors(self.place), self._writer.begin() as connection:
            yield connection

    # -- writing ---------------------------------------------------------------------------------------------------

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """Add tasks; returns how many were new. Episodes may only be committed for tasks that are here."""
        new = [rows.record_row(task, "environment", "id", "split") for task in tasks]
        with self.writing() as connection:
            return len(self._insert(connection, tables.tasks, ("environment", "id"), new))

    def commit_episodes(self, episodes: Iterable[Episode]) -> int:
        """Add whole episodes in one transaction, the run's only commit point for them; returns how many were new."""
        pairs = [rows.episode_rows(episode) for episode in episodes]
        parts = {row["id"]: trajectories for row, trajectories in pairs}
        with self.writing() as connection:
            new = self._insert(connection, tables.episodes, ("id",), [row for row, _ in pairs])
            trajectories = [part for row in new for part in parts[row["id"]]]
            if trajectories:
                connection.execute(insert(tables.trajectories), trajectories)
        return len(new)

    def add_dataset(self, dataset: Dataset) -> str:
        """Add a dataset with its rows; returns its hash. Every trajectory that its rows name must be here."""
        key = {"run_id": dataset.run_id, "round": dataset.round, "target": dataset.target}
        hash_ = rows.dataset_hash(dataset.rows)
        content = rows.dataset_content(dataset.run_id, dataset.round, dataset.target, hash_)
        head = {**key, "hash": hash_, "num_rows": len(dataset.rows), "content": content}
        with self.writing() as connection:
            if self._insert(connection, tables.datasets, ("run_id", "round", "target"), [head]) and dataset.rows:
                body = [
                    {**key, "position": position, **rows.dataset_row_row(row)} for position, row in enumerate(dataset.rows)
                ]
                connection.execute(insert(tables.dataset_rows), body)
        return hash_

    def add_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Note a checkpoint that is complete on disk."""
        row = rows.record_row(checkpoint, "run_id", "version", "round", "role")
        with self.writing() as connection:
            self._insert(connection, tables.checkpoints, ("run_id", "version"), [row])

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Note an evaluation: one for each (run, round, arm, policy version)."""
        key = ("run_id", "round", "arm", "policy_version")
        with self.writing() as connection:
            self._insert(connection, tables.evaluations, key, [rows.record_row(evaluation, *key)])

    def add_event(self, run_id: str, kind: str, detail: Mapping[str, Any] | None = None) -> None:
        """Note, with the time, that something happened to the run; repeated events are repeated rows."""
        body = rows.pack(rows.canonical(detail or {}))
        with self.writing() as connection:
            connection.execute(insert(tables.events), [{"run_id": run_id, "kind": kind, "at_s": time.time(), "body": body}])

    def set_meta(self, key: str, value: str) -> None:
        """Set one of the ledger's own notes, such as the run id. "schema" is not yours to set."""
        if key == "schema":
            raise ValueError("the schema version is set by the ledger itself")
        column = tables.meta.c.key
        with self.writing() as connection:
            if not connection.execute(update(tables.meta).where(column == key).values(value=value)).rowcount:
                connection.execute(insert(tables.meta), [{"key": key, "value": value}])

    def _insert(self, connection: Connection, table: Table, key: Sequence[str], new: Sequence[rows.Row]) -> list[rows.Row]:
        """Insert the rows that are not there yet and return them; a row with other content under its key raises."""
        widest = max(key, key=lambda name: len({row[name] for row in new})) if new else key[0]
        columns = [table.c[name] for name in key]
        known: dict[tuple[Any, ...], str] = {}
        for batch in _batches(sorted({row[widest] for row in new})):
            for found in connection.execute(select(*columns, table.c.content).where(table.c[widest].in_(batch))):
                known[tuple(found[:-1])] = found[-1]
        fresh: dict[tuple[Any, ...], rows.Row] = {}
        for row in new:
            name = tuple(row[part] for part in key)
            content = known[name] if name in known else fresh.setdefault(name, row)["content"]
            if content != row["content"]:
                raise LedgerError(
                    f"{table.name}: {' '.join(map(str, name))} is already in {self.place} with other content; the same "
                    f"id must mean the same record, so give the changed run its own run folder; {SAFE}"
                )
        if fresh:
            connection.execute(insert(table), list(fresh.values()))
        return list(fresh.values())

    # -- reading ---------------------------------------------------------------------------------------------------

    def has_episodes(self, ids: Iterable[str]) -> set[str]:
        """Which of these episodes are here (and so complete)."""
        column, found = tables.episodes.c.id, set[str]()
        with self.reading() as connection:
            for batch in _batches(sorted(set(ids))):
                found.update(connection.scalars(select(column).where(column.in_(batch))))
        return found

    def episodes(self, *, limit: int | None = None, offset: int = 0, **filters: Wanted) -> list[Episode]:
        """Episodes with all their trajectories.

        Filters: run_id, round, purpose, environment, task_id, sample, policy_version, split; and stage, stop, which
        keep episodes with a trajectory of that stage that ended so. Each takes one value or several.
        """
        query = select(tables.episodes).where(*episode_filters(filters)).order_by(*EPISODE_ORDER)
        with self.reading() as connection:
            heads = connection.execute(query.limit(limit).offset(offset)).mappings().all()
            parts: dict[str, list[Any]] = {row["id"]: [] for row in heads}
            table = tables.trajectories
            for batch in _batches(list(parts)):
                found = select(table).where(table.c.episode_id.in_(batch)).order_by(table.c.attempt, table.c.id)
                for row in connection.execute(found).mappings():
                    parts[row["episode_id"]].append(row)
        return [rows.episode_from_rows(row, parts[row["id"]]) for row in heads]

    def count_episodes(self, **filters: Wanted) -> int:
        """How many episodes `episodes(**filters)` has."""
        with self.reading() as connection:
            query = select(func.count()).select_from(tables.episodes).where(*episode_filters(filters))
            return connection.scalar(query) or 0

    def episode(self, id_or_prefix: str) -> Episode:
        """One episode by its id or the beginning of it."""
        return self.episodes(id=self._full_id(tables.episodes, id_or_prefix, "episode"))[0]

    def trajectories(
        self, *, success: bool | None = None, limit: int | None = None, offset: int = 0, **filters: Wanted
    ) -> list[Trajectory]:
        """Trajectories, for the pool.

        success: True for right ones, False for failed and truncated ones; those that the environment broke ("error")
        are in neither, since they count as no answer. Filters: run_id, round, purpose, stage, stop, environment,
        task_id, policy_version, split, episode_id, parent_id. Each takes one value or several.
        """
        table = tables.trajectories
        stop = {True: "success", False: ("failure", "truncated"), None: None}[success]
        wheres = [match(table.c.stop, stop), *trajectory_filters(filters)]
        query = select(table).join(tables.episodes).where(*wheres).order_by(*TRAJECTORY_ORDER)
        with self.reading() as connection:
            found = connection.execute(query.limit(limit).offset(offset)).mappings().all()
        return [rows.trajectory_from_row(row) for row in found]

    def trajectory(self, id_or_prefix: str) -> Trajectory:
        """One trajectory by its id or the beginning of it."""
        return self.trajectories(id=self._full_id(tables.trajectories, id_or_prefix, "trajectory"))[0]

    def _full_id(self, table: Table, prefix: str, what: str) -> str:
        """The one id that is `prefix` or begins with it."""
        column = table.c.id
        query = select(column).where(column.startswith(prefix, autoescape=True)).order_by(column).limit(3)
        with self.reading() as connection:
            found = [*connection.scalars(select(column).where(column == prefix))] or [*connection.scalars(query)]
        if not prefix or not found:
            raise LedgerError(f'{self.place} has no {what} whose id begins with "{prefix}": list them first')
        if len(found) > 1:
            raise LedgerError(f'several {what} ids begin with "{prefix}" ({", ".join(found)}, …): give more of it')
        return found[0]

    def tasks(self, **filters: Wanted) -> list[Task]:
        """Tasks by (environment, id). Filters: environment, id, split."""
        return self._records(Task, tables.tasks, filters, "environment", "id")

    def task(self, environment: str, id: str) -> Task:
        """One task; LedgerError when it is not here."""
        found = self.tasks(environment=environment, id=id)
        if not found:
            raise LedgerError(f'{self.place} has no task "{id}" of environment "{environment}"')
        return found[0]

    def datasets(self, **filters: Wanted) -> list[DatasetKey]:
        """Which datasets are here, by (run, round, target). Filters: run_id, round, target, hash."""
        columns = [tables.datasets.c[name] for name in DatasetKey._fields]
        wheres = [match(column(tables.datasets, name), value) for name, value in filters.items()]
        with self.reading() as connection:
            found = connection.execute(select(*columns).where(*wheres).order_by(*columns))
            return [DatasetKey(*row) for row in found]

    def dataset(self, run_id: str, round: int, target: str) -> Dataset:
        """One dataset with its rows in their order; LedgerError when it is not here."""
        if not self.datasets(run_id=run_id, round=round, target=target):
            raise LedgerError(f'{self.place} has no dataset "{target}" of round {round} of run {run_id}')
        table = tables.dataset_rows
        wheres = (table.c.run_id == run_id, table.c.round == round, table.c.target == target)
        with self.reading() as connection:
            found = connection.execute(select(table).where(*wheres).order_by(table.c.position)).mappings().all()
        return Dataset(
            run_id=run_id, round=round, target=target, rows=tuple(rows.dataset_row_from_row(row) for row in found)
        )

    def checkpoints(self, **filters: Wanted) -> list[Checkpoint]:
        """Checkpoints by (run, round, version). Filters: run_id, version, round, role."""
        return self._records(Checkpoint, tables.checkpoints, filters, "run_id", "round", "version")

    def evaluations(self, **filters: Wanted) -> list[Evaluation]:
        """Evaluations by (run, round, arm, policy version). Filters: the same four."""
        return self._records(Evaluation, tables.evaluations, filters, "run_id", "round", "arm", "policy_version")

    def events(self, **filters: Wanted) -> list[Event]:
        """Events in the order they were noted. Filters: run_id, kind."""
        table = tables.events
        wheres = [match(column(table, name), value) for name, value in filters.items()]
        with self.reading() as connection:
            found = connection.execute(select(table).where(*wheres).order_by(table.c.id)).mappings().all()
        return [
            Event(run_id=row["run_id"], kind=row["kind"], at_s=row["at_s"], detail=rows.unpack(row["body"], "an event"))
            for row in found
        ]

    def meta(self, key: str, default: str = "") -> str:
        """One of the ledger's own notes: "schema", and what `set_meta` set."""
        with self.reading() as connection:
            value = connection.scalar(select(tables.meta.c.value).where(tables.meta.c.key == key))
        return default if value is None else value

    def _records(self, cls: type[rows.R], table: Table, filters: Mapping[str, Wanted], *order: str) -> list[rows.R]:
        wheres = [match(column(table, name), value) for name, value in filters.items()]
        query = select(table).where(*wheres).order_by(*(table.c[name] for name in order))
        with self.reading() as connection:
            found = connection.execute(query).mappings().all()
        return [
            rows.record_from_row(cls, row, f"{cls.__name__} {' '.join(str(row[name]) for name in order)}") for row in found
        ]

    # -- about the whole -------------------------------------------------------------------------------------------

    def lineage(self, start: DatasetRow | str) -> Lineage:
        """Where a training row, or a trajectory by id or prefix, comes from."""
        return trace(self, start)

    def counts(self) -> dict[str, int]:
        """Rows in each table."""
        return audit.counts(self)

    def tally(self, **filters: Wanted) -> list[audit.Tally]:
        """Trajectories, rewards and costs by (run, round, purpose, stage, stop). Filters as `trajectories`."""
        return audit.tally(self, trajectory_filters(filters))

    def digest(self) -> str:
        """A hash over all records except wall-clock seconds, events and meta, independent of the order of writing.

        Equal for a run that was killed and resumed and for one that was not, and for SQLite and PostgreSQL."""
        return audit.digest(self)

    def integrity(self) -> list[str]:
        """What is wrong, one sentence each; empty when all is well. Reads everything (about 0.5 ms an episode)."""
        return audit.integrity(self)


def _batches(ids: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH]

"""The ledger as a whole: how much is in it, whether it is sound, and a hash to compare two of them by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, ForeignKeyConstraint, Table, and_, func, select

from kintsugi.errors import LedgerError
from kintsugi.ledger import rows, tables

if TYPE_CHECKING:
    from kintsugi.ledger.ledger import Ledger

_RECORDS = {
    "tasks": tables.tasks,
    "episodes": tables.episodes,
    "trajectories": tables.trajectories,
    "datasets": tables.datasets,
    "dataset_rows": tables.dataset_rows,
    "checkpoints": tables.checkpoints,
    "evaluations": tables.evaluations,
}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Trajectories of one (run, round, purpose, stage, stop): how many, and the sums of what they cost."""

    run_id: str
    round: int
    purpose: str
    stage: str
    stop: str
    num_trajectories: int
    generated_tokens: int
    processed_tokens: int
    executions: int
    seconds: float


def counts(ledger: Ledger) -> dict[str, int]:
    with ledger.reading() as connection:
        return {
            name: connection.scalar(select(func.count()).select_from(table)) or 0
            for name, table in [*_RECORDS.items(), ("events", tables.events)]
        }


def tally(ledger: Ledger, wheres: Sequence[ColumnElement[bool]]) -> list[Tally]:
    episode, part = tables.episodes.c, tables.trajectories.c
    groups = [episode.run_id, episode.round, episode.purpose, part.stage, part.stop]
    sums = [part.generated_tokens, part.processed_tokens, part.executions, part.seconds]
    query = (
        select(*groups, func.count().label("num_trajectories"), *(func.sum(column).label(column.name) for column in sums))
        .select_from(tables.trajectories.join(tables.episodes))
        .where(*wheres)
        .group_by(*groups)
        .order_by(*groups)
    )
    with ledger.reading() as connection:
        return [Tally(**row) for row in connection.execute(query).mappings()]


def digest(ledger: Ledger) -> str:
    sha = hashlib.sha256()
    with ledger.reading() as connection:
        for name, table in _RECORDS.items():
            if "content" not in table.c:  # dataset rows: their dataset's content covers them
                continue
            contents = sorted(connection.scalars(select(table.c.content)))
            sha.update("\n".join([name, str(len(contents)), *contents, ""]).encode())
    return sha.hexdigest()[:16]


def integrity(ledger: Ledger) -> list[str]:
    """SQLite's own check, every reference, and every record read back and compared with the hash it was stored under.

    Damage that stops the reading itself is one more finding, not an exception."""
    try:
        return _damage(ledger) + _dangling(ledger) + _changed(ledger)
    except LedgerError as error:
        return [str(error)]


def _damage(ledger: Ledger) -> list[str]:
    if ledger.engine.dialect.name != "sqlite":
        return []
    with ledger.reading() as connection:
        found = connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars().all()
    return [] if found == ["ok"] else [f"SQLite finds: {line}" for line in found]


def _dangling(ledger: Ledger) -> list[str]:
    """References whose other end is missing, in any database (foreign keys may have been off in another program)."""
    found = []
    with ledger.reading() as connection:
        for table in tables.metadata.sorted_tables:
            for key in table.constraints:
                if not isinstance(key, ForeignKeyConstraint):
                    continue
                other = key.referred_table.alias("other")
                same = and_(*(item.parent == other.c[item.column.name] for item in key.elements))
                orphan = and_(next(iter(other.primary_key)).is_(None), *(item.parent.is_not(None) for item in key.elements))
                query = select(func.count()).select_from(table.outerjoin(other, same)).where(orphan)
                if number := connection.scalar(query):
                    names = ", ".join(item.parent.name for item in key.elements)
                    found.append(f"{number} rows of {table.name} name ({names}) a row that {key.referred_table.name} lacks")
    return found


def _changed(ledger: Ledger) -> list[str]:
    """Records that no longer have the content they were stored with."""
    now: list[tuple[Table, tuple[Any, ...], str]] = []
    offset, page = 0, 500
    while episodes := ledger.episodes(limit=page, offset=offset):
        offset += page
        now += [(tables.episodes, (episode.id,), rows.episode_rows(episode)[0]["content"]) for episode in episodes]
    for table, records in (
        (tables.tasks, ledger.tasks()),
        (tables.checkpoints, ledger.checkpoints()),
        (tables.evaluations, ledger.evaluations()),
    ):
        key = [column.name for column in table.primary_key]
        for record in records:
            row = rows.record_row(record, *key)
            now.append((table, tuple(row[name] for name in key), row["content"]))
    for key in ledger.datasets():
        hash_ = rows.dataset_hash(ledger.dataset(*key).rows)
        now.append((tables.datasets, tuple(key), rows.dataset_content(*key, hash_)))

    stored = {table: _contents(ledger, table) for table in {table for table, _, _ in now}}
    return [
        f"{table.name}: {' '.join(map(str, key))} is not what was committed"
        for table, key, content in now
        if stored[table].get(key) != content
    ]


def _contents(ledger: Ledger, table: Table) -> dict[tuple[Any, ...], str]:
    with ledger.reading() as connection:
        found = connection.execute(select(*table.primary_key, table.c.content))
        return {tuple(row[:-1]): row[-1] for row in found}

"""What `Ledger` lists can be filtered by, and the order they come in, as SQLAlchemy expressions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, exists

from kintsugi.ledger import tables

Wanted = str | int | Collection[str] | Collection[int] | None
"""A filter: one value, any of several, or None for all."""

EPISODE_ORDER = tuple(tables.episodes.c[name] for name in ("round", "task_id", "sample", "id"))
TRAJECTORY_ORDER = (*EPISODE_ORDER[:3], tables.trajectories.c.attempt, tables.trajectories.c.id)


def column(table: Table, name: str) -> ColumnElement[Any]:
    """A column to filter by; a name that is none is the caller's mistake, as with any unknown keyword."""
    if name not in table.c or name in ("content", "body"):
        raise TypeError(f'{table.name} cannot be filtered by "{name}"')
    return table.c[name]


def match(column: ColumnElement[Any], wanted: Wanted) -> ColumnElement[bool]:
    if wanted is None:
        return and_(True)
    return column == wanted if isinstance(wanted, str | int) else column.in_(list(wanted))


def _in_split(wanted: Wanted) -> ColumnElement[bool]:
    """Episodes whose task is of that split."""
    if wanted is None:
        return and_(True)
    task, episode = tables.tasks.c, tables.episodes.c
    same = and_(task.environment == episode.environment, task.id == episode.task_id)
    return exists().where(same, match(task.split, wanted))


def episode_filters(filters: Mapping[str, Wanted]) -> list[ColumnElement[bool]]:
    rest = dict(filters)
    wheres = [_in_split(rest.pop("split", None))]
    ended = [(tables.trajectories.c[name], rest.pop(name, None)) for name in ("stage", "stop")]
    if any(wanted is not None for _, wanted in ended):
        own = tables.trajectories.c.episode_id == tables.episodes.c.id
        wheres.append(exists().where(own, *(match(part, wanted) for part, wanted in ended)))
    return wheres + [match(column(tables.episodes, name), wanted) for name, wanted in rest.items()]


def trajectory_filters(filters: Mapping[str, Wanted]) -> list[ColumnElement[bool]]:
    rest = dict(filters)
    wheres = [_in_split(rest.pop("split", None))]
    for name, wanted in rest.items():
        table = tables.episodes if name in ("run_id", "purpose") else tables.trajectories
        wheres.append(match(column(table, name), wanted))
    return wheres

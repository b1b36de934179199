"""Records as rows of the ledger's tables, and rows as records. Pure: no database here.

`content` covers a record whole, except `Cost.seconds`, `Episode.seconds` and `Trajectory.crashes`: wall time, and what broke
on the way, are all that a repeated episode may change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from kintsugi.errors import LedgerError
from kintsugi.records import (
    Checkpoint,
    Cost,
    DatasetRow,
    Episode,
    Evaluation,
    Task,
    Trajectory,
    from_plain,
    message_from_plain,
    shown,
)

Row = dict[str, Any]
"""What is inserted: values by column."""

Stored = Mapping[Any, Any]
"""What is read: values by column (SQLAlchemy types its keys loosely)."""

R = TypeVar("R")


def _plain(value: Any) -> Any:
    """What `json` calls for values it does not know: one level of `records.to_plain`, without walking token ids."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = getattr(type(value), "kind", None)
        return {"kind": kind, **shown(value)} if isinstance(kind, str) else shown(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a record holds a {type(value).__name__}, which is not plain data")


def canonical(value: Any) -> bytes:
    """The JSON of `records.to_plain(value)` with sorted keys, in ASCII (lone surrogates and NUL survive)."""
    return json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":")).encode("ascii")


def pack(text: bytes) -> bytes:
    """Level 1: a third of the time of the default level for a tenth more bytes."""
    return zlib.compress(text, 1)


def unpack(body: bytes, what: str) -> Any:
    """The value in a `body` column; a damaged one raises LedgerError naming the row `what`."""
    try:
        return json.loads(zlib.decompress(body))
    except (zlib.error, ValueError) as error:
        raise LedgerError(
            f"{what} is damaged in the ledger ({error}): restore the ledger from a copy, or start the run anew"
        ) from error


def _digest(*parts: bytes) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()[:32]


def record_row(record: Task | Checkpoint | Evaluation, *columns: str) -> Row:
    """A row with the named fields as columns and the whole record as body."""
    text = canonical(record)
    return {**{name: getattr(record, name) for name in columns}, "content": _digest(text), "body": pack(text)}


def record_from_row(cls: type[R], row: Stored, what: str) -> R:
    return from_plain(cls, unpack(row["body"], what))


def trajectory_row(trajectory: Trajectory) -> Row:
    row: Row = dict(vars(trajectory))
    soft = trajectory.soft_reward
    if math.isnan(trajectory.hard_reward) or (soft is not None and math.isnan(soft)):
        raise LedgerError(f"trajectory {trajectory.id} has a reward that is not a number: its maker must mend that")
    told = {"feedback": row.pop("feedback"), "messages": row.pop("messages")}
    row.update(vars(row.pop("cost")))
    seconds, crashes = row.pop("seconds"), row.pop("crashes")
    body = canonical(told)
    content = _digest(canonical(row), body)
    body = canonical({**told, "crashes": crashes}) if crashes else body
    return {**row, "seconds": seconds, "content": content, "body": pack(body)}


def trajectory_from_row(row: Stored) -> Trajectory:
    values = {name: value for name, value in row.items() if name not in ("content", "body")}
    body = unpack(row["body"], f"trajectory {row['id']}")
    cost = Cost(**{item.name: values.pop(item.name) for item in dataclasses.fields(Cost)})
    messages = tuple(message_from_plain(message) for message in body["messages"])
    crashes = tuple(body.get("crashes", ()))
    return Trajectory(**values, cost=cost, feedback=body["feedback"], messages=messages, crashes=crashes)


def episode_rows(episode: Episode) -> tuple[Row, list[Row]]:
    """The episode's row and its trajectories' rows."""
    row: Row = dict(vars(episode))
    row["path"], row["seed"] = json.dumps(episode.path), str(episode.seed)
    seconds = row.pop("seconds")
    del row["trajectories"]
    parts = [trajectory_row(trajectory) for trajectory in episode.trajectories]
    for part in parts:
        if part["episode_id"] != episode.id:
            raise LedgerError(
                f"trajectory {part['id']} says that it belongs to episode {part['episode_id']}, but it came "
                f"with episode {episode.id}: its maker must mend that"
            )
    row["content"] = _digest(canonical(row), *(part["content"].encode() for part in parts))
    if seconds:  # in the column of the path, so that ledgers of before it took times stay what they are
        row["path"] = json.dumps({"nodes": episode.path, "seconds": seconds})
    return row, parts


def episode_from_rows(row: Stored, parts: Sequence[Stored]) -> Episode:
    values = {name: value for name, value in row.items() if name != "content"}
    path = json.loads(values["path"])
    timed = path if isinstance(path, dict) else {"nodes": path, "seconds": ()}
    values.update(seed=int(values["seed"]), path=tuple(timed["nodes"]), seconds=tuple(timed["seconds"]))
    return Episode(**values, trajectories=tuple(trajectory_from_row(part) for part in parts))


_TOKENS = ("ids", "mask", "rejected_ids", "rejected_mask")


def dataset_hash(rows: Sequence[DatasetRow]) -> str:
    """Equal to `Dataset.hash`, a good deal faster on rows of many tokens (a test holds the two together)."""
    text = json.dumps(rows, default=_plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def dataset_content(run_id: str, round: int, target: str, hash_: str) -> str:
    return _digest(canonical([run_id, round, target, hash_]))


def dataset_row_row(row: DatasetRow) -> Row:
    """An empty trajectory id (a demonstration that was never an episode) is stored as NULL: it refers to nothing."""
    values: Row = dict(vars(row))
    body = pack(canonical({name: values.pop(name) for name in _TOKENS}))
    for name in ("trajectory_id", "rejected_trajectory_id"):
        values[name] = values[name] or None
    return {**values, "body": body}


def dataset_row_from_row(row: Stored) -> DatasetRow:
    tokens = unpack(row["body"], f"row {row['position']} of dataset {row['target']} of round {row['round']}")
    return DatasetRow(
        kind=cast(Any, row["kind"]),
        task_id=row["task_id"],
        trajectory_id=row["trajectory_id"] or "",
        rejected_trajectory_id=row["rejected_trajectory_id"] or "",
        weight=row["weight"],
        **{name: tuple(tokens[name]) for name in _TOKENS},
    )

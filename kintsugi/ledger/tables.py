"""The ledger's tables, one for each kind of record, as SQLAlchemy Core metadata.

What is searched or ordered by is a column; free text and token ids are zlib-compressed JSON in `body` (a model may
write characters, such as NUL, that a text column cannot hold). `content` is a hash of the whole record except
wall-clock seconds: it decides whether a row that is inserted again is the same one. No record is updated or deleted.

Left out: migrations. A ledger belongs to one run, so a schema that has changed refuses older files (`SCHEMA`).
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
)

SCHEMA = "1"
"""Version of these tables, kept in `ledger_meta`."""

metadata = MetaData()


def _key() -> String:
    """Text that sorts by code point in every database, so that PostgreSQL's rows come in SQLite's order."""
    return String().with_variant(String(collation="C"), "postgresql")


meta = Table(
    "ledger_meta",
    metadata,
    Column("key", _key(), primary_key=True),
    Column("value", String, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", _key(), nullable=False),
    Column("kind", _key(), nullable=False),
    Column("at_s", Float, nullable=False),  # Unix time
    Column("body", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("environment", _key(), primary_key=True),
    Column("id", _key(), primary_key=True),
    Column("split", _key(), nullable=False),
    Column("content", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

episodes = Table(
    "episodes",
    metadata,
    Column("id", _key(), primary_key=True),
    Column("run_id", _key(), nullable=False),
    Column("purpose", _key(), nullable=False),
    Column("round", Integer, nullable=False),
    Column("environment", _key(), nullable=False),
    Column("task_id", _key(), nullable=False),
    Column("sample", Integer, nullable=False),
    Column("seed", String, nullable=False),  # decimal: an unsigned 64-bit seed does not fit a database integer
    Column("policy_version", _key(), nullable=False),
    Column("path", String, nullable=False),  # JSON: graph nodes, and the seconds of each visit
    Column("content", String, nullable=False),
    ForeignKeyConstraint(["environment", "task_id"], ["tasks.environment", "tasks.id"]),
    Index("episodes_in_order", "round", "task_id", "sample", "id"),
)

trajectories = Table(
    "trajectories",
    metadata,
    Column("id", _key(), primary_key=True),
    Column("episode_id", _key(), ForeignKey("episodes.id"), nullable=False, index=True),
    Column("task_id", _key(), nullable=False),
    Column("environment", _key(), nullable=False),
    Column("stage", _key(), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("policy_version", _key(), nullable=False),
    Column("round", Integer, nullable=False),
    Column("stop", _key(), nullable=False),
    Column("hard_reward", Float, nullable=False),
    Column("soft_reward", Float),
    # Deferred: an attempt and its repair come in one bulk insert, in any order.
    Column("parent_id", _key(), ForeignKey("trajectories.id", deferrable=True, initially="DEFERRED")),
    Column("saw_gold", Boolean, nullable=False),
    Column("generated_tokens", Integer, nullable=False),
    Column("processed_tokens", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("executions", Integer, nullable=False),
    Column("content", String, nullable=False),
    Column("body", LargeBinary, nullable=False),  # feedback and messages
)

datasets = Table(
    "datasets",
    metadata,
    Column("run_id", _key(), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("target", _key(), primary_key=True),
    Column("hash", String, nullable=False),
    Column("num_rows", Integer, nullable=False),
    Column("content", String, nullable=False),
)

dataset_rows = Table(
    "dataset_rows",
    metadata,
    Column("run_id", _key(), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("target", _key(), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("kind", _key(), nullable=False),
    Column("task_id", _key(), nullable=False),
    Column("trajectory_id", _key(), ForeignKey("trajectories.id"), index=True),
    Column("rejected_trajectory_id", _key(), ForeignKey("trajectories.id"), index=True),
    Column("weight", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),  # ids and masks
    ForeignKeyConstraint(["run_id", "round", "target"], ["datasets.run_id", "datasets.round", "datasets.target"]),
)

checkpoints = Table(
    "policy_checkpoints",  # LangGraph's saver calls its own table "checkpoints"
    metadata,
    Column("run_id", _key(), primary_key=True),
    Column("version", _key(), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("role", _key(), nullable=False),
    Column("content", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("run_id", _key(), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("arm", _key(), primary_key=True),
    Column("policy_version", _key(), primary_key=True),
    Column("content", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

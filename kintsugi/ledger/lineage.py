"""From a training row back to the attempt, its feedback, the attempt it repairs, the task, and the policy that acted.

`Ledger.lineage(row_or_trajectory_id)` gives a `Lineage`; `.text()` is a tree for people. Left out: which tasks and rows
trained that policy in turn; follow `checkpoint.dataset_hash` with `Ledger.datasets(hash=…)` and ask again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from kintsugi.errors import LedgerError
from kintsugi.ledger import tables
from kintsugi.records import Checkpoint, DatasetRow, Episode, Task, Trajectory

if TYPE_CHECKING:
    from kintsugi.ledger.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Use:
    """One row of a dataset that a trajectory went into; `rejected`: as its negative side."""

    run_id: str
    round: int
    target: str
    position: int
    kind: str
    rejected: bool


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One trajectory and all that it comes from.

    row: the training row asked about, None when a trajectory was. checkpoint: the acting policy's, None when it never
    was one of this run's (an endpoint, a person, the untrained start). parent: the attempt that this one repairs, with
    its own lineage. rejected: the row's negative side, when that is not the parent. uses: all dataset rows that this
    trajectory went into.
    """

    trajectory: Trajectory
    episode: Episode
    task: Task
    checkpoint: Checkpoint | None = None
    parent: Lineage | None = None
    rejected: Lineage | None = None
    uses: tuple[Use, ...] = ()
    row: DatasetRow | None = None

    def text(self) -> str:
        """The lineage as an indented tree, one fact a line."""
        head = "" if self.row is None else f"training row: {self.row.kind}, weight {self.row.weight:g} ← "
        return "\n".join(_draw(_node(self, head, show_task=True)))


def trace(ledger: Ledger, start: DatasetRow | str) -> Lineage:
    """The lineage of a training row, or of a trajectory named by its id or the beginning of it."""
    if isinstance(start, str):
        return _trace(ledger, ledger.trajectory(start), row=None)
    if not start.trajectory_id:
        raise LedgerError(f"this {start.kind} row of task {start.task_id} names no trajectory, so it has no lineage")
    return _trace(ledger, ledger.trajectory(start.trajectory_id), row=start)


def _trace(ledger: Ledger, trajectory: Trajectory, row: DatasetRow | None) -> Lineage:
    episode = ledger.episode(trajectory.episode_id)
    made_by = ledger.checkpoints(run_id=episode.run_id, version=trajectory.policy_version)
    parent, rejected = trajectory.parent_id, row.rejected_trajectory_id if row else ""
    return Lineage(
        trajectory=trajectory,
        episode=episode,
        task=ledger.task(trajectory.environment, trajectory.task_id),
        checkpoint=made_by[0] if made_by else None,
        parent=_trace(ledger, ledger.trajectory(parent), row=None) if parent else None,
        rejected=_trace(ledger, ledger.trajectory(rejected), row=None) if rejected and rejected != parent else None,
        uses=_uses(ledger, trajectory.id),
        row=row,
    )


def _uses(ledger: Ledger, trajectory_id: str) -> tuple[Use, ...]:
    table = tables.dataset_rows.c
    key = [table.run_id, table.round, table.target, table.position]
    wheres = or_(table.trajectory_id == trajectory_id, table.rejected_trajectory_id == trajectory_id)
    query = select(*key, table.kind, table.rejected_trajectory_id).where(wheres).order_by(*key)
    with ledger.reading() as connection:
        return tuple(
            Use(
                run_id=found.run_id,
                round=found.round,
                target=found.target,
                position=found.position,
                kind=found.kind,
                rejected=found.rejected_trajectory_id == trajectory_id,
            )
            for found in connection.execute(query)
        )


@dataclass
class _Branch:
    label: str
    children: list[_Branch] = field(default_factory=list)


def _node(lineage: Lineage, head: str, *, show_task: bool) -> _Branch:
    part, episode, made_by = lineage.trajectory, lineage.episode, lineage.checkpoint
    soft = "" if part.soft_reward is None else f", soft {part.soft_reward:.3f}"
    node = _Branch(f"{head}attempt {part.attempt}: {part.stage}, {part.stop}, reward {part.hard_reward:g}{soft} [{part.id}]")
    facts = []
    if show_task:
        task = lineage.task
        facts.append(f"task {task.environment}/{task.id} ({task.split}): {_short(task.prompt)}")
    facts.append(
        f"episode {episode.id}: {episode.purpose}, run {episode.run_id}, round {episode.round}, sample {episode.sample}"
    )
    facts.append(f"policy {part.policy_version}{': ' + _origin(made_by) if made_by else ''}")
    if part.saw_gold:
        facts.append("its maker saw a gold answer")
    if part.feedback:
        facts.append(f"feedback: {_short(part.feedback)}")
    if part.fault:
        facts.append(f"fault: {_short(part.fault.note)} at {_short(part.fault.bad)}")
    for use in lineage.uses:
        side = "negative side of " if use.rejected else ""
        facts.append(f'{side}row {use.position} ({use.kind}) of dataset "{use.target}", round {use.round}')
    node.children = [_Branch(fact) for fact in facts]
    if lineage.rejected:
        node.children.append(_node(lineage.rejected, "preferred to ", show_task=False))
    if lineage.parent:
        node.children.append(_node(lineage.parent, "repairs ", show_task=False))
    return node


def _origin(checkpoint: Checkpoint) -> str:
    learned = f"from {checkpoint.parent or checkpoint.base} on dataset {checkpoint.dataset_hash or 'none'}"
    return f"{checkpoint.role} of round {checkpoint.round}, trained {learned}"


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _draw(node: _Branch, first: str = "", rest: str = "") -> list[str]:
    lines = [first + node.label]
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        lines += _draw(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))
    return lines

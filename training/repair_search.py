"""Where to go on from when a task's attempts all failed: a search over the lines of what was tried.

    place = best_place(tried, decode=policy.decode)   # None: nothing to repair
    plan(..., repair_of=place.attempt, keep=place.kept)

A *place* is an attempt and one of its lines: what stands before the line is kept, the line is objected to, the repairer
goes on from there. A good place has right lines before it, the mistake in it, and little left to write after it:

    promise = P(the first mistake is in this line) · q^(lines after it) · PATIENCE^(repairs tried from these kept lines)

The first mistake is in the line that the environment objects to, or in one before it that the environment cannot see
through. How likely each is follows from the probabilities with which the policy itself sampled the lines: a line it was
sure of is taken for right with that probability. q is the mean probability of a line in the task's attempts. Failed
repairs are attempts like any other: often the first mistake was mended and a later line is what is wrong now.

Pure functions over records. Without token log-probabilities (some endpoints give none) all lines count alike and the
located fault that comes latest wins. Not here: multi-turn attempts, which are reflected on whole.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kintsugi.records import Trajectory
from kintsugi.training.self_reward import Decode, sampled_lines

PATIENCE = 0.7
UNKNOWN_LINE = 0.75
"""Probability of a line whose tokens' log-probabilities are not known."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a repair begins. kept: the attempt's text before the line objected to. promise: see the module."""

    attempt: Trajectory
    kept: str
    promise: float


def best_place(tried: Sequence[Trajectory], decode: Decode | None = None) -> Place | None:
    """The most promising place of a task's single-turn attempts, or None when none can be repaired.

    tried: all attempts so far, failed repairs included; those in which the environment broke are left out."""
    known = {one.id: one for one in tried}
    failed = [one for one in tried if one.stop in ("failure", "truncated") and len(one.actions) == 1]
    chances = {one.id: line_chances(one, known, decode) for one in failed}
    lines = [chance for one in failed for chance in chances[one.id]]
    typical = math.exp(math.fsum(lines) / len(lines)) if lines else UNKNOWN_LINE
    before = Counter(one.actions[0].prefill for one in tried if one.parent_id is not None and one.actions)
    found = [place for one in failed for place in places(one, chances[one.id], typical, before)]
    return max(found, key=lambda place: (place.promise, place.attempt.id), default=None)


def places(one: Trajectory, chances: Sequence[float], typical: float, before: Mapping[str, int]) -> list[Place]:
    """An attempt's places. chances: log-probability of each of its lines; typical: q; before: repairs by kept text."""
    text = one.text
    lines = text.splitlines(keepends=True) or [""]
    fault = one.fault
    end = len(fault.kept.splitlines()) if fault is not None and text.startswith(fault.kept) else len(lines)
    weights, reached = [], 1.0
    for index in range(min(end, len(lines))):
        right = math.exp(chances[index])
        weights.append(reached * (1 - right))
        reached *= right
    if end < len(lines) or fault is not None:
        weights.append(reached)
    total = math.fsum(weights)
    if total <= 0:
        return []
    found = []
    for index, weight in enumerate(weights):
        kept = "".join(lines[:index])
        left = max(0, len(lines) - index - 1)
        promise = weight / total * typical**left * PATIENCE ** before.get(kept, 0)
        found.append(Place(attempt=one, kept=kept, promise=promise))
    return found


def line_chances(one: Trajectory, known: Mapping[str, Trajectory], decode: Decode | None) -> list[float]:
    """Log-probability of each line of a single action; the lines that a repair kept have those of its parent."""
    count = max(1, len(one.actions[0].text.splitlines()))
    sampled = sampled_lines(one, known, decode)
    chances = [math.log(UNKNOWN_LINE) if line is None else math.fsum(line) for line in sampled]
    return (chances + [0.0] * count)[:count]

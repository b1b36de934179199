"""Held-out success by kind of task (an environment's task types, pages, subjects): rows of tables for `training.report`.

    of_run(story)       # [("held out by kind, %", "tasks", "start", "last round", …), ("heat", "60", "31.7", …), …]
    of_arms(arms)       # the same of several arms: mean ± sd over seeds of each one's last round

Empty where the environment's tasks are all of one kind (it has no `kind`). What is counted is on the evaluation lines of
metrics.jsonl; nothing here knows an environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kintsugi.training.intervals import mean_sd, wilson_interval
from kintsugi.training.run_story import Kinds, Point, RunStory

if TYPE_CHECKING:
    from kintsugi.training.report import Arm

Row = tuple[str, ...]
TITLE = "held out by kind, %"
WIDTH = 80


def of_run(story: RunStory) -> list[Row]:
    """Title and rows of one run: each kind with its number of tasks, and the success of the start, of the last round with
    its interval, and of the control's last round."""
    if not story.main or not any(point.kinds for point in story.main):
        return []
    first, last = story.main[0], story.main[-1]
    columns: dict[str, Point] = {"start": first} if first is last else {"start": first, "last round": last}
    if len(story.control) > 1:
        columns["control"] = story.control[-1]
    rows = [(TITLE, "tasks", *columns, "95 % of the last")]
    for kind in known([point.kinds for point in columns.values()]):
        rates = [_rate(point.kinds.get(kind)) for point in columns.values()]
        won, tried = last.kinds.get(kind, (0, 0))
        low, high = wilson_interval(won, tried) if tried else (0.0, 1.0)
        rows.append((kind, str(tried), *rates, f"{100 * low:.1f}-{100 * high:.1f}"))
    return rows


def of_arms(arms: Sequence[Arm]) -> list[list[Row]]:
    """Tables of several arms, as many side by side as 80 columns hold: mean ± sd over seeds of the last round."""
    shown = [arm for arm in arms if arm.kinds]
    kinds = known([found for arm in shown for found in arm.kinds.values()])
    if not kinds:
        return []
    column = max(len("100.0 ± 10.0"), *(len(arm.label) for arm in shown)) + 2
    most = max(1, (WIDTH - max(map(len, [TITLE, *kinds]))) // column)
    tables = []
    for first in range(0, len(shown), most):
        side = shown[first : first + most]
        rows = [(kind, *(_mean(arm, kind) for arm in side)) for kind in kinds]
        tables.append([(TITLE, *(arm.label for arm in side)), *rows])
    return tables


def by_kind(arm: Arm) -> dict[str, dict[str, Any]]:
    """The last round of one arm, ready for JSON: mean and sd over seeds by kind, and each seed's (won, tried)."""
    found = {}
    for kind in known(arm.kinds.values()):
        mean, sd = mean_sd(_rates(arm, kind))
        counts = {str(seed): list(kinds[kind]) for seed, kinds in arm.kinds.items() if kind in kinds}
        found[kind] = {"mean": mean, "sd": sd if len(counts) > 1 else None, "seeds": counts}
    return found


def plain(success: Mapping[str, tuple[int, int]]) -> list[str]:
    """Lines for a terminal, of one evaluation: "heat   31.7 %  19 of 60"."""
    widest = max(map(len, success), default=0)
    return [f"{kind:<{widest}}  {_rate(counts):>5} %  {counts[0]} of {counts[1]}" for kind, counts in success.items()]


def known(found: Any) -> list[str]:
    """Every kind, in the order in which they first come."""
    return list(dict.fromkeys(kind for kinds in found for kind in kinds))


def _rates(arm: Arm, kind: str) -> list[float]:
    counts: list[Kinds] = [kinds for kinds in arm.kinds.values() if kinds.get(kind, (0, 0))[1]]
    return [kinds[kind][0] / kinds[kind][1] for kinds in counts]


def _mean(arm: Arm, kind: str) -> str:
    rates = _rates(arm, kind)
    if not rates:
        return ""
    mean, sd = mean_sd(100 * rate for rate in rates)
    return f"{mean:.1f}" if len(rates) == 1 else f"{mean:.1f} ± {sd:.1f}"


def _rate(counts: tuple[int, int] | None) -> str:
    return "" if counts is None or not counts[1] else f"{100 * counts[0] / counts[1]:.1f}"

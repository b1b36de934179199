"""What a run folder tells: the evolution of both arms, each round's exploring and learning, read from run.json and
metrics.jsonl. Tolerant of runs that are still going or were cut off: what is not there yet is simply missing. The reports
draw it and print it. Not here: the ledger, whose outcomes a curve does not need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kintsugi.errors import RunError
from kintsugi.training.run_folder import RunFolder

Kinds = Mapping[str, tuple[int, int]]
"""(won, tried) by kind of task."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One held-out evaluation. rate, low, high: fractions (95 % Wilson interval). promoted: became or was the champion
    (always true for the start). kinds: empty where the tasks are of one kind."""

    round: int
    rate: float
    low: float
    high: float
    num_tasks: int
    promoted: bool
    policy_version: str = ""
    kinds: Kinds = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunStory:
    """main, control: evaluations by round, oldest first. explored, reflected, learned, gates: metrics lines by round
    (learned: of the main arm). idle: rounds that found nothing to learn from, and so trained nothing. planned_rounds: what
    the recipe asks for, None when it does not say."""

    folder: Path
    name: str
    seed: int
    info: Mapping[str, Any]
    main: tuple[Point, ...]
    control: tuple[Point, ...]
    explored: Mapping[int, Mapping[str, Any]]
    reflected: Mapping[int, Mapping[str, Any]]
    learned: Mapping[int, Mapping[str, Any]]
    gates: Mapping[int, Mapping[str, Any]]
    idle: tuple[int, ...] = ()
    planned_rounds: int | None

    @property
    def champion(self) -> Point | None:
        """The evaluation of the policy promoted last."""
        return next((point for point in reversed(self.main) if point.promoted), None)

    @property
    def rounds(self) -> list[int]:
        """Every round that anything is known of, the start (0) included."""
        known = {point.round for point in (*self.main, *self.control)}
        return sorted(known | set(self.explored) | set(self.learned))

    @property
    def num_done(self) -> int:
        """The last round that came to its end, 0 for none."""
        return max([point.round for point in self.main] + list(self.idle), default=0)

    @property
    def finished(self) -> bool:
        return self.planned_rounds is not None and bool(self.main) and self.num_done >= self.planned_rounds

    def headline(self) -> str:
        """One sentence: where it began, where it is, and where the control is."""
        if not self.main:
            return "Nothing has been evaluated yet."
        start, last, best = self.main[0], self.main[-1], self.champion
        done = f"{self.num_done}" if self.planned_rounds is None else f"{self.num_done} of {self.planned_rounds}"
        if last.round == start.round:
            rounds = f"{done} rounds are done, and none found anything to learn" if self.idle else "no round is finished"
            rounds = "no round was asked for" if self.planned_rounds == 0 else rounds
            return f"The start solves {100 * start.rate:.1f} % of {start.num_tasks} held-out tasks; {rounds}."
        text = f"Held-out success went from {100 * start.rate:.1f} % to {100 * last.rate:.1f} % in {done} rounds"
        text += f" ({100 * (last.rate - start.rate):+.1f} points, {last.num_tasks} tasks)"
        if len(self.control) > 1:
            text += f"; the control stands at {100 * self.control[-1].rate:.1f} %"
        if best is not None and best.round != last.round:
            text += f"; the champion is round {best.round}'s, {100 * best.rate:.1f} %"
        if self.idle:
            text += f"; in {len(self.idle)} of these rounds there was nothing to learn"
        return text + "."

    def totals(self) -> dict[str, float]:
        """Sums over rounds: tokens, seconds, steps, and tries at unsolved tasks by repair and by fresh samples."""
        keys = ("generated_tokens", "processed_tokens", "repairs", "repairs_right", "fresh", "fresh_right")
        sampled = (*self.explored.values(), *self.reflected.values())
        found = {key: float(sum(_number(line.get(key)) for line in sampled)) for key in keys}
        both = (*sampled, *self.learned.values())
        found["seconds"] = float(sum(_number(line.get("seconds")) for line in both))
        found["steps"] = float(sum(_number(line.get("steps")) for line in self.learned.values()))
        return found


def read_run(folder: Path) -> RunStory:
    """The story of the run in `folder`. No run.json there is a RunError; lines of metrics.jsonl that a kill cut off are
    left out."""
    run = RunFolder(Path(folder))
    info = run.info()
    lines = _lines(run.metrics_file)
    recipe = info.get("recipe")
    planned = recipe.get("rounds") if isinstance(recipe, Mapping) else info.get("rounds")
    return RunStory(
        folder=Path(folder),
        name=str(info.get("name") or Path(folder).name),
        seed=int(_number(info.get("seed"))),
        info=info,
        main=_points(lines, "main"),
        control=_points(lines, "control"),
        explored=_by_round(lines, "round"),
        reflected=_by_round(lines, "reflect"),
        learned=_by_round([line for line in lines if line.get("arm", "main") == "main"], "learn"),
        gates=_by_round(lines, "gate"),
        idle=tuple(number for number, line in sorted(_by_round(lines, "select").items()) if line.get("rows") == 0),
        planned_rounds=int(planned) if isinstance(planned, int) else None,
    )


def share(line: Mapping[str, Any], what: str) -> float | None:
    """Success of one try at an unsolved task by "repair" or "fresh"; None without tries."""
    given = line.get(f"{what}_success")
    if isinstance(given, int | float):
        return float(given)
    tries, right = ("repairs", "repairs_right") if what == "repair" else ("fresh", "fresh_right")
    return _number(line.get(right)) / _number(line[tries]) if _number(line.get(tries)) else None


def _lines(path: Path) -> list[Mapping[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, Mapping):
            found.append(line)
    return found


def _points(lines: list[Mapping[str, Any]], arm: str) -> tuple[Point, ...]:
    """The last line of each round counts: a repeated stage replaces what it wrote before."""
    by_round: dict[int, Point] = {}
    for line in lines:
        if line.get("kind") != "evaluation" or line.get("arm", "main") != arm or "success_rate" not in line:
            continue
        rate, number = float(line["success_rate"]), int(_number(line.get("round")))
        low, high = line.get("interval") or (rate, rate)
        by_round[number] = Point(
            round=number,
            rate=rate,
            low=float(low),
            high=float(high),
            num_tasks=int(_number(line.get("num_tasks"))),
            promoted=bool(line.get("promoted")) or number == 0,
            policy_version=str(line.get("policy_version", "")),
            kinds={kind: (int(won), int(tried)) for kind, (won, tried) in (line.get("kinds") or {}).items()},
        )
    return tuple(by_round[number] for number in sorted(by_round))


def _by_round(lines: list[Mapping[str, Any]], kind: str) -> dict[int, Mapping[str, Any]]:
    return {int(_number(line.get("round"))): line for line in lines if line.get("kind") == kind}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0

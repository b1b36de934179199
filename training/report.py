"""Reports: one run as a page, a curve and a table; several runs compared over seeds. The calls behind `kintsugi report`.

    write_report(Path("runs/demo"))           # runs/demo/report.html and evolution.png
    print(summary(Path("runs/demo")))         # the table for a terminal
    print(compare([Path("runs/a-0"), …]))     # mean ± sd and paired differences; comparison.png beside the first run

All of it can be called while a run is going, and after one was cut off. Numbers come from run.json and metrics.jsonl
(`run_story`), pictures from `curves`.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kintsugi.errors import RunError
from kintsugi.training import kind_tables
from kintsugi.training.curves import draw_comparison, draw_evolution, evolution_svg
from kintsugi.training.intervals import Difference, mean_sd, paired_t
from kintsugi.training.run_folder import write_whole
from kintsugi.training.run_story import Kinds, Point, RunStory, read_run, share

COLUMNS = ("round", "main %", "95 %", "control", "gate", "solved", "repair", "fresh", "steps", "loss")


def write_report(run_folder: Path) -> Path:
    """Write report.html and evolution.png into the run folder; the page's path. Raises RunError where there is no run."""
    story = read_run(run_folder)
    draw_evolution(story, story.folder / "evolution.png")
    page = story.folder / "report.html"
    write_whole(page, _page(story))
    return page


def summary(run_folder: Path) -> str:
    """The run as a table of at most 80 columns, with one sentence above and what it took below."""
    story = read_run(run_folder)
    lines = [
        f"{story.name}, seed {story.seed}: {story.headline()}",
        "",
        *_aligned([row[:-1] for row in (COLUMNS, *_rows(story))]),
    ]
    kinds = kind_tables.of_run(story)
    lines += ["", *_aligned(kinds)] if kinds else []
    return "\n".join([*lines, "", *filter(None, (_legend(story), _effort(story)))])


def as_dict(run_folder: Path) -> dict[str, Any]:
    """The run's numbers, ready for JSON: evaluations of both arms, rounds, totals, champion."""
    story = read_run(run_folder)
    return {
        "name": story.name,
        "seed": story.seed,
        "finished": story.finished,
        "planned_rounds": story.planned_rounds,
        "headline": story.headline(),
        "main": [asdict(point) for point in story.main],
        "control": [asdict(point) for point in story.control],
        "champion": asdict(story.champion) if story.champion else None,
        "explored": {str(number): dict(line) for number, line in story.explored.items()},
        "learned": {str(number): dict(line) for number, line in story.learned.items()},
        "totals": story.totals(),
    }


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One recipe, or its control, over seeds. start, last, champion: held-out success by seed (fractions): of the start,
    of the last round whether promoted or not, and of the champion (None for a control). `last` is what is compared: the
    champion is chosen on the same held-out tasks, and so looks a little too good. kinds: of the last round, by seed."""

    label: str
    start: dict[int, float]
    last: dict[int, float]
    champion: dict[int, float] | None
    kinds: dict[int, Kinds] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs side by side; `str()` is the table. differences: (label, other label, paired difference of `last` in
    fractions, over the seeds that both have). picture: comparison.png."""

    arms: tuple[Arm, ...]
    differences: tuple[tuple[str, str, Difference], ...]
    picture: Path

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; ends of an interval that the seeds do not allow are null."""
        arms = [{**asdict(arm), **_statistics(arm), "kinds": kind_tables.by_kind(arm)} for arm in self.arms]
        gaps = [{"first": a, "second": b, **_finite(gap)} for a, b, gap in self.differences]
        return {"arms": arms, "differences": gaps, "picture": str(self.picture)}

    def __str__(self) -> str:
        rows: list[Sequence[str]] = [("held out, %", "seeds", "start", "last round", "gain", "champion")]
        for arm in self.arms:
            gains = [arm.last[seed] - arm.start[seed] for seed in arm.last]
            spreads = [_spread(list(rates)) for rates in (arm.start.values(), arm.last.values(), gains)]
            champion = "" if arm.champion is None else _spread(list(arm.champion.values()))
            rows.append((arm.label, str(len(arm.last)), *spreads, champion))
        lines = _aligned(rows)
        if self.differences:
            gaps: list[Sequence[str]] = [("last round, points", "pairs", "difference", "95 %", "p")]
            gaps += [(f"{a} - {b}", str(gap.num), *_gap_cells(gap)) for a, b, gap in self.differences]
            lines += [
                "",
                *_aligned(gaps),
                "",
                "Paired by seed, Student's t; not corrected for the number of comparisons.",
            ]
        for table in kind_tables.of_arms(self.arms):
            lines += ["", *_aligned(table)]
        return "\n".join([*lines, "", f"curve   {self.picture}"])


def compare(run_folders: Sequence[Path], picture: Path | None = None) -> Comparison:
    """Compare runs: those of one recipe name are its seeds. picture: where to draw; by default comparison.png beside the
    first run's folder. Runs that have evaluated nothing are refused with RunError."""
    stories = [read_run(folder) for folder in run_folders]
    for story in stories:
        if not story.main:
            raise RunError(f"expected evaluations in {story.folder}, found none: let the run finish its start first")
    groups: dict[str, dict[int, RunStory]] = {}
    for label, story in zip(_labels(stories), stories, strict=True):
        seeds = groups.setdefault(label, {})
        if story.seed in seeds:
            raise RunError(
                f"{seeds[story.seed].folder} and {story.folder} are the same recipe and seed ({label}, {story.seed}): "
                "give one of them, or folders of different names"
            )
        seeds[story.seed] = story
    arms = [arm for label, seeds in groups.items() for arm in _arms(label, seeds)]
    differences = tuple(
        (first.label, second.label, paired_t([first.last[s] for s in seeds], [second.last[s] for s in seeds]))
        for index, first in enumerate(arms)
        for second in arms[index + 1 :]
        if (seeds := sorted(first.last.keys() & second.last.keys()))
    )
    curves = {}
    for label, seeds in groups.items():
        curves[label] = [{point.round: point.rate for point in story.main} for story in seeds.values()]
        if controls := [story.control for story in seeds.values() if story.control]:
            curves[f"{label} control"] = [{point.round: point.rate for point in points} for points in controls]
    path = picture or Path(run_folders[0]).resolve().parent / "comparison.png"
    return Comparison(arms=tuple(arms), differences=differences, picture=draw_comparison(curves, path))


def _labels(stories: Sequence[RunStory]) -> list[str]:
    """Recipe names; folder names where one name and seed would stand for several runs (changed by overrides)."""
    names = [(story.name, story.seed) for story in stories]
    unique = len(set(names)) == len(names)
    return [
        story.name if unique else story.folder.resolve().name.removesuffix(f"-{story.seed}") or story.name
        for story in stories
    ]


def _arms(label: str, seeds: dict[int, RunStory]) -> list[Arm]:
    def rates(points: dict[int, Point]) -> dict[int, float]:
        return {seed: point.rate for seed, point in points.items()}

    def kinds(points: dict[int, Point]) -> dict[int, Kinds]:
        return {seed: point.kinds for seed, point in points.items() if point.kinds}

    main = Arm(
        label=label,
        start=rates({seed: story.main[0] for seed, story in seeds.items()}),
        last=rates({seed: story.main[-1] for seed, story in seeds.items()}),
        champion=rates({seed: story.champion for seed, story in seeds.items() if story.champion}),
        kinds=kinds({seed: story.main[-1] for seed, story in seeds.items()}),
    )
    controls = {seed: story.control for seed, story in seeds.items() if len(story.control) > 1}
    if not controls:
        return [main]
    control = Arm(
        label=f"{label} control",
        start=rates({seed: points[0] for seed, points in controls.items()}),
        last=rates({seed: points[-1] for seed, points in controls.items()}),
        champion=None,
        kinds=kinds({seed: points[-1] for seed, points in controls.items()}),
    )
    return [main, control]


def _rows(story: RunStory) -> list[tuple[str, ...]]:
    main = {point.round: point for point in story.main}
    control = {point.round: point for point in story.control}
    best = story.champion
    rows = []
    for number in story.rounds:
        point, other = main.get(number), control.get(number)
        explored, learned = story.explored.get(number, {}), story.learned.get(number, {})
        gate = "" if point is None else "promoted" if point.promoted else "kept"
        gate = "start" if number == 0 and point else "no rows" if number in story.idle else gate
        solved = f"{explored.get('solved', 0)}/{explored.get('tasks', explored.get('explored', 0))}" if explored else ""
        rows.append(
            (
                str(number) + (" *" if best is not None and best.round == number else ""),
                f"{100 * point.rate:.1f}" if point else "",
                f"{100 * point.low:.1f}-{100 * point.high:.1f}" if point else "",
                f"{100 * other.rate:.1f}" if other else "",
                gate,
                solved,
                _percent(share(explored, "repair")),
                _percent(share(explored, "fresh")),
                str(learned.get("steps", "")),
                f"{learned['loss']:.3f}" if isinstance(learned.get("loss"), int | float) else "",
            )
        )
    return rows


def _legend(story: RunStory) -> str:
    """What the table's marks and columns mean, as far as it has them."""
    tried = [what for what in ("repair", "fresh") if any(share(line, what) is not None for line in story.explored.values())]
    parts = ["* champion"] if story.champion else []
    if tried:
        parts.append(f"{', '.join(tried)}: % of these tries that were right")
    return "; ".join(parts)


def _effort(story: RunStory) -> str:
    totals = story.totals()
    parts = [
        f"{totals['generated_tokens']:,.0f} tokens generated",
        f"{totals['steps']:,.0f} optimizer steps",
        f"{totals['seconds'] / 60:.1f} minutes of exploring and learning",
    ]
    text = ", ".join(parts) + "."
    if totals["repairs"] and totals["fresh_right"]:
        repair, fresh = totals["repairs_right"] / totals["repairs"], totals["fresh_right"] / totals["fresh"]
        text += f"\nOn unsolved tasks a repair is right {repair / fresh:.2f} x as often as a fresh sample"
        text += f" ({100 * repair:.1f} % against {100 * fresh:.1f} %)."
    return text


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side: the first to the left, the others to the right; columns that hold nothing are left out."""
    shown = [i for i in range(len(rows[0])) if i == 0 or len(rows) == 1 or any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in shown]
    return [
        "  ".join(f"{row[i]:<{w}}" if i == 0 else f"{row[i]:>{w}}" for i, w in zip(shown, widths, strict=True)).rstrip()
        for row in rows
    ]


def _spread(rates: Sequence[float]) -> str:
    mean, sd = mean_sd(100 * rate for rate in rates)
    return f"{mean:.1f}" if math.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"


def _statistics(arm: Arm) -> dict[str, float | None]:
    mean, sd = mean_sd(arm.last.values())
    gain, gain_sd = mean_sd(arm.last[seed] - arm.start[seed] for seed in arm.last)
    found = {"mean": mean, "sd": sd, "gain": gain, "gain_sd": gain_sd}
    return {key: None if math.isnan(value) else value for key, value in found.items()}


def _gap_cells(gap: Difference) -> tuple[str, str, str]:
    if gap.num < 2:
        return f"{100 * gap.difference:+.1f}", "one seed", ""
    return f"{100 * gap.difference:+.1f}", f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}", f"{gap.p_value:.2g}"


def _finite(gap: Difference) -> dict[str, Any]:
    return {key: None if math.isinf(value) else value for key, value in asdict(gap).items()}


_STYLE = """
:root { color-scheme: light dark; --paper: #fcfbf8; --ink: #2b2822; --soft: #6d675b; --line: #e3dfd4; --card: #ffffff;
  --gold: #a87808; --slate: #64748b }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --ink: #eceae4; --soft: #a3a7af; --line: #33363d;
  --card: #1e2025; --gold: #e3b341; --slate: #94a3b8 } }
body { margin: 0 auto; max-width: 860px; padding: 40px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif }
h1 { font-size: 26px; margin: 0 } h1 span { color: var(--soft); font-weight: 400 } h2 { font-size: 17px; margin: 36px 0 8px }
.lead { font-size: 17px; margin: 8px 0 24px } .soft, caption, dt { color: var(--soft) }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 0 0 24px }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; flex: 1 1 150px }
.tile b { display: block; font-size: 21px; font-weight: 650; white-space: nowrap } .tile small { color: var(--soft) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 6px 8px; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 500 } th:first-child, td:first-child { text-align: left }
tr.champion td { color: var(--gold); font-weight: 600 }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px }
figcaption { color: var(--soft); font-size: 13px; margin-top: 8px }
.curve { width: 100%; height: auto; display: block } .grid { stroke: var(--line) }
.label { fill: var(--soft); font-size: 12px } .line { fill: none; stroke-width: 2.5 }
.line.main { stroke: var(--gold) } .line.control { stroke: var(--slate); stroke-dasharray: 6 5 }
.band { opacity: .14 } .band.main, .dot.main, .end.main { fill: var(--gold) }
.band.control, .dot.control, .end.control { fill: var(--slate) } .end { font-size: 13px; font-weight: 650 }
.dot.kept { fill: var(--card); stroke: var(--gold); stroke-width: 2 }
.ring { fill: none; stroke: var(--gold); stroke-width: 1.6 }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px; overflow-x: auto;
  font-size: 12.5px }
summary { cursor: pointer }
"""


def _page(story: RunStory) -> str:
    name = html.escape(story.name)
    chart = evolution_svg(story) or '<p class="soft">No evaluation yet.</p>'
    caption = "Held-out success, % (greedy), with 95 % Wilson intervals. Gold: self-training; "
    if story.control:
        caption += "dashed: the control, which spends the same optimizer steps on the demonstrations alone; "
    caption += "ring: champion" + ("." if all(point.promoted for point in story.main) else "; hollow: not promoted.")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}, seed {story.seed}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{name} <span>seed {story.seed}</span></h1>"
        f'<p class="lead">{html.escape(story.headline())}</p>{_tiles(story)}'
        f"<figure>{chart}<figcaption>{caption}</figcaption></figure>"
        f'<h2>Rounds</h2><div class="scroll">{_html_table(COLUMNS, _rows(story))}</div>'
        f'<p class="soft">{"<br>".join(html.escape(text) for text in (_legend(story), _effort(story)) if text)}</p>'
        f"{_kinds_table(story)}{_reasons(story)}{_origin(story)}</body></html>\n"
    )


def _tiles(story: RunStory) -> str:
    tiles = []
    if story.main:
        start, last = story.main[0], story.main[-1]
        tiles.append((f"{100 * start.rate:.1f} → {100 * last.rate:.1f} %", "held-out success"))
        tiles.append((f"{100 * (last.rate - start.rate):+.1f}", "points gained"))
        if len(story.control) > 1:
            tiles.append((f"{100 * (last.rate - story.control[-1].rate):+.1f}", "points above the control"))
    totals = story.totals()
    if totals["repairs"]:
        tiles.append((f"{100 * totals['repairs_right'] / totals['repairs']:.1f} %", "of repairs right"))
    cells = "".join(f'<div class="tile"><b>{html.escape(big)}</b><small>{small}</small></div>' for big, small in tiles)
    return f'<div class="tiles">{cells}</div>'


def _html_table(columns: Sequence[str], found: Sequence[Sequence[str]]) -> str:
    shown = [index for index in range(len(columns)) if index == 0 or any(row[index] for row in found)]
    head = "".join(f"<th>{html.escape(columns[index])}</th>" for index in shown)
    body = ""
    for row in found:
        mark = ' class="champion"' if row[0].endswith("*") else ""
        body += f"<tr{mark}>" + "".join(f"<td>{html.escape(row[index])}</td>" for index in shown) + "</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _kinds_table(story: RunStory) -> str:
    rows = kind_tables.of_run(story)
    return f'<h2>By kind of task</h2><div class="scroll">{_html_table(rows[0], rows[1:])}</div>' if rows else ""


def _reasons(story: RunStory) -> str:
    items = "".join(
        f"<li>Round {number}: {html.escape(str(line.get('reason', '')))}</li>"
        for number, line in sorted(story.gates.items())
    )
    return f"<h2>What the gate said</h2><ul>{items}</ul>" if items else ""


def _origin(story: RunStory) -> str:
    """How the run was made: command, versions, commit, recipe."""
    info = dict(story.info)
    command = info.get("command")
    said = " ".join(map(str, command)) if isinstance(command, list) else str(command or "")
    facts = {key: info.get(key) for key in ("created", "commit", "python", "machine") if info.get(key)}
    facts["packages"] = ", ".join(f"{k} {v}" for k, v in (info.get("packages") or info.get("versions") or {}).items())
    listed = "".join(f"<dt>{key}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items() if value)
    recipe = html.escape(json.dumps(info.get("recipe", {}), indent=2))
    return (
        f"<h2>How it was made</h2>{f'<pre>{html.escape(said)}</pre>' if said else ''}<dl>{listed}</dl>"
        f"<details><summary>Resolved recipe</summary><pre>{recipe}</pre></details>"
    )

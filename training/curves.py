"""Evolution curves: one run's with its control, several runs' means, as PNG (matplotlib) and as inline SVG.

`draw_evolution` and `draw_comparison` write PNG files; `evolution_svg` returns an SVG that takes its colours from the
page's style sheet (classes main, control, grid, label). matplotlib is imported only when a PNG is drawn.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from kintsugi.errors import missing_extra
from kintsugi.training.intervals import mean_sd
from kintsugi.training.run_story import Point, RunStory

INK, PAPER, GOLD, SLATE = "#33302a", "#fcfbf8", "#b8860b", "#64748b"
COLOURS = (GOLD, "#0f766e", "#4f46a5", "#b4432f", "#4d7c0f", "#9d3b78", "#0369a1")

Curves = Mapping[str, Sequence[Mapping[int, float]]]
"""Label → one {round: success rate} for each seed."""


def draw_evolution(story: RunStory, path: Path) -> Path:
    """Held-out success by round with its 95 % intervals: main arm in gold, control in grey, the champion ringed."""
    figure, axes = _figure()
    if story.main:
        _arm(axes, story.main, GOLD, "self-training")
        _mark_promotions(axes, story)
    else:
        axes.text(0.5, 0.5, "nothing evaluated yet", transform=axes.transAxes, ha="center", color=INK)
    if story.control:
        _arm(axes, story.control, SLATE, "control: the same steps on demonstrations", dashed=True)
    _finish(axes, [point for point in (*story.main, *story.control)], story.planned_rounds)
    _label_ends(axes, [(x, y, f"{y:.1f} %", {"main": GOLD, "control": SLATE}[arm]) for arm, x, y in _ends(story)])
    axes.set_title(f"{story.name}, seed {story.seed}", loc="left", color=INK, fontsize=13, fontweight="bold", pad=14)
    return _save(figure, path)


def draw_comparison(curves: Curves, path: Path) -> Path:
    """Mean held-out success by round over seeds: bands are ± one standard deviation, thin lines the single seeds."""
    figure, axes = _figure()
    plain = [label for label in curves if not label.endswith("control")]
    ends: list[tuple[float, str]] = []
    for label, runs in curves.items():
        colour = COLOURS[plain.index(label) % len(COLOURS)] if label in plain else SLATE
        rounds = sorted({number for run in runs for number in run})
        stats = {number: mean_sd(run[number] for run in runs if number in run) for number in rounds}
        means = [100 * stats[number][0] for number in rounds]
        sds = [0.0 if math.isnan(stats[number][1]) else 100 * stats[number][1] for number in rounds]
        for run in runs:
            axes.plot(sorted(run), [100 * run[number] for number in sorted(run)], color=colour, lw=0.8, alpha=0.35)
        low, high = [m - s for m, s in zip(means, sds, strict=True)], [m + s for m, s in zip(means, sds, strict=True)]
        axes.fill_between(rounds, low, high, color=colour, alpha=0.10, lw=0)
        style = "-" if label in plain else "--"
        name = f"{label} ({len(runs)} seed{'s' if len(runs) != 1 else ''})"
        axes.plot(rounds, means, color=colour, lw=2.4, ls=style, marker="o", ms=5, label=name)
        if means:
            ends.append((means[-1], colour))
    last = max((number for runs in curves.values() for run in runs for number in run), default=0)
    rates = [(number, rate) for runs in curves.values() for run in runs for number, rate in run.items()]
    flat = [Point(round=n, rate=rate, low=rate, high=rate, num_tasks=0, promoted=False) for n, rate in rates]
    _finish(axes, flat, None)
    _label_ends(axes, [(last, mean, f"{mean:.1f}", colour) for mean, colour in ends])
    axes.set_title("Mean over seeds, band ± one sd", loc="left", color=INK, fontsize=13, fontweight="bold", pad=14)
    return _save(figure, path)


def evolution_svg(story: RunStory, width: int = 760, height: int = 340) -> str:
    """The evolution curve for a page; empty when nothing is evaluated."""
    points = [*story.main, *story.control]
    if not points:
        return ""
    left, right, top, bottom = 46, 64, 16, 40
    last = max(1, story.planned_rounds or 0, *(point.round for point in points))
    ceiling = min(1.0, math.ceil(max(point.high for point in points) * 10 + 0.2) / 10)

    def x(number: float) -> float:
        return left + (width - left - right) * number / last

    def y(rate: float) -> float:
        return top + (height - top - bottom) * (1 - rate / ceiling)

    parts = []
    for tenth in range(0, round(ceiling * 10) + 1, 1 if ceiling <= 0.6 else 2):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tenth / 10):.1f}" y2="{y(tenth / 10):.1f}"/>'
        )
        parts.append(f'<text class="label" x="{left - 8}" y="{y(tenth / 10) + 4:.1f}" text-anchor="end">{tenth * 10}</text>')
    for number in range(last + 1):
        name = "start" if number == 0 else str(number)
        parts.append(f'<text class="label" x="{x(number):.1f}" y="{height - 16}" text-anchor="middle">{name}</text>')
    for arm, series in (("control", story.control), ("main", story.main)):
        if not series:
            continue
        edge = [(x(p.round), y(p.high)) for p in series] + [(x(p.round), y(p.low)) for p in reversed(series)]
        parts.append(f'<polygon class="band {arm}" points="{_joined(edge)}"/>')
        parts.append(f'<polyline class="line {arm}" points="{_joined([(x(p.round), y(p.rate)) for p in series])}"/>')
        for point in series:
            hollow = " kept" if arm == "main" and not point.promoted else ""
            tip = f"round {point.round}: {100 * point.rate:.1f} % [{100 * point.low:.1f}, {100 * point.high:.1f}]"
            parts.append(
                f'<circle class="dot {arm}{hollow}" cx="{x(point.round):.1f}" cy="{y(point.rate):.1f}" r="4.5">'
                f"<title>{escape(tip)}</title></circle>"
            )
    ends = _ends(story)
    heights = apart([height - bottom - y(rate / 100) for _, _, rate in ends], gap=15)
    for (arm, number, rate), up in zip(ends, heights, strict=True):
        parts.append(
            f'<text class="end {arm}" x="{x(number) + 13:.1f}" y="{height - bottom - up + 5:.1f}">{rate:.1f}</text>'
        )
    if (best := story.champion) is not None:
        parts.append(f'<circle class="ring" cx="{x(best.round):.1f}" cy="{y(best.rate):.1f}" r="9"/>')
    return (
        f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(story.headline(), quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )


def _figure() -> tuple[Any, Any]:
    try:
        figure_module = importlib.import_module("matplotlib.figure")
        backend = importlib.import_module("matplotlib.backends.backend_agg")
    except ImportError:
        raise missing_extra("drawing a curve as PNG", "train") from None
    # A Figure with its own canvas, not pyplot: no global state, no display, usable from any thread.
    figure = figure_module.Figure(figsize=(8.4, 4.8), dpi=150, facecolor=PAPER)
    backend.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor(PAPER)
    return figure, axes


def _arm(axes: Any, series: Sequence[Point], colour: str, label: str, *, dashed: bool = False) -> None:
    rounds = [point.round for point in series]
    rates = [100 * point.rate for point in series]
    axes.fill_between(rounds, [100 * p.low for p in series], [100 * p.high for p in series], color=colour, alpha=0.13, lw=0)
    style = "--" if dashed else "-"
    axes.plot(rounds, rates, color=colour, lw=2.4, ls=style, marker="o", ms=6, label=label, zorder=2 if dashed else 3)


def _ends(story: RunStory) -> list[tuple[str, int, float]]:
    """(arm, round, rate in %) of the points whose numbers are written beside them: the last ones; one for both arms as
    long as there is only the start."""
    both = (("main", story.main), ("control", story.control))
    found = [(arm, series[-1].round, 100 * series[-1].rate) for arm, series in both if series]
    return found[:1] if all(number == 0 for _, number, _ in found) else found


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write (x, y, text, colour) to the right of each point; the axes' limits must be set."""
    axes.figure.tight_layout()  # so that the axes have their final height
    bottom, top = axes.get_ylim()
    points = axes.get_window_extent().height * 72 / axes.figure.dpi / (top - bottom)
    heights = apart([(y - bottom) * points for _, y, _, _ in ends], gap=13)
    for (x, y, text, colour), height in zip(ends, heights, strict=True):
        spot = {"xytext": (11, height - (y - bottom) * points), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (x, y), color=colour, fontweight="bold", **spot)


def _mark_promotions(axes: Any, story: RunStory) -> None:
    kept = [point for point in story.main if not point.promoted]
    if kept:
        xs, ys = [point.round for point in kept], [100 * point.rate for point in kept]
        axes.plot(xs, ys, "o", ms=6, mfc=PAPER, mec=GOLD, mew=1.6, zorder=4, label="not promoted")
    if (best := story.champion) is not None:
        axes.plot([best.round], [100 * best.rate], "o", ms=14, mfc="none", mec=GOLD, mew=1.6, zorder=4, label="champion")
    start = story.main[0]
    if start.round == 0 and len(story.main) > 1:
        rate = 100 * start.rate
        # On the side that the curve does not take.
        below = story.main[1].rate >= start.rate and rate > 8
        spot = {"xytext": (2, -20 if below else 12), "textcoords": "offset points", "color": INK, "fontsize": 9}
        axes.annotate(f"start {rate:.1f} %", (0, rate), **spot)


def _finish(axes: Any, points: Sequence[Point], planned: int | None) -> None:
    last = max([planned or 1, 1, *(point.round for point in points)])
    axes.set_xlim(-0.2, last + 0.45)
    axes.set_xticks(range(last + 1), ["start", *map(str, range(1, last + 1))])
    top = max((100 * point.high for point in points), default=100)
    axes.set_ylim(0, min(104, top * 1.12 + 3))
    axes.set_xlabel("round", color=INK)
    axes.set_ylabel("held-out success, %", color=INK)
    axes.grid(axis="y", color="#e6e2d8", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color("#b9b3a5")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right" if top > 40 else "upper left", labelcolor=INK, fontsize=9)


def apart(heights: Sequence[float], gap: float, floor: float = 6.0) -> list[float]:
    """The heights, moved as little as it takes (least squares) to stand `gap` from one another and above `floor`; of
    equal ones the first goes above."""
    order = sorted(range(len(heights)), key=lambda index: (heights[index], -index))
    # With `gap` times its rank taken off each, they need only be in order: neighbours that are not share their mean.
    blocks: list[list[float]] = []
    for rank, index in enumerate(order):
        blocks.append([heights[index] - rank * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = [max(floor, fmean(block)) for block in blocks for _ in block]
    placed = [0.0] * len(heights)
    for rank, index in enumerate(order):
        placed[index] = level[rank] + rank * gap
    return placed


def _save(figure: Any, path: Path) -> Path:
    half = path.with_name(f".{path.name}.half")
    figure.tight_layout()
    figure.savefig(half, format="png", facecolor=PAPER)
    half.replace(path)
    return path


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)

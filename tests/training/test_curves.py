"""Curves whose numbers can be read, however close their ends are."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kintsugi.training import curves
from kintsugi.training.curves import apart, draw_comparison, draw_evolution, evolution_svg
from kintsugi.training.run_story import Point, RunStory

RISING = [0.287, 0.363, 0.442, 0.430, 0.567]
SERIES = [
    (RISING, [0.287, 0.338, 0.353, 0.358, 0.398]),
    (RISING, [0.287, 0.338, 0.353, 0.358, 0.563]),
    (RISING, RISING),
    (RISING[:1], RISING[:1]),
    (RISING, []),
    ([0.01, 0.02, 0.0, 0.01, 0.0], [0.01, 0.0, 0.0, 0.0, 0.003]),
    ([0.9, 0.95, 0.99, 1.0, 1.0], [0.9, 0.92, 0.97, 0.98, 0.997]),
    ([0.5, 0.4, 0.3], [0.5, 0.45, 0.31]),
]


def story(main: list[float], control: list[float]) -> RunStory:
    def points(rates: list[float]) -> tuple[Point, ...]:
        return tuple(
            Point(round=n, rate=r, low=max(0, r - 0.05), high=min(1, r + 0.05), num_tasks=300, promoted=n != 3)
            for n, r in enumerate(rates)
        )

    return RunStory(
        folder=Path(), name="demo", seed=0, info={}, main=points(main), control=points(control),
        explored={}, reflected={}, learned={}, gates={}, planned_rounds=4,
    )  # fmt: skip


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Draws and gives where each number stands in the picture, by its text, and the axes' own box."""
    pytest.importorskip("matplotlib")
    kept: list[Any] = []
    save = curves._save
    monkeypatch.setattr(curves, "_save", lambda figure, path: (kept.append(figure), save(figure, path))[1])

    def draw(how: Any, *what: Any) -> tuple[list[tuple[str, Any]], Any]:
        how(*what, tmp_path / "picture.png")
        axes = kept[-1].axes[0]
        return [(text.get_text(), text.get_window_extent()) for text in axes.texts], axes.get_window_extent()

    return draw


@pytest.mark.parametrize(("main", "control"), SERIES)
def test_no_number_stands_on_another(boxes: Any, main: list[float], control: list[float]) -> None:
    found, axes = boxes(draw_evolution, story(main, control))
    said = [text for text, _ in found]
    both = [f"{100 * series[-1]:.1f} %" for series in (main, control) if series]
    assert [text for text in said if not text.startswith("start")] == (both if len(main) > 1 else both[:1])
    assert [text for text in said if text.startswith("start")] == ([f"start {100 * main[0]:.1f} %"] if main[1:] else [])
    for index, (text, box) in enumerate(found):
        assert box.y0 > axes.y0, f"{text} stands on the axis"
        assert not any(box.overlaps(other) for _, other in found[index + 1 :]), f"{text} is covered"


def test_many_arms_side_by_side(boxes: Any) -> None:
    arms = {f"arm {n}": [{r: rate + n / 500 for r, rate in enumerate(RISING)}] for n in range(5)}
    found, _ = boxes(draw_comparison, arms)
    assert [text for text, _ in found] == [f"{56.7 + n / 5:.1f}" for n in range(5)]
    assert all(not low.overlaps(high) and low.y0 < high.y0 for (_, low), (_, high) in pairwise(found))


@pytest.mark.parametrize(("main", "control"), SERIES)
def test_numbers_of_the_page(main: list[float], control: list[float]) -> None:
    drawn = evolution_svg(story(main, control))
    ends = [float(y) for y in re.findall(r'<text class="end \w+" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert len(ends) == (1 if len(main) == 1 or not control else 2)
    assert all(abs(a - b) >= 14.9 for a, b in pairwise(ends)) and max(ends) < 300


def test_apart() -> None:
    assert apart([50, 20], 10) == [50, 20], "what is far enough stays"
    assert apart([50, 50], 10) == [55, 45] and apart([48, 50], 10) == [44, 54]
    assert apart([0, 1], 10, floor=6) == [6, 16] and apart([], 10) == []
    rng = random.Random(0)
    for _ in range(50):
        heights = [rng.uniform(20, 120) for _ in range(rng.randint(1, 7))]
        placed = apart(heights, 9, floor=-1000)
        ranked = [placed[index] for index in sorted(range(len(heights)), key=lambda index: heights[index])]
        assert all(high - low >= 9 - 1e-9 for low, high in pairwise(ranked))
        assert sum(placed) == pytest.approx(sum(heights)), "as much up as down"

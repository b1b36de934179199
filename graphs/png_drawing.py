"""A `Picture` as PNG, painted with matplotlib from the same places as the SVG; no browser, no network, no display.

Used through `kintsugi.graphs.drawing.as_png`. matplotlib comes with the "train" extra. Left out: other bitmap formats.
"""

from __future__ import annotations

import io
from typing import Any

from kintsugi.errors import missing_extra
from kintsugi.graphs.drawing import Picture
from kintsugi.graphs.layout import CAPTION, CAPTION_LINE, LABEL, LINE, MARGIN, NAME, NOTE, TITLE, Box, Curve, Label, lay_out

_LIGHT = {
    "page": "#fcfbf8", "text": "#24221e", "note": "#6d675b", "label": "#4d483e", "line": "#8d877a", "box": "#ffffff",
    "end": "#efece4", "gold": "#b8860b", "gold_box": "#fdf6e3", "gold_label": "#7a5800",
}  # fmt: skip
_DARK = {
    "page": "#16171a", "text": "#f0eee8", "note": "#a9adb5", "label": "#c6c9cf", "line": "#8b8f98", "box": "#212328",
    "end": "#2b2e34", "gold": "#e3b341", "gold_box": "#2e2818", "gold_label": "#f0cd77",
}  # fmt: skip
_POINT = 0.72
"""Points a pixel at matplotlib's 100 dots an inch."""


def draw_png(picture: Picture, *, dark: bool = False, scale: float = 2.0) -> bytes:
    """The PNG file. scale: pixels of the picture for one of the layout. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("drawing PNG files", "train") from None
    layout, colours = lay_out(picture), _DARK if dark else _LIGHT
    figure = Figure(figsize=(layout.width / 100, layout.height / 100), dpi=100, facecolor=colours["page"])
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, layout.width)
    axes.set_ylim(layout.height, 0)
    axes.axis("off")
    brush = _Brush(axes, colours)
    for curve in layout.curves:
        brush.curve(curve)
    for box in layout.boxes:
        brush.box(box)
    for label in layout.labels:
        brush.label(label)
    brush.text(layout.width / 2, MARGIN + 3, picture.title, TITLE, "text", weight="bold")
    for number, line in enumerate(picture.caption):
        y = layout.caption_top + 8 + number * CAPTION_LINE
        brush.text(MARGIN, y, line, CAPTION, "label", family="monospace", ha="left")
    file = io.BytesIO()
    figure.set_dpi(100 * scale)
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": "kintsugi"})
    return file.getvalue()


class _Brush:
    """Paints on axes whose units are the layout's pixels."""

    def __init__(self, axes: Any, colours: dict[str, str]) -> None:
        self.axes, self.colours = axes, colours

    def text(self, x: float, y: float, text: str, size: float, colour: str, **options: Any) -> None:
        # A little smaller than the layout reckons: matplotlib's own typeface is a wide one. No mathematics: $ is a letter.
        place = {"ha": "center", "va": "center_baseline", "parse_math": False, **options}
        self.axes.text(x, y, text, fontsize=0.94 * size * _POINT, color=self.colours[colour], **place)

    def curve(self, curve: Curve) -> None:
        from matplotlib.patches import PathPatch, Polygon
        from matplotlib.path import Path

        gold = bool(curve.edge.visits)
        colour = self.colours["gold" if gold else "line"]
        codes = [Path.MOVETO, *[Path.CURVE4] * (len(curve.points) - 1)]
        thick = curve.edge.thickness if gold else 1.4
        # matplotlib takes dashes in widths of the line.
        dashes = (0, (5 / thick, 4 / thick)) if curve.edge.conditional else "solid"
        width = thick * _POINT
        path = Path(list(curve.points), codes)
        self.axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=width, linestyle=dashes))
        self.axes.add_patch(Polygon(list(curve.head), closed=True, facecolor=colour, linewidth=0))

    def box(self, box: Box) -> None:
        from matplotlib.patches import FancyBboxPatch

        node, visited = box.node, bool(box.node.visits)
        fill = "gold_box" if visited else "box" if node.kind == "node" else "end"
        rounding = 18.0 if node.kind != "node" else 9.0
        shape = FancyBboxPatch(
            (box.x - box.width / 2, box.y - box.height / 2),
            box.width,
            box.height,
            boxstyle=f"round,pad=0,rounding_size={rounding}",
            facecolor=self.colours[fill],
            edgecolor=self.colours["gold" if visited else "line"],
            linewidth=(2.4 if visited else 1.3) * _POINT,
        )
        self.axes.add_patch(shape)
        name_y = box.y - LINE * len(node.notes) / 2
        self.text(box.x, name_y, node.text, NAME, "text")
        for number, note in enumerate(node.notes, 1):
            self.text(box.x, name_y + LINE * number + 2, note, NOTE, "note")

    def label(self, label: Label) -> None:
        from matplotlib.patches import Rectangle

        corner = (label.x - label.width / 2, label.y - 9)
        self.axes.add_patch(Rectangle(corner, label.width, 18, facecolor=self.colours["page"], linewidth=0))
        gold = bool(label.edge.visits)
        self.text(label.x, label.y, label.edge.text, LABEL, "gold_label" if gold else "label")

"""A `Picture` as SVG. Used through `kintsugi.graphs.drawing.as_svg`; the places are `kintsugi.graphs.layout`'s.

Colours are in a style sheet with a dark half, which a page or viewer in its dark mode takes by itself; no scripts, no
fonts, no network.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from kintsugi.graphs.drawing import Picture, PictureEdge
from kintsugi.graphs.layout import CAPTION_LINE, LINE, MARGIN, Box, Curve, Label, lay_out

_STYLE = """
  text { font-family: ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle }
  .page { fill: #fcfbf8 } .title { font-size: 16px; font-weight: 600; fill: #33302a }
  .box { fill: #ffffff; stroke: #8d877a; stroke-width: 1.3 } .end .box { fill: #efece4 }
  .name { font-size: 14px; fill: #24221e } .note { font-size: 11px; fill: #6d675b }
  .edge { fill: none; stroke: #8d877a; stroke-width: 1.4 } .conditional { stroke-dasharray: 5 4 }
  .head { fill: #8d877a } .label { font-size: 11.5px; fill: #4d483e } .halo { fill: #fcfbf8 }
  .caption { font: 12px ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; text-anchor: start; fill: #4d483e }
  .visited .box { stroke: #b8860b; stroke-width: 2.4; fill: #fdf6e3 }
  .visited .edge { stroke: #b8860b; stroke-width: 2.4 } .visited .head { fill: #b8860b }
  .visited .label { fill: #7a5800; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #16171a } .title { fill: #eceae4 } .halo { fill: #16171a }
    .box { fill: #212328; stroke: #8b8f98 } .end .box { fill: #2b2e34 }
    .name { fill: #f0eee8 } .note { fill: #a9adb5 } .label, .caption { fill: #c6c9cf }
    .edge { stroke: #8b8f98 } .head { fill: #8b8f98 }
    .visited .box { stroke: #e3b341; fill: #2e2818 } .visited .edge { stroke: #e3b341 }
    .visited .head { fill: #e3b341 } .visited .label { fill: #f0cd77 }
  }
"""


def draw_svg(picture: Picture) -> str:
    """The SVG document."""
    layout = lay_out(picture)
    width, height = layout.width, layout.height
    parts = [*map(_curve, layout.curves), *map(_box, layout.boxes), *map(_label, layout.labels)]
    if picture.title:
        title = f'<text class="title" x="{width / 2:.1f}" y="{MARGIN + 8:.1f}">{escape(picture.title)}</text>'
        parts.insert(0, title)
    for number, line in enumerate(picture.caption):
        y = layout.caption_top + 12 + number * CAPTION_LINE
        parts.append(f'<text class="caption" xml:space="preserve" x="{MARGIN:.1f}" y="{y:.1f}">{escape(line)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img"><title>{escape(picture.title or "graph")}</title>\n<style>{_STYLE}</style>\n'
        f'<rect class="page" width="100%" height="100%" rx="10"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _curve(curve: Curve) -> str:
    edge, points = curve.edge, [f"{x:.1f} {y:.1f}" for x, y in curve.points]
    path = f"M{points[0]}" + "".join(f" C{' '.join(points[at : at + 3])}" for at in range(1, len(points), 3))
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in curve.head)
    line = "edge conditional" if edge.conditional else "edge"
    thick = f' style="stroke-width:{edge.thickness:.1f}"' if edge.visits and edge.share is not None else ""
    return f'<g class="{_group(edge)}"><path class="{line}" d="{path}"{thick}/><polygon class="head" points="{head}"/></g>'


def _label(label: Label) -> str:
    x, y, width = label.x, label.y, label.width
    return (
        f'<g class="{_group(label.edge)}"><rect class="halo" x="{x - width / 2:.1f}" '
        f'y="{y - 9:.1f}" width="{width:.1f}" height="18" rx="4"/>'
        f'<text class="label" x="{x:.1f}" y="{y + 4:.1f}">{escape(label.edge.text)}</text></g>'
    )


def _group(edge: PictureEdge) -> str:
    return "visited" if edge.visits else "plain"


def _box(box: Box) -> str:
    node = box.node
    round_end = 18.0 if node.kind != "node" else 9.0
    group = " ".join(["visited" if node.visits else "plain", "node" if node.kind == "node" else "end"])
    name_y = box.y + 5 - LINE * len(node.notes) / 2
    lines = [f'<text class="name" x="{box.x:.1f}" y="{name_y:.1f}">{escape(node.text)}</text>']
    for number, note in enumerate(node.notes, 1):
        y = name_y + LINE * number + 1
        lines.append(f'<text class="note" x="{box.x:.1f}" y="{y:.1f}">{escape(note)}</text>')
    return (
        f'<g class="{group}"><rect class="box" x="{box.x - box.width / 2:.1f}" y="{box.y - box.height / 2:.1f}" '
        f'width="{box.width:.1f}" height="{box.height:.1f}" rx="{round_end:.0f}"/>' + "".join(lines) + "</g>"
    )

"""A `Picture` as SVG: layers from top to bottom, curved edges, labels that never cover one another.

The layout is Sugiyama's in small: edges that lead back up are turned round, nodes get layers (`drawing.downward`),
every edge gets a bend point in each rank that it passes (with its label's width where its label stands), ranks are
ordered by the mean place of their neighbours, and places are set by isotonic regression, so that nothing overlaps.
Used through `kintsugi.graphs.drawing.as_svg`. Colours are in a style sheet with a dark half; no scripts, no fonts, no
network.
Source: Sugiyama, Tagawa & Toda (1981), IEEE Trans. SMC 11, 109-125.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from xml.sax.saxutils import escape

from kintsugi.graphs.drawing import Picture, PictureEdge, PictureNode, downward

Point = tuple[float, float]

RANK_HEIGHT, MARGIN, GAP, PORT_GAP = 52.0, 28.0, 26.0, 22.0
_STYLE = """
  text { font-family: ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle }
  .page { fill: #fcfbf8 } .title { font-size: 16px; font-weight: 600; fill: #33302a }
  .box { fill: #ffffff; stroke: #8d877a; stroke-width: 1.3 } .end .box { fill: #efece4 }
  .name { font-size: 14px; fill: #24221e } .note { font-size: 11px; fill: #6d675b }
  .edge { fill: none; stroke: #8d877a; stroke-width: 1.4 } .conditional { stroke-dasharray: 5 4 }
  .head { fill: #8d877a } .label { font-size: 11.5px; fill: #4d483e } .halo { fill: #fcfbf8 }
  .visited .box { stroke: #b8860b; stroke-width: 2.4; fill: #fdf6e3 }
  .visited .edge { stroke: #b8860b; stroke-width: 2.4 } .visited .head { fill: #b8860b }
  .visited .label { fill: #7a5800; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #16171a } .title { fill: #eceae4 } .halo { fill: #16171a }
    .box { fill: #212328; stroke: #8b8f98 } .end .box { fill: #2b2e34 }
    .name { fill: #f0eee8 } .note { fill: #a9adb5 } .label { fill: #c6c9cf }
    .edge { stroke: #8b8f98 } .head { fill: #8b8f98 }
    .visited .box { stroke: #e3b341; fill: #2e2818 } .visited .edge { stroke: #e3b341 }
    .visited .head { fill: #e3b341 } .visited .label { fill: #f0cd77 }
  }
"""


@dataclass(eq=False)
class _Spot:
    """Something that takes room in a rank: a node's box, or the bend (and perhaps the label) of an edge.

    width: of the box. room: what it takes in its rank (a box with a self-loop takes more). pulls: neighbours with how
    strongly each draws this spot above or below itself."""

    width: float
    rank: int
    node: PictureNode | None = None
    height: float = 0.0
    room: float = 0.0
    x: float = 0.0
    y: float = 0.0
    above: list[_Spot] = field(default_factory=list)
    below: list[_Spot] = field(default_factory=list)
    pulls: list[tuple[_Spot, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.room = self.room or self.width


@dataclass(eq=False)
class _Route:
    """An edge's spots from top to bottom; `labelled` is the one that carries its label; back: drawn upwards."""

    edge: PictureEdge
    spots: list[_Spot]
    labelled: _Spot
    back: bool


def draw_svg(picture: Picture) -> str:
    """The SVG document."""
    nodes, routes, loops = _spots(picture)
    ranks = _ordered(nodes, routes)
    _place(ranks)
    top = MARGIN + (30 if picture.title else 0)
    left = min((spot.x - spot.room / 2 for rank in ranks for spot in rank), default=0.0) - MARGIN
    right = max((spot.x + spot.room / 2 for rank in ranks for spot in rank), default=0.0) + MARGIN
    right = max(right, left + 2 * MARGIN + text_width(picture.title, 16))
    for rank in ranks:
        for spot in rank:
            spot.x -= left
            spot.y = top + 24 + spot.rank * RANK_HEIGHT
    width, height = right - left, top + 48 + max(0, len(ranks) - 1) * RANK_HEIGHT + MARGIN
    parts = [_edge(route, points) for route, points in _points(routes)]
    parts += [_loop(nodes[edge.source], edge) for edge in loops]
    parts += [_box(spot, spot.node) for spot in nodes.values() if spot.node is not None]
    labels = [_label(route.labelled.x, route.labelled.y, route.edge) for route in routes if route.edge.text]
    title = f'<text class="title" x="{width / 2:.1f}" y="{MARGIN + 8:.1f}">{escape(picture.title)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img"><title>{escape(picture.title or "graph")}</title>\n<style>{_STYLE}</style>\n'
        f'<rect class="page" width="100%" height="100%" rx="10"/>\n{title if picture.title else ""}\n'
        + "\n".join([*parts, *labels])
        + "\n</svg>\n"
    )


def text_width(text: str, size: float) -> float:
    """About how wide a sans-serif line is, pixels; a little too wide rather than too narrow."""
    narrow = sum(1 for char in text if char in "iljtfr.,:;'|!()[] ")
    wide = sum(1 for char in text if char in "mwMW@" or ord(char) > 0x2E80)
    return size * (0.6 * len(text) - 0.27 * narrow + 0.3 * wide)


def _spots(picture: Picture) -> tuple[dict[str, _Spot], list[_Route], list[PictureEdge]]:
    """Boxes in even ranks, bends in every rank between the two ends of an edge, and the self-loops."""
    layers, back = downward(picture)
    loops: dict[str, PictureEdge] = {}
    for edge in picture.edges:  # several loops of one node are drawn as one, with all their labels
        if edge.source == edge.target:
            other = loops.get(edge.source, replace(edge, label="", visits=None))
            labels = " · ".join(text for text in (other.label, edge.text) if text)
            loops[edge.source] = replace(edge, label=labels, visits=1 if edge.visits or other.visits else None)
    nodes: dict[str, _Spot] = {}
    for node in picture.nodes:
        ports = sum(1 for edge in picture.edges if node.id in (edge.source, edge.target))
        width = max(text_width(node.text, 14) + 34, text_width(node.note, 11) + 28, PORT_GAP * ports * 0.6 + 24, 64.0)
        height = 46.0 if node.note else 36.0
        room = width + (2 * (40 + text_width(loops[node.id].text, 11.5)) if node.id in loops else 0)
        nodes[node.id] = _Spot(width=width, rank=2 * layers[node.id], node=node, height=height, room=room)
    routes: list[_Route] = []
    for index, edge in enumerate(picture.edges):
        first, last = nodes[edge.source], nodes[edge.target]
        if first is last:
            continue
        if first.rank > last.rank:
            first, last = last, first
        # Ends in one layer (only possible beside a pinned end) still get a bend below both.
        ranks = list(range(first.rank + 1, last.rank)) or [first.rank + 1]
        bends = [_Spot(width=14.0, rank=rank) for rank in ranks]
        # The label stands close to where the edge begins: in the first odd rank after its source.
        labelled = bends[-1] if index in back else bends[0]
        labelled.width = labelled.room = max(14.0, text_width(edge.text, 11.5) + 16)
        spots = [first, *bends, last]
        for upper, lower in pairwise(spots):
            upper.below.append(lower)
            lower.above.append(upper)
            # Bends pull each other into a straight line; boxes follow the way down, and hardly what leads back up.
            both_bends = upper.node is None and lower.node is None
            pull = 20.0 if both_bends else 0.1 if index in back else 1.0 if edge.conditional else 3.0
            upper.pulls.append((lower, pull))
            lower.pulls.append((upper, pull))
        routes.append(_Route(edge=edge, spots=spots, labelled=labelled, back=index in back))
    return nodes, routes, list(loops.values())


def _ordered(nodes: dict[str, _Spot], routes: list[_Route]) -> list[list[_Spot]]:
    """Ranks from top to bottom, each from left to right with few crossings: barycentre sweeps, the best kept."""
    everything = [*nodes.values(), *(spot for route in routes for spot in route.spots[1:-1])]
    ranks: list[list[_Spot]] = [[] for _ in range(max((spot.rank for spot in everything), default=-1) + 1)]
    for spot in everything:
        ranks[spot.rank].append(spot)
    best, fewest = [list(rank) for rank in ranks], _crossings(ranks)
    for sweep in range(12):
        down = sweep % 2 == 0
        for rank in ranks if down else reversed(ranks):
            place = {id(spot): index for other in ranks for index, spot in enumerate(other)}
            means = {id(spot): _mean_place(spot.above if down else spot.below, place, place[id(spot)]) for spot in rank}
            rank.sort(key=lambda spot, means=means: means[id(spot)])
        if (now := _crossings(ranks)) < fewest:
            best, fewest = [list(rank) for rank in ranks], now
    return best


def _mean_place(neighbours: list[_Spot], place: dict[int, int], otherwise: int) -> float:
    return sum(place[id(one)] for one in neighbours) / len(neighbours) if neighbours else float(otherwise)


def _crossings(ranks: list[list[_Spot]]) -> int:
    count = 0
    for upper, lower in pairwise(ranks):
        place = {id(spot): index for index, spot in enumerate(lower)}
        ends = [(i, place[id(b)]) for i, spot in enumerate(upper) for b in spot.below if id(b) in place]
        count += sum(1 for i, a in enumerate(ends) for b in ends[i + 1 :] if (a[0] - b[0]) * (a[1] - b[1]) < 0)
    return count


def _place(ranks: list[list[_Spot]]) -> None:
    """Sets x: near the weighted mean of the neighbours, at least GAP apart."""
    for rank in ranks:
        total = 0.0
        for spot in rank:
            spot.x = total + spot.room / 2
            total += spot.room + GAP
        for spot in rank:
            spot.x -= total / 2
    for sweep in range(200):
        for rank in ranks if sweep % 2 == 0 else reversed(ranks):
            wanted, weights = [], []
            for spot in rank:
                total = sum(pull for _, pull in spot.pulls)
                wanted.append(sum(one.x * pull for one, pull in spot.pulls) / total if total else spot.x)
                weights.append(total or 0.1)
            _spread(rank, wanted, weights)


def _spread(rank: list[_Spot], wanted: list[float], weights: list[float]) -> None:
    """Least-squares places in the given order without overlap: isotonic regression by pooling adjacent violators."""
    offsets, total = [], 0.0
    for index, spot in enumerate(rank):
        total += (rank[index - 1].room + spot.room) / 2 + GAP if index else 0.0
        offsets.append(total)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for target, weight, offset in zip(wanted, weights, offsets, strict=True):
        blocks.append((target - offset, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean_a, weight_a, num_a), (mean_b, weight_b, num_b) = blocks[-2:]
            both = weight_a + weight_b
            blocks[-2:] = [((mean_a * weight_a + mean_b * weight_b) / both, both, num_a + num_b)]
    means = [mean for mean, _, num in blocks for _ in range(num)]
    for spot, mean, offset in zip(rank, means, offsets, strict=True):
        spot.x = mean + offset


def _points(routes: list[_Route]) -> Iterable[tuple[_Route, list[Point]]]:
    """Each route's points in the direction of its edge; at a box, edges get ports side by side in the order of where
    they go."""
    ports: dict[tuple[int, int], float] = {}
    boxes = {id(spot): spot for route in routes for spot in (route.spots[0], route.spots[-1])}
    for box in boxes.values():
        for end, inward in ((0, 1), (-1, -2)):
            here = [route for route in routes if route.spots[end] is box]
            here.sort(key=lambda route, inward=inward: route.spots[inward].x)
            step = min(PORT_GAP, (box.width - 24) / max(1, len(here) - 1))
            for index, route in enumerate(here):
                ports[id(route), end] = box.x + (index - (len(here) - 1) / 2) * step
    for route in routes:
        top, bottom = route.spots[0], route.spots[-1]
        points = [(ports[id(route), 0], top.y + top.height / 2)]
        if len(route.spots) > 3 or route.edge.text:  # a single bend without a label would only be a kink
            points += [(spot.x, spot.y) for spot in route.spots[1:-1]]
        points.append((ports[id(route), -1], bottom.y - bottom.height / 2))
        upward = route.edge.source == (bottom.node.id if bottom.node else "")
        yield route, points[::-1] if upward else points


def _edge(route: _Route, points: list[Point]) -> str:
    """One smooth curve, upright where it leaves and arrives, with an arrow head."""
    way = -1.0 if points[-1][1] < points[0][1] else 1.0
    tip = points[-1]
    points = [*points[:-1], (tip[0], tip[1] - 8 * way)]
    slopes = _slopes(points)
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1), before, after in zip(points, points[1:], slopes, slopes[1:], strict=False):
        third = (y1 - y0) / 3 if len(points) > 2 else (y1 - y0) / 2
        path += f" C{x0 + before * third:.1f} {y0 + third:.1f} {x1 - after * third:.1f} {y1 - third:.1f}"
        path += f" {x1:.1f} {y1:.1f}"
    head = " ".join(f"{tip[0] + dx:.1f},{tip[1] - dy * way:.1f}" for dx, dy in ((0, 0), (-4.5, 9), (4.5, 9)))
    return _drawn_edge(route.edge, path, head)


def _slopes(points: list[Point]) -> list[float]:
    """dx/dy at each point: 0 at the ends and at turns, else the harmonic mean of both sides, so that no curve swings
    out beyond its points. Source: Fritsch & Butland (1984), SIAM J. Sci. Stat. Comput. 5, 300-304."""
    sides = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(points)]
    inner = [2 * a * b / (a + b) if a * b > 0 else 0.0 for a, b in pairwise(sides)]
    return [0.0, *inner, 0.0]


def _loop(spot: _Spot, edge: PictureEdge) -> str:
    x, y = spot.x + spot.width / 2, spot.y
    path = f"M{x:.1f} {y - 8:.1f} C{x + 30:.1f} {y - 22:.1f} {x + 30:.1f} {y + 22:.1f} {x + 8:.1f} {y + 9:.1f}"
    head = f"{x:.1f},{y + 6:.1f} {x + 10:.1f},{y + 5:.1f} {x + 6:.1f},{y + 13:.1f}"
    label = _label(x + 32 + text_width(edge.text, 11.5) / 2, y, edge) if edge.text else ""
    return _drawn_edge(edge, path, head) + label


def _drawn_edge(edge: PictureEdge, path: str, head: str) -> str:
    group = "visited" if edge.visits else "plain"
    line = "edge conditional" if edge.conditional else "edge"
    return f'<g class="{group}"><path class="{line}" d="{path}"/><polygon class="head" points="{head}"/></g>'


def _label(x: float, y: float, edge: PictureEdge) -> str:
    width = text_width(edge.text, 11.5) + 10
    return (
        f'<g class="{"visited" if edge.visits else "plain"}"><rect class="halo" x="{x - width / 2:.1f}" '
        f'y="{y - 9:.1f}" width="{width:.1f}" height="18" rx="4"/>'
        f'<text class="label" x="{x:.1f}" y="{y + 4:.1f}">{escape(edge.text)}</text></g>'
    )


def _box(spot: _Spot, node: PictureNode) -> str:
    round_end = spot.height / 2 if node.kind != "node" else 9
    group = " ".join(["visited" if node.visits else "plain", "node" if node.kind == "node" else "end"])
    name_y = spot.y + (-2 if node.note else 5)
    note = f'<text class="note" x="{spot.x:.1f}" y="{spot.y + 14:.1f}">{escape(node.note)}</text>' if node.note else ""
    return (
        f'<g class="{group}"><rect class="box" x="{spot.x - spot.width / 2:.1f}" y="{spot.y - spot.height / 2:.1f}" '
        f'width="{spot.width:.1f}" height="{spot.height:.1f}" rx="{round_end:.0f}"/>'
        f'<text class="name" x="{spot.x:.1f}" y="{name_y:.1f}">{escape(node.text)}</text>{note}</g>'
    )

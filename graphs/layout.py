"""Where everything of a `Picture` stands: boxes in layers, curved edges, labels that never cover one another.

The layout is Sugiyama's in small: edges that lead back up are turned round, nodes get layers (`drawing.downward`),
every edge gets a bend point in each rank that it passes (with its label's width where its label stands), ranks are
ordered by the mean place of their neighbours, and places are set by isotonic regression, so that nothing overlaps.
`svg_drawing` and `png_drawing` paint what `lay_out` returns; sizes are in pixels, y points down.
Source: Sugiyama, Tagawa & Toda (1981), IEEE Trans. SMC 11, 109-125.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from kintsugi.graphs.drawing import Picture, PictureEdge, PictureNode, downward

Point = tuple[float, float]

MARGIN, GAP, PORT_GAP = 28.0, 26.0, 22.0
TITLE, NAME, NOTE, LABEL, CAPTION = 16.0, 14.0, 11.0, 11.5, 12.0
"""Sizes of text, pixels."""
LINE, CAPTION_LINE = 14.0, 18.0
"""Heights of a line of notes and of the caption, pixels."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node. x, y: its middle."""

    node: PictureNode
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """An edge: a start and cubic Bezier pieces of three points each, and the triangle of its head."""

    edge: PictureEdge
    points: tuple[Point, ...]
    head: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Label:
    """An edge's text. x, y: its middle; width: of the patch behind it."""

    edge: PictureEdge
    x: float
    y: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A picture with its places. caption_top: y of the caption's first base line."""

    picture: Picture
    width: float
    height: float
    boxes: tuple[Box, ...]
    curves: tuple[Curve, ...]
    labels: tuple[Label, ...]
    caption_top: float


def lay_out(picture: Picture) -> Layout:
    """Places for everything; the same picture gives the same places."""
    nodes, routes, loops = _spots(picture)
    ranks = _ordered(nodes, routes)
    _place(ranks)
    top = MARGIN + (30 if picture.title else 0)
    left = min((spot.x - spot.room / 2 for rank in ranks for spot in rank), default=0.0) - MARGIN
    right = max((spot.x + spot.room / 2 for rank in ranks for spot in rank), default=0.0) + MARGIN
    wanted = max([text_width(picture.title, TITLE), *(caption_width(line) for line in picture.caption)])
    missing = max(0.0, wanted + 2 * MARGIN - (right - left))
    left, right = left - missing / 2, right + missing / 2
    tall = max((spot.height for spot in nodes.values()), default=36.0)
    step = (tall + (58 if any(edge.text for edge in picture.edges) else 40)) / 2  # boxes stand in every other rank
    for rank in ranks:
        for spot in rank:
            spot.x -= left
            spot.y = top + tall / 2 + spot.rank * step
    bottom = top + tall + max(0, len(ranks) - 1) * step
    caption_top = bottom + MARGIN
    height = bottom + MARGIN + (len(picture.caption) * CAPTION_LINE + 4 if picture.caption else 0)
    curves = [_curve(route, points) for route, points in _points(routes)]
    labels = [_label(route.edge, route.labelled.x, route.labelled.y) for route in routes if route.edge.text]
    for edge in loops:
        curves.append(_loop(nodes[edge.source], edge))
        if edge.text:
            spot = nodes[edge.source]
            labels.append(_label(edge, spot.x + spot.width / 2 + 32 + text_width(edge.text, LABEL) / 2, spot.y))
    boxes = tuple(
        Box(node=spot.node, x=spot.x, y=spot.y, width=spot.width, height=spot.height)
        for spot in nodes.values()
        if spot.node is not None
    )
    return Layout(
        picture=picture,
        width=right - left,
        height=height,
        boxes=boxes,
        curves=tuple(curves),
        labels=tuple(labels),
        caption_top=caption_top,
    )


def caption_width(text: str) -> float:
    """How wide a line of the caption is, pixels: it is set in a typeface of even width."""
    return 0.62 * CAPTION * len(text)


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
        notes = max((text_width(line, NOTE) for line in node.notes), default=0.0)
        width = max(text_width(node.text, NAME) + 34, notes + 28, PORT_GAP * ports * 0.6 + 24, 64.0)
        height = 36.0 + LINE * len(node.notes) - (4.0 if node.notes else 0.0)
        room = width + (2 * (40 + text_width(loops[node.id].text, LABEL)) if node.id in loops else 0)
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
        labelled.width = labelled.room = max(14.0, text_width(edge.text, LABEL) + 16)
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


def _curve(route: _Route, points: list[Point]) -> Curve:
    """One smooth curve, upright where it leaves and arrives, with an arrow head."""
    way = -1.0 if points[-1][1] < points[0][1] else 1.0
    tip = points[-1]
    points = [*points[:-1], (tip[0], tip[1] - 8 * way)]
    slopes = _slopes(points)
    path = [points[0]]
    for (x0, y0), (x1, y1), before, after in zip(points, points[1:], slopes, slopes[1:], strict=False):
        third = (y1 - y0) / 3 if len(points) > 2 else (y1 - y0) / 2
        path += [(x0 + before * third, y0 + third), (x1 - after * third, y1 - third), (x1, y1)]
    head = tuple((tip[0] + dx, tip[1] - dy * way) for dx, dy in ((0, 0), (-4.5, 9), (4.5, 9)))
    return Curve(edge=route.edge, points=tuple(path), head=head)


def _slopes(points: list[Point]) -> list[float]:
    """dx/dy at each point: 0 at the ends and at turns, else the harmonic mean of both sides, so that no curve swings
    out beyond its points. Source: Fritsch & Butland (1984), SIAM J. Sci. Stat. Comput. 5, 300-304."""
    sides = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(points)]
    inner = [2 * a * b / (a + b) if a * b > 0 else 0.0 for a, b in pairwise(sides)]
    return [0.0, *inner, 0.0]


def _loop(spot: _Spot, edge: PictureEdge) -> Curve:
    x, y = spot.x + spot.width / 2, spot.y
    points = ((x, y - 8), (x + 30, y - 22), (x + 30, y + 22), (x + 8, y + 9))
    return Curve(edge=edge, points=points, head=((x, y + 6), (x + 10, y + 5), (x + 6, y + 13)))


def _label(edge: PictureEdge, x: float, y: float) -> Label:
    return Label(edge=edge, x=x, y=y, width=text_width(edge.text, LABEL) + 10)

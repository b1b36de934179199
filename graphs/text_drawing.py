"""A `Picture` in box-drawing characters: one column of boxes, with lanes beside it for every edge that does not lead to
the next box. Jumps back run on the left, jumps ahead on the right, each lane with its label where it leaves its box.
Used through `kintsugi.graphs.drawing.as_text`. Not here: wide characters (each is taken as one column).
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field

from kintsugi.graphs.drawing import Picture, PictureEdge, PictureNode, downward

UP, RIGHT, DOWN, LEFT = range(4)
_SIDES = {"UP": (UP,), "RIGHT": (RIGHT,), "DOWN": (DOWN,), "LEFT": (LEFT,)}
_SIDES |= {"VERTICAL": (UP, DOWN), "HORIZONTAL": (LEFT, RIGHT)}


def _strokes() -> dict[tuple[int, ...], str]:
    """(up, right, down, left) with 0 none, 1 light, 2 heavy → the character, read from Unicode's own names."""
    table = {}
    for code in range(0x2500, 0x2580):
        words = unicodedata.name(chr(code)).split()[2:]
        if set(words) - {*_SIDES, "LIGHT", "HEAVY", "AND"}:
            continue
        arms = [0, 0, 0, 0]
        named: list[str] = []
        leading = words[0] if words[0] in ("LIGHT", "HEAVY") else ""
        for word in [*words[1:], leading] if leading else words:
            if word in _SIDES:
                named.append(word)
            elif word != "AND":
                for side in (side for name in named for side in _SIDES[name]):
                    arms[side] = 2 if word == "HEAVY" else 1
                named = []
        table.setdefault(tuple(arms), chr(code))
    return table


@dataclass
class Canvas:
    """Cells with arms to their four neighbours, and text laid over them."""

    arms: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0, 0]))
    letters: dict[tuple[int, int], str] = field(default_factory=dict)

    def line(self, row: int, column: int, to_row: int, to_column: int, weight: int) -> None:
        """A straight stroke between two cells, ends included."""
        if row == to_row:
            first, last, ahead, behind = *sorted((column, to_column)), RIGHT, LEFT
            cells = [(row, c) for c in range(first, last + 1)]
        else:
            first, last, ahead, behind = *sorted((row, to_row)), DOWN, UP
            cells = [(r, column) for r in range(first, last + 1)]
        for index, cell in enumerate(cells):
            if index:
                self.arms[cell][behind] = max(self.arms[cell][behind], weight)
            if index < len(cells) - 1:
                self.arms[cell][ahead] = max(self.arms[cell][ahead], weight)

    def write(self, row: int, column: int, text: str) -> None:
        for offset, letter in enumerate(text):
            self.letters[row, column + offset] = letter

    def text(self) -> str:
        strokes = _strokes()
        cells = {cell: strokes[tuple(arms)] for cell, arms in self.arms.items() if any(arms)} | self.letters
        height = max((row for row, _ in cells), default=-1) + 1
        left = min((column for _, column in cells), default=0)
        right = max((column for _, column in cells), default=-1) + 1
        lines = ("".join(cells.get((row, column), " ") for column in range(left, right)) for row in range(height))
        return "\n".join(line.rstrip() for line in lines)


@dataclass
class _Lane:
    """An edge beside the column. track: 0 is next to the boxes. row_out, row_in: where it leaves and enters."""

    edge: PictureEdge
    left: bool
    top: int
    bottom: int
    track: int = 0
    row_out: int = 0
    row_in: int = 0


def draw_text(picture: Picture, width: int) -> str:
    """The drawing; labels are cut with … where `width` asks for it."""
    layers, back = downward(picture)
    position = {node.id: index for index, node in enumerate(picture.nodes)}
    order = sorted(picture.nodes, key=lambda node: (layers[node.id], node.kind == "end", position[node.id]))
    place = {node.id: index for index, node in enumerate(order)}
    steps: dict[int, PictureEdge] = {}
    lanes: list[_Lane] = []
    for index, edge in enumerate(picture.edges):
        top, bottom = sorted((place[edge.source], place[edge.target]))
        if index not in back and place[edge.target] == place[edge.source] + 1 and top not in steps:
            steps[top] = edge
        else:
            lanes.append(_Lane(edge=edge, left=index in back and top != bottom, top=top, bottom=bottom))
    _assign_tracks(lanes)
    inner = max((len(line) for node in order for line in (node.text, *node.notes)), default=0)
    strips, tracks = _widths(lanes, width - min(inner + 4, width // 2))
    box = min(inner + 2, width - sum(strips) - sum(tracks) - 2)
    free = box + 2 + strips[1] if strips[1] else width - strips[0] - tracks[0]  # right of the left lanes, for labels
    canvas = Canvas()
    row = 0
    for index, node in enumerate(order):
        row = _draw_node(canvas, node, row, box, _ports(lanes, index))
        if index in steps:
            row = _draw_step(canvas, steps[index], row, box, free)
        elif index < len(order) - 1:
            row += 1
    for lane in sorted(lanes, key=lambda lane: bool(lane.edge.visits)):
        _draw_lane(canvas, lane, box, strips[0 if lane.left else 1])
    heading = f"{_cut(picture.title, width)}\n\n" if picture.title else ""
    lines = [piece for line in picture.caption for piece in _folded(line, width)]
    return heading + canvas.text() + "\n" + ("\n" + "\n".join(lines) + "\n" if lines else "")


def _assign_tracks(lanes: list[_Lane]) -> None:
    """Short lanes inside, long ones outside; two share a track when they do not meet."""
    for left in (True, False):
        taken: list[list[_Lane]] = []
        for lane in sorted((one for one in lanes if one.left == left), key=lambda one: (one.bottom - one.top, one.top)):
            free = (t for t, on in enumerate(taken) if all(lane.top > o.bottom or lane.bottom < o.top for o in on))
            # Never further in than a lane that it encloses: that would cross it twice.
            inside = [t for t, on in enumerate(taken) for o in on if lane.top <= o.top and o.bottom <= lane.bottom]
            lowest = max(inside, default=-1) + 1
            lane.track = next((t for t in free if t >= lowest), len(taken))
            while len(taken) <= lane.track:
                taken.append([])
            taken[lane.track].append(lane)


def _widths(lanes: list[_Lane], room: int) -> tuple[list[int], list[int]]:
    """Columns left and right of the boxes: for labels, and for lanes. The labels give way when room is short."""
    sides = [[lane for lane in lanes if lane.left == left] for left in (True, False)]
    tracks = [2 * max((lane.track + 1 for lane in side), default=0) for side in sides]
    labels = [max((len(lane.edge.text) for lane in side), default=0) for side in sides]
    strips = [(label + 4 if label else 2) if side else 0 for label, side in zip(labels, sides, strict=True)]
    while sum(strips) + sum(tracks) > room and max(strips) > 4:
        strips[strips.index(max(strips))] -= 1
    return strips, tracks


def _ports(lanes: list[_Lane], index: int) -> list[tuple[_Lane, bool]]:
    """What meets box `index` at its sides, from top to bottom, as (lane, leaves here): what goes up stands above what
    goes down, and the outer tracks stand next to each other, so that lanes do not cross at their own box."""

    def rank(port: tuple[_Lane, bool]) -> tuple[int, int]:
        lane, out = port
        if lane.top == lane.bottom:
            return 1, int(not out)
        return (0, lane.track) if lane.bottom == index else (2, -lane.track)

    ports = [(lane, True) for lane in lanes if index == (lane.bottom if lane.left else lane.top)]
    ports += [(lane, False) for lane in lanes if index == (lane.top if lane.left else lane.bottom)]
    return sorted(ports, key=rank)


def _draw_node(canvas: Canvas, node: PictureNode, row: int, box: int, ports: list[tuple[_Lane, bool]]) -> int:
    """Draw the box whose top left inner cell is (row + 1, 1); give its ports their rows; return the row below it."""
    lines = [_cut(line, box) for line in (node.text, *node.notes)]
    left = [port for port in ports if port[0].left]
    right = [port for port in ports if not port[0].left]
    height = max(len(lines), len(left), len(right))
    bottom, weight = row + height + 1, 2 if node.visits else 1
    canvas.line(row, 0, row, box + 1, weight)
    canvas.line(bottom, 0, bottom, box + 1, weight)
    canvas.line(row, 0, bottom, 0, weight)
    canvas.line(row, box + 1, bottom, box + 1, weight)
    for offset, line in enumerate(lines):
        canvas.write(row + 1 + (height - len(lines)) // 2 + offset, 1 + (box - len(line)) // 2, line)
    for side in (left, right):
        for offset, (lane, out) in enumerate(side):
            here = row + 1 + (height - len(side)) // 2 + offset
            lane.row_out, lane.row_in = (here, lane.row_in) if out else (lane.row_out, here)
    return bottom + 1


def _draw_step(canvas: Canvas, edge: PictureEdge, row: int, box: int, room: int) -> int:
    """The arrow down to the next box."""
    middle, weight = (box + 1) // 2, 2 if edge.visits else 1
    length = 1 if edge.text else 0
    canvas.line(row - 1, middle, row + length, middle, weight)
    canvas.write(row + length, middle, "▼")
    canvas.write(row, middle + 2, _cut(edge.text, room - middle - 2))
    return row + length + 1


def _draw_lane(canvas: Canvas, lane: _Lane, box: int, strip: int) -> None:
    weight = 2 if lane.edge.visits else 1
    edge, sign = (0, -1) if lane.left else (box + 1, 1)
    column = edge + sign * (strip + 1 + 2 * lane.track)
    canvas.line(lane.row_out, edge, lane.row_out, column, weight)
    canvas.line(lane.row_out, column, lane.row_in, column, weight)
    canvas.line(lane.row_in, column, lane.row_in, edge + sign, weight)
    canvas.write(lane.row_in, edge + sign, "▶" if lane.left else "◀")
    if lane.edge.text:
        text = f" {_cut(lane.edge.text, strip - 3)} "
        canvas.write(lane.row_out, edge - 1 - len(text) if lane.left else edge + 2, text)


def _folded(line: str, width: int) -> list[str]:
    """A line of the caption in pieces that fit, the later ones indented."""
    return textwrap.wrap(line, width, subsequent_indent="    ", drop_whitespace=True, break_on_hyphens=False) or [""]


def _cut(text: str, room: int) -> str:
    """On one line, of at most `room` characters."""
    line = " ".join(text.split())
    return line if len(line) <= room else line[: max(0, room - 1)] + "…"

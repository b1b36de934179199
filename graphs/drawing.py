"""Graphs as pictures: text for the terminal, Mermaid for documents, SVG and PNG for pages; no network. Only PNG needs a
package (matplotlib).

`picture_of` reads a compiled LangGraph graph (its `get_graph()`), or build a `Picture` yourself. `with_path` marks what
an episode did: how often each node and edge was visited, and the time spent. Then `as_text` (at most 80 columns),
`as_mermaid`, `as_svg` or `as_png`. All but Mermaid have their own files; this one holds what they draw.

    picture = with_path(picture_of(graph), episode.path)
    print(as_text(picture))

Not here: subgraphs, which are drawn as one node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class PictureNode:
    """A node. label: what is printed (the id when empty). visits: how often it was visited, None when nothing is known
    of a path. seconds: time spent in it, all visits together. remark: more to say of it, on a line of its own."""

    id: str
    label: str = ""
    kind: Literal["node", "start", "end"] = "node"
    visits: int | None = None
    seconds: float | None = None
    remark: str = ""

    @property
    def text(self) -> str:
        return self.label or self.id

    @property
    def note(self) -> str:
        """ "3 × · 1.2 s", or nothing when nothing was measured."""
        parts = [f"{self.visits} ×"] if self.visits and self.kind == "node" else []
        return " · ".join(parts + ([f"{_figures(self.seconds)} s"] if self.seconds is not None else []))

    @property
    def notes(self) -> tuple[str, ...]:
        """The lines below the name."""
        return tuple(line for line in (self.note, self.remark) if line)


@dataclass(frozen=True, kw_only=True)
class PictureEdge:
    """An edge, from a node's id to another's (or the same). conditional: taken only sometimes; drawn dashed. share: of
    the ways that leave its source, how many go here, from 0 to 1; None where it is not of interest."""

    source: str
    target: str
    label: str = ""
    conditional: bool = False
    visits: int | None = None
    share: float | None = None

    @property
    def text(self) -> str:
        """The label, with the visits behind it where the edge was taken more than once."""
        count = f"{self.visits} ×" if self.visits and self.visits > 1 else ""
        share = f"{self.share:.0%}" if self.visits and self.share is not None and self.share < 1 else ""
        return " · ".join(part for part in (self.label, count, share) if part)

    @property
    def thickness(self) -> float:
        """Of the line of a visited edge, pixels: the thicker, the more ways go along it."""
        return 2.4 if self.share is None else 1.4 + 3.6 * self.share


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A graph to draw, with lines of text below it. Edges between unknown ids raise ValueError."""

    nodes: tuple[PictureNode, ...]
    edges: tuple[PictureEdge, ...]
    title: str = ""
    caption: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {node.id for node in self.nodes}
        if len(known) != len(self.nodes):
            raise ValueError("expected each node id once, found one twice")
        for edge in self.edges:
            if not {edge.source, edge.target} <= known:
                raise ValueError(f"expected edges between known nodes, found {edge.source} → {edge.target}")


def picture_of(graph: Any, title: str = "") -> Picture:
    """The picture of a compiled LangGraph graph, or of what its `get_graph()` returned."""
    drawable = graph.get_graph() if hasattr(graph, "get_graph") else graph
    kinds: dict[str, Literal["start", "end"]] = {"__start__": "start", "__end__": "end"}
    nodes = tuple(
        PictureNode(id=id, label=id.strip("_") if id in kinds else node.name, kind=kinds.get(id, "node"))
        for id, node in drawable.nodes.items()
    )
    edges = tuple(
        PictureEdge(
            source=edge.source,
            target=edge.target,
            # LangGraph labels an exit with its target's own name when the recipe gave no other.
            label="" if edge.data in (None, edge.target, edge.target.strip("_")) else str(edge.data),
            conditional=bool(edge.conditional),
        )
        for edge in drawable.edges
    )
    return Picture(nodes=nodes, edges=edges, title=title)


def with_path(
    picture: Picture, path: Sequence[str], seconds: Mapping[str, float] | None = None, *, over: bool = True
) -> Picture:
    """The picture with visits counted along `path` (node ids in the order visited; start and end may be left out, as
    `Episode.path` does; over: it went to the end) and `seconds` by node id. Steps without an edge count for the nodes
    alone."""
    starts = [node.id for node in picture.nodes if node.kind == "start"]
    ends = [node.id for node in picture.nodes if node.kind == "end"]
    steps = list(path)
    if steps:
        steps = [*(starts if steps[0] not in starts else []), *steps, *(ends if over and steps[-1] not in ends else [])]
    node_visits, edge_visits = Counter(steps), Counter(pairwise(steps))
    nodes = tuple(
        replace(node, visits=node_visits[node.id], seconds=(seconds or {}).get(node.id)) for node in picture.nodes
    )
    seen: set[tuple[str, str]] = set()
    edges = []
    for edge in picture.edges:  # of parallel edges the path cannot tell which was taken: the first is marked
        key = (edge.source, edge.target)
        edges.append(replace(edge, visits=0 if key in seen else edge_visits[key]))
        seen.add(key)
    return replace(picture, nodes=nodes, edges=tuple(edges))


def as_text(picture: Picture, width: int = 80) -> str:
    """Box drawing, at most `width` columns: nodes from top to bottom, jumps back on the left, jumps ahead on the right,
    what was visited in heavy lines."""
    from kintsugi.graphs.text_drawing import draw_text

    return draw_text(picture, width)


def as_svg(picture: Picture) -> str:
    """A self-contained SVG document, readable on light and dark pages."""
    from kintsugi.graphs.svg_drawing import draw_svg

    return draw_svg(picture)


def as_png(picture: Picture, *, dark: bool = False) -> bytes:
    """A PNG file, two pixels for one of the SVG's; needs matplotlib (the "train" extra)."""
    from kintsugi.graphs.png_drawing import draw_png

    return draw_png(picture, dark=dark)


def as_mermaid(picture: Picture) -> str:
    """A Mermaid flowchart; conditional edges dotted, what was visited in gold, the caption as comments."""
    names = {node.id: f"n{index}" for index, node in enumerate(picture.nodes)}
    lines = ["---", f"title: {_quoted(picture.title)}", "---"] if picture.title else []
    lines.append("flowchart TD")
    for node in picture.nodes:
        text = _quoted("\n".join((node.text, *node.notes)))
        lines.append(f"    {names[node.id]}" + (f"({text})" if node.kind == "node" else f"([{text}])"))
    visited = []
    for index, edge in enumerate(picture.edges):
        arrow = "-.->" if edge.conditional else "-->"
        text = f"|{_quoted(edge.text)}|" if edge.text else ""
        lines.append(f"    {names[edge.source]} {arrow}{text} {names[edge.target]}")
        visited += [str(index)] if edge.visits else []
    gold = [names[node.id] for node in picture.nodes if node.visits]
    if gold:
        lines.append("    classDef visited stroke:#b8860b,stroke-width:3px")
        lines.append(f"    class {','.join(gold)} visited")
    if visited:
        lines.append(f"    linkStyle {','.join(visited)} stroke:#b8860b,stroke-width:3px")
    lines += [f"    %% {line}".rstrip() for line in picture.caption]
    return "\n".join(lines) + "\n"


def downward(picture: Picture) -> tuple[dict[str, int], set[int]]:
    """Layer of each node (0 at the top) and the indices of the edges that lead back up, self-loops included.

    Back edges are those that meet a node still open in a depth-first walk from the start; the layer is the longest way
    down along the others; ends stand in the last layer."""
    outgoing: dict[str, list[int]] = {node.id: [] for node in picture.nodes}
    for index, edge in enumerate(picture.edges):
        outgoing[edge.source].append(index)
    back: set[int] = set()
    finished: list[str] = []
    state: dict[str, str] = {}
    for first in sorted(picture.nodes, key=lambda node: node.kind != "start"):
        if first.id in state:
            continue
        state[first.id] = "open"
        walk = [(first.id, iter(outgoing[first.id]))]
        while walk:
            here, rest = walk[-1]
            index = next(rest, None)
            if index is None:
                state[here] = "done"
                finished.append(here)
                walk.pop()
                continue
            target = picture.edges[index].target
            if state.get(target) == "open":
                back.add(index)
            elif target not in state:
                state[target] = "open"
                walk.append((target, iter(outgoing[target])))
    layers = dict.fromkeys(state, 0)
    for id in reversed(finished):
        for index in outgoing[id]:
            if index not in back:
                target = picture.edges[index].target
                layers[target] = max(layers[target], layers[id] + 1)
    last = max(layers.values(), default=0)
    layers.update({node.id: last for node in picture.nodes if node.kind == "end" and not outgoing[node.id]})
    return layers, back


def _figures(seconds: float) -> str:
    """Two figures, and no exponent: 0.00031, 1.2, 340."""
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"


def _quoted(text: str) -> str:
    """Mermaid text in quotes: its own entity codes for what would end the quote or be read as markup."""
    codes = {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", "\\": "#92;"}
    return '"' + "".join(codes.get(char, char) for char in text).replace("\n", "<br>") + '"'

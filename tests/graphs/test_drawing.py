"""Pictures of graphs: nothing is lost, nothing overlaps, nothing is wider than the terminal, labels are escaped."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from typing import TypedDict
from xml.etree import ElementTree

import pytest

from kintsugi.errors import MissingExtra
from kintsugi.graphs.drawing import (
    Picture,
    PictureEdge,
    PictureNode,
    as_mermaid,
    as_png,
    as_svg,
    as_text,
    downward,
    picture_of,
    with_path,
)

EPISODE = Picture(
    title="episode",
    nodes=(
        PictureNode(id="__start__", label="start", kind="start"),
        *(PictureNode(id=name) for name in ("agent", "environment", "refiner", "reflector")),
        PictureNode(id="__end__", label="end", kind="end"),
    ),
    edges=(
        PictureEdge(source="__start__", target="agent"),
        PictureEdge(source="agent", target="environment"),
        PictureEdge(source="environment", target="agent", label="not over", conditional=True),
        PictureEdge(source="environment", target="refiner", label="rewrite", conditional=True),
        PictureEdge(source="environment", target="reflector", label="reflect", conditional=True),
        PictureEdge(source="environment", target="__end__", label="over", conditional=True),
        PictureEdge(source="refiner", target="environment"),
        PictureEdge(source="reflector", target="agent"),
    ),
)
NASTY = 'say "hi" <b> & #1;\n`x`'

TEXT = """\
   ┌─────────────┐
   │    start    │
   └──────┬──────┘
          ▼
   ┌─────────────┐
┌─▶│    agent    ├─ go on ─┐
│  └──────┬──────┘         │
│         │ stop           │
│         ▼                │
│  ┌─────────────┐         │
└──┤ environment │◀────────┘
   └─────────────┘
"""


def test_text_of_a_loop_to_the_letter() -> None:
    edges = (
        PictureEdge(source="start", target="agent"),
        PictureEdge(source="agent", target="environment", label="stop"),
        PictureEdge(source="agent", target="environment", label="go on"),
        PictureEdge(source="environment", target="agent"),
    )
    nodes = tuple(PictureNode(id=name) for name in ("start", "agent", "environment"))
    assert as_text(Picture(nodes=nodes, edges=edges)) == TEXT


def test_layers_and_back_edges() -> None:
    layers, back = downward(EPISODE)
    assert layers == {"__start__": 0, "agent": 1, "environment": 2, "refiner": 3, "reflector": 3, "__end__": 3}
    assert back == {2, 6, 7}


def test_text_shows_every_node_and_label_within_80_columns() -> None:
    text = as_text(EPISODE)
    words = {node.text for node in EPISODE.nodes} | {edge.label for edge in EPISODE.edges}
    assert all(word in text for word in words)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("▶") + text.count("◀") + text.count("▼") == len(EPISODE.edges)


def test_visited_is_heavy_and_counted() -> None:
    picture = with_path(EPISODE, ["agent", "environment", "refiner", "environment"], {"agent": 1.25})
    visits = {node.id: node.visits for node in picture.nodes}
    assert visits == {"__start__": 1, "agent": 1, "environment": 2, "refiner": 1, "reflector": 0, "__end__": 1}
    assert {(edge.source, edge.target) for edge in picture.edges if not edge.visits} == {
        ("environment", "agent"),
        ("environment", "reflector"),
        ("reflector", "agent"),
    }
    text = as_text(picture)
    assert "1 × · 1.2 s" in text and "┃" in text and text.count("┏━━") == 5 + 1  # five boxes, one lane's corner
    assert "stroke:#b8860b" in as_mermaid(picture) and 'class="visited' in as_svg(picture)
    assert 'class="visited' not in as_svg(EPISODE)


def test_labels_are_escaped() -> None:
    picture = Picture(
        title=NASTY,
        nodes=(PictureNode(id=NASTY), PictureNode(id="b")),
        edges=(PictureEdge(source=NASTY, target="b", label=NASTY), PictureEdge(source="b", target="b", label="again")),
    )
    root = ElementTree.fromstring(as_svg(picture))
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(NASTY) == 3 and "again" in texts
    mermaid = as_mermaid(picture)
    assert mermaid.count("say #quot;hi#quot; #lt;b#gt; #amp; #35;1;<br>#96;x#96;") == 3
    assert NASTY not in mermaid
    assert 'say "hi" <b> & #1; `x`' in as_text(picture)


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """x, y, width, height of every node and label."""
    root = ElementTree.fromstring(svg)
    found = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") in ("box", "halo")]
    return [tuple(float(r.get(key, "nan")) for key in ("x", "y", "width", "height")) for r in found]  # type: ignore[misc]


def random_picture(rng: random.Random) -> Picture:
    nodes = tuple(PictureNode(id=f"node {i}", label="w" * rng.randint(1, 18)) for i in range(rng.randint(1, 9)))
    ids, labels = [node.id for node in nodes], ["", "yes", "a longer label"]
    edges = tuple(
        PictureEdge(source=rng.choice(ids), target=rng.choice(ids), label=rng.choice(labels))
        for _ in range(rng.randint(0, 14))
    )
    return Picture(nodes=nodes, edges=edges)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    picture = random_picture(random.Random(seed))
    text = as_text(picture)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("▶") + text.count("◀") + text.count("▼") == len(picture.edges)
    svg = as_svg(picture)
    root = ElementTree.fromstring(svg)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    areas = boxes(svg)
    for index, (x, y, w, h) in enumerate(areas):
        assert x >= 0 and y >= 0 and x + w <= width + 1 and y + h <= height + 1
        for x2, y2, w2, h2 in areas[index + 1 :]:
            assert x + w <= x2 + 1 or x2 + w2 <= x + 1 or y + h <= y2 + 1 or y2 + h2 <= y + 1
    assert as_svg(picture) == svg


def test_a_path_that_is_not_over_has_no_end() -> None:
    visits = {node.id: node.visits for node in with_path(EPISODE, ["agent"], over=False).nodes}
    assert (visits["__start__"], visits["agent"], visits["__end__"]) == (1, 1, 0)


def test_caption_and_remarks() -> None:
    nodes = (replace(EPISODE.nodes[0], remark="a remark"), *EPISODE.nodes[1:])
    picture = replace(EPISODE, nodes=nodes, caption=("first <line>", "a long line " * 12))
    text, svg = as_text(picture), as_svg(picture)
    assert "a remark" in text and max(len(line) for line in text.splitlines()) <= 80
    assert " ".join(text.split()).endswith("first <line> " + " ".join(["a long line"] * 12))
    root = ElementTree.fromstring(svg)
    bottom = max(y + h for _, y, _, h in boxes(svg))
    captions = [element for element in root.iter() if element.get("class") == "caption"]
    assert [element.text for element in captions] == list(picture.caption)
    assert all(bottom < float(element.get("y", 0)) < float(root.get("height", 0)) for element in captions)
    assert "%% first <line>" in as_mermaid(picture)


def test_shares_make_lines_thick() -> None:
    edge = PictureEdge(source="a", target="b", visits=3, share=0.25)
    picture = Picture(nodes=(PictureNode(id="a", visits=12), PictureNode(id="b", visits=3)), edges=(edge,))
    assert edge.text == "3 × · 25%" and "stroke-width:2.3" in as_svg(picture) and edge.text in as_text(picture)


def test_png_in_light_and_dark() -> None:
    pytest.importorskip("matplotlib", reason='PNG files need matplotlib: pip install "kintsugi-agents[train]"')
    import io

    from matplotlib.image import imread

    picture = with_path(replace(EPISODE, caption=("$x_1$ is no formula",)), ["agent", "environment"])
    light, dark = as_png(picture), as_png(picture, dark=True)
    width, height = (float(ElementTree.fromstring(as_svg(picture)).get(key, "0")) for key in ("width", "height"))
    for file, page in ((light, 0.98), (dark, 0.09)):
        pixels = imread(io.BytesIO(file), format="png")
        assert abs(pixels.shape[1] - 2 * width) <= 2 and abs(pixels.shape[0] - 2 * height) <= 2
        assert abs(float(pixels[2, 2, 0]) - page) < 0.02 and float(pixels[:, :, 0].std()) > 0.03, "a page with ink on it"
    assert as_png(picture) == light


def test_png_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"drawing PNG files needs packages .*\[train\]"):
        as_png(EPISODE)


def test_unknown_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="known nodes"):
        Picture(nodes=(PictureNode(id="a"),), edges=(PictureEdge(source="a", target="b"),))
    with pytest.raises(ValueError, match="twice"):
        Picture(nodes=(PictureNode(id="a"), PictureNode(id="a")), edges=())


def test_langgraph_graph() -> None:
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict):
        count: int

    graph = StateGraph(State)
    for name in ("agent", "environment", "refiner"):
        graph.add_node(name, lambda state: state)
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "environment")
    exits = {"agent": "agent", "failed": "refiner", "end": END}
    graph.add_conditional_edges("environment", lambda state: "end", exits)  # type: ignore[arg-type]
    graph.add_edge("refiner", "environment")
    picture = picture_of(graph.compile(), title="tiny")
    assert {node.text for node in picture.nodes} == {"start", "agent", "environment", "refiner", "end"}
    labels = {(edge.source, edge.target): (edge.label, edge.conditional) for edge in picture.edges}
    assert labels[("environment", "refiner")] == ("failed", True)
    assert labels[("environment", "__end__")] == ("", True)
    assert labels[("agent", "environment")] == ("", False)
    for drawn in (as_text(picture), as_mermaid(picture), as_svg(picture)):
        assert "refiner" in drawn and "failed" in drawn

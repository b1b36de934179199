"""Counts over episodes: each visit, way and verdict once, repairs by what they did, and the picture that shows them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from xml.etree import ElementTree

from kintsugi.graphs.drawing import Picture, PictureEdge, PictureNode, as_mermaid, as_svg, as_text
from kintsugi.graphs.episode_tally import EpisodeTally, caption_of, tally_of, with_tally
from kintsugi.records import Action, Cost, Episode, Fault, Observation, Stop, Trajectory, Verdict

GRAPH = Picture(
    nodes=(
        PictureNode(id="__start__", label="start", kind="start"),
        *(PictureNode(id=name) for name in ("agent", "environment", "refiner")),
        PictureNode(id="__end__", label="end", kind="end"),
    ),
    edges=(
        PictureEdge(source="__start__", target="agent", conditional=True),
        PictureEdge(source="__start__", target="refiner", conditional=True),
        PictureEdge(source="agent", target="environment"),
        PictureEdge(source="environment", target="agent", conditional=True),
        PictureEdge(source="environment", target="refiner", conditional=True),
        PictureEdge(source="refiner", target="environment"),
        PictureEdge(source="environment", target="__end__", conditional=True),
    ),
)


def attempt(episode: str, number: int, stop: Stop, turns: int = 1, note: str = "", parent: str | None = None) -> Trajectory:
    fault = Fault(kept="", bad="x", note=note) if note else None
    won = stop == "success"
    verdict = Verdict(success=won, reward=float(won), feedback="Done." if won else f'said "{number}" 3 times', fault=fault)
    actions = [message for _ in range(turns) for message in (Action(text="look"), Observation(text="a room"))]
    return Trajectory(
        id=f"{episode}-{number}",
        episode_id=episode,
        task_id="t",
        environment="e",
        stage="refine" if parent else "explore",
        attempt=number,
        policy_version="v",
        round=1,
        messages=(Observation(text="task"), *actions, verdict),
        stop=stop,
        hard_reward=float(won),
        feedback=verdict.feedback,
        parent_id=parent,
        cost=Cost(seconds=0.5),
    )


def episode(id: str, attempts: Sequence[Trajectory], path: str, seconds: Sequence[float] = ()) -> Episode:
    names = {"a": "agent", "e": "environment", "r": "refiner"}
    return Episode(
        id=id,
        run_id="r",
        purpose="explore",
        round=1,
        task_id="t",
        environment="e",
        sample=0,
        seed=0,
        policy_version="v",
        trajectories=tuple(attempts),
        path=tuple(names[letter] for letter in path),
        seconds=tuple(seconds),
    )


def some() -> list[Episode]:
    return [
        episode("A", [attempt("A", 0, "success")], "ae", [1.0, 0.25]),
        episode("B", [attempt("B", 0, "failure", note="never used 7"), attempt("B", 1, "success", parent="B-0")], "aere"),
        episode("C", [attempt("C", 0, "truncated", turns=3), attempt("C", 1, "failure", parent="C-0")], "aeaeaere"),
        episode("D", [attempt("D", 0, "success"), attempt("D", 1, "failure", note="never used 8", parent="D-0")], "aere"),
        episode("E", [attempt("E", 0, "error")], "ae"),
        episode("F", [attempt("F", 0, "success", parent="gone")], "re"),
    ]


def test_everything_is_counted_once() -> None:
    tally = tally_of(some())
    assert (tally.episodes, tally.solved) == (6, 4)
    assert tally.nodes == {"__start__": 6, "agent": 7, "environment": 11, "refiner": 4, "__end__": 6}
    assert tally.edges[("environment", "refiner")] == 3 and tally.edges[("__start__", "refiner")] == 1
    assert tally.edges[("environment", "__end__")] == 6 and tally.edges[("environment", "agent")] == 2
    assert tally.seconds == {"agent": 1.0, "environment": 0.25}
    assert tally.stops[("explore", "error")] == 1 and tally.stops[("refine", "success")] == 2
    assert tally.lost_at == {1: 3, 3: 1}, "what the environment broke is not lost"


def test_repairs_are_counted_by_what_they_did() -> None:
    tally = tally_of(some())
    assert (tally.repairs, tally.helped, tally.spoiled) == (4, 2, 1)
    won = dataclasses.replace(attempt("X", 0, "success"), id="gone")
    known = tally_of(some(), {"gone": won})
    assert (known.repairs, known.helped, known.spoiled) == (4, 1, 1), "a right attempt made right again was not helped"


def test_objections_that_differ_in_numbers_and_quotes_alone_are_one() -> None:
    assert tally_of(some()).objections == [("never used #", 2), ('said "…" # times', 2)]


def test_the_picture_carries_the_counts() -> None:
    picture = with_tally(GRAPH, tally_of(some()))
    notes = {node.id: node.notes for node in picture.nodes}
    assert notes["environment"] == ("11 × · 0.25 s", "✓ 4  ✗ 3  … 1  ! 1")
    assert notes["refiner"] == ("4 ×", "helped 2 of 4") and notes["__end__"] == ("4 of 6 solved",)
    shares = {(edge.source, edge.target): edge.share for edge in picture.edges}
    assert shares[("environment", "refiner")] == 3 / 11 and shares[("refiner", "environment")] == 1.0
    texts = {(edge.source, edge.target): edge.text for edge in picture.edges}
    assert texts[("environment", "refiner")] == "3 × · 27%" and texts[("refiner", "environment")] == "4 ×"
    text, svg, mermaid = as_text(picture), as_svg(picture), as_mermaid(picture)
    assert max(len(line) for line in text.splitlines()) <= 80
    ElementTree.fromstring(svg)
    for drawn in (text, svg, mermaid):
        assert "helped 2 of 4" in drawn and "3 × · 27%" in drawn
        assert "repair   helped 2 of 4 times (50%), spoiled 1" in drawn
        assert "lost     after so many turns: 1: 3, 3: 1" in drawn
    assert "stroke-width:5.0" in svg, "the way that all go is thick"


def test_one_episode_is_told_attempt_by_attempt() -> None:
    tally = tally_of(some()[1:2])
    picture = with_tally(GRAPH, tally)
    assert {node.id: node.remark for node in picture.nodes}["environment"] == "✗ ✓"
    first, second = caption_of(tally)
    assert first.startswith("attempt 0  explore  ✗ failure     1 turn  0.5 s  said") and "✓ success" in second
    assert all(edge.share is None for edge in picture.edges)
    assert "1 of 1 solved" not in as_text(picture)


def test_ways_that_the_recipe_does_not_wire_are_added() -> None:
    bare = Picture(nodes=GRAPH.nodes[:3] + GRAPH.nodes[4:], edges=(PictureEdge(source="__start__", target="agent"),))
    picture = with_tally(bare, tally_of(some()))
    assert {node.id for node in picture.nodes} == {node.id for node in GRAPH.nodes}
    assert sum(edge.visits or 0 for edge in picture.edges) == sum(tally_of(some()).edges.values())
    assert "refiner" in as_text(picture)


def test_plain_values_and_nothing_at_all() -> None:
    plain = json.loads(json.dumps(tally_of(some()).plain()))
    assert plain["repairs"] == {"tried": 4, "helped": 2, "spoiled": 1} and plain["attempts"]["explore"]["error"] == 1
    assert plain["lost_at_turn"] == {"1": 3, "3": 1} and plain["trajectories"] == []
    empty: EpisodeTally = tally_of([])
    assert empty.episodes == 0 and caption_of(empty) == ("0 episodes, 0 with a right attempt",)
    assert as_text(with_tally(GRAPH, empty))


def test_long_and_hostile_feedback_fits() -> None:
    long = dataclasses.replace(attempt("L", 0, "failure"), feedback="<b>&" + "very " * 99, messages=())
    for tally in (tally_of([episode("L", [long], "ae")]), tally_of([episode("L", [long], "ae")] * 2)):
        picture = with_tally(GRAPH, tally)
        assert max(len(line) for line in as_text(picture).splitlines()) <= 80
        ElementTree.fromstring(as_svg(picture))

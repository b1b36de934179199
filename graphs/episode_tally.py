"""What happened in one episode or in many, counted on the episode graph: where they fail, how often repair helps.

    tally = tally_of(ledger.episodes(purpose="explore"))
    print(as_text(with_tally(picture_of(graph), tally)))

Pure: records in, numbers and pictures out. An attempt that the environment broke ("error") is counted as that, never as
a wrong answer. Left out: differences between runs (`kintsugi report` compares them).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from kintsugi.graphs.drawing import Picture, PictureEdge, PictureNode
from kintsugi.records import Episode, Stop, Trajectory, to_plain

START, END = "__start__", "__end__"
MARKS: Mapping[Stop, str] = {"success": "✓", "failure": "✗", "truncated": "…", "error": "!"}
STOPS: tuple[Stop, ...] = ("success", "failure", "truncated", "error")


@dataclass(frozen=True, kw_only=True)
class EpisodeTally:
    """Counts over episodes.

    episodes, solved: how many, and those with a right attempt. nodes: visits by node. edges: ways taken by (from, to),
    start and end included. seconds: wall time by node, all visits together; empty when no episode noted it.
    stops: attempts by (stage, stop). repairs: attempts that repair another one; helped: those that turned a lost attempt
    into a right one; spoiled: those that turned a right one into a lost one.
    lost_at: attempts that failed or ran out of turns, by their number of turns. objections: what the environment said
    of them, numbers as #, by how often, the most frequent first. attempts: each attempt of a single episode, in order.
    """

    episodes: int
    solved: int
    nodes: Mapping[str, int]
    edges: Mapping[tuple[str, str], int]
    seconds: Mapping[str, float]
    stops: Mapping[tuple[str, Stop], int]
    repairs: int
    helped: int
    spoiled: int
    lost_at: Mapping[int, int]
    objections: Sequence[tuple[str, int]]
    attempts: Sequence[Trajectory] = ()

    def plain(self) -> dict[str, Any]:
        """The counts as JSON-ready values."""
        stages: dict[str, dict[str, int]] = defaultdict(dict)
        for (stage, stop), number in self.stops.items():
            stages[stage][stop] = number
        return {
            "episodes": self.episodes,
            "solved": self.solved,
            "visits": dict(self.nodes),
            "seconds": dict(self.seconds),
            "ways": [{"from": a, "to": b, "visits": number} for (a, b), number in self.edges.items()],
            "attempts": dict(stages),
            "repairs": {"tried": self.repairs, "helped": self.helped, "spoiled": self.spoiled},
            "lost_at_turn": {str(turn): number for turn, number in self.lost_at.items()},
            "objections": [{"text": text, "times": number} for text, number in self.objections],
            "trajectories": [
                {**{name: getattr(one, name) for name in ("id", "stage", "stop", "feedback")}, "cost": to_plain(one.cost)}
                for one in self.attempts
            ],
        }


def tally_of(episodes: Iterable[Episode], known: Mapping[str, Trajectory] | None = None) -> EpisodeTally:
    """Count `episodes`. known: attempts by id that these repair and that are in none of them."""
    every = list(episodes)
    nodes: Counter[str] = Counter()
    edges: Counter[tuple[str, str]] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    for episode in every:
        steps = [START, *episode.path, END]
        nodes.update(steps)
        edges.update(pairwise(steps))
        for node, spent in zip(episode.path, episode.seconds, strict=False):
            seconds[node] += spent
    attempts = [one for episode in every for one in episode.trajectories]
    parents = {**(known or {}), **{one.id: one for one in attempts}}
    repairs = [(parents.get(one.parent_id), one) for one in attempts if one.parent_id is not None]
    lost = [one for one in attempts if one.stop in ("failure", "truncated")]
    said = Counter(_objection(one) for one in lost)
    spoiled = [
        one for parent, one in repairs if parent is not None and parent.success and one.stop in ("failure", "truncated")
    ]
    return EpisodeTally(
        episodes=len(every),
        solved=sum(episode.success for episode in every),
        nodes=dict(nodes),
        edges=dict(edges),
        seconds=dict(seconds),
        stops=dict(Counter((one.stage, one.stop) for one in attempts)),
        repairs=len(repairs),
        helped=sum(one.success and not (parent is not None and parent.success) for parent, one in repairs),
        spoiled=len(spoiled),
        lost_at=dict(sorted(Counter(len(one.actions) for one in lost).items())),
        objections=sorted(((text, number) for text, number in said.items() if text), key=lambda one: (-one[1], one[0])),
        attempts=tuple(attempts) if len(every) == 1 else (),
    )


def with_tally(picture: Picture, tally: EpisodeTally) -> Picture:
    """The picture with the counts on its nodes and edges and a caption. Ways that were gone and that the picture has not
    (a recipe that was changed since) are added, dashed."""
    many = tally.episodes > 1
    leaving: Counter[str] = Counter()
    for (source, _), number in tally.edges.items():
        leaving[source] += number
    names = {node.id for node in picture.nodes}
    strangers = tuple(PictureNode(id=name) for name in tally.nodes if name not in names)
    missing = set(tally.edges) - {(edge.source, edge.target) for edge in picture.edges}
    added = tuple(PictureEdge(source=a, target=b, conditional=True) for a, b in sorted(missing))
    edges, seen = [], set()
    for edge in (*picture.edges, *added):
        key = (edge.source, edge.target)
        visits = 0 if key in seen else tally.edges.get(key, 0)  # of parallel edges nobody knows which was taken
        seen.add(key)
        edges.append(replace(edge, visits=visits, share=visits / leaving[edge.source] if many and visits else None))
    nodes = tuple(
        replace(
            node,
            visits=tally.nodes.get(node.id, 0),
            seconds=tally.seconds.get(node.id),
            remark=_remark(node.id, tally),
        )
        for node in (*picture.nodes, *strangers)
    )
    return replace(picture, nodes=nodes, edges=tuple(edges), caption=(*picture.caption, *caption_of(tally)))


def caption_of(tally: EpisodeTally, width: int = 76) -> tuple[str, ...]:
    """The counts that no node or edge can carry, in lines of about `width` characters."""
    if tally.attempts:
        return tuple(_told(one, width) for one in tally.attempts)
    lines = [f"{tally.episodes} episodes, {tally.solved} with a right attempt{_of(tally.solved, tally.episodes)}"]
    for stage in dict.fromkeys(stage for stage, _ in tally.stops):
        counts = {stop: tally.stops.get((stage, stop), 0) for stop in STOPS}
        judged = sum(counts.values()) - counts["error"]
        rest = "".join(f", {counts[stop]} {stop}" for stop in STOPS[1:] if counts[stop])
        lines.append(f"{stage:<8} {counts['success']} of {judged} right{_of(counts['success'], judged)}{rest}")
    if tally.repairs:
        spoiled = f", spoiled {tally.spoiled}" if tally.spoiled else ""
        lines.append(f"repair   helped {tally.helped} of {tally.repairs} times{_of(tally.helped, tally.repairs)}{spoiled}")
    if any(turns > 1 for turns in tally.lost_at):
        ends = ", ".join(f"{turns}: {number}" for turns, number in tally.lost_at.items())
        lines.append(f"lost     after so many turns: {ends}"[: 2 * width])
    for text, number in tally.objections[:5]:
        lines.append(_cut(f"{number:>5} x {text}", width))
    if len(tally.objections) > 5:
        lines.append(f"        … and {len(tally.objections) - 5} other objections")
    return tuple(lines)


def _remark(node: str, tally: EpisodeTally) -> str:
    """What a node's box says besides its visits."""
    counts: Counter[Stop] = Counter()
    for (_, stop), number in tally.stops.items():
        counts[stop] += number
    if node == "environment":
        if tally.attempts:
            return " ".join(MARKS[one.stop] for one in tally.attempts)
        return "  ".join(f"{MARKS[stop]} {counts[stop]}" for stop in STOPS if counts[stop])
    if node in ("refiner", "reflector") and tally.repairs:
        return f"helped {tally.helped} of {tally.repairs}"
    if node == END and tally.episodes > 1:
        return f"{tally.solved} of {tally.episodes} solved"
    return ""


def _told(one: Trajectory, width: int) -> str:
    """One attempt on a line."""
    turns = f"{len(one.actions)} turn{'s' if len(one.actions) != 1 else ''}"
    head = f"attempt {one.attempt}  {one.stage:<8} {MARKS[one.stop]} {one.stop:<9} {turns:>8}  {one.cost.seconds:.2g} s"
    return _cut(f"{head}  {_line(one.feedback)}".rstrip(), max(width, len(head)))


def _objection(one: Trajectory) -> str:
    """What the environment said of a lost attempt, in a form that many attempts share: numbers and quotes left out."""
    said = f"{one.fault.note}" if one.fault is not None and one.fault.note else _line(one.feedback)
    return re.sub(r"\d+(?:\.\d+)?", "#", re.sub(r'"[^"]*"', '"…"', said))


def _of(part: int, whole: int) -> str:
    return f" ({part / whole:.0%})" if whole else ""


def _line(text: str) -> str:
    return " ".join(text.split())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"

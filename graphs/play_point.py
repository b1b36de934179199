"""Where a played episode stands: a point is one graph checkpoint, numbered and with what was said on the way to it.

Points make a tree: going back and on again leaves the first way in place. A line is the way from the beginning to one of
the tree's ends. Pure; `kintsugi.graphs.playing` makes points from LangGraph's checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kintsugi.errors import ConfigError
from kintsugi.graphs.episode_state import EpisodeState, failed_attempt
from kintsugi.graphs.turn_repair import named_turn
from kintsugi.records import Action, Critique, Message, Stop, message_from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in a session where it can be stopped, steered and gone back to.

    number: in the order in which points were made, from 0; parent: the point before it, None for the first. node: the
    node that led here, "" at the beginning; next: the one that comes next, "" when the episode is over. by: "human" when
    a person said it, else "graph". said: the messages that are new here. state: the episode so far, plain values.
    checkpoint: id of the graph checkpoint.
    """

    number: int
    parent: int | None
    node: str
    next: str
    by: str
    said: tuple[Message, ...]
    state: EpisodeState
    checkpoint: str

    @property
    def over(self) -> bool:
        return not self.next

    @property
    def attempt(self) -> int:
        """Number of the attempt in progress, or of the last one."""
        done = len(self.state["attempts"])
        return done if self.state["current"] is not None or not done else done - 1

    @property
    def turn(self) -> int:
        """Actions of that attempt so far."""
        return sum(message["kind"] == "action" for message in messages_of(self.state))

    @property
    def stops(self) -> tuple[Stop, ...]:
        """How the finished attempts ended."""
        return tuple(attempt["stop"] for attempt in self.state["attempts"])

    @property
    def proposal(self) -> Action | Critique | None:
        """What was just said and nobody has answered yet: it can still be changed."""
        last = self.said[-1] if self.said else None
        return last if self.state["current"] is not None and isinstance(last, Action | Critique) else None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One way through a session. name: "A", "B", … in the order in which they began, so that a line keeps its name. points:
    numbers, from the first on."""

    name: str
    points: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.points[-1]


def messages_of(state: EpisodeState) -> list[dict[str, Any]]:
    """The messages of the attempt in progress, or else of the last one, as plain values."""
    if state["current"] is not None:
        return state["current"]["messages"]
    return state["attempts"][-1]["messages"] if state["attempts"] else []


def said_since(before: EpisodeState | None, now: EpisodeState) -> tuple[Message, ...]:
    """The messages that `now` has and `before` had not; a changed message counts as new."""
    old = messages_of(before) if before is not None and before["current"] is not None else []
    new = messages_of(now)
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return tuple(message_from_plain(message) for message in new[same:])


def way_to(points: Sequence[Point], number: int) -> tuple[int, ...]:
    """The numbers from the first point to this one."""
    way: list[int] = []
    here: int | None = number
    while here is not None:
        way.append(here)
        here = points[here].parent
    return tuple(reversed(way))


def lines_of(points: Sequence[Point]) -> list[Line]:
    """Every line, in the order in which they left another one."""
    first: dict[int | None, int] = {}
    for point in points:
        first.setdefault(point.parent, point.number)  # the first way on from a point is the line that led to it

    def begun(end: int) -> int:
        here = points[end]
        while here.parent is not None and first[here.parent] == here.number:
            here = points[here.parent]
        return here.number

    ends = sorted((point.number for point in points if point.number not in first), key=begun)
    return [Line(name=_letters(index), points=way_to(points, end)) for index, end in enumerate(ends)]


def same_point(one: Point, other: Point) -> bool:
    """The same thing done again from the same place: one point, however long it took."""
    return one.parent == other.parent and _trait(one) == _trait(other)


def _trait(point: Point) -> list[Any]:
    """What makes a point: not log-probabilities, which a warm cache rounds otherwise."""
    plain = [{**to_plain(message), "tokens": None} for message in point.said]
    ids = [one.tokens.completion_ids for one in point.said if isinstance(one, Action) and one.tokens is not None]
    return [point.node, point.next, point.by, point.state["plan"], plain, ids]


def by_person(state: EpisodeState, text: str) -> EpisodeState:
    """The state with its last message as a person said it: no tokens, the attempt's stage or the author "human"."""
    attempt = state["current"]
    if attempt is None or attempt["messages"][-1]["kind"] not in ("action", "critique"):
        return state  # the world broke before anything could be said
    said = attempt["messages"][-1]
    if said["kind"] == "critique":
        lost = failed_attempt(state)
        new = to_plain(_critique_by_person(said, text, len(lost.actions) if lost is not None else 0))
        return {**state, "current": {**attempt, "messages": [*attempt["messages"][:-1], new]}}
    new = to_plain(Action(text=text))
    return {**state, "current": {**attempt, "stage": "human", "messages": [*attempt["messages"][:-1], new]}}


def _critique_by_person(said: Mapping[str, Any], text: str, num_turns: int) -> Critique:
    """What a person says in place of a reflection; the turns it keeps, unless the person names the first mistake."""
    kept, note, number = said.get("kept", 0), said.get("note", ""), named_turn(text)
    if note and number is not None:
        if not 1 <= number <= num_turns:
            raise ConfigError(f"expected the first mistake to be a turn from 1 to {num_turns}, found {number}")
        kept, note = number - 1, f"turn {number} went wrong, says a person"
    return Critique(text=text, author="human", kept=kept, note=note)


def _letters(index: int) -> str:
    """A … Z, AA, AB …"""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("A") + rest) + name
    return name

"""ALFWorld's hand-coded expert: it reads what an agent reads, nothing else, and plays to win.

    expert = Expert(first_observation)
    while not over:
        command = expert.next_command()
        expert.told(command, observation_of(command))

    ScriptedPolicy(answer)                      # the same as a policy: `answer` reads a chat

It looks for the thing where such things are, cheap places first, takes it, cleans, heats or cools it, and puts it down;
on the way it remembers what it saw. It makes the demonstrations and the `gold` of authored games, where it wins all;
among official games it fails those whose rooms are too large for the turns. ALFWorld's own expert reads the engine's
facts and the task's hidden parameters; this one could be any agent.

Left out: slicing, and things inside things.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kintsugi.sandboxes.environments.alfworld_rooms import OPENABLE, PLACES

_TASKS: Final = (
    (r"put two (?P<thing>\w+) in (?P<target>\w+)", "two"),
    (r"find two (?P<thing>\w+) and put them in (?P<target>\w+)", "two"),
    (r"(?:look at|examine the) (?P<thing>\w+) (?:under|with) the (?P<target>\w+)", "light"),
    (r"put a clean (?P<thing>\w+) in (?P<target>\w+)", "clean"),
    (r"clean some (?P<thing>\w+) and put it in (?P<target>\w+)", "clean"),
    (r"put a hot (?P<thing>\w+) in (?P<target>\w+)", "heat"),
    (r"heat some (?P<thing>\w+) and put it in (?P<target>\w+)", "heat"),
    (r"put a cool (?P<thing>\w+) in (?P<target>\w+)", "cool"),
    (r"cool some (?P<thing>\w+) and put it in (?P<target>\w+)", "cool"),
    (r"put (?:a|some) (?P<thing>\w+) (?:in|on) (?P<target>\w+)", "put"),
)
_APPLIANCES: Final = {"clean": ("sinkbasin", "bathtubbasin"), "heat": ("microwave",), "cool": ("fridge",)}
_PLACES: Final = {thing.lower(): {place.lower() for place in places} for thing, places in PLACES.items()}
_CLOSED: Final = {place.lower() for place in OPENABLE}
_LAMP_PLACES: Final = {"desk", "sidetable", "dresser", "coffeetable", "shelf", "diningtable"}
_ENTITY: Final = re.compile(r"\ba ([a-z]+ \d+)")
_NOTHING: Final = "Nothing happens."
_GIVE_UP: Final = "look"


@dataclass(frozen=True)
class Wish:
    """What a task's sentence asks for. kind: put, two, light, clean, heat or cool; thing and target without numbers."""

    kind: str
    thing: str
    target: str


def wish_of(text: str) -> Wish | None:
    """The wish in a first observation or a task's sentence; None when it is worded otherwise."""
    sentence = text.partition("Your task is to:")[2] or text
    for pattern, kind in _TASKS:
        match = re.match(pattern, sentence.strip().lower())
        if match:
            return Wish(kind, match["thing"], match["target"])
    return None


class Expert:
    """One attempt's memory and plan. Sentences that it cannot read make it `look` for ever."""

    def __init__(self, first_observation: str) -> None:
        room, _, task = first_observation.partition("Your task is to:")
        self.wish = wish_of(task) if task else wish_of(first_observation)
        self.receptacles = _ENTITY.findall(room or first_observation)
        if not task:  # the short wording: the task first, the room behind it
            self.receptacles = _ENTITY.findall(first_observation.partition("\n")[2])
        self.seen: dict[str, list[str]] = {}
        self.open: set[str] = set()
        self.at, self.beside = "", set[str]()
        self.holding, self.ready = "", False
        self.placed: list[tuple[str, str]] = []
        self.refused: set[str] = set()

    def told(self, command: str, observation: str) -> None:
        """What came of a command."""
        words = command.strip().split(" ")
        if observation.startswith(_NOTHING):
            self._refused(command, words)
            return
        if words[:2] == ["go", "to"]:
            self.at, self.beside = " ".join(words[2:]), set()
        elif words[0] == "take":
            self.holding, self.ready = " ".join(words[1:3]), False
            self._remove(self.holding)
        elif words[0] == "move":
            self.placed.append((self.holding, " ".join(words[4:6])))
            self.holding = ""
        elif words[0] in _APPLIANCES:
            self.ready = self.wish is not None and words[0] == self.wish.kind
        elif words[0] == "close":
            self.open.discard(" ".join(words[1:3]))
        place = " ".join(words[1:3]) if words[0] in ("open", "examine") else self.at
        if place not in self.receptacles:
            return
        if f"{place} is open" in observation:
            self.open.add(place)
        if words[0] in ("go", "open", "examine") and "you see" in observation:
            self.seen[place] = _ENTITY.findall(observation.rpartition("you see")[2])

    def _refused(self, command: str, words: Sequence[str]) -> None:
        """A way that leads nowhere ends at the place where one already is: two receptacles may share it."""
        if words[:2] == ["go", "to"]:
            self.beside.add(" ".join(words[2:]))
        else:
            self.refused.add(command)
            if words[0] == "examine":
                self.seen.setdefault(" ".join(words[1:3]), [])

    def _remove(self, thing: str) -> None:
        self.placed = [(put, where) for put, where in self.placed if put != thing]
        for things in self.seen.values():
            if thing in things:
                things.remove(thing)

    def next_command(self) -> str:
        """The command to try now."""
        if self.wish is None:
            return _GIVE_UP
        if self.wish.kind == "light":
            return self._light()
        if self.holding and _kind(self.holding) == self.wish.thing:
            if self.wish.kind in _APPLIANCES and not self.ready:
                return self._process()
            return self._put()
        return self._find()

    def _light(self) -> str:
        assert self.wish is not None
        if _kind(self.holding) != self.wish.thing:
            return self._find()
        lamp = self._known(self.wish.target)
        if lamp is None:
            return self._search(self.wish.target)
        thing, place = lamp
        return self._beside(place) or f"use {thing}"

    def _process(self) -> str:
        assert self.wish is not None
        for kind in _APPLIANCES[self.wish.kind]:
            for place in self._of_kind(kind):
                command = f"{self.wish.kind} {self.holding} with {place}"
                if command not in self.refused:
                    return self._beside(place) or command
        return _GIVE_UP

    def _put(self) -> str:
        assert self.wish is not None
        targets = self._of_kind(self.wish.target)
        if self.wish.kind == "two":  # both belong into one receptacle: where one is already
            filled = [place for place in targets if self._count(place)]
            targets = sorted(targets, key=lambda place: place not in filled)
        for place in targets:
            command = f"move {self.holding} to {place}"
            if command not in self.refused:
                return self._beside(place) or self._opened(place) or command
        return _GIVE_UP

    def _count(self, place: str) -> int:
        """Things of the wished kind that this receptacle holds."""
        assert self.wish is not None
        put = {thing for thing, where in self.placed if where == place}
        return len(put | {thing for thing in self.seen.get(place, []) if _kind(thing) == self.wish.thing})

    def _find(self) -> str:
        assert self.wish is not None
        if self.holding:  # something else is in hand: put it where it can lie, here if possible
            for place in sorted(
                self.receptacles, key=lambda place: (place not in (self.at, *self.beside), _kind(place) in _CLOSED)
            ):
                command = f"move {self.holding} to {place}"
                if command not in self.refused:
                    return self._beside(place) or self._opened(place) or command
        known = self._known(self.wish.thing)
        if known is None:
            return self._search(self.wish.thing)
        thing, place = known
        return self._beside(place) or self._opened(place) or f"take {thing} from {place}"

    def _known(self, kind: str) -> tuple[str, str] | None:
        """A thing of this kind and where it was seen; not one that is done with."""
        assert self.wish is not None
        fixed = {place for place in self._of_kind(self.wish.target) if self.wish.kind == "two"}
        best = max(fixed, key=self._count, default="")
        for place, things in self.seen.items():
            if self.wish.kind == "two" and place == best and self._count(place):
                continue
            for thing in things:
                if _kind(thing) == kind and f"take {thing} from {place}" not in self.refused:
                    return thing, place
        return None

    def _search(self, kind: str) -> str:
        """Look into the best receptacle that was not looked into yet."""
        left = [place for place in self.receptacles if place not in self.seen]
        if not left:
            return _GIVE_UP
        place = min(left, key=lambda place: (place not in (self.at, *self.beside), self._rank(kind, place)))
        if place in (self.at, *self.beside):
            closed = _kind(place) in _CLOSED and f"open {place}" not in self.refused and place not in self.open
            return f"open {place}" if closed else f"examine {place}"
        return f"go to {place}"

    def _rank(self, kind: str, place: str) -> tuple[int, int, int]:
        """Likely places first, the target last of them, then those that need no opening, then as told."""
        likely = _PLACES.get(kind, _LAMP_PLACES if kind.endswith("lamp") else ())
        target = self.wish is not None and _kind(place) == self.wish.target
        closed = _kind(place) in _CLOSED
        return 2 * (_kind(place) not in likely) + target, int(closed), self.receptacles.index(place)

    def _beside(self, place: str) -> str:
        """The way to a receptacle, "" when there."""
        return "" if place in (self.at, *self.beside) else f"go to {place}"

    def _opened(self, place: str) -> str:
        """The command that opens it, "" when it is open or cannot be shut."""
        closed = _kind(place) in _CLOSED and place not in self.open and f"open {place}" not in self.refused
        return f"open {place}" if closed else ""

    def _of_kind(self, kind: str) -> list[str]:
        return [place for place in self.receptacles if _kind(place) == kind]


def _kind(entity: str) -> str:
    return entity.partition(" ")[0]


def answer(messages: Sequence[Mapping[str, str]], sample: int = 0) -> str:
    """The expert's next command in a chat: the task in the last user message that holds one, then turns.

    It has the form that a scripted policy wants; `sample` changes nothing."""
    users = [index for index, one in enumerate(messages) if one["role"] == "user"]
    tasks = [index for index in users if "Your task is to:" in messages[index]["content"]]
    begin = tasks[-1] if tasks else next((i for i in users if wish_of(messages[i]["content"])), None)
    if begin is None:
        return _GIVE_UP
    expert = Expert(messages[begin]["content"])
    said = [one["content"] for one in messages[begin + 1 :]]
    for command, observation in zip(said[::2], said[1::2], strict=False):
        expert.told(command, observation)
    return expert.next_command()

"""Authored games in ALFWorld's domain: a room, its receptacles and things, a task of one of the six types.

    game = draw(random.Random(0), "pick_clean_then_place_in_recep", receptacles=(5, 8))
    game.sentence                               # "put a clean mug in shelf."
    problem_text(game)                          # PDDL for ALFWorld's domain
    first_observation(game)                     # what the engine will say first, without the engine

Every game can be won as drawn: the thing lies where it can be found, the appliance is in the room, and the target holds
such things. A room is its kind, its receptacles and how many there are of each; `split_of` gives each room to one split,
and no held-out one has the receptacles of another split's room, of whatever kind. Numbers of things are drawn, so that
"mug 2" says nothing about where it is.

The task sentences are those of ALFWorld (MIT, Copyright (c) 2020 Mohit Shridhar and others); rooms are this project's
own, and results on them are never results on the benchmark. Left out: the engine, and any look at whether a policy wins.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from kintsugi.sandboxes.environments import alfworld_prompt
from kintsugi.sandboxes.environments import alfworld_rooms as rooms

Split = Literal["train", "heldout", "demonstrations"]

_SENTENCES: Final = {
    "pick_and_place_simple": ("put a {thing} in {target}.", "put some {thing} on {target}."),
    "look_at_obj_in_light": ("look at {thing} under the {target}.", "examine the {thing} with the {target}."),
    "pick_clean_then_place_in_recep": ("put a clean {thing} in {target}.", "clean some {thing} and put it in {target}."),
    "pick_heat_then_place_in_recep": ("put a hot {thing} in {target}.", "heat some {thing} and put it in {target}."),
    "pick_cool_then_place_in_recep": ("put a cool {thing} in {target}.", "cool some {thing} and put it in {target}."),
    "pick_two_obj_and_place": ("put two {thing} in {target}.", "find two {thing} and put them in {target}."),
}
_STATES: Final = {
    "pick_clean_then_place_in_recep": "(isClean ?o)",
    "pick_heat_then_place_in_recep": "(isHot ?o)",
    "pick_cool_then_place_in_recep": "(isCool ?o)",
}
_CONSTANT_THINGS: Final = ("Sink", "Knife", "ButterKnife")
_CONSTANT_PLACES: Final = ("SinkBasin", "Microwave", "Fridge")
"""The domain's actions name these types, so they must be declared even in a room without them."""

_ROOMS: Final = {
    "pick_and_place_simple": tuple(rooms.FURNITURE),
    "look_at_obj_in_light": ("bedroom", "living room"),
    "pick_clean_then_place_in_recep": ("kitchen", "kitchen", "bathroom"),
    "pick_heat_then_place_in_recep": ("kitchen",),
    "pick_cool_then_place_in_recep": ("kitchen",),
    "pick_two_obj_and_place": tuple(rooms.FURNITURE),
}


@dataclass(frozen=True, kw_only=True)
class AuthoredGame:
    """One game. receptacles: (kind, number in its id); things: (kind, number in its id, index of its receptacle).

    thing, target: kinds of the task; for light, the target is the lamp. sentence: what is asked for."""

    task_type: str
    room: str
    receptacles: tuple[tuple[str, int], ...]
    things: tuple[tuple[str, int, int], ...]
    thing: str
    target: str
    sentence: str

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready; `from_plain` reads it."""
        return {
            key: [list(one) for one in value] if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> AuthoredGame:
        values = dict(plain)
        values["receptacles"] = tuple((kind, number) for kind, number in plain["receptacles"])
        values["things"] = tuple((kind, number, place) for kind, number, place in plain["things"])
        return cls(**values)


def split_of(room: str, receptacles: Sequence[str]) -> Split:
    """The one split that a room with these kinds of receptacles belongs to: half train, a quarter each of the others."""
    counts = " ".join(f"{kind}:{number}" for kind, number in sorted(Counter(receptacles).items()))
    bucket = hashlib.sha256(f"{room} {counts}".encode()).digest()[0] % 8
    return "train" if bucket < 4 else "heldout" if bucket < 6 else "demonstrations"


def draw(
    rng: random.Random,
    task_type: str,
    *,
    receptacles: tuple[int, int],
    split: Split | None = None,
    without: Sequence[str] = (),
) -> AuthoredGame:
    """One game of a type, in a room of `split` (None: of any) with that many receptacles, without those things.

    Raises ValueError when a thousand draws give none, which bounds far too tight do."""
    for _ in range(1000):
        game = _draw(rng, task_type, receptacles, split, frozenset(without))
        if game is not None and split == "heldout" and _looks_like_others(game):
            # From a source of its own, so that the games after it stay what they are.
            again = random.Random(str(game.to_plain()))
            return draw(again, task_type, receptacles=receptacles, split=split, without=without)
        if game is not None:
            return game
    raise ValueError(f"no {task_type} game with {receptacles[0]} to {receptacles[1]} receptacles: widen the bounds")


def _looks_like_others(game: AuthoredGame) -> bool:
    """Whether another kind of room, in another split, may have the same receptacles: no observation tells their kinds."""
    kinds = [kind for kind, _ in game.receptacles]
    counts = Counter(kinds)
    return any(
        room != game.room and counts <= Counter(furniture) and split_of(room, kinds) != "heldout"
        for room, furniture in rooms.FURNITURE.items()
    )


def _draw(
    rng: random.Random, task_type: str, bounds: tuple[int, int], split: Split | None, without: frozenset[str]
) -> AuthoredGame | None:
    room = rng.choice(_ROOMS[task_type])
    kinds = _furniture(rng, task_type, room, rng.randint(*bounds))
    if kinds is None or (split is not None and split_of(room, kinds) != split):
        return None
    choices = _choices(task_type, room, kinds, without)
    if not choices:
        return None
    thing = rng.choice(sorted({one for one, _ in choices}))
    target = rng.choice(sorted(where for one, where in choices if one == thing))
    numbers = rng.sample(range(10, 100), len(kinds))
    placed = _things(rng, task_type, room, kinds, thing, target, without)
    ids = rng.sample(range(10, 100), len(placed))
    sentence = rng.choice(_SENTENCES[task_type]).format(thing=thing.lower(), target=target.lower())
    return AuthoredGame(
        task_type=task_type,
        room=room,
        receptacles=tuple(zip(kinds, numbers, strict=True)),
        things=tuple((kind, number, place) for (kind, place), number in zip(placed, ids, strict=True)),
        thing=thing,
        target=target,
        sentence=sentence,
    )


def _furniture(rng: random.Random, task_type: str, room: str, number: int) -> list[str] | None:
    """Kinds of receptacles: what the task needs, the rest by chance."""
    left = Counter(rooms.FURNITURE[room])
    needed = [rooms.APPLIANCE[task_type][0]] if task_type in rooms.APPLIANCE else []
    if task_type == "look_at_obj_in_light":
        needed.append(rng.choice(sorted(rooms.LAMP_PLACES & set(left))))
    left.subtract(needed)
    others = sorted(left.elements())
    if len(needed) > number or len(needed) + len(others) < number:
        return None
    return sorted(needed + rng.sample(others, number - len(needed)))


def _choices(task_type: str, room: str, kinds: Sequence[str], without: frozenset[str]) -> list[tuple[str, str]]:
    """(thing, target) that the room allows: the thing may lie in some other receptacle than the target's kind."""
    appliance, able = rooms.APPLIANCE.get(task_type, ("", None))
    found = []
    for thing in rooms.THINGS[room]:
        places = rooms.PLACES[thing] & set(kinds)
        if thing in without or (able is not None and thing not in able):
            continue
        if task_type == "look_at_obj_in_light":
            found += [(thing, rooms.LAMP)] if places else []
        else:
            found += [(thing, target) for target in places - {appliance} if places - {target}]
    return found


def _things(
    rng: random.Random,
    task_type: str,
    room: str,
    kinds: Sequence[str],
    thing: str,
    target: str,
    without: frozenset[str],
) -> list[tuple[str, int]]:
    """(kind, index of receptacle): those of the task, and about as many others as there are receptacles."""

    def place(kind: str, allowed: frozenset[str]) -> tuple[str, int]:
        return kind, rng.choice([index for index, one in enumerate(kinds) if one in allowed])

    copies = 2 if task_type == "pick_two_obj_and_place" else 1
    copies += rng.random() < 0.25
    found = [place(thing, rooms.PLACES[thing] - {target}) for _ in range(copies)]
    if target == rooms.LAMP:
        found.append(place(rooms.LAMP, rooms.LAMP_PLACES))
    others = [one for one in rooms.THINGS[room] if one != thing and one not in without and rooms.PLACES[one] & set(kinds)]
    for _ in range(rng.randint(len(kinds) - 1, len(kinds) + 2)):
        if others:
            other = rng.choice(others)
            found.append(place(other, rooms.PLACES[other]))
    rng.shuffle(found)
    return found


def problem_text(game: AuthoredGame) -> str:
    """The game as a PDDL problem for ALFWorld's domain."""
    places, things = _place_ids(game), [f"{kind}_bar_{number}" for kind, number, _ in game.things]
    locations = [f"loc_bar_{index}" for index in range(len(places) + 1)]
    kinds = sorted({kind for kind, _ in game.receptacles})
    sorts = sorted({kind for kind, _, _ in game.things})
    facts = [f"(atLocation agent1 {locations[-1]})", "(= (total-cost) 0)"]
    for (kind, _), place, location in zip(game.receptacles, places, locations, strict=False):
        facts += [f"(receptacleType {place} {kind}Type)", f"(receptacleAtLocation {place} {location})"]
        facts += [f"(openable {place})"] if kind in rooms.OPENABLE else []
    for (kind, _, index), thing in zip(game.things, things, strict=True):
        facts += [f"(objectType {thing} {kind}Type)", f"(inReceptacle {thing} {places[index]})"]
        facts += [f"(objectAtLocation {thing} {locations[index]})"]
        facts += [f"({predicate} {thing})" for predicate in _abilities(kind)]
    fits = [(kind, sort) for kind in kinds for sort in sorts if kind in rooms.PLACES.get(sort, ())]
    facts += [f"(canContain {kind}Type {sort}Type)" for kind, sort in fits]
    declared = [
        ("agent1", "agent"),
        *((f"{sort}Type", "otype") for sort in sorted({*sorts, *_CONSTANT_THINGS, game.thing})),
        *((f"{kind}Type", "rtype") for kind in sorted({*kinds, *_CONSTANT_PLACES})),
        *((place, "receptacle") for place in places),
        *((thing, "object") for thing in things),
        *((location, "location") for location in locations),
    ]
    objects = "\n".join(f"    {name} - {kind}" for name, kind in declared)
    init = "\n".join(f"    {fact}" for fact in facts)
    head = "(define (problem authored)\n(:domain alfred)\n"
    return f"{head}(:objects\n{objects}\n)\n(:init\n{init}\n)\n(:goal {_goal(game)})\n)\n"


def _abilities(kind: str) -> list[str]:
    if kind == rooms.LAMP:
        return ["toggleable"]
    able = {"heatable": rooms.HEATABLE, "coolable": rooms.COOLABLE, "cleanable": rooms.CLEANABLE}
    able |= {"sliceable": rooms.SLICEABLE, "isReceptacleObject": rooms.HOLDING}
    return ["pickupable", *(predicate for predicate, kinds in able.items() if kind in kinds)]


def _goal(game: AuthoredGame) -> str:
    thing, target = f"{game.thing}Type", f"{game.target}Type"
    if game.task_type == "look_at_obj_in_light":
        lit = f"(objectType ?lamp {target}) (toggleable ?lamp) (isToggled ?lamp)"
        beside = "(inReceptacle ?lamp ?r) (receptacleAtLocation ?r ?l) (atLocation ?a ?l)"
        return (
            f"(and (exists (?lamp - object ?r - receptacle ?a - agent ?l - location) (and {lit} {beside})) "
            f"(exists (?o - object ?a - agent) (and (objectType ?o {thing}) (holds ?a ?o))))"
        )
    placed = f"(objectType ?o {thing}) (receptacleType ?r {target}) (inReceptacle ?o ?r)"
    if game.task_type == "pick_two_obj_and_place":
        other = f"(exists (?p - object) (and (not (= ?o ?p)) (objectType ?p {thing}) (inReceptacle ?p ?r)))"
        return f"(exists (?r - receptacle) (exists (?o - object) (and {placed} {other})))"
    return f"(exists (?r - receptacle) (exists (?o - object) (and {placed} {_STATES.get(game.task_type, '')})))"


def first_observation(game: AuthoredGame) -> str:
    """The engine's first observation, told from the game alone."""
    return alfworld_prompt.first_observation(_place_ids(game), game.sentence)


def _place_ids(game: AuthoredGame) -> list[str]:
    """Ids that the engine names "shelf 1"; a basin is "Sink_bar_12_bar_SinkBasin", as ALFWorld spells it."""
    return [
        f"{kind.removesuffix('Basin')}_bar_{number}_bar_{kind}" if kind.endswith("Basin") else f"{kind}_bar_{number}"
        for kind, number in game.receptacles
    ]

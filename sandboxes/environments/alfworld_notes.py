"""What a lost attempt at an ALFWorld task has seen, in one line: a reflection without a model.

    notes_of(first_observation, [("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a cloth 1."), …])
    # "cloth 1 at shelf 1. not in drawer 2, drawer 1."

Where each thing that the task speaks of was first seen (a new attempt finds it there again), and which receptacles were
looked into in vain. All of it comes from the attempt's own text. `reminded` gives an expert such notes, so that it can
demonstrate what they are good for. Left out: why an attempt was lost, which takes a reflector that can think.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Final

from kintsugi.sandboxes.environments.alfworld_expert import Expert

_SEEN: Final = re.compile(r"(\w+ \d+) at (\w+ \d+)\.")
_IN_VAIN: Final = re.compile(r"not in ([\w ,]+)\.")


def notes_of(first_observation: str, turns: Sequence[tuple[str, str]]) -> str:
    """Notes on an attempt of these (command, observation) turns; "" when nothing of use was seen."""
    expert = Expert(first_observation)
    if expert.wish is None:
        return ""
    wanted = {expert.wish.thing, expert.wish.target}
    first: dict[str, str] = {}
    for command, observation in turns:
        expert.told(command, observation)
        for place, things in expert.seen.items():
            for thing in things:
                first.setdefault(thing, place)
    seen = [f"{thing} at {place}." for thing, place in first.items() if thing.partition(" ")[0] in wanted]
    places = {place for thing, place in first.items() if thing.partition(" ")[0] in wanted}
    in_vain = [place for place in expert.seen if place not in places]
    return " ".join([*seen, *([f"not in {', '.join(in_vain)}."] if in_vain else [])])


def reminded(first_observation: str, notes: str) -> Expert:
    """An expert that knows what `notes` say."""
    expert = Expert(first_observation)
    for thing, place in _SEEN.findall(notes):
        expert.seen.setdefault(place, []).append(thing)
    for places in _IN_VAIN.findall(notes):
        for place in places.split(", "):
            expert.seen.setdefault(place, [])
    return expert


def stray_command(expert: Expert, rng: random.Random) -> str:
    """A command of somebody who looks around: to a receptacle at random, or into it."""
    if expert.at and expert.at not in expert.seen and rng.random() < 0.8:
        return f"open {expert.at}"
    return f"go to {rng.choice(expert.receptacles)}" if expert.receptacles else "look"

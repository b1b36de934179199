"""Treasure hunt: a small text world of several turns, for tests and as an example of how to write one.

    environment = open_environment()
    world = await environment.start(environment.tasks("train", limit=1)[0])
    reply = await world.act("go north")

Rooms with doors, one treasure among other things, and a room to bring it to. Actions: `look`, `go north`, `take lamp`,
`put lamp`, `quit`; `think: ...` is answered "OK." and changes nothing. Anything else is answered with what can be done.
The verdict comes at the end only: won when the treasure lies in its room, lost after `quit`; who runs out of turns is
stopped by the episode graph. Everything follows from the task's payload.

`crash_on` names tasks whose worlds raise on purpose (for tests of crash handling): each crashes `crashes` times, at the
action number `crash_at`. `delay_s` makes each action wait. Left out: anything that needs a real game engine.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from typing import Any, Final

from kintsugi.errors import DataError, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.environment import Reply
from kintsugi.sandboxes.environments.printed_number import readable

_ROOMS: Final = ("attic", "cellar", "garden", "hall", "kitchen", "library", "studio", "workshop")
_OTHERS: Final = ("broom", "chair", "jug", "stone")
_TREASURES: Final = {
    "train": ("lamp", "coin", "ring", "map", "harp", "pearl"),
    "heldout": ("crown", "compass", "mirror", "flute"),
    "demonstrations": ("key", "bell", "vase", "mask"),
}
_WAYS: Final = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
_HELP: Final = "You can: look, go north, go east, go south, go west, take THING, put THING, think: TEXT, quit."

_OBJECTIONS: Final = ("There is no ", "You do not carry ", "I do not understand ", "You give up.")

ABOUT = About(kind="several turns, a text world", metric="the treasure lies in its room at the end")


def open_environment(
    delay_s: float = 0.0,
    crash_on: Sequence[str] = (),
    crash_at: int = 2,
    crashes: int = 1,
    num_tasks: int = 50,
) -> TreasureHunt:
    """The environment; `num_tasks`: how many `tasks` makes without a limit. See the module for the other options."""
    return TreasureHunt(delay_s=delay_s, crash_on=crash_on, crash_at=crash_at, crashes=crashes, num_tasks=num_tasks)


class TreasureHunt:
    """Makes tasks and worlds; holds nothing but the count of crashes still to come."""

    name = "treasure_hunt"
    max_turns = 12

    def __init__(self, *, delay_s: float, crash_on: Sequence[str], crash_at: int, crashes: int, num_tasks: int) -> None:
        self.delay_s, self.crash_at, self.num_tasks = delay_s, crash_at, num_tasks
        self.crashes_left = {task_id: crashes for task_id in crash_on}

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Tasks of `split`; another seed gives others. Raises DataError for an unknown split."""
        if split not in _TREASURES:
            raise DataError(f'treasure_hunt has no split "{split}": {nearest(split, _TREASURES)}')
        rng = random.Random(f"treasure_hunt {split} {seed}")
        number = self.num_tasks if limit is None else limit
        return [_draw(rng, split, f"{split}-{seed}-{index}") for index in range(number)]

    async def start(self, task: Task) -> TreasureWorld:
        return TreasureWorld(self, task)

    async def gold(self, task: Task) -> Sequence[str]:
        """The shortest plan: to the treasure, take it, to its room, put it there."""
        at, things = task.payload["start"], task.payload["things"]
        treasure, goal = task.payload["treasure"], task.payload["goal"]
        doors, there = task.payload["doors"], things[treasure]
        return (*_path(doors, at, there), f"take {treasure}", *_path(doors, there, goal), f"put {treasure}")

    def wrong_turn(self, task: Task, turns: Sequence[tuple[str, str]]) -> int | None:
        """The first action that could not be done, or gave up."""
        return next((index for index, (_, said) in enumerate(turns) if said.startswith(_OBJECTIONS)), None)

    async def close(self) -> None:
        return None


class TreasureWorld:
    """One attempt: where the agent is, what it carries, where things lie."""

    def __init__(self, environment: TreasureHunt, task: Task) -> None:
        self.environment, self.task = environment, task
        self.doors: dict[str, dict[str, str]] = task.payload["doors"]
        self.room: str = task.payload["start"]
        self.things: dict[str, str] = dict(task.payload["things"])
        self.num_actions = 0
        self.over = False

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        await asyncio.sleep(self.environment.delay_s)
        self.num_actions += 1
        left = self.environment.crashes_left
        if self.num_actions == self.environment.crash_at and left.get(self.task.id, 0) > 0:
            left[self.task.id] -= 1
            raise RuntimeError(f"treasure_hunt crashed on purpose in {self.task.id}")
        words = action.strip().lower()
        if re.match(r"think\s*:", words):
            return Reply(observation="OK.", executions=0)
        if self.over:
            return Reply(observation="The hunt is over.", executions=0)
        if words == "quit":
            self.over = True
            text = f"You gave up in the {self.room}; the task was not done."
            return Reply(observation="You give up.", verdict=Verdict(success=False, reward=0.0, feedback=text))
        return self._do(words, action)

    async def close(self) -> None:
        return None

    def _do(self, words: str, action: str) -> Reply:
        verb, _, thing = words.partition(" ")
        if words == "look":
            return Reply(observation=_look(self.room, self.doors, self.things))
        if verb == "go" and thing in _WAYS:
            if thing not in self.doors[self.room]:
                doors = ", ".join(self.doors[self.room])
                return Reply(observation=f"There is no door to the {thing}. Doors: {doors}.")
            self.room = self.doors[self.room][thing]
            return Reply(observation=_look(self.room, self.doors, self.things))
        if verb == "take" and thing:
            if self.things.get(thing) != self.room:
                return Reply(observation=f"There is no {readable(thing, 40)} here to take.")
            self.things[thing] = ""
            return Reply(observation=f"You take the {thing}.")
        if verb == "put" and thing:
            return self._put(thing)
        return Reply(observation=f'I do not understand "{readable(action.strip(), 40)}". {_HELP}', executions=0)

    def _put(self, thing: str) -> Reply:
        if self.things.get(thing) != "":
            return Reply(observation=f"You do not carry a {readable(thing, 40)}.")
        self.things[thing] = self.room
        text = f"You put the {thing} down in the {self.room}."
        if (thing, self.room) != (self.task.payload["treasure"], self.task.payload["goal"]):
            return Reply(observation=text)
        self.over = True
        return Reply(observation=text, verdict=Verdict(success=True, reward=1.0, feedback="Task done."))


def _draw(rng: random.Random, split: str, task_id: str) -> Task:
    """Five rooms on a grid, doors between neighbours, things in rooms, a goal away from the treasure."""
    names = rng.sample(_ROOMS, 5)
    places = [(0, 0)]
    while len(places) < len(names):
        (x, y), (dx, dy) = rng.choice(places), rng.choice(list(_WAYS.values()))
        if (x + dx, y + dy) not in places:
            places.append((x + dx, y + dy))
    by_place = dict(zip(places, names, strict=True))
    doors = {
        name: {way: by_place[x + dx, y + dy] for way, (dx, dy) in _WAYS.items() if (x + dx, y + dy) in by_place}
        for (x, y), name in by_place.items()
    }
    treasure = rng.choice(_TREASURES[split])
    there, goal = rng.sample(names, 2)
    things = {treasure: there, **{thing: rng.choice(names) for thing in rng.sample(_OTHERS, 2)}}
    start = rng.choice(names)
    prompt = f"Bring the {treasure} to the {goal}. {_look(start, doors, things)}"
    payload: dict[str, Any] = {"doors": doors, "start": start, "things": things, "treasure": treasure, "goal": goal}
    return Task(id=task_id, environment="treasure_hunt", split=split, prompt=prompt, payload=payload)


def _look(room: str, doors: dict[str, dict[str, str]], things: dict[str, str]) -> str:
    here = ", ".join(thing for thing, place in things.items() if place == room) or "nothing"
    carried = [thing for thing, place in things.items() if place == ""]
    text = f"You are in the {room}. Doors: {', '.join(doors[room])}. You see: {here}."
    return f"{text} You carry: {', '.join(carried)}." if carried else text


def _path(doors: dict[str, dict[str, str]], start: str, goal: str) -> list[str]:
    """Shortest way from room to room as `go` actions, breadth first."""
    paths: dict[str, list[str]] = {start: []}
    for room in (queue := [start]):
        for way, other in doors[room].items():
            if other not in paths:
                paths[other] = [*paths[room], f"go {way}"]
                queue.append(other)
    return paths[goal]

"""Notes on a lost attempt: its own text and nothing else, and what an expert does with them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from kintsugi.sandboxes.environments.alfworld_notes import notes_of, reminded
from kintsugi.sandboxes.environments.environment import TakesNotes
from tests.sandboxes.alfworld_trials import needs_engine, opened

ROOM = "put a clean cloth in shelf.\na drawer 1, a drawer 2, a shelf 1, and a sinkbasin 1."
TURNS = [
    ("go to drawer 2", "You arrive at drawer 2. The drawer 2 is closed."),
    ("open drawer 2", "You open the drawer 2. The drawer 2 is open. In it, you see a pen 1."),
    ("dance", "Nothing happens."),
    ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a cloth 1, and a candle 2."),
    ("take cloth 1 from shelf 1", "You pick up the cloth 1 from the shelf 1."),
    ("go to drawer 1", "You arrive at drawer 1. The drawer 1 is closed."),
]


def test_notes_by_hand() -> None:
    """The cloth lies at the shelf again in a new attempt, though it was taken; a drawer that stayed shut says nothing."""
    assert notes_of(ROOM, TURNS) == "cloth 1 at shelf 1. not in drawer 2."
    assert notes_of(ROOM, TURNS[:2]) == "not in drawer 2."
    assert notes_of(ROOM, []) == "" == notes_of("Say a word backwards.", TURNS)


def test_both_wordings_of_the_room_give_the_same() -> None:
    official = (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        "a drawer 1, a drawer 2, a shelf 1, and a sinkbasin 1.\n\nYour task is to: put a clean cloth in shelf."
    )
    assert notes_of(official, TURNS) == notes_of(ROOM, TURNS)


def test_an_expert_with_notes_goes_there_first() -> None:
    assert reminded(ROOM, "cloth 1 at shelf 1. not in drawer 2.").next_command() == "go to shelf 1"
    assert reminded(ROOM, "not in drawer 2, drawer 1, shelf 1.").next_command() == "go to sinkbasin 1"


@needs_engine
def test_scripted_second_tries_win_and_know_only_what_was_seen() -> None:
    taker: object = opened(prompt="brief")
    assert isinstance(taker, TakesNotes)
    environment: Any = taker

    async def tried() -> list[Any]:
        tasks = environment.tasks("demonstrations", limit=12)
        return [(task, await environment.scripted_retry(task, random.Random(n))) for n, task in enumerate(tasks)]

    found = asyncio.run(tried())
    assert sum(retry is not None for _, retry in found) >= 11
    for task, retry in found:
        if retry is not None:
            notes, turns = retry
            assert turns and len(turns) <= environment.max_turns
            things = {word for word in notes.replace(".", "").replace(",", "").split() if word.isalpha()}
            assert things <= set(task.prompt.replace(".", "").replace(",", "").split()) | {"at", "not", "in"}
    again = asyncio.run(tried())
    assert [retry for _, retry in again] == [retry for _, retry in found], "the same seed, the same episodes"

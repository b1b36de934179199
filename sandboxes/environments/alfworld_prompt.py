"""What an ALFWorld agent is told first, and the short wording of it for small models.

    first_observation(["Shelf_bar_12", "Bed_bar_31"], "put a mug in shelf.")   # "-= Welcome to TextWorld, ALFRED! =-…"
    brief(that)                                               # "put a mug in shelf.\\na bed 1, and a shelf 1."

The engine's own first observation needs a translated game; a task's prompt must be cheap, as thousands are listed. So it
is told here from the receptacles' ids alone, and a test holds it to the engine's. Left out: everything after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from kintsugi.sandboxes.environments.alfworld_engine import display_names

_FULL: Final = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see {seen}."
    "\n\nYour task is to: {task}"
)
_READ: Final = re.compile(r"you see (.*?)\.\s*Your task is to: (.*)", re.DOTALL)


def first_observation(receptacles: Sequence[str], task: str) -> str:
    """The official wording, from PDDL ids of the room's receptacles (any order) and the task's sentence."""
    lower = {one.lower() for one in receptacles}
    names = display_names(lower)
    return _FULL.format(seen=listed([f"a {names[one]}" for one in sorted(lower)]), task=task)


def listed(pieces: Sequence[str]) -> str:
    """ALFWorld's lists: "nothing", "a", "a, and b", "a, b, and c"."""
    if len(pieces) < 2:
        return pieces[0] if pieces else "nothing"
    return ", ".join(pieces[:-1]) + ", and " + pieces[-1]


def brief(observation: str) -> str:
    """Task and room in two lines. A text that is no first observation comes back as it is."""
    match = _READ.search(observation)
    return f"{match[2].strip()}\n{match[1]}." if match else observation

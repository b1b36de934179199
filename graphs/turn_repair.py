"""Going on in a lost attempt from before the first turn that went wrong (`repair.form = "from_turn"`).

    critique = placed(Critique(text=reflection), environment, task, lost)      # how many turns are kept, and who said so
    opening, executions, note = await done_again(worlds, key, task, lost, critique.kept)

Which turn that is, the environment says where it can (`TellsWrongTurn`), else the reflection ("First mistake: 3"), else
nobody: then the agent acts from the start. The turns before it are done again in a fresh world, and each must be answered
as it was: a world that answers otherwise is begun anew, and the attempt is one from the start. The kept actions stay as
they were sampled, so that they can be trained on token for token (`training.rows`).

Re-ReST (arXiv 2406.01495) always starts again; going on from the wrong turn is this project's. Not here: programs of one
turn, where `form = "rollback"` goes on from a line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from kintsugi.errors import ConfigError
from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.worlds import Worlds
from kintsugi.records import Action, Critique, Message, Observation, Task, Trajectory
from kintsugi.sandboxes.environments.environment import Environment, TakesNotes, TellsWrongTurn

ASKED = (
    "The next attempt is taken back to just before the first mistake and goes on from there. End with a line of its own, "
    "`First mistake: N`, where N is the number of the first action that was a mistake."
)
"""What a reflector is asked besides its prompt, below an attempt whose actions are numbered."""

_NAMED = re.compile(r"first mistake\W{0,5}(?:is |was )?(?:(?:action|turn) )?\W{0,2}(\d{1,4})\b", re.IGNORECASE)


def check_repair(repair: RepairConfig, environment: Environment) -> None:
    """ConfigError when attempts in `environment` cannot be repaired in this way."""
    if repair.who == "none":
        return
    if repair.words == "notes":
        note_taker(environment)
    if repair.form == "from_turn" and environment.max_turns == 1:
        raise ConfigError(
            f'repair.form = "from_turn" goes on from a turn of a longer attempt, and {environment.name} has attempts of one '
            'turn: set repair.form = "rollback" (from a line), "rewrite" or "again"'
        )


def note_taker(environment: Environment) -> TakesNotes:
    """The environment as one that takes notes; ConfigError when it does not."""
    if isinstance(environment, TakesNotes):
        return environment
    raise ConfigError(f'{environment.name} takes no notes of a lost attempt: set repair.words = "policy"')


def turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """(action, what the environment said to it, "" where nothing) of each turn."""
    found: list[tuple[str, str]] = []
    for message in messages:
        if isinstance(message, Action):
            found.append((message.text, ""))
        elif isinstance(message, Observation) and found:
            found[-1] = (found[-1][0], message.text)
    return found


def placed(critique: Critique, environment: Environment, task: Task, lost: Trajectory) -> Critique:
    """The critique with the turns of `lost` that the next attempt keeps."""
    done = turns(lost.messages)
    index = environment.wrong_turn(task, done) if isinstance(environment, TellsWrongTurn) else None
    if index is not None and 0 <= index < len(done):
        return dataclasses.replace(critique, kept=index, note=f"turn {index + 1} went wrong, says the environment")
    number = named_turn(critique.text)
    if number is not None and 1 <= number <= len(done):
        return dataclasses.replace(critique, kept=number - 1, note=f"turn {number} went wrong, says the {critique.author}")
    return dataclasses.replace(critique, kept=0, note="from the start: nobody could say which turn went wrong")


def named_turn(text: str) -> int | None:
    """The number that a reflection gives as that of the first mistake, from 1; None when it gives none."""
    found = _NAMED.findall(text)
    return int(found[-1]) if found else None


def num_kept(messages: Sequence[Message]) -> int:
    """How many turns an attempt with these messages has kept of the one that it repairs."""
    return next((one.kept for one in reversed(messages) if isinstance(one, Critique)), 0)


def kept_messages(lost: Trajectory, kept: int) -> list[Action | Observation]:
    """The first `kept` turns of an attempt, as recorded."""
    found: list[Action | Observation] = []
    num_turns = 0
    for message in lost.messages[1:]:
        num_turns += isinstance(message, Action)
        if num_turns > kept:
            break
        if isinstance(message, Action | Observation):
            found.append(message)
    return found


async def done_again(worlds: Worlds, key: str, task: Task, lost: Trajectory, kept: int) -> tuple[str, int, str]:
    """Do the first `kept` turns of `lost` again in the world `key`, which stands behind them then.

    Gives (first observation, executions, ""); or, when the world answers otherwise, begins it anew and says what was
    otherwise in the third place. Raises WorldBroke."""
    opening = await worlds.observe(key, task)
    other = "the task looks otherwise than before" if opening != _text(lost.messages[0]) else ""
    actions: list[str] = []
    executions = 0
    for number, (action, seen) in enumerate(turns(lost.messages)[:kept], start=1):
        if other:
            break
        reply = await worlds.act(key, task, actions, action)
        actions.append(action)
        executions += reply.executions
        if reply.observation != seen or reply.verdict is not None:
            other = f"turn {number} was answered otherwise than before"
    if other:
        opening = await worlds.observe(key, task)
    return opening, executions, other


def _text(message: Message) -> str:
    return message.text if isinstance(message, Observation) else ""

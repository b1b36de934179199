"""Which splits an environment has, and what is in them: told apart from splits whose records are malformed.

    readings = read_splits(environment)
    readings["train"].tasks        # the tasks
    readings["test"].broken        # "…/test.jsonl, line 51: expected …", a record that is not in the schema
    readings["dev"].left_out       # "expected the file …/dev.jsonl, found none": the data have no such split

Tried are the splits that `ABOUT.splits` names, those the caller names, and names in use elsewhere. A split is left out when
the environment says so (`MissingSplit`), when it holds nothing, or when it is refused at the very line that refuses
"no such split"; any other error is a fault of the data or of the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kintsugi.errors import DataError, KintsugiError, MissingSplit
from kintsugi.records import Task
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.careful_calls import Broken, Finding, defined, frames_of, raised, unhurried
from kintsugi.sandboxes.environments.environment import Environment

USUAL: Final = (
    "train", "validation", "dev", "val", "test", "testdev", "valid_seen", "valid_unseen", "heldout", "demonstrations",
)  # fmt: skip
NO_SPLIT: Final = "no such split"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One split: its tasks, or why it is left out, or what is broken about it. expected: somebody said that it is there.
    error: what was raised."""

    tasks: tuple[Task, ...] = ()
    left_out: str = ""
    broken: Finding | None = None
    expected: bool = False
    error: KintsugiError | None = None


def read_splits(environment: Environment, named: Iterable[str] = (), *, limit: int | None = None) -> dict[str, Reading]:
    """Every split that is tried, in order: `limit` tasks of each. Raises what says that nothing can be played here."""
    named, about = tuple(named), _about(environment)
    said = dict.fromkeys([*named, *declared_splits(environment)])
    later = {split for split in about.on_request if split not in named} if about is not None else set()
    refusal = _refusal(environment)
    usual = USUAL if refusal is not None else USUAL[:1]  # an environment that takes any name has every split
    return {
        split: read_split(environment, split, limit=limit, expected=split in said, refusal=refusal)
        if split not in later
        else Reading(left_out=f"it is large: --split {split} tries it", expected=True)
        for split in dict.fromkeys([*said, *usual])
    }


def first_split(environment: Environment) -> str:
    """The split "train" where it is there, else the first split that is. Raises DataError when none is."""
    refusal = _refusal(environment)
    said = declared_splits(environment)
    problem: KintsugiError | None = None
    for split in dict.fromkeys(["train", *said, *USUAL]):
        reading = read_split(environment, split, limit=1, refusal=refusal)
        if reading.tasks or reading.broken is not None:
            return split
        problem = problem or (reading.error if split in said or not said else None)
    if said or problem is None or isinstance(problem, MissingSplit):
        raise problem or DataError(f"{environment.name} has none of the splits {', '.join(said or USUAL)}")
    raise DataError(f"{environment.name} has none of the usual splits: name one with --split, or all in ABOUT.splits")


def declared_splits(environment: Environment) -> tuple[str, ...]:
    """The split names in the `ABOUT` of the environment's file; none for a bundled set, which has its own."""
    said = _about(environment)
    if said is None:
        return ()
    bundled = getattr(environment, "source", "") == "bundled" or getattr(environment, "data", "") is None
    return () if said.bundled and bundled else said.split_names


def _about(environment: Environment) -> About | None:
    said = getattr(sys.modules.get(type(environment).__module__), "ABOUT", None)
    return said if isinstance(said, About) else None


def read_split(
    environment: Environment,
    split: str,
    *,
    limit: int | None = None,
    expected: bool = True,
    refusal: tuple[Any, ...] | None = None,
) -> Reading:
    """One split. refusal: how the environment refuses a split that nobody has, where the caller knows it already."""
    try:
        tasks = tasks_of(environment, split, limit=limit)
    except MissingSplit as error:
        return Reading(left_out=str(error), expected=expected, error=error)
    except DataError as error:
        if _site(error) == (refusal or _refusal(environment)):
            return Reading(left_out=str(error), expected=expected, error=error)
        broken = Broken(f'tasks("{split}") cannot be read: {error}', key=f"data {error}")
        return Reading(broken=broken.finding, expected=expected, error=error)
    except Broken as broken:
        if broken.__cause__ is not None and _site(broken.__cause__) == (refusal or _refusal(environment)):
            return Reading(left_out=str(broken), expected=expected)
        return Reading(broken=broken.finding, expected=expected)
    if not tasks:
        return Reading(left_out="it holds no tasks", expected=expected)
    return Reading(tasks=tuple(tasks), expected=expected)


def tasks_of(environment: Environment, split: str, **options: Any) -> list[Task]:
    """`environment.tasks(split, …)`, each looked at. Raises DataError as it comes, Broken for whatever else is wrong."""
    what = f'tasks("{split}")'
    try:
        with unhurried():
            found = list(environment.tasks(split, **options))
    except KintsugiError:
        raise
    except (Exception, SystemExit) as error:  # the very thing under test
        if isinstance(error, TypeError) and len(frames_of(error)) == 1:  # the call itself, nothing in it
            wanted = "tasks(self, split, *, limit=None, seed=0)"
            told = f"tasks cannot be called so: {error}{defined(environment.tasks)}; expected {wanted}"
            raise Broken(told, key="tasks signature") from error
        raise raised(what, error) from error
    for place, task in enumerate(found):
        if not isinstance(task, Task):
            raise Broken(f"{what} gave a {type(task).__name__} in place {place}; expected a Task", key="no task")
        for name in ("id", "prompt"):
            if not isinstance(text := getattr(task, name), str) or not text.strip():
                told = f"a Task in place {place} whose {name} is {text!r:.40}"
                raise Broken(f"{what} gave {told}; expected a text that is not empty", key=f"task {name}")
        if not isinstance(task.payload, Mapping):
            told = f"a Task whose payload is a {type(task.payload).__name__}"
            raise Broken(f"{what} gave {told}; expected a dict", key="task payload")
    return found


def _refusal(environment: Environment) -> tuple[Any, ...] | None:
    """Type and lines of what "no such split" raises; None when it raises nothing."""
    try:
        tasks_of(environment, NO_SPLIT, limit=1)
    except Broken as broken:
        return _site(broken.__cause__) if broken.__cause__ is not None else None
    except DataError as error:
        return _site(error)
    return None


def _site(error: BaseException) -> tuple[Any, ...]:
    return (type(error), *(frame for frame in frames_of(error) if frame[0] != __file__))

"""What every environment is: tasks by split, and a world for each attempt at one of them.

An environment is one file in this folder (or another package's, through the entry-point group `kintsugi.environments`, or
one of your own, named by its path) with `open_environment(**options) -> Environment`. Write one in 30 lines by subclassing
`ProgramEnvironment` (single turn) or by giving `tasks`, `start` and `close` yourself. Worlds know nothing about models,
prompts to models, or training.

Errors: what an agent does wrong comes back as an observation or a verdict. An exception from `act` is a crash of the
environment: the episode graph records it, retries once on a fresh world, and leaves siblings alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from kintsugi.config import check_arguments
from kintsugi.errors import ConfigError, nearest
from kintsugi.records import Task, Verdict, content_hash


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The environment's answer to one action: what the agent sees next, and the verdict when the attempt is over.

    executions: programs run for it (0 when the action could not be parsed)."""

    observation: str = ""
    verdict: Verdict | None = None
    executions: int = 1


class World(Protocol):
    """One attempt at one task. Not shared; the same actions give the same replies (worlds are rebuilt by replaying)."""

    async def observe(self) -> str:
        """The first observation (for most environments the task's prompt)."""
        ...

    async def act(self, action: str) -> Reply:
        """Do `action` and say what happens. Any text is an action: malformed ones are answered, never raised."""
        ...

    async def close(self) -> None:
        """Free what this attempt holds."""
        ...


@runtime_checkable
class Environment(Protocol):
    """A source of tasks and of worlds to try them in. Safe for many worlds at once in one event loop."""

    name: str
    max_turns: int
    """Most actions an attempt may take: 1 for programs."""

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Tasks of a split in a fixed order; `seed` picks which ones when the environment can make new ones.

        Unknown splits and missing data raise DataError."""
        ...

    async def start(self, task: Task) -> World:
        """A fresh world for one attempt at `task`."""
        ...

    async def gold(self, task: Task) -> Sequence[str] | None:
        """Actions that solve the task, for the verifier's self-test and for scripted demonstrations; None if unknown."""
        ...

    async def close(self) -> None:
        """Close every world, process and file that is still open; calling it twice is harmless."""
        ...


@runtime_checkable
class TakesNotes(Protocol):
    """An environment of several turns that can say what a lost attempt has seen (`repair.words = "notes"`)."""

    def notes(self, task: Task, turns: Sequence[tuple[str, str]]) -> str:
        """Notes for the next attempt, from the lost one's (action, observation) turns and nothing else; "" for none."""
        ...


@runtime_checkable
class TellsWrongTurn(Protocol):
    """An environment of several turns that can say which turn of a lost attempt went wrong (`repair.form = "from_turn"`)."""

    def wrong_turn(self, task: Task, turns: Sequence[tuple[str, str]]) -> int | None:
        """Index of the first of the lost attempt's (action, observation) turns that went wrong, as far as they themselves
        show it (an action that was not understood, or came to nothing); None where they do not."""
        ...


@runtime_checkable
class SortsTasks(Protocol):
    """An environment whose tasks are of several kinds (types, subjects, pages): success is then told by kind too."""

    def kind(self, task: Task) -> str:
        """Which kind of task this is, in a word or two."""
        ...


def success_by_kind(
    environment: Environment, tasks: Sequence[Task], outcomes: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """(won, tried) for each kind of task, from outcomes by task id (as `Evaluation.outcomes`), kinds in the order of the
    tasks; nothing where the environment does not sort its tasks."""
    if not isinstance(environment, SortsTasks):
        return {}
    counts: dict[str, tuple[int, int]] = {}
    for task in tasks:
        if task.id in outcomes:
            kind = environment.kind(task) or "other"
            won, tried = counts.get(kind, (0, 0))
            counts[kind] = won + outcomes[task.id], tried + 1
    return counts


class ProgramWorld:
    """A world of one turn: the action is judged at once by `judge`."""

    def __init__(self, environment: ProgramEnvironment, task: Task) -> None:
        self.environment, self.task = environment, task

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        return Reply(verdict=await self.environment.judge(self.task, action))

    async def close(self) -> None:
        return None


class ProgramEnvironment:
    """Base of single-turn environments: give `name`, `tasks` and `judge`."""

    name = "program"
    max_turns = 1

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        raise NotImplementedError

    async def judge(self, task: Task, action: str) -> Verdict:
        """The verdict on `action`; malformed ones fail with feedback, they do not raise."""
        raise NotImplementedError

    async def start(self, task: Task) -> World:
        return ProgramWorld(self, task)

    async def gold(self, task: Task) -> Sequence[str] | None:
        return None

    async def close(self) -> None:
        return None


def environment_kinds() -> dict[str, str]:
    """Known environments and their modules: files here that define `open_environment`, and entry points."""
    skip = {"__init__.py", "environment.py"}
    kinds = {}
    for entry in files("kintsugi.sandboxes.environments").iterdir():
        if entry.name.endswith(".py") and entry.name not in skip and "def open_environment(" in entry.read_text():
            stem = entry.name.removesuffix(".py")
            # math_.py holds "math", mcp_bridge.py "mcp": no file here is named after a module that someone imports.
            kinds[stem.removesuffix("_bridge").rstrip("_")] = f"kintsugi.sandboxes.environments.{stem}"
    kinds.update({point.name: point.value for point in entry_points(group="kintsugi.environments")})
    return kinds


def open_environment(kind: str, options: Mapping[str, Any] | None = None) -> Environment:
    """Open an environment by name with its own options, for example `open_environment("gsm8k", {"data": "path"})`, or
    one of your own by its file: `open_environment("./mine.py")`.

    Unknown names and options, options that are missing or of another type, and files that cannot be imported raise
    ConfigError."""
    module = environment_module(kind)
    check_arguments(module.open_environment, options or {}, f"the environment {kind}", "environment.options")
    opened = module.open_environment(**dict(options or {}))
    if not isinstance(opened, Environment):
        raise ConfigError(f"expected an environment from open_environment of {kind}, found {opened!r:.60}: see Environment")
    return opened


def environment_module(kind: str) -> ModuleType:
    """The module that opens the environment of that name or in that file. Raises ConfigError for an unknown one."""
    if is_file_name(kind):
        return _module_of_file(Path(kind).expanduser())
    kinds = environment_kinds()
    if kind not in kinds:
        raise ConfigError(f'unknown environment "{kind}": {nearest(kind, kinds)}')
    return importlib.import_module(kinds[kind].split(":")[0])


def is_file_name(kind: str) -> bool:
    """Whether an environment is named by its file."""
    return kind.endswith(".py")


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"expected a Python file with open_environment at {path}, found none: check the path")
    # One name a file, whatever it is called: dataclasses and pickles look their module up by it.
    name = f"kintsugi_own_{content_hash(str(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody's own code: whatever it raises is theirs to mend
        del sys.modules[name]
        raise ConfigError(f"{path} cannot be imported ({type(error).__name__}: {error}): mend it") from error
    if not callable(getattr(module, "open_environment", None)):
        raise ConfigError(f"expected a function open_environment in {path}, found none: add it")
    return module

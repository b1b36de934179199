"""Where ALFWorld's games are really played: worlds by name, each a game and the commands given so far.

    python -m kintsugi.sandboxes.environments.alfworld_worker lean FOLDER     # one JSON line in, one out; "" for no folder

    {"op": "replay", "world": "w1", "game": {…}, "commands": ["go to shelf 1"]}   from the start; answers the last one
    {"op": "act", "world": "w1", "number": 1, "command": "look"}                  the next command, the second here
    {"op": "leave", "world": "w1"}      {"op": "expert", "game": {…}, "turns": 50}

An `act` in a world that is not here, or not that far, is answered `{"lost": true}`: the asker replays; a game that cannot
be played is answered `{"broken": sentence}`. Games are
`{"path": official game file}` or `{"authored": plain game}`; translated ones are kept in memory (those used last: up to
`MOST_OPERATORS` ground actions in all ready to play, up to `MOST_PACKED` bytes packed) and, with a folder, on disk by
content.

A `Worker` can be used without a process of its own. `engine` is "lean" or "shipped" (TextWorld's own environment,
hundreds of times slower). End of input ends the process. Left out: choosing, replacing and bounding workers
(`alfworld_pool`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from kintsugi.errors import DataError, KintsugiError, missing_extra
from kintsugi.sandboxes.environments.alfworld_engine import Game, Play, Turn, translated
from kintsugi.sandboxes.environments.alfworld_expert import Expert
from kintsugi.sandboxes.environments.alfworld_generator import AuthoredGame, problem_text
from kintsugi.sandboxes.environments.alfworld_text import TASK, load_grammar, packaged_file
from kintsugi.sandboxes.environments.worker_processes import serve

MOST_OPERATORS: Final = 50_000
MOST_PACKED: Final = 64 << 20
FORMAT: Final = 1
"""Of the disk cache's files: changes when what `translated` gives does."""
_SENTENCE: Final = re.compile(r'Your task is to: ([^"\\]*)"')


class GameBroken(Exception):
    """A game file is whole, and what it describes cannot be played: its attempts are errors, and others go on."""


class Engine(Protocol):
    """One world of one game."""

    intro: str

    def step(self, command: str) -> Turn: ...

    def admissible_commands(self) -> list[str]: ...


class Worker:
    """Answers requests; see the module. Safe in one thread."""

    def __init__(self, engine: str = "lean", cache: str | Path | None = None) -> None:
        self.engine, self.cache = engine, Path(cache).expanduser() if cache else None
        self.worlds: dict[str, tuple[Engine, int]] = {}
        self._games: OrderedDict[str, Game] = OrderedDict()
        self._packed: OrderedDict[str, bytes] = OrderedDict()
        self._idle: list[Shipped] = []

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer; a game that cannot be played is `{"broken": sentence}`, a user's mistake `{"refused": sentence}`."""
        try:
            match request["op"]:
                case "replay":
                    return self._replay(request)
                case "act":
                    return self._act(request["world"], request["number"], request["command"], request.get("admissible"))
                case "expert":
                    return self._expert(request["game"], request["turns"])
                case "leave":
                    self._leave(request["world"])
                    return {}
            raise ValueError(f"unknown request {request['op']!r}")
        except GameBroken as error:
            return {"broken": str(error)}
        except KintsugiError as error:
            return {"refused": str(error), "kind": type(error).__name__}

    def _replay(self, request: Mapping[str, Any]) -> dict[str, Any]:
        world: str = request["world"]
        self._leave(world)
        engine = self._start(request["game"])
        self.worlds[world] = engine, 0
        answer: dict[str, Any] = {"observation": engine.intro, "reward": 0, "done": False}
        for number, command in enumerate(request["commands"]):
            answer = self._act(world, number, command, request.get("admissible"))
        return answer

    def _act(self, world: str, number: int, command: str, admissible: bool | None) -> dict[str, Any]:
        engine, done = self.worlds.get(world, (None, -1))
        if engine is None or done != number:
            return {"lost": True}
        turn = engine.step(command)
        self.worlds[world] = engine, number + 1
        answer: dict[str, Any] = {"observation": turn.observation, "reward": turn.reward, "done": turn.done}
        return {**answer, "admissible": engine.admissible_commands()} if admissible else answer

    def _leave(self, world: str) -> None:
        engine = self.worlds.pop(world, (None, 0))[0]
        if isinstance(engine, Shipped):
            self._idle.append(engine)

    def _expert(self, game: Mapping[str, Any], turns: int) -> dict[str, Any]:
        """The commands of the hand-coded expert, or None for a loss within `turns`."""
        engine = self._start(game)
        expert, commands = Expert(engine.intro), []
        try:
            for _ in range(turns):
                command = expert.next_command()
                turn = engine.step(command)
                expert.told(command, turn.observation)
                commands.append(command)
                if turn.done:
                    return {"commands": commands}
            return {"commands": None}
        finally:
            if isinstance(engine, Shipped):
                self._idle.append(engine)

    def _start(self, game: Mapping[str, Any]) -> Engine:
        if self.engine == "shipped":
            shipped = self._idle.pop() if self._idle else Shipped()
            shipped.load(playable_file(game))
            return shipped
        return Play(self.game(game))

    def game(self, source: Mapping[str, Any]) -> Game:
        """The translated game, from memory, disk or the translator."""
        key = hashlib.sha256(json.dumps([FORMAT, _identity(source)], sort_keys=True).encode()).hexdigest()[:24]
        found = self._games.pop(key, None)
        if found is None:
            found = self._unpacked(key) or self._kept(key) or self._new(key, source)
        self._games[key] = found
        while len(self._games) > 1 and sum(one.num_operators for one in self._games.values()) > MOST_OPERATORS:
            self._games.popitem(last=False)
        return found

    def _unpacked(self, key: str) -> Game | None:
        packed = self._packed.get(key)
        if packed is None:
            return None
        self._packed.move_to_end(key)
        return Game.unpacked(packed, load_grammar())

    def _pack(self, key: str, packed: bytes) -> None:
        """A game ready to play is some fifty times as large as packed, and a tenth as long to make as to translate."""
        self._packed[key] = packed
        while sum(map(len, self._packed.values())) > MOST_PACKED:
            self._packed.popitem(last=False)

    def _kept(self, key: str) -> Game | None:
        if self.cache is None:
            return None
        try:
            return Game(json.loads((self.cache / f"{key}.json").read_text(encoding="utf-8")), load_grammar())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, OSError):
            return None  # a half-written or foreign file: made anew

    def _new(self, key: str, source: Mapping[str, Any]) -> Game:
        file = playable_file(source)
        try:
            plain = translated(file["pddl_domain"], file["pddl_problem"], file["task"])
        except DataError as error:
            raise GameBroken(f"{source.get('path', 'an authored game')}: {error}") from None
        if self.cache is not None:
            self._keep(self.cache, key, plain)
        game = Game(plain, load_grammar())
        self._pack(key, game.packed)
        return game

    def _keep(self, folder: Path, key: str, plain: dict[str, Any]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as part:
                json.dump(plain, part, separators=(",", ":"))
            os.replace(name, folder / f"{key}.json")
        except OSError as error:
            raise DataError(f"cannot keep translated games in {folder} ({error}): name another folder as cache") from None

    def close(self) -> None:
        """Let go of every world and game. (A library of the shipped engine goes with its process.)"""
        for world in list(self.worlds):
            self._leave(world)
        self._idle.clear()
        self._games.clear()
        self._packed.clear()


class Shipped:
    """TextWorld's own environment under ALFWorld's own wrapper, unmodified; for comparison. One thread, 34 MB each."""

    def __init__(self) -> None:
        try:
            # TextWorld prints when first imported in places; frames go over stdout.
            with contextlib.redirect_stdout(sys.stderr):
                import textworld
                from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
                from textworld.envs.pddl import PddlEnv
        except ImportError:
            raise missing_extra("ALFWorld", "alfworld") from None
        self._env: Any = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))
        self.intro, self._admissible = "", []

    def load(self, file: Mapping[str, Any]) -> None:
        """Begin a game: `pddl_domain`, `pddl_problem` and `task`. The packaged grammar is put in its place."""
        grammar = packaged_file("alfred.twl2").replace(TASK, f"Your task is to: {file['task']}")
        with _undisturbed():
            self._env.load({**file, "grammar": grammar})
            state = self._env.reset()
        self.intro, self._admissible = state.feedback, list(state["admissible_commands"])

    def step(self, command: str) -> Turn:
        state, reward, done = self._env.step(command)
        self._admissible = list(state["admissible_commands"])
        return Turn(state.feedback, int(reward), bool(done))

    def admissible_commands(self) -> list[str]:
        return self._admissible


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """TextWorld's loader overwrites the process's arguments."""
    before = sys.argv
    try:
        yield
    finally:
        sys.argv = before


def game_file(source: Mapping[str, Any]) -> dict[str, Any]:
    """`pddl_domain`, `pddl_problem`, `task` (and `walkthrough`, if known) of a game. Raises DataError."""
    if "authored" in source:
        game = AuthoredGame.from_plain(source["authored"])
        domain = packaged_file("alfred.pddl")
        return {"pddl_domain": domain, "pddl_problem": problem_text(game), "task": game.sentence}
    return read_game_file(source["path"])


def playable_file(source: Mapping[str, Any]) -> dict[str, Any]:
    """`game_file` of what is to be played now. Raises GameBroken, also for a file that is another one than was listed."""
    try:
        file = game_file(source)
        if source.get("sha256") and file_digest(source["path"]) != source["sha256"]:
            raise DataError(f"{source['path']} was changed after its task was made: make the tasks anew")
    except (DataError, OSError) as error:
        raise GameBroken(str(error)) from None
    return file


def file_digest(path: str | Path) -> str:
    """What a game file is known by: 16 hex digits of its SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def read_game_file(path: str | Path) -> dict[str, Any]:
    """An official `game.tw-pddl`; its grammar is read for the task's sentence and never evaluated."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        domain, problem, grammar = (found[name] for name in ("pddl_domain", "pddl_problem", "grammar"))
        sentence = _SENTENCE.search(grammar)
        if sentence is None:
            raise KeyError("Your task is to: …")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected an ALFWorld game with its task at {path}, found none that is one ({error})") from None
    walkthrough = found.get("walkthrough")
    return {"pddl_domain": domain, "pddl_problem": problem, "task": sentence[1], "walkthrough": walkthrough,
            "solvable": found.get("solvable")}  # fmt: skip


def _identity(source: Mapping[str, Any]) -> Any:
    """What tells one game's content from another's."""
    if "authored" in source:
        return source["authored"]
    try:
        stat = os.stat(source["path"])
    except OSError as error:
        raise GameBroken(f"{source['path']}: {error.strerror}") from None
    return [str(source["path"]), source.get("sha256", ""), stat.st_size, stat.st_mtime_ns]


def main(engine: str, cache: str) -> None:
    """Answer lines until the input ends."""
    worker = Worker(engine, cache or None)
    serve(worker.answer)
    worker.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])

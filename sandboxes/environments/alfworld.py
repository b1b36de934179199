r"""ALFWorld: household tasks in a text world of TextWorld's engine, of several turns each.

    environment = open_environment()                                   # authored games: no download
    environment = open_environment(data="~/alfworld/json_2.1.1")       # the official ones
    task = environment.tasks("train", limit=1)[0]
    world = await environment.start(task)
    reply = await world.act("go to shelf 1")

It needs the extra `[alfworld]`. **Tasks**: six types, in `payload["task_type"]`, which are its kinds of task. The
prompt is the engine's first observation. *Authored* games are drawn without an engine, in turn of each type; rooms of
train, heldout and demonstrations are disjoint. They are this project's own, and never a result on the benchmark. With
`data`, splits are the official folder's (`train`, `valid_seen`, `valid_unseen`); `heldout` is valid_unseen.

**Success** is the official rule: the goal holds after one of the agent's commands, within the turns; reward 1, else 0.
Commands are ALFWorld's (`go to shelf 1`, `open drawer 2`, `take mug 1 from desk 1`, `move mug 1 to shelf 2`, `clean`,
`heat` and `cool … with …`, `use desklamp 1`, `examine …`, `look`, `inventory`, `help`); others get "Nothing happens.".
`think: …` is answered "OK." and is no command of the game. Unless `strict`, what agents of older versions write is
understood: a leading ">", capitals, `put X in/on Y`.

Engine, worker processes and their speeds: `alfworld_engine`, `alfworld_pool`, docs/environments/alfworld.md. Left out:
pictures (ALFWorld's other half), goals in people's words.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Task, Verdict, content_hash
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.alfworld_expert import Expert
from kintsugi.sandboxes.environments.alfworld_generator import Split, draw, first_observation
from kintsugi.sandboxes.environments.alfworld_notes import notes_of, reminded, stray_command
from kintsugi.sandboxes.environments.alfworld_official import folder_of, official_games, solvable_games
from kintsugi.sandboxes.environments.alfworld_pool import Pool
from kintsugi.sandboxes.environments.alfworld_prompt import brief, listed
from kintsugi.sandboxes.environments.alfworld_rooms import HELD_BACK, TASK_TYPES
from kintsugi.sandboxes.environments.alfworld_text import require_engine
from kintsugi.sandboxes.environments.alfworld_worker import GameBroken, playable_file
from kintsugi.sandboxes.environments.environment import Reply

OFFICIAL_WORKERS: Final = 2
LONGEST_ACTION: Final = 1_000
"""Characters; what stands behind is not read. No command is longer than 60."""
_THINK: Final = re.compile(r">? ?think ?:", re.IGNORECASE)
_PUT: Final = re.compile(r"put (.+?) (?:in/on|into|onto|in|on) (\S+ \d+)")
_SHORT: Final = {
    "place": "pick_and_place_simple", "light": "look_at_obj_in_light", "clean": "pick_clean_then_place_in_recep",
    "heat": "pick_heat_then_place_in_recep", "cool": "pick_cool_then_place_in_recep", "two": "pick_two_obj_and_place",
}  # fmt: skip

ABOUT = About(
    kind="several turns",
    metric="the goal holds after a command, within the turns",
    data="json_2.1.1/<split>/<task>/<trial>/: game.tw-pddl, traj_data.json",
    splits=("train", "valid_seen", "valid_unseen", "heldout (= valid_unseen)"),
    licence="MIT",
    home="https://github.com/alfworld/alfworld",
    bundled=True,
    extra="alfworld",
    downloads=tuple(
        Download(
            url=f"https://github.com/alfworld/alfworld/releases/download/{name}",
            path=Path(name).name,
            sha256=sha256,
            unpack=True,
        )
        for name, sha256 in (
            ("0.2.2/json_2.1.1_json.zip", "25171f16e20ad7b048c47275c45b0babf3aa1cbab29cec97387922350a9844bc"),
            ("0.4.0/json_2.1.2_tw-pddl.zip", ""),
        )
    ),
)


def open_environment(
    data: str | Path | None = None,
    max_turns: int = 30,
    prompt: Literal["official", "brief"] = "official",
    task_types: str | Sequence[str] = TASK_TYPES,
    receptacles: str = "5-8",
    demonstration_receptacles: str = "4-6",
    held_back: int = len(HELD_BACK),
    num_tasks: int = 360,
    admissible: bool = False,
    strict: bool = False,
    engine: Literal["lean", "shipped"] = "lean",
    workers: int | None = None,
    cache: str | Path | None = None,
    timeout_s: float = 60.0,
) -> Alfworld:
    """ALFWorld from the official folder `data`, or with authored games (None or "bundled").

    max_turns: 30 as in Reflexion and Re-ReST; 50 in other papers. prompt: "brief" is the task and the room in two lines.
    task_types: ALFWorld's names, or place, light, clean, heat, cool, two; as a list or with commas.
    receptacles, demonstration_receptacles: how many an authored room has, from-to. held_back: how many kinds of things
        the demonstrations' rooms do without. num_tasks: authored tasks that `tasks` gives without a limit.
    admissible: list the admissible commands after each observation. strict: the engine gets the action as it stands.
    engine: "shipped" is TextWorld's own environment, unmodified. workers: processes at most; 0 plays in this one, the
        default for authored games with the lean engine, else 2. cache: a folder for translated games, none by default.
    """
    if prompt not in ("official", "brief") or engine not in ("lean", "shipped"):
        raise ConfigError(f'expected prompt "official" or "brief", engine "lean" or "shipped"; found {prompt!r}, {engine!r}')
    if max_turns < 1 or num_tasks < 1 or (workers is not None and workers < 0) or not 0 <= held_back <= len(HELD_BACK):
        raise ConfigError(
            f"expected max_turns and num_tasks of 1 or more, workers of 0 or more and held_back of 0 to {len(HELD_BACK)}, "
            f"found {max_turns}, {num_tasks}, {workers} and {held_back}"
        )
    data = None if data == "bundled" else data
    if workers is None:
        workers = 0 if data is None and engine == "lean" else OFFICIAL_WORKERS
    pool = Pool(workers=workers, engine=engine, cache=cache, timeout_s=timeout_s)
    bounds = {"train": _bounds("receptacles", receptacles), "heldout": _bounds("receptacles", receptacles)}
    bounds["demonstrations"] = _bounds("demonstration_receptacles", demonstration_receptacles)
    return Alfworld(
        data=data, pool=pool, max_turns=max_turns, brief_prompt=prompt == "brief", task_types=_types(task_types),
        bounds=bounds, held_back=HELD_BACK[:held_back], num_tasks=num_tasks, admissible=admissible, strict=strict,
    )  # fmt: skip


class Alfworld:
    """The environment. A payload holds `task_type`, `sentence`, and `authored` (a game) or `path` and `sha256`."""

    name = "alfworld"

    def __init__(
        self, *, data: str | Path | None, pool: Pool, max_turns: int, brief_prompt: bool, task_types: tuple[str, ...],
        bounds: Mapping[str, tuple[int, int]], held_back: Sequence[str], num_tasks: int, admissible: bool, strict: bool,
    ) -> None:  # fmt: skip
        self.data = None if data is None else Path(data).expanduser()
        self.pool, self.max_turns, self.brief_prompt = pool, max_turns, brief_prompt
        self.task_types, self.bounds, self.held_back = task_types, bounds, held_back
        self.num_tasks, self.admissible, self.strict = num_tasks, admissible, strict
        self._numbers = itertools.count()

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Authored: drawn by `seed`, in turn of each type. Official: the first ones for seed 0, a sample for others.

        Raises DataError for an unknown split or missing data."""
        if self.data is not None:
            return self._official(split, limit, seed)
        if split not in get_args(Split):
            raise DataError(f'alfworld has no split "{split}": {nearest(split, get_args(Split))}')
        rng = random.Random(f"alfworld {split} {seed}")
        without = self.held_back if split == "demonstrations" else ()
        tasks: dict[str, Task] = {}
        wanted = self.num_tasks if limit is None else limit
        for _ in range(100 * wanted):
            if len(tasks) == wanted:
                break
            kind = self.task_types[len(tasks) % len(self.task_types)]
            game = draw(rng, kind, receptacles=self.bounds[split], split=cast(Split, split), without=without)
            prompt = first_observation(game)
            payload = {"task_type": kind, "sentence": game.sentence, "authored": game.to_plain()}
            tasks.setdefault(prompt, self._task(f"{split}-{content_hash(payload)}", split, prompt, payload))
        return list(tasks.values())

    def _official(self, split: str, limit: int | None, seed: int) -> list[Task]:
        folder = folder_of(self.data or "", split)
        if folder is None:
            return []
        paths = official_games(folder, self.task_types)
        if seed:
            random.Random(f"alfworld {seed}").shuffle(paths)
        tasks = []
        for path, found in itertools.islice(solvable_games(paths), limit):
            where = str(path.relative_to(folder.parent))
            payload = {**{key: found[key] for key in ("task_type", "sentence", "sha256")}, "path": where}
            tasks.append(self._task(str(path.parent.relative_to(folder.parent)), split, found["prompt"], payload))
        return tasks

    def _task(self, key: str, split: str, prompt: str, payload: Mapping[str, Any]) -> Task:
        told = brief(prompt) if self.brief_prompt else prompt
        return Task(id=key, environment=self.name, split=split, prompt=told, payload=payload)

    def kind(self, task: Task) -> str:
        """The task type, in ALFWorld's words."""
        return task.payload["task_type"]

    def game(self, task: Task) -> dict[str, Any]:
        """What the worker is told of a task's game."""
        if "authored" in task.payload:
            return {"authored": task.payload["authored"]}
        if self.data is None:
            raise DataError(f"expected ALFWorld's data folder for the official task {task.id}: name it with the option data")
        root = self.data / "json_2.1.1" if (self.data / "json_2.1.1").is_dir() else self.data
        return {"path": str(root / task.payload["path"]), "sha256": task.payload.get("sha256", "")}

    async def start(self, task: Task) -> AlfworldWorld:
        """A fresh world. Its game is made ready with its first command. Raises MissingExtra without the engine."""
        require_engine()
        return AlfworldWorld(self, task, f"w{next(self._numbers)}")

    async def gold(self, task: Task) -> Sequence[str] | None:
        """Official games: the walkthrough stored with them, which knows where things are. Authored: the expert's."""
        if "path" in task.payload:
            try:
                walkthrough = playable_file(self.game(task))["walkthrough"]
            except GameBroken as error:
                raise DataError(f"{error}: leave that game out") from None
            return tuple(walkthrough) if walkthrough else None
        return await self.expert(task)

    async def expert(self, task: Task) -> Sequence[str] | None:
        """The hand-coded expert's commands, made from what an agent reads; None when it does not win in `max_turns`."""
        request = {"op": "expert", "game": self.game(task), "turns": self.max_turns}
        answer = await self.pool.ask(task.hash, request)
        if "broken" in answer:
            raise DataError(f"{answer['broken']}: leave that game out")
        return None if answer["commands"] is None else tuple(answer["commands"])

    def notes(self, task: Task, turns: Sequence[tuple[str, str]]) -> str:
        """What a lost attempt of these (command, observation) turns has seen (see `alfworld_notes`)."""
        return notes_of(task.prompt, turns)

    def wrong_turn(self, task: Task, turns: Sequence[tuple[str, str]]) -> int | None:
        """The first command that came to nothing: not understood, or impossible where the agent stood."""
        return next((index for index, (_, said) in enumerate(turns) if said.startswith("Nothing happens.")), None)

    async def scripted_retry(self, task: Task, rng: random.Random) -> tuple[str, list[tuple[str, str]]] | None:
        """Notes on a short look around, and the expert's episode with them; None when it does not win in `max_turns`."""
        looker = Expert(task.prompt)
        looked = await self._played(task, looker, rng.randint(3, 10), lambda: stray_command(looker, rng))
        notes = self.notes(task, looked[0])
        expert = reminded(task.prompt, notes)
        turns, won = await self._played(task, expert, self.max_turns, expert.next_command)
        return (notes, turns) if won else None

    async def _played(
        self, task: Task, expert: Expert, num_turns: int, command: Callable[[], str]
    ) -> tuple[list[tuple[str, str]], bool]:
        """(command, observation) of at most `num_turns` turns, each told to `expert`, and whether the game was won."""
        world = await self.start(task)
        turns: list[tuple[str, str]] = []
        try:
            while len(turns) < num_turns and not world.over:
                said = command()
                observation = (await world.act(said)).observation
                expert.told(said, observation)
                turns.append((said, observation))
        finally:
            await world.close()
        return turns, world.over

    async def close(self) -> None:
        self.pool.close()


class AlfworldWorld:
    """One attempt. It keeps its commands, so that it can go on where a worker of another attempt's died."""

    def __init__(self, environment: Alfworld, task: Task, name: str) -> None:
        self.environment, self.task, self.name = environment, task, name
        self.key = task.hash
        self.commands: list[str] = []
        self.over = self.started = False

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        """Any text is answered. Raises WorkerDied when the worker did not survive this very command."""
        action = action[:LONGEST_ACTION]
        if _THINK.match(" ".join(action.split())):
            return Reply(observation="OK.", executions=0)
        if self.over:
            return Reply(observation="The game is over.", executions=0)
        command = action if self.environment.strict else understood(action)
        answer = await self._ask(command)
        self.commands.append(command)
        self.over = bool(answer["done"])
        observation = answer["observation"]
        if self.over:
            kind = {"turns": float(len(self.commands))}
            verdict = Verdict(success=True, reward=1.0, feedback="The task is done.", detail=kind)
            return Reply(observation=observation, verdict=verdict)
        if self.environment.admissible:
            observation = f"{observation}\nYou can: {listed(answer['admissible'])}."
        return Reply(observation=observation)

    async def _ask(self, command: str) -> dict[str, Any]:
        pool = self.environment.pool
        if self.commands:
            act = {"op": "act", "world": self.name, "number": len(self.commands), "command": command}
            answer = await pool.ask(self.key, {**act, "admissible": self.environment.admissible})
            if "lost" not in answer:
                return answer
        self.started = True
        game = self.environment.game(self.task)
        replay = {"op": "replay", "world": self.name, "game": game, "commands": [*self.commands, command]}
        answer = await pool.ask(self.key, {**replay, "admissible": self.environment.admissible})
        if "broken" in answer:
            raise GameBroken(answer["broken"])
        return answer

    async def close(self) -> None:
        if self.started:
            self.started = False
            await self.environment.pool.ask(self.key, {"op": "leave", "world": self.name}, start=False)


def understood(action: str) -> str:
    """An action in the engine's spelling: one line, lower case, no leading ">", `put X in/on Y` as `move X to Y`."""
    command = " ".join(action.split()).lower().removeprefix(">").strip().rstrip(".")
    put = _PUT.fullmatch(command)
    return f"move {put[1]} to {put[2]}" if put else command


def _types(given: str | Sequence[str]) -> tuple[str, ...]:
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    for name in names:
        if name not in _SHORT and name not in TASK_TYPES:
            raise ConfigError(f'alfworld has no task type "{name}": {nearest(name, [*TASK_TYPES, *_SHORT])}')
    wanted = {_SHORT.get(name, name) for name in names}
    if not wanted:
        raise ConfigError("expected at least one task type, found none")
    return tuple(kind for kind in TASK_TYPES if kind in wanted)


def _bounds(option: str, given: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+))?\s*", str(given))
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 3 <= low <= high <= 10:
        raise ConfigError(f'expected {option} such as "5-8" between 3 and 10, found "{given}"')
    return low, high

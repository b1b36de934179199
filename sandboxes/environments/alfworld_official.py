"""ALFWorld's official data folder: which games it holds, and what each asks for, without the engine.

    games = official_games("~/alfworld/json_2.1.1", "valid_seen")      # paths, sorted
    described(games[0])                                                 # {"task_type", "prompt", "payload"}

The layout is that of `alfworld-download`: `json_2.1.1/<split>/<task>/<trial>/` with `game.tw-pddl` and `traj_data.json`;
the folder named may be `json_2.1.1`, its parent, or any folder of splits. As in ALFWorld's own loader a game counts when
its trial has both files, its type is one of the six, it is not one with movable receptacles or slices, and its file
says that it is solvable. Left out: downloading (`alfworld-download` does it), and playing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError, MissingSplit, nearest
from kintsugi.sandboxes.environments.alfworld_prompt import first_observation
from kintsugi.sandboxes.environments.alfworld_rooms import TASK_TYPES
from kintsugi.sandboxes.environments.alfworld_worker import file_digest, read_game_file

GAME: Final = "game.tw-pddl"
_MEND: Final = "`alfworld-download` brings the official folder json_2.1.1; name it with the option data"
_HELDOUT: Final = ("valid_unseen", "valid_seen")
_PLACED: Final = re.compile(r"\(\s*receptacleAtLocation\s+([^\s?]\S*)\s+\S+?\s*\)", re.IGNORECASE)


def folder_of(data: str | Path, split: str) -> Path | None:
    """The folder of a split; "heldout" is valid_unseen, or else valid_seen. None: "demonstrations", which has none.

    Raises DataError when the data or the split are not there."""
    root = Path(data).expanduser()
    if not root.is_dir():
        raise MissingSplit(f"expected ALFWorld's data folder at {root}, found none; {_MEND}")
    if (root / "json_2.1.1").is_dir():
        root = root / "json_2.1.1"
    there = sorted(one.name for one in root.iterdir() if one.is_dir())
    if split == "demonstrations":
        return None
    name = next((one for one in _HELDOUT if one in there), split) if split == "heldout" else split
    if name not in there:
        known = nearest(split, [*there, "heldout"] if set(_HELDOUT) & set(there) else there)
        raise MissingSplit(f'ALFWorld\'s data folder {root} has no split "{split}": {known}; {_MEND}')
    return root / name


def official_games(folder: Path, task_types: tuple[str, ...] = TASK_TYPES) -> list[Path]:
    """Game files in a split's folder, sorted, of these types (files are not opened)."""
    found = []
    for path in sorted(folder.glob(f"*/*/{GAME}")):
        task = path.parents[1].name
        if task.split("-")[0] in task_types and "movable" not in task and "Sliced" not in task:
            found.append(path)
    if not found:
        raise DataError(f"expected ALFWorld games ({GAME}) in {folder}/<task>/<trial>/, found none; {_MEND}")
    return found


def solvable_games(paths: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(path, description) of those that the official loader plays."""
    for path in paths:
        if (path.parent / "traj_data.json").is_file():
            found = described(path)
            if found["solvable"]:
                yield path, found


def described(path: Path) -> dict[str, Any]:
    """task_type, sentence, prompt, walkthrough, solvable and sha256 of one game; read anew when either of its files was
    changed. Raises DataError for a broken one."""
    return _described(path, _stamp(path), _stamp(path.parent / "traj_data.json"))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None  # who reads it says so
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=8192)
def _described(path: Path, *_: tuple[int, int] | None) -> dict[str, Any]:
    file = read_game_file(path)
    kind = _task_type(path)
    return {
        "task_type": kind,
        "sentence": file["task"],
        "prompt": first_observation(_PLACED.findall(file["pddl_problem"]), file["task"]),
        "walkthrough": file["walkthrough"],
        "solvable": bool(file["solvable"]),
        "sha256": file_digest(path),
    }


def _task_type(path: Path) -> str:
    record = path.parent / "traj_data.json"
    try:
        kind = json.loads(record.read_text(encoding="utf-8"))["task_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected a task_type in {record}, found none that can be read ({error}); {_MEND}") from None
    if kind not in TASK_TYPES:
        raise DataError(f'{record}: expected one of ALFWorld\'s six task types, found "{kind}"')
    return kind

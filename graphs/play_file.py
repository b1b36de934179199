"""A played session is one SQLite file: LangGraph's checkpoints of every point, and one row that says what it is.

    for info in list_sessions("runs/plays"):
        print(info.id, info.environment, info.task_id, info.next)

The row is read without opening the session, so a list is cheap and disturbs nobody. Leaving a file out of the folder, or
deleting it, is all there is to forgetting a session. What the points hold is `kintsugi.graphs.playing`'s.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kintsugi.errors import RunError

SESSIONS = Path("runs/plays")
"""Where sessions are kept when no folder is named."""


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What a list shows. created, updated: ISO 8601. policy: who acts. points: how many there are, over all lines.
    next: the node that comes next, "" when the episode is over. stops: how the attempts of the present line ended.
    turns: actions of its last attempt. committed: ids of its episodes in ledgers."""

    id: str
    path: Path
    created: str
    updated: str
    environment: str
    task_id: str
    policy: str
    points: int
    lines: int
    turns: int
    next: str
    stops: tuple[str, ...] = ()
    committed: tuple[str, ...] = ()


class SessionFile:
    """One session's file, held by one process at a time. `values` is the row, as plain values."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values
        self._held: IO[bytes] | None = None

    @classmethod
    def create(cls, folder: Path, values: dict[str, Any]) -> SessionFile:
        """A new file with a new id. Raises RunError where it cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            id = next(id for id in iter(lambda: secrets.token_hex(3), "") if not (folder / f"{id}.sqlite").exists())
            file = cls(folder / f"{id}.sqlite", {"id": id, **values})
            file.path.touch()
        except OSError as error:
            raise RunError(f"cannot write sessions to {folder} ({error.strerror}): name another folder") from None
        file._hold()
        with closing(_connect(file.path)) as connection, connection:
            connection.execute("CREATE TABLE kintsugi_play (key TEXT PRIMARY KEY, value TEXT)")
        file.save()
        return file

    @classmethod
    def open(cls, path: Path) -> SessionFile:
        """An existing file. Raises RunError when it is no session, or when another process has it open."""
        file = cls(path, _read(path))
        file._hold()
        file.values = _read(path)
        return file

    def save(self, **values: Any) -> None:
        """Change the row."""
        self.values |= values
        with plain_errors(self.path), closing(_connect(self.path)) as connection, connection:
            text = json.dumps(self.values)
            connection.execute("INSERT OR REPLACE INTO kintsugi_play VALUES ('session', ?)", (text,))

    def close(self) -> None:
        """Let others have it; calling it twice is harmless."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _hold(self) -> None:
        # Closed only after every SQLite connection: closing any handle of a file drops a process's own SQLite locks on it.
        self._held = self.path.open("rb")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise RunError(f"the session {self.path.stem} is open elsewhere: leave it there (Ctrl-C) first") from None


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """What SQLite raises, whoever asked it, as an error that a user can mend."""
    try:
        yield
    except sqlite3.Error as error:
        raise RunError(f"the session {path} cannot be read or written ({error}): free space, or restore the file") from None


def list_sessions(folder: str | Path = SESSIONS) -> list[SessionInfo]:
    """The sessions in a folder, the last used one first. Files that are no sessions are left out."""
    found = []
    for path in Path(folder).glob("*.sqlite"):
        try:
            found.append(info_of(path, _read(path)))
        except RunError:
            continue
    return sorted(found, key=lambda info: (info.updated, info.id), reverse=True)


def find_session(name: str, folder: str | Path = SESSIONS) -> Path:
    """The file of a session by its path, its id or the beginning of it, or "last". Raises RunError when none is meant."""
    if Path(name).is_file():
        return Path(name)
    known = list_sessions(folder)
    if not known:
        raise RunError(f"there are no sessions in {folder}: begin one (kintsugi play treasure_hunt)")
    if name == "last":
        return known[0].path
    found = [info for info in known if name and info.id.startswith(name)]
    if len(found) == 1:
        return found[0].path
    ids = ", ".join(info.id for info in (found or known)[:8])
    if found:
        raise RunError(f'several sessions begin with "{name}": {ids}; give more of the id')
    raise RunError(f'no session in {folder} begins with "{name}": known are {ids}')


def info_of(path: Path, values: dict[str, Any]) -> SessionInfo:
    """The row as a record."""
    names = ("id", "created", "updated", "environment", "task_id", "policy", "points", "lines", "turns", "next")
    try:
        kept = {name: values[name] for name in names}
        told = {name: tuple(values.get(name, ())) for name in ("stops", "committed")}
        if not all(isinstance(kept[name], str) for name in names[:6]) or not isinstance(kept["next"], str):
            raise TypeError("no text where one belongs")
        return SessionInfo(path=path, **told, **kept)
    except KeyError as error:
        raise RunError(f"{path} is no session: its row has no {error.args[0]}") from None
    except TypeError as error:
        raise RunError(f"{path} is no session: its row is damaged ({error})") from None


def _connect(path: Path) -> sqlite3.Connection:
    """To a file that is there: one that was moved away must not leave an empty one behind."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=10)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"expected a session at {path}, found none: kintsugi play --list names them")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            row = connection.execute("SELECT value FROM kintsugi_play WHERE key = 'session'").fetchone()
        values = json.loads(row[0])
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise RunError(f"{path} is no session of kintsugi play ({error}): check the path") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} is no session of kintsugi play: check the path")
    return values

"""Opening the ledger's database, and putting what goes wrong there into words.

SQLite runs in WAL mode (readers never wait for the writer) with `synchronous=FULL`. A killed process loses nothing
under `NORMAL` either, since committed pages are already with the operating system; but after a power cut `NORMAL` may
forget the last commits while a checkpoint folder or a graph checkpoint written later survives, and a resumed run would
trust a stage whose rows are gone. The price is one fsync a commit, and a run commits batches.

Every transaction that writes begins with `BEGIN IMMEDIATE`: it waits for other writers at its start instead of failing
in its middle. Left out: moving a ledger between databases.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import QueuePool

from kintsugi.errors import LedgerError, missing_extra

FILE_NAME = "ledger.sqlite"
SAFE = "nothing of this transaction was written, and all before it is safe"


def locate(place: str | Path) -> str | Path:
    """A database URL (str), or the SQLite file (Path) that a file name, a run folder or a `sqlite:///` URL means."""
    text = str(place)
    if text.startswith("sqlite:///"):
        return Path(text.removeprefix("sqlite:///"))
    if "://" in text:
        return text
    path = Path(text)
    is_file = path.suffix in (".sqlite", ".db") or path.is_file()
    return path if is_file and not path.is_dir() else path / FILE_NAME


def open_engine(place: str | Path, *, create: bool, read_only: bool, timeout_s: float) -> tuple[Engine, str]:
    """An engine for a located place and the place's name for people (without a password).

    `engine.execution_options(writes=True)` gives one whose transactions take the write lock at their start."""
    if isinstance(place, str):
        return _open_server(place, read_only=read_only)
    if not place.exists():
        if read_only or not create:
            raise LedgerError(f"there is no ledger at {place}: expected a run folder that holds {FILE_NAME}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"the folder {place.parent} cannot be created ({error}): choose another place") from error
    if not read_only:
        # SQLite itself opens a file that it may not write, and says so only at the first write.
        for path in (place.parent, place):
            if path.exists() and not os.access(path, os.W_OK):
                raise LedgerError(f"{path} is read-only: make it writable, or choose another run folder")
    engine = create_engine(
        "sqlite://", poolclass=QueuePool, creator=lambda: _connect(place, read_only=read_only, timeout_s=timeout_s)
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine, str(place)


def _open_server(text: str, *, read_only: bool) -> tuple[Engine, str]:
    try:
        url = make_url(text)
        engine = create_engine(url, execution_options={"postgresql_readonly": True} if read_only else {})
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise LedgerError(
            f'"{text.split("://")[0]}://…" is not the URL of a database that can hold a ledger ({error}): '
            "give a folder, or postgresql+psycopg://user@host/database"
        ) from error
    except ModuleNotFoundError as error:
        raise missing_extra("a ledger on PostgreSQL", "postgres") from error
    return engine, url.render_as_string(hide_password=True)


def _connect(path: Path, *, read_only: bool, timeout_s: float) -> sqlite3.Connection:
    if not read_only:
        return _prepare(path, "rwc", timeout_s)
    try:
        return _prepare(path, "ro", timeout_s)
    except sqlite3.OperationalError as error:
        # Reading a WAL file needs its index beside it, which a read-only folder refuses. When no unfinished log is
        # left, the file alone is the whole truth and may be read as it stands.
        log = path.with_name(path.name + "-wal")
        refused = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not refused or (log.exists() and log.stat().st_size):
            raise
        return _prepare(path, "ro&immutable=1", timeout_s)


def _prepare(path: Path, mode: str, timeout_s: float) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        if mode == "rwc":
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA schema_version").fetchone()  # the first look into the file: damage shows here
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextmanager
def plain_errors(place: str) -> Iterator[None]:
    """Turns what a database raises into a LedgerError of one sentence. Programming errors pass through."""
    try:
        yield
    except DBAPIError as error:
        raise LedgerError(_sentence(error.orig or error, place)) from error
    except sqlite3.Error as error:
        raise LedgerError(_sentence(error, place)) from error


def _sentence(error: BaseException, place: str) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return f"{place} is damaged or is no ledger ({said}): restore it from a copy, or move it away and run anew"
    if code == sqlite3.SQLITE_FULL:
        return f"the disk that holds {place} is full: free some space and resume; {SAFE}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{place} is locked by another process: wait until it ends, or stop it, and resume; {SAFE}"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return f"{place} is read-only ({said}): make the file and its folder writable, or choose another run folder"
    if code == sqlite3.SQLITE_CANTOPEN:
        return f"{place} cannot be opened ({said}): check that its folder exists and that you may read and write it"
    if code == sqlite3.SQLITE_IOERR:
        return f"the disk failed under {place} ({said}): check its health and free space, then resume; {SAFE}"
    lowered = said.lower()
    if "foreign key" in lowered:
        return f"a record refers to a task or trajectory that {place} does not hold: add that one first; {SAFE}"
    if "unique" in lowered:
        return f"{place} already holds another record with the same id ({said}); {SAFE}"
    return f"the database at {place} refused ({said}): mend that and resume; {SAFE}"

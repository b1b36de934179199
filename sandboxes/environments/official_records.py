"""Tasks made of records: of an official release in a local folder, of the hub, or of the bundled set.

    class Svamp(RecordTasks, NumberProblems):
        name, files, mend = "svamp", {"train": "train", "test": "test", "heldout": "test"}, "the official file is …"
        def from_folder(self, folder, official): yield from json_list(folder / f"{official}.json", self.mend)
        def from_hub(self, hub, official): yield from hub_rows(self.name, hub, self.mend, split=official)
        def made(self, record, where, official): return Made(key=record["ID"], prompt=…, payload={"answer": …})

**Where from**: `data` is a folder, `"hub"` (through the package `datasets`) or `"bundled"`; without one the bundled set
plays, and a warning says so once, as its results say nothing about the official benchmark. The bundled set is
`<name>.jsonl` beside the environment: records of the official schema that this project made, each with its `split`
(train, heldout, demonstrations).

**Which tasks**: in the file's order; with `limit`, the first ones for seed 0 and a sample for each other seed. Ids are
made of the official id or a hash of the prompt, so that a slice and the whole set agree.

A release that knows no training split is divided by `share_of` of each record's key: `heldout` gets a fifth.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from kintsugi.errors import DataError, MissingSplit, nearest
from kintsugi.hub import hub_or_cache
from kintsugi.records import Task

Row = tuple[Any, str]
"""A record, and where it stands ("file, line n")."""

BUNDLED: Final = "bundled"
_warned: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Made:
    """A record as a task. key: official id, or a text that is this record's own; the rest as `Task` has it."""

    key: str
    prompt: str
    payload: Mapping[str, Any]


class RecordTasks:
    """Gives `tasks`; a subclass gives the class attributes, `from_folder`, `from_hub` and `made`.

    files: official split (or part of one) that each split is read from. mend: how to get the data, for error messages.
    hub: name of the data set on the hub. source: what is read when no data are named."""

    name: ClassVar[str] = "records"
    files: ClassVar[Mapping[str, str]] = {}
    mend: ClassVar[str] = ""
    source: str = BUNDLED

    def __init__(self, *, data: str | Path | None = None, hub: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.hub = hub
        self.folder: Path | None = None
        if data is not None:
            self.source = str(data) if data in ("hub", BUNDLED) else "folder"
        if self.source == "folder":
            self.folder = Path(str(data)).expanduser()
        self._data_named = data is not None
        self._made: dict[str, list[Task]] = {}

    # What a subclass gives

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        """The records of an official split. Raises DataError."""
        raise NotImplementedError

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        """The same from the hub. Raises DataError."""
        raise NotImplementedError

    def made(self, record: Any, where: str, official: str) -> Made | Iterable[Made]:
        """The task or tasks of a record. Raises DataError when it is not in the official schema."""
        raise NotImplementedError

    # What it gets

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """See the module. Raises DataError for an unknown split and for files that are missing or malformed."""
        official = self._official(split)
        if official is None:
            return ()
        if split not in self._made:
            self._made[split] = self._all_tasks(split, official)
        made = self._made[split]
        if limit is None or limit >= len(made):
            return list(made)
        if seed == 0:
            return made[:limit]
        chosen = random.Random(f"{self.name} {seed}").sample(range(len(made)), limit)
        return [made[index] for index in sorted(chosen)]

    def _official(self, split: str) -> str | None:
        """What to read for `split`; None when it is known and empty."""
        if self.source == BUNDLED:
            splits = {"train": "train", "heldout": "heldout", "test": "heldout", "demonstrations": "demonstrations"}
        else:
            splits = {"demonstrations": "", **self.files}
        if split not in splits:
            raise MissingSplit(f'{self.name} has no split "{split}": {nearest(split, splits)}')
        return splits[split] or None

    def _all_tasks(self, split: str, official: str) -> list[Task]:
        tasks: list[Task] = []
        seen: dict[str, int] = {}
        for record, where in self._rows(official):
            made = self.made(record, where, official)
            for one in [made] if isinstance(made, Made) else made:
                seen[one.key] = seen.get(one.key, 0) + 1
                again = f"-{seen[one.key]}" if seen[one.key] > 1 else ""
                task_id = f"{'bundled-' if self.source == BUNDLED else ''}{one.key}{again}"
                tasks.append(
                    Task(id=task_id, environment=self.name, split=split, prompt=one.prompt, payload=dict(one.payload))
                )
        if not tasks:
            raise MissingSplit(f"{self.folder or self.hub}: the {official} split holds no records; {self.mend}")
        return tasks

    def _rows(self, official: str) -> Iterable[Row]:
        if self.source == "folder":
            assert self.folder is not None
            return self.from_folder(self.folder, official)
        if self.source == "hub":
            return self.from_hub(self.hub, official)
        path = Path(__file__).with_name(f"{self.name}.jsonl")
        if not self._data_named and self.name not in _warned:
            _warned.add(self.name)
            told = f"{self.name}: no data named, so the small bundled set plays (no benchmark): set data=FOLDER or data=hub"
            warnings.warn(told, UserWarning, stacklevel=4)
        return ((row, where) for row, where in jsonl(path, self.mend) if row["split"] == official)


def jsonl(path: Path, mend: str) -> Iterator[Row]:
    """One JSON value a line; empty lines are passed over."""
    for number, line in enumerate(read_bytes(path, mend).split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _parsed(line, where, mend), where


def json_list(path: Path, mend: str) -> Iterator[Row]:
    """A file that is one JSON list."""
    rows = _parsed(read_bytes(path, mend), str(path), mend)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(rows).__name__}; {mend}")
    yield from ((row, f"{path}, record {number}") for number, row in enumerate(rows, 1))


def _parsed(text: bytes, where: str, mend: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object, found {text[:40]!r} ({error}); {mend}") from error


def read_bytes(path: Path, mend: str) -> bytes:
    """The file's content, or a DataError that says what lies in its place."""
    try:
        return path.read_bytes()
    except OSError as error:
        folder = path.parent
        names = sorted(entry.name for entry in folder.iterdir())[:6] if folder.is_dir() else None
        found = "no such folder" if names is None else f"it has {', '.join(names) or 'nothing'}"
        kind = MissingSplit if isinstance(error, FileNotFoundError | NotADirectoryError) else DataError
        raise kind(f"expected the file {path}, found none ({error.strerror}; {found}); {mend}") from error


def first_of(folder: Path, *names: str) -> Path:
    """The first of these files that is there; the first name when none is (reading it then tells)."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def hub_rows(name: str, hub: str, mend: str, *, config: str | None = None, split: str) -> Iterator[Row]:
    """Records of a data set on the hub."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"{name} needs a local folder or the package datasets, found neither; {mend}") from error
    try:
        with hub_or_cache():
            rows = load_dataset(hub, config, split=split) if config else load_dataset(hub, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated kinds; all mean "no data from there"
        reason = str(error).strip().partition("\n")[0][:160]
        what = f"{name} could not read {hub} from the hub ({type(error).__name__}: {reason})"
        raise DataError(f"{what}; {mend}") from error
    yield from ((record, f"{hub} {split}, record {number}") for number, record in enumerate(rows, 1))


def texts(record: Any, where: str, mend: str, *keys: str) -> list[str]:
    """The record's fields `keys`, which must be texts that are not empty. Raises DataError."""
    if not isinstance(record, Mapping):
        wanted = " and ".join(keys)
        raise DataError(f"{where}: expected an object with {wanted}, found {type(record).__name__}; {mend}")
    for key in keys:
        if not isinstance(record.get(key), str) or not record[key].strip():
            names = f"the fields {', '.join(map(str, record))}" if record else "nothing"
            found = f"{record[key]!r:.60}" if key in record else names
            raise DataError(f'{where}: expected a text "{key}", found {found}; {mend}')
    return [record[key] for key in keys]


def number_of(record: Any, where: str, mend: str, key: str) -> int | float:
    """The record's field `key`, a finite number; whole ones as int. Raises DataError."""
    value = record.get(key) if isinstance(record, Mapping) else None
    if isinstance(value, str) and re.fullmatch(r"-?\d+(?:\.\d+)?", value):  # the hub's copies write some as text
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise DataError(f'{where}: expected a number "{key}", found {value!r}; {mend}')
    return int(value) if value == int(value) else value


def digest(text: str) -> str:
    """The first 16 hex digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def share_of(key: str) -> str:
    """`heldout` for a fifth of the keys, `train` for the others; the same for ever."""
    return "heldout" if hashlib.sha256(f"share {key}".encode()).digest()[0] < 51 else "train"


def shared_out(rows: Iterable[Row], official: str, key: Callable[[Any, str], str]) -> Iterator[Row]:
    """The rows of a release without a division: all for `test`, else those whose key's share is `official`."""
    return (row for row in rows if official == "test" or share_of(key(*row)) == official)

"""HotpotQA's records: from the official files, from the hub, or from the invented encyclopedia, all in the official schema.

    records = read_records("path/to/folder", "dev")      # a sequence of dicts, checked as they are taken out
    records[0]["question"], records[0]["context"][0]      # …, [title, [sentences]]

Official files: `hotpot_train_v1.1.json` and `hotpot_dev_distractor_v1.json`, each a JSON list of `{_id, question, answer,
type, level, supporting_facts: [[title, number]], context: [[title, [sentences]]]}`. The hub's data set has the same content
with `id` and columns inside `supporting_facts` and `context`; it comes out in the official form. The whole training file
takes some 2 GB of memory while it is read. Source: Yang et al. 2018 (arXiv 1809.09600), data under CC BY-SA 4.0. Left out:
the test file (it has no answers), and the fullwiki files (search a corpus or Wikipedia instead).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError, MissingSplit
from kintsugi.hub import hub_or_cache

FILES: Final = {"train": "hotpot_train_v1.1.json", "dev": "hotpot_dev_distractor_v1.json"}
"""The official files by official split."""

_HUB_SPLITS: Final = {"train": "train", "dev": "validation"}
_MEND: Final = (
    "the official files are linked from https://hotpotqa.github.io: name their folder with the option "
    'data="…", or leave the option out for the bundled questions'
)

Record = dict[str, Any]


class Records:
    """Records read from `where`, each checked and put into the official form when it is taken."""

    def __init__(self, rows: Any, where: str) -> None:
        self.rows, self.where = rows, where

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Record:
        """Raises DataError when the record is not in the schema."""
        return _checked(_official(self.rows[place]), f"{self.where}, record {place + 1}")


def read_records(data: str | Path, official: str, hub: str) -> Records:
    """The records of an official split from a folder, or from the data set `hub` when `data` is "hub".

    Raises DataError when there are none to be had."""
    records = _from_hub(hub, official) if str(data) == "hub" else _from_folder(Path(data).expanduser(), official)
    if not len(records):
        raise DataError(f"{records.where} holds no records: {_MEND}")
    return records


def _from_folder(folder: Path, official: str) -> Records:
    path = folder / FILES[official]
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        names = sorted(entry.name for entry in folder.iterdir())[:6] if folder.is_dir() else None
        found = "no such folder" if names is None else f"it has {', '.join(names) or 'nothing'}"
        kind = MissingSplit if isinstance(error, FileNotFoundError | NotADirectoryError) else DataError
        raise kind(f"hotpotqa expected the file {path}, found none ({error.strerror}; {found}): {_MEND}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON list of records, found none ({str(error)[:80]}): {_MEND}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a JSON list of records, found {type(rows).__name__}: {_MEND}")
    return Records(rows, str(path))


def _from_hub(hub: str, official: str) -> Records:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"hotpotqa needs a local folder or the package datasets, found neither: {_MEND}") from None
    try:
        with hub_or_cache():
            rows = load_dataset(hub, "distractor", split=_HUB_SPLITS[official])
    except Exception as error:  # the hub client raises a dozen unrelated kinds; all mean "no data from there"
        reason = str(error).strip().partition("\n")[0][:160]
        what = f"hotpotqa could not read {hub} from the hub ({type(error).__name__}: {reason})"
        raise DataError(f"{what}: {_MEND}") from None
    return Records(rows, f"{hub} {official}")


def _official(row: Any) -> Any:
    """A hub row in the official form; anything else as it is."""
    if not isinstance(row, Mapping) or "_id" in row:
        return row
    facts, context = row.get("supporting_facts"), row.get("context")
    if not isinstance(facts, Mapping) or not isinstance(context, Mapping):
        return row
    try:
        return {
            **row,
            "_id": row.get("id"),
            "supporting_facts": [list(pair) for pair in zip(facts["title"], facts["sent_id"], strict=True)],
            "context": [list(pair) for pair in zip(context["title"], context["sentences"], strict=True)],
        }
    except (KeyError, TypeError, ValueError):
        return row


def _checked(row: Any, where: str) -> Record:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object, found {type(row).__name__}: {_MEND}")
    for key in ("_id", "question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f'{where}: expected a text "{key}", found the fields {_names(row)}: {_MEND}')
    if not _pairs(row.get("supporting_facts"), int):
        raise DataError(f"{where}: expected supporting_facts as [[title, number]], found something else: {_MEND}")
    if not _pairs(row.get("context"), list) or not all(_texts(sentences) for _, sentences in row["context"]):
        raise DataError(f"{where}: expected context as [[title, [sentences]]], found something else: {_MEND}")
    return {
        "_id": row["_id"],
        "question": " ".join(row["question"].split()),
        "answer": row["answer"],
        "type": str(row.get("type", "")),
        "level": str(row.get("level", "")),
        "supporting_facts": [[title, int(number)] for title, number in row["supporting_facts"]],
        "context": [[title, list(sentences)] for title, sentences in row["context"]],
    }


def _pairs(value: Any, second: type) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], second)
        for pair in value
    )


def _texts(sentences: Any) -> bool:
    return all(isinstance(sentence, str) for sentence in sentences)


def _names(row: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"

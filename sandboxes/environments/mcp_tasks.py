"""A user's own tasks for the MCP bridge, and how an answer is compared with the record's.

    records = read_tasks(Path("questions.jsonl"))          # {"train": [{"question": …, "answer": …}, …]}
    open_judge("number").score({"answer": "8"}, "8.0")     1.0

Left out: what the agent may do (`mcp_bridge`).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.sandboxes.environments.answer_match import exact_match, normalize_answer
from kintsugi.sandboxes.environments.printed_number import parse_number

Record = Mapping[str, Any]
SPLITS: Final = ("train", "heldout", "demonstrations")
TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class Judge:
    """score: of (record, answer said), in [0, 1], won at 1. is_pattern: the record's answer is no answer itself."""

    score: Callable[[Record, str], float]
    is_pattern: bool = False


def read_tasks(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by split; see the module. Raises DataError for a missing file and for the first line that is wrong."""
    if path.is_dir():
        files = {split: path / f"{split}.jsonl" for split in SPLITS if (path / f"{split}.jsonl").is_file()}
        if not files:
            raise DataError(
                f"mcp.tasks: expected train.jsonl (and heldout.jsonl, demonstrations.jsonl) in {path}, found none"
            )
        return {split: _lines(file) for split, file in files.items()}
    if not path.is_file():
        raise DataError(f"mcp.tasks: expected a file of JSON lines or a folder of them at {path}, found none")
    found: dict[str, list[dict[str, Any]]] = {}
    for record in _lines(path):
        found.setdefault(str(record.get("split", "train")), []).append(record)
    return found


def open_judge(match: str) -> Judge:
    """The comparison that the option `match` names. Raises ConfigError."""
    if match in _MATCHES:
        return _MATCHES[match]
    module, colon, name = match.partition(":")
    if not colon:
        raise ConfigError(f'mcp.match: unknown "{match}": {nearest(match, _MATCHES)}, or module:function')
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f'mcp.match: expected "module:function", found "{match}" ({error})') from None
    return Judge(lambda record, said: float(function(record, said)))


def _lines(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: expected a JSON object, found {line[:60]!r} ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("question"), str):
            raise DataError(f'{path}, line {number}: expected an object with a text "question", found {line[:60]!r}')
        records.append(record)
    if not records:
        raise DataError(f"{path}: expected a JSON object a line, found none")
    return records


def _exact(record: Record, said: str) -> float:
    return exact_match(said, str(record.get("answer", "")))


def _number(record: Record, said: str) -> float:
    found, wanted = parse_number(said), parse_number(str(record.get("answer", "")))
    return float(found is not None and wanted is not None and abs(found - wanted) <= TOLERANCE)


def _contains(record: Record, said: str) -> float:
    wanted = normalize_answer(str(record.get("answer", "")))
    return float(bool(wanted) and f" {wanted} " in f" {normalize_answer(said)} ")


def _regex(record: Record, said: str) -> float:
    pattern = str(record.get("answer", ""))
    try:
        return float(re.fullmatch(pattern, said.strip()) is not None)
    except re.error as error:
        raise DataError(f'mcp.tasks: expected a regular expression as the answer, found "{pattern}" ({error})') from None


_MATCHES: Final[dict[str, Judge]] = {
    "exact": Judge(_exact),
    "number": Judge(_number),
    "contains": Judge(_contains),
    "regex": Judge(_regex, is_pattern=True),
}

"""Fetching an official release into a folder: from its own source, with its checksum, its licence written beside it.

    fetched = fetch("svamp", Path("data/svamp"))

Each file is compared with the SHA-256 that this project knows, where it knows one; else with the one written down in
`SOURCES.json` at the first fetch, so that a later copy that differs is noticed. A file that is there and agrees is not
fetched again. Left out: mirrors, and agreeing to a licence in anyone's name.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments.about import About, Download, about

SOURCES: Final = "SOURCES.json"
TIMEOUT_S: Final = 30.0
_PIECE: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """One file. path: where it lies; known: its checksum was compared with one known before; fresh: it was fetched now."""

    path: Path
    sha256: str
    bytes: int
    known: bool
    fresh: bool


def fetch(name: str, folder: Path, *, timeout_s: float = TIMEOUT_S) -> list[Fetched]:
    """Fetch the release of the environment `name` into `folder`.

    Raises ConfigError when there is nothing to fetch, DataError when a source cannot be reached or a file is not what
    its checksum says; files that were fetched before that stay."""
    said = about(name)
    if not said.downloads:
        where = f": {said.home}" if said.home else ""
        raise ConfigError(f"{name} has no official file to fetch ({said.data}){where}")
    folder.mkdir(parents=True, exist_ok=True)
    written = _written(folder)
    fetched = []
    for one in said.downloads:
        wanted = one.sha256 or str(written.get(one.path, {}).get("sha256", ""))
        path = folder / one.path
        fresh = not path.is_file() or (wanted != "" and _digest(path) != wanted)
        if fresh:
            _bring(one, path, wanted, folder, timeout_s)
            if one.unpack:
                _unpack(path, folder)
        found = _digest(path)
        fetched.append(Fetched(path=path, sha256=found, bytes=path.stat().st_size, known=bool(wanted), fresh=fresh))
        written[one.path] = {"url": one.url, "sha256": found, "bytes": fetched[-1].bytes}
        _write(folder, said, written)
    return fetched


def _bring(one: Download, path: Path, wanted: str, folder: Path, timeout_s: float) -> None:
    """Fetch to a name of its own, compare, put in place."""
    part = path.with_name(path.name + ".part")
    host = urllib.parse.urlsplit(one.url).hostname
    by_hand = f"without a network here, fetch {one.url} elsewhere and put it into {folder} as {one.path}"
    try:
        request = urllib.request.Request(one.url, headers={"User-Agent": "kintsugi"})
        with urllib.request.urlopen(request, timeout=timeout_s) as answer, part.open("wb") as file:
            while piece := answer.read(_PIECE):
                file.write(piece)
    except urllib.error.HTTPError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{host} answered {error.code} ({error.reason}) for {one.path}; {by_hand}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        part.unlink(missing_ok=True)
        reason = str(getattr(error, "reason", error)).partition("\n")[0][:120]
        raise DataError(f"cannot reach {host} ({reason}); {by_hand}") from error
    found = _digest(part)
    if wanted and found != wanted:
        part.unlink()
        raise DataError(
            f"{one.url}: expected SHA-256 {wanted}, found {found}; the release has changed or was tampered with: look, "
            f"and put the file into {folder} by hand if you trust it"
        )
    os.replace(part, path)


def _unpack(path: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # zipfile leaves out `..` and absolute names itself
                archive.extractall(folder)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: expected an archive, found what cannot be unpacked ({error})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written(folder: Path) -> dict[str, Any]:
    try:
        files = json.loads((folder / SOURCES).read_text(encoding="utf-8")).get("files", {})
    except (OSError, ValueError, AttributeError):
        return {}
    return {name: entry for name, entry in files.items() if isinstance(entry, Mapping)}


def _write(folder: Path, said: About, files: Mapping[str, Any]) -> None:
    told = {"licence": said.licence, "home": said.home, "files": files}
    (folder / SOURCES).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

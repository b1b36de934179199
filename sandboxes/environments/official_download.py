"""Fetching an official release into a folder: from its own source, with its checksum, its licence written beside it.

    fetched = fetch("svamp", Path("data/svamp"))

Each file is compared with the SHA-256 that this project knows, where it knows one; else with the one written down in
`SOURCES.json` at the first fetch, so that a later copy that differs is noticed. At a first fetch with nothing to compare,
the transfer must be as long as announced and look like what its name says (an archive that tests well, JSON that can be
read). Only then is it put in place: a fetch that fails leaves nothing behind. A file that is there and agrees is not fetched
again, whoever put it there; an archive is unpacked unless its files are there. The checksums in the environments' files are
those on which public records of the same file agree (dataset loaders, pointers of large files); there are none where they do
not, or where there are no such records. Left out: mirrors, and agreeing to a licence in anyone's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from kintsugi.errors import ConfigError, DataError
from kintsugi.sandboxes.environments.about import About, Download, about

SOURCES: Final = "SOURCES.json"
TIMEOUT_S: Final = 30.0
_PIECE: Final = 1 << 20
_UNREADABLE: Final = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
_PAGE: Final = (b"<!doctype html", b"<html")
_TROUBLE: Final = {"message", "error", "errors", "detail"}
_SHORT: Final = 4096
"""Characters: shorter JSON with a field of _TROUBLE is what a server says when it does not give the file."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """One file. path: where it lies. against: what its checksum was compared with: the one this project knows, the one
    written down at the first fetch, or nothing yet. fresh: it was fetched now. unpacked: files that came out of it now."""

    path: Path
    sha256: str
    bytes: int
    against: Literal["project", "first fetch", "nothing"]
    fresh: bool
    unpacked: int = 0

    @property
    def known(self) -> bool:
        """Whether there was anything to compare it with."""
        return self.against != "nothing"


def fetch(name: str, folder: Path, *, timeout_s: float = TIMEOUT_S) -> list[Fetched]:
    """Fetch the release of the environment `name` into `folder`.

    Raises ConfigError when there is nothing to fetch or `folder` cannot be one, DataError when a source cannot be reached or
    a file is not what it should be; files that were fetched before that stay."""
    said = about(name)
    if not said.downloads:
        where = f": {said.home}" if said.home else ""
        raise ConfigError(f"{name} has no official file to fetch ({said.data}){where}")
    try:
        with _made(folder):
            written = _written(folder)
            fetched = []
            for one in said.downloads:
                fetched.append(_fetched(one, folder, written, timeout_s))
                entry = {"url": one.url, "sha256": fetched[-1].sha256, "bytes": fetched[-1].bytes}
                written[one.path] = entry
                _write(folder, said, written)
            return fetched
    except OSError as error:
        raise ConfigError(f"expected a folder to write {name} into, found {folder} ({error.strerror or error})") from error


def _fetched(one: Download, folder: Path, written: Mapping[str, Any], timeout_s: float) -> Fetched:
    first = str(written.get(one.path, {}).get("sha256", ""))
    against = "project" if one.sha256 else "first fetch" if first else "nothing"
    wanted, path = one.sha256 or first, folder / one.path
    found = _digest(path) if path.is_file() else ""
    fresh = found == "" or (wanted != "" and found != wanted)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as aside:
        if fresh:
            part = Path(aside, PurePosixPath(one.path).name)
            try:
                _bring(one, part, folder, timeout_s)
            except DataError as error:
                spoilt = f"{path} has SHA-256 {found}, expected {wanted}; fetched anew: " if found else ""
                raise DataError(f"{spoilt}{error}") from error
            found = _digest(part)
            if wanted and found != wanted:
                raise DataError(_differs(one, folder, found, against))
            if objection := _objection(part, one):
                raise DataError(f"{one.url}: {objection}; {_by_hand(one, folder)}")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, path)
        elif objection := _objection(path, one):
            raise DataError(f"{path}: {objection}; delete it, or put the right file there: {one.url}")
        unpacked = _unpack(path, folder, Path(aside), again=fresh) if one.unpack else 0
    size = path.stat().st_size
    return Fetched(path=path, sha256=found, bytes=size, against=against, fresh=fresh, unpacked=unpacked)


def _bring(one: Download, part: Path, folder: Path, timeout_s: float) -> None:
    """Fetch to `part`. Raises DataError, also for a transfer that ended early."""
    with part.open("wb") as file:
        for piece in _pieces(one, folder, timeout_s):
            file.write(piece)


def _pieces(one: Download, folder: Path, timeout_s: float) -> Iterator[bytes]:
    host, by_hand = urllib.parse.urlsplit(one.url).hostname, _by_hand(one, folder)
    received, length = 0, ""
    try:
        request = urllib.request.Request(one.url, headers={"User-Agent": "kintsugi"})
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            length = str(answer.headers.get("Content-Length") or "")
            while piece := answer.read(_PIECE):
                received += len(piece)
                yield piece
    except urllib.error.HTTPError as error:
        reason = str(error.reason).partition("\n")[0][:120]  # of too many redirections it has several lines
        raise DataError(f"{host} answered {error.code} ({reason}) for {one.path}; {by_hand}") from error
    except http.client.IncompleteRead as error:
        raise DataError(f"{one.url}: the transfer ended early; fetch again") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(getattr(error, "reason", error)).partition("\n")[0][:120]
        raise DataError(f"cannot reach {host} ({reason}); {by_hand}") from error
    if length.isdigit() and received != int(length):
        raise DataError(f"{one.url}: expected {length} bytes as announced, {received} came; fetch again")


def _by_hand(one: Download, folder: Path) -> str:
    return f"without a network here, fetch {one.url} elsewhere and put it into {folder} as {one.path}"


def _differs(one: Download, folder: Path, found: str, against: str) -> str:
    if against == "project":
        return (
            f"{one.url}: expected SHA-256 {one.sha256}, found {found}; the release has changed or was tampered with: look, "
            "and if you trust it, put it by hand into another folder and name that as data"
        )
    return (
        f"{one.url}: expected SHA-256 as at the first fetch (in {folder / SOURCES}), found {found}; the release has changed "
        f"or was tampered with: look, and if you trust it, take {one.path} out of that file and fetch again"
    )


def _objection(path: Path, one: Download) -> str:
    """Why the file cannot be what its name says, "" when it may be."""
    with path.open("rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith(_PAGE) or not start:
        return f"expected {one.path}, found {'a web page' if start else 'nothing'}"
    if one.unpack:
        return _bad_archive(path)
    if one.sha256 or not one.path.endswith((".json", ".jsonl")):
        return ""
    try:
        text = path.read_text(encoding="utf-8")
        pieces = text.split("\n") if one.path.endswith(".jsonl") else [text]
        found = [json.loads(piece) for piece in pieces if piece.strip()]
        if len(found) == 1 and isinstance(found[0], dict) and found[0].keys() & _TROUBLE and len(text) < _SHORT:
            return f"expected {one.path}, found a message: {' '.join(text.split())[:200]}"
    except (ValueError, RecursionError) as error:
        return f"expected JSON, found what cannot be read as such ({error})"
    return ""


def _bad_archive(path: Path) -> str:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                spoilt = archive.testzip()
            return f"expected an archive, {spoilt} in it is spoilt" if spoilt else ""
        with tarfile.open(path) as archive:
            for member in archive:
                if (content := archive.extractfile(member)) is not None:
                    while content.read(_PIECE):
                        pass
    except (*_UNREADABLE, ValueError, RuntimeError, OSError) as error:
        return f"expected an archive, found what cannot be unpacked ({' '.join(str(error).split())[:200]})"
    return ""


def _unpack(path: Path, folder: Path, aside: Path, *, again: bool) -> int:
    """Unpack unless its files are there (`again`: in any case), and say how many came out.

    Names that lead out of the folder are passed over. Raises DataError."""
    into = aside / "unpacked"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = _wanted(
                    {one.filename: one.file_size for one in archive.infolist() if not one.is_dir()}, folder, again
                )
                archive.extractall(into, members=names)
        else:
            with tarfile.open(path) as archive:
                names = _wanted({one.name: one.size for one in archive.getmembers() if one.isfile()}, folder, again)
                archive.extractall(into, members=[archive.getmember(name) for name in names], filter="data")
    except _UNREADABLE as error:
        raise DataError(f"{path}: expected an archive, found what cannot be unpacked ({error})") from error
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(into / name, folder / name)
    return len(names)


def _wanted(inside: Mapping[str, int], folder: Path, again: bool) -> list[str]:
    """The names to unpack: all that lead into the folder, or none when they are there with their sizes."""
    safe = [name for name in inside if not PurePosixPath(name).is_absolute() and ".." not in name.split("/")]
    there = all((folder / name).is_file() and (folder / name).stat().st_size == inside[name] for name in safe)
    return [] if there and not again else safe


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """`folder` exists within; when what is done within fails, the folders made for it go again if they are empty."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):  # it holds something, or could not be made
                one.rmdir()
        raise


def _written(folder: Path) -> dict[str, Any]:
    """The entries of SOURCES.json, {} when there is none. Raises DataError for one that says nothing of checksums."""
    path = folder / SOURCES
    if not path.exists():
        return {}
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        if all(isinstance(entry["sha256"], str) for entry in files.values()):
            return dict(files)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(
        f'{path}: expected {{"files": {{path: {{"sha256": …}}}}}}, found something else; mend it, or delete it: checksums '
        "are then written down anew, with nothing to compare them with"
    )


def _write(folder: Path, said: About, files: Mapping[str, Any]) -> None:
    told = {"licence": said.licence, "home": said.home, "files": files}
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as aside:
        new = Path(aside, SOURCES)
        new.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        shutil.move(new, folder / SOURCES)

"""The image that the Docker sandbox runs: the running interpreter, its standard library and its shared libraries.

    name = interpreter_image(client)          # "kintsugi-sandbox:4f1c...", built when the engine does not have it yet

Nothing is pulled and no registry is asked: a tar of files that are here already is imported (about 60 MB, some
seconds, once per interpreter). Images of the same interpreter that this one supersedes are removed. Leaves out:
packages beyond the standard library: an image of your own holds them.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kintsugi.errors import SandboxError
from kintsugi.sandboxes.confinement import ZONES
from kintsugi.sandboxes.interpreter_files import interpreter, library_folder, shared_libraries

REPOSITORY = "kintsugi-sandbox"
_LABEL = "kintsugi.interpreter"
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "ensurepip", "posix", "right"}
_LEFT_OUT_ENDINGS = (".a", ".o", ".exe")


def interpreter_image(client: Any) -> str:
    """The name of the image on the engine of `client` (a docker.APIClient). Raises SandboxError, DockerException."""
    files = sorted(_files())
    digest = hashlib.sha256(repr([sys.version, interpreter(), files, sorted(shared_libraries()[1].items())]).encode())
    tag = digest.hexdigest()[:16]
    name = f"{REPOSITORY}:{tag}"
    if any(name in (image["RepoTags"] or ()) for image in client.images(name=REPOSITORY)):
        return name
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        _write_tar(file.name, [path for path, *_ in files])
        said = client.import_image_from_file(
            file.name,
            repository=REPOSITORY,
            tag=tag,
            changes=["USER 65534:65534", "ENV PATH=/usr/bin:/bin", f"LABEL {_LABEL}={_owner()}"],
        )
    if not any(name in (image["RepoTags"] or ()) for image in client.images(name=REPOSITORY)):
        raise SandboxError(f"docker sandbox: expected the engine to import an image, found: {said[-500:]}")
    _remove_superseded(client, name)
    return name


def _owner() -> str:
    return hashlib.sha256(interpreter().encode()).hexdigest()[:16]


def _remove_superseded(client: Any, name: str) -> None:
    """Images of this interpreter as it was before; those in use stay."""
    from docker.errors import APIError

    for image in client.images(name=REPOSITORY, filters={"label": f"{_LABEL}={_owner()}"}):
        for old in image["RepoTags"] or ():
            if old != name:
                try:
                    client.remove_image(old)
                except APIError:
                    continue


def _files() -> Iterator[tuple[str, int, int]]:
    """(path, bytes, seconds of its last change) of all that goes in."""
    single = [*shared_libraries()[0], os.path.realpath(interpreter())]
    for path in single:
        found = os.stat(path)
        yield path, found.st_size, int(found.st_mtime)
    pending = [str(library_folder()), *(folder for folder in (ZONES,) if os.path.isdir(folder))]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name in _LEFT_OUT or entry.name.endswith(_LEFT_OUT_ENDINGS):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file():
                    found = entry.stat()
                    yield entry.path, found.st_size, int(found.st_mtime)


def _write_tar(target: str, paths: list[str]) -> None:
    links = dict(shared_libraries()[1])
    if not os.path.exists(interpreter()) or os.path.realpath(interpreter()) != interpreter():
        links[interpreter()] = os.path.realpath(interpreter())
    folders: set[str] = set()
    with tarfile.open(target, "w") as tar:
        for place, aim in sorted(links.items()):  # first, so that what lies below a linked folder finds it
            _add_folders(tar, Path(place).parent, folders)
            entry = tarfile.TarInfo(place.lstrip("/"))
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, aim, 0o777
            tar.addfile(entry)
        for path in paths:
            _add_folders(tar, Path(path).parent, folders)
            entry = tar.gettarinfo(os.path.realpath(path), arcname=path.lstrip("/"))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            entry.type, entry.linkname = tarfile.REGTYPE, ""  # hard links would name files outside
            with open(path, "rb") as file:
                tar.addfile(entry, file)


def _add_folders(tar: tarfile.TarFile, folder: Path, known: set[str]) -> None:
    for parent in [*reversed(folder.parents), folder]:
        name = str(parent).lstrip("/")
        if name and name not in known:
            known.add(name)
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)

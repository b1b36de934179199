"""What is left behind when an environment is closed: child processes, their descendants, and files.

    with Leftovers() as left:
        environment = open_environment("./mine.py")
        …
        left.processes()      # ["sleep 30 (process 4711)"]
        left.files()          # ["tmpab12cd"]

Processes are found by their parent, and by a mark in the environment variables that they inherit, so that those that went
their own way (a daemon) are seen too. Files are looked for in the temporary folder (inside, `tempfile` makes them in one of
this object's own, which goes with it) and in the current folder. Left out: other folders, files that other programs make
elsewhere, processes that are started without the caller's environment variables and lose their parent.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

from kintsugi.sandboxes.environments.marked_processes import carriers, children

_MARK: Final = "KINTSUGI_LEFTOVERS"
"""Another one than that of `marked_processes`: those who end what they started set that anew."""
_NO_MATTER: Final = {"__pycache__", ".pytest_cache", ".ruff_cache", ".coverage"}


class Leftovers:
    """Looks from `__enter__` on; changes `tempfile.tempdir` and one environment variable until `__exit__`."""

    def __enter__(self) -> Self:
        self._were_children = children()
        self._were_here = _names(Path.cwd())
        self._here = Path.cwd()
        self._tempdir_before, self._mark_before = tempfile.tempdir, os.environ.get(_MARK)
        self._room = Path(tempfile.mkdtemp(prefix="kintsugi-check-"))
        tempfile.tempdir = str(self._room)
        self._mark = uuid4().hex
        os.environ[_MARK] = self._mark
        return self

    def __exit__(self, *_: object) -> None:
        tempfile.tempdir = self._tempdir_before
        if self._mark_before is None:
            os.environ.pop(_MARK, None)
        else:
            os.environ[_MARK] = self._mark_before
        shutil.rmtree(self._room, ignore_errors=True)

    def processes(self) -> list[str]:
        """Command and process id of each that is left, zombies included; empty where there is no /proc."""
        found = (children() - self._were_children) | carriers({_MARK: self._mark})
        return [f"{_command(pid)} (process {pid})" for pid in sorted(found)]

    def files(self) -> list[str]:
        """Names of files and folders that are left in the temporary and in the current folder."""
        return [*sorted(_names(self._room)), *(f"./{name}" for name in sorted(_names(self._here) - self._were_here))]


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "one that has just ended"
    return words[:60] or "one that has ended and was never waited for"


def _names(folder: Path) -> set[str]:
    try:
        names = {entry.name for entry in folder.iterdir()} - _NO_MATTER
        return {name for name in names if not name.startswith("pymp-")}  # multiprocessing's, removed as Python ends
    except OSError:
        return set()

"""What a Python interpreter needs from its machine: the shared libraries that its standard library loads.

    files, links = shared_libraries()         # ("/usr/lib/x86_64-linux-gnu/libc.so.6", ...), {"/lib64": "usr/lib64", ...}

Found by asking an interpreter to import every extension module it has and to read what is then mapped. The local
sandbox lets programs read these and no other libraries; the Docker sandbox makes its image of them. Linux only. Leaves
out: packages beyond the standard library.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from kintsugi.errors import SandboxError

_ASK = """
import ctypes, importlib, json, os, sys
for folder in filter(os.path.isdir, sys.path):
    for name in sorted(os.listdir(folder)):
        if name.endswith(".so") and not name.startswith(("_test", "_xx", "xx", "_ctypes_test", "_tkinter")):
            try: importlib.import_module(name.partition(".")[0])
            except Exception: pass
try: ctypes.CDLL("libgcc_s.so.1")
except OSError: pass
words = [line.split(None, 5) for line in open("/proc/self/maps")]
mapped = {word[5].strip() for word in words if len(word) == 6 and word[5].startswith("/")}
print(json.dumps([sys.path, sorted(path for path in mapped if ".so" in os.path.basename(path))]))
"""
_PLACES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


def interpreter() -> str:
    """The interpreter that workers run: this one's base, not the virtual environment's."""
    return getattr(sys, "_base_executable", None) or sys.executable


@functools.cache
def shared_libraries() -> tuple[tuple[str, ...], dict[str, str]]:
    """Real paths of the libraries outside the standard library's folders, and the symbolic links that name them.

    Raises SandboxError when the interpreter does not answer.
    """
    try:
        asked = subprocess.run(
            [interpreter(), "-I", "-S", "-B", "-c", _ASK], capture_output=True, text=True, timeout=60, check=True, cwd="/"
        )
        paths, mapped = json.loads(asked.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise SandboxError(
            f"sandbox: expected the interpreter {interpreter()} to name its libraries, found {error}; reinstall it"
        ) from error
    library = [os.path.realpath(path) + os.sep for path in paths]
    files = sorted({os.path.realpath(path) for path in mapped if not os.path.realpath(path).startswith(tuple(library))})
    folders = {os.path.dirname(path) for path in files}
    if not all(_is_default(folder) for folder in folders if folder != os.path.realpath(sys.base_prefix + "/lib")):
        files.append("/etc/ld.so.cache")  # without it they would not be found; it names every library of the host
    return tuple(files), _links(files, folders)


def library_folder() -> Path:
    """The folder of the standard library."""
    return Path(sysconfig.get_paths()["stdlib"]).resolve()


def _links(files: list[str], folders: set[str]) -> dict[str, str]:
    """Path -> target, for links to these files beside them or where loaders look, and for linked folders on the way."""
    links = {place: os.readlink(place) for place in _PLACES if os.path.islink(place)}
    known = set(files)
    for folder in sorted({os.path.realpath(place) for place in (*folders, *_PLACES) if os.path.isdir(place)}):
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink() and ".so." in entry.name and os.path.realpath(entry.path) in known:
                    links[entry.path] = os.readlink(entry.path)
    return links


def _is_default(folder: str) -> bool:
    """Whether the loader looks here without being told: /lib, /usr/lib, their 64s and the multiarch folder below."""
    places = {os.path.realpath(place) for place in _PLACES}
    return folder in places or (os.path.dirname(folder) in places and "-linux-" in os.path.basename(folder))

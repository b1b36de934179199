"""The local backend: a pool of warm worker processes on this machine.

    with LocalSandbox(workers=2) as sandbox:
        sandbox.run("print(1)").stdout            # "1\\n"
        sandbox.guarantees                        # what holds on this machine

Each worker is started with exec and never by a fork of the caller, so that a caller with torch and its threads loaded
is safe. Its rung is the strongest that holds here: namespaces with Landlock and seccomp; Landlock and seccomp; limits
alone, which needs `allow_unsafe`.

Leaves out: a hard bound on memory summed over many processes (looked at every 20 to 100 ms), packages beyond the
standard library but those named, systems without Linux's /proc, and on the rung without namespaces the hiding of
names and sizes of host files (their content is out of reach).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kintsugi.sandboxes.boot import BOOT, sources
from kintsugi.sandboxes.interpreter_files import interpreter, shared_libraries
from kintsugi.sandboxes.sandbox import Limits
from kintsugi.sandboxes.worker_pool import WorkerLine, WorkerPool, num_cores

_PREFIX, _SHARED = "kintsugi-sandbox-", "/dev/shm"


def unavailable() -> str | None:
    """None where this backend can run."""
    if sys.platform != "linux" or not os.path.isdir("/proc/self"):
        return "the local sandbox needs Linux with /proc"
    return None


def open_backend(
    *, workers: int | None, limits: Limits, allow_unsafe: bool, packages: Mapping[str, str] | None = None
) -> LocalSandbox:
    """See `open_sandbox`. It takes no image: programs run on the caller's own Python."""
    return LocalSandbox(workers=workers, limits=limits, allow_unsafe=allow_unsafe, packages=packages)


class LocalWorker(WorkerLine):
    """One worker process below its keeper, which is our child."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(mode=0o711)
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        try:
            self.process = subprocess.Popen(
                [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", BOOT, str(folder)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._errors,
                cwd="/",
                # One arena: each thread's own would eat 64 MB of a program's address space.
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
                start_new_session=True,  # the terminal's Ctrl-C is the caller's to handle
            )
        except BaseException:
            ours.close()
            self._errors.close()
            raise
        finally:
            theirs.close()
        self.name = f"worker {self.process.pid}"
        try:
            self.begin(sources(), settings | {"folder": str(folder)})
        except BaseException:
            self.kill()
            self.close()
            raise

    def _send(self, content: bytes, patience_s: float) -> None:
        self._socket.settimeout(patience_s)
        self._socket.sendall(content)

    def _receive(self, count: int, patience_s: float) -> bytes:
        self._socket.settimeout(patience_s)
        return self._socket.recv(count)

    def last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode("utf-8", "replace").strip()

    def kill(self) -> None:
        self.process.terminate()  # its keeper kills the worker and reaps what that leaves

    def close(self) -> None:
        self._socket.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()
        _kill_orphans(f"{self.folder}\0")  # the zero: worker-1 is not worker-12
        with contextlib.suppress(OSError):
            self.folder.chmod(0o711)  # on limits alone a program of the same user may have closed it
        shutil.rmtree(self.folder, ignore_errors=True)


def _processes_of(folder: str) -> list[int]:
    """Keepers, workers and forks of workers: all carry the command line, in which the folder is unique."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if folder.encode() in file.read():
                    found.append(int(name))
        except OSError:
            continue
    return found


def _kill_orphans(folder: str) -> None:
    """Kill what a dead keeper left."""
    for _ in range(20):
        found = _processes_of(folder)
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)  # ours only when this process is process 1 or a subreaper
        if not found:
            return


class LocalSandbox(WorkerPool):
    """The pool. `workers`: programs at once, default one a core. `confinement`: auto or one of `confinement.RUNGS`.

    Raises SandboxError when the machine allows no isolation (the rung `rlimits`) and `allow_unsafe` is not set.
    """

    kind = "local"

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        allow_unsafe: bool = False,
        confinement: str = "auto",
        packages: Mapping[str, str] | None = None,
    ) -> None:
        limits = limits or Limits()
        num_workers = workers or num_cores()
        files, links = shared_libraries()
        self._settings: dict[str, Any] = {
            "rung": confinement,
            "files_mb": limits.files_mb,
            "files": files,
            "links": links,
            "packages": dict(packages or {}),
        }
        _sweep()
        prefix = f"{_PREFIX}{os.getpid()}-{_pid_world()}-"  # whose it is, for a later sweep
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=_room(num_workers * limits.files_mb))).resolve()
        self._folder.chmod(0o711)  # a program of another uid must reach its own folder
        self._released = weakref.finalize(self, _remove, self._folder, os.getpid())
        super().__init__(workers=num_workers, limits=limits, allow_unsafe=allow_unsafe)
        self._settings["rung"] = self.rung  # a replacement must not be weaker than what was promised

    def _start(self) -> LocalWorker:
        with self._lock:
            self._serial += 1
            serial = self._serial
        return LocalWorker(self._folder / f"worker-{serial}", self._settings)

    def count_processes(self) -> int:
        """Processes that belong to this sandbox now: keepers, workers and whatever programs have left."""
        return len(_processes_of(str(self._folder)))


def _room(needed_mb: float) -> str | None:
    """Shared memory when it is roomy, since a folder made and removed per program costs a disk ten times as much."""
    if "TMPDIR" in os.environ or not os.access(_SHARED, os.W_OK | os.X_OK):
        return None
    free = os.statvfs(_SHARED)
    return _SHARED if free.f_bavail * free.f_frsize > 4 * needed_mb * (1 << 20) else None


def _pid_world() -> int:
    """Which process ids are meant: those of one container, or of the machine."""
    return os.stat("/proc/self/ns/pid").st_ino


def _sweep() -> None:
    """Remove what killed callers left in shared memory, whose keepers were killed too. TMPDIR may be on other machines."""
    try:
        names = os.listdir(_SHARED)
    except OSError:
        return
    for name in names:
        words = name.removeprefix(_PREFIX).split("-")
        path = os.path.join(_SHARED, name)
        if name.startswith(_PREFIX) and len(words) == 3 and words[0].isdigit() and words[1] == str(_pid_world()):
            with contextlib.suppress(OSError):
                ours = os.lstat(path).st_uid == os.getuid()
                if ours and not os.path.exists(f"/proc/{words[0]}") and not _processes_of(path):
                    shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not at the end of a fork of the caller
        shutil.rmtree(folder, ignore_errors=True)

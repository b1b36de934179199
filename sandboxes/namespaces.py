"""The strongest local rung: a worker that is process 1 of its own small world, with a root of only what Python reads.

    inside, reason = enter(folder, size_mb, library, files, links)

Process, network, mount, IPC, host-name and control-group namespaces; for an ordinary user a user namespace around
them, which root does not need. The new root is a read-only tmpfs that holds read-only binds of the standard library
and its shared libraries, four harmless devices, a /proc of this world alone and RUN, a tmpfs of `size_mb`. The process
that called stays outside, to be its keeper (`keeping.py`).

Travels beside `worker.py`; standard library only. Leaves out: Landlock and seccomp, which each program adds
(`confinement.py`). Sources: namespaces(7), user_namespaces(7), pivot_root(2), mount_setattr(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct

WORK = "/sandbox"
"""The worker's folder inside, on the root that nobody can change."""
RUN = f"{WORK}/run"
"""The programs' folder in it."""

_NEW_MOUNT, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 32, 4096, 1 << 14, 1 << 18
_MOUNT_SETATTR = 442  # the same number on x86-64 and arm64
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


def enter(folder: str, size_mb: int, library: list[str], files: list[str], links: dict[str, str]) -> tuple[int, str]:
    """Twice an answer: (0, "") in the process inside, (its process id, "") outside, or there (0, why it was refused).

    folder: an empty folder of ours, under which the new root is put together. library: folders to read. files: single
    files to read. links: symbolic links to lay (path -> target). Must be called with one thread and as a subreaper.
    """
    report, say = os.pipe()
    alive, held = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(report)
            os.close(held)
            _unshare()
            if inside := os.fork():
                os.write(say, inside.to_bytes(4, "big"))
                os._exit(0)
            if os.read(alive, 1) != b"g":  # said when the helper is reaped, so that the keeper is our parent
                os._exit(1)
            _libc.prctl(1, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)  # die with the process outside
            _build(folder, size_mb, library, files, links)
            os.write(say, b"ok")
            os.close(say)
            os.close(alive)
            return 0, ""
        except BaseException as error:
            os.write(say, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
    os.close(say)
    os.close(alive)
    os.waitpid(helper, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody is inside: it was refused
        os.write(held, b"g")
    os.close(held)
    said = b"".join(iter(lambda: os.read(report, 4096), b""))
    os.close(report)
    if said[4:] == b"ok":
        return int.from_bytes(said[:4], "big"), ""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, 0)  # the inside, when it began at all
    return 0, said.lstrip(b"\0").decode("utf-8", "replace") or "the process inside died"


def _unshare() -> None:
    """New namespaces for this process's children; an ordinary user stays who it is, in a user namespace of its own."""
    flags = _NEW_MOUNT | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS | _NEW_CGROUP
    uid, gid = os.getuid(), os.getgid()
    if uid:
        _libc.prctl(4, ctypes.c_ulong(1), 0, 0, 0)  # dumpable: else our own uid_map belongs to root
        flags |= _NEW_USER
    _check("unshare", _libc.unshare(ctypes.c_int(flags)))
    if uid:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
        _libc.prctl(4, ctypes.c_ulong(0), 0, 0, 0)


def _build(folder: str, size_mb: int, library: list[str], files: list[str], links: dict[str, str]) -> None:
    """Put the new root together under `folder`, make it the root and let go of the old one."""
    _check("sethostname", _libc.sethostname(b"sandbox", ctypes.c_size_t(7)))
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEV, "size=4m,nr_inodes=8k,mode=755")
    for path, target in links.items():
        os.makedirs(folder + os.path.dirname(path), exist_ok=True)
        os.symlink(target, folder + path)
    for path in library:
        if os.path.isdir(path) and not os.path.isdir(folder + path):
            os.makedirs(folder + path)
            _bind(path, folder + path, no_dev=True)
            hidden = os.path.join(folder + path, "site-packages")
            if os.path.isdir(hidden):
                _mount("tmpfs", hidden, "tmpfs", _READ_ONLY | _NO_SUID | _NO_DEV, "size=4k,mode=755")
    for path in (*files, *_DEVICES):
        if os.path.exists(path) and not os.path.exists(folder + path):
            os.makedirs(folder + os.path.dirname(path), exist_ok=True)
            open(folder + path, "x").close()
            _bind(path, folder + path, no_dev=path not in _DEVICES)
    for name in ("/proc", RUN):
        os.makedirs(folder + name)
    _mount("proc", folder + "/proc", "proc", _NO_SUID | _NO_DEV | _NO_EXEC)
    _mount("tmpfs", folder + RUN, "tmpfs", _NO_SUID | _NO_DEV | _NO_EXEC, f"{_size(size_mb)},mode=700")
    os.chdir(folder)
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    _check("pivot_root", _libc.syscall(ctypes.c_long(number), b".", b"."))
    _check("umount2", _libc.umount2(b".", ctypes.c_int(2)))  # the old root lies over the new one: let go of it
    os.chdir("/")
    _mount("tmpfs", "/", "", _REMOUNT | _BIND | _READ_ONLY | _NO_SUID | _NO_DEV)


def resize(size_mb: int) -> None:
    """Make RUN as large as one program may fill it."""
    _mount("tmpfs", RUN, "tmpfs", _REMOUNT | _NO_SUID | _NO_DEV | _NO_EXEC, _size(size_mb))


def _size(size_mb: int) -> str:
    return f"size={size_mb}m,nr_inodes={1024 + 256 * size_mb}"  # without a bound on entries, empty files fill memory


def _bind(source: str, target: str, *, no_dev: bool) -> None:
    _mount(source, target, "", _BIND | _RECURSIVE)
    # Adds attributes and clears none: what an outer user namespace has locked stays as it is.
    attributes = struct.pack("=QQQQ", _READ_ONLY | _NO_SUID | (_NO_DEV if no_dev else 0), 0, 0, 0)
    if source in _DEVICES:
        attributes = struct.pack("=QQQQ", _NO_SUID, 0, 0, 0)
    place = ctypes.c_char_p(target.encode())
    done = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(-100), place, ctypes.c_uint(0x8000), attributes, ctypes.c_size_t(32)
    )
    _check(f"mount_setattr {target}", done)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    done = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(f"mount {target}", done)


def _check(what: str, result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")

"""What a worker's child gives up before it runs a program: its uid, most files, many system calls. Linux only.

    confinement = strongest("auto", Ground("/tmp/slot/run"))   # once, in the worker; proves itself in a forked child
    confinement.apply()                                           # in each child, last thing before the program

Travels beside `worker.py` and, like it, imports the standard library only (it runs with `-I -S`, maybe in a
container). Rungs: `namespaces+landlock+seccomp` (the worker has entered them before, see `namespaces.py`),
`landlock+seccomp`, and `rlimits`, which adds nothing to the worker's resource limits but the change of uid. Leaves
out: resource limits and clean-up, which are the worker's.

Sources: landlock(7), seccomp(2), prctl(2); system call numbers from the kernel's unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from typing import NamedTuple

NAMESPACES = "namespaces+landlock+seccomp"
RUNGS = (NAMESPACES, "landlock+seccomp", "rlimits")
LIMITS_HOLD = ("wall_time", "output", "processes", "clean_environment")
SUMS_HOLD = ("cpu_time", "memory", "files_size")  # over several processes: a system call may hide some of it
CONTAINER_HOLDS = ("host_reads", "host_writes", "host_processes", "clean_state", "verdicts")  # by the engine alone
ISOLATION_HOLDS = (*CONTAINER_HOLDS, "network", "kernel_surface")


class Ground(NamedTuple):
    """Where programs run and what they may read."""

    folder: str
    """The program's folder: it writes below it and nowhere else."""
    files: tuple[str, ...] = ()
    """Shared libraries that the standard library needs."""
    container: bool = False
    """In a container: every file but /proc and /sys is the image's and may be read."""

    def readable(self) -> list[tuple[str, int]]:
        """Paths and Landlock's rights on them."""
        if self.container:
            names = [f"/{name}" for name in os.listdir("/") if name not in ("proc", "sys", "dev", "etc")]
            names += [f"/etc/{name}" for name in os.listdir("/etc") if name not in _ENGINE_FILES]
            return [(path, _READ) for path in names if not self.folder.startswith(path + os.sep)]
        found = [(path, 1 << 2) for path in self.files]
        for folder in filter(os.path.isdir, sys.path):
            found.append((folder, 1 << 3))
            names = (name for name in os.listdir(folder) if name not in ("site-packages", "dist-packages"))
            found += [(os.path.join(folder, name), _READ) for name in names]
        return [*found, (ZONES, _READ)]


PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ = 1 << 2 | 1 << 3  # READ_FILE, READ_DIR; EXECUTE (1 << 0) is granted nowhere: a program is one interpreter
# WRITE_FILE, REMOVE_*, MAKE_DIR, MAKE_REG, MAKE_FIFO, MAKE_SYM, REFER, TRUNCATE; no devices, no sockets
_WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
ZONES = "/usr/share/zoneinfo"
_ENGINE_FILES = ("hosts", "hostname", "resolv.conf", "mtab", "shadow", "gshadow")  # in /etc; some tell of the host

# name: (x86-64, arm64); - where an architecture has none. Attributes: a program's own folder is the next one's too.
_REFUSED = """
socket:41:198 ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271 kcmp:312:272 pidfd_getfd:438:438
pidfd_open:434:434 perf_event_open:298:241 userfaultfd:323:282 bpf:321:280 add_key:248:217 request_key:249:218
keyctl:250:219 io_uring_setup:425:425 io_uring_enter:426:426 io_uring_register:427:427
mount:165:40 umount2:166:39 pivot_root:155:41 chroot:161:51 open_tree:428:428 move_mount:429:429 fsopen:430:430
fsconfig:431:431 fsmount:432:432 fspick:433:433 mount_setattr:442:442 unshare:272:97 setns:308:268
kexec_load:246:104 kexec_file_load:320:294 init_module:175:105 finit_module:313:273 delete_module:176:106
reboot:169:142 swapon:167:224 swapoff:168:225 sethostname:170:161 setdomainname:171:162 settimeofday:164:170
clock_settime:227:112 clock_adjtime:305:266 adjtimex:159:171 acct:163:89 quotactl:179:60 quotactl_fd:443:443
syslog:103:116 vhangup:153:58 iopl:172:- ioperm:173:- modify_ldt:154:-
open_by_handle_at:304:265 name_to_handle_at:303:264 fanotify_init:300:262 inotify_init:253:- inotify_init1:294:26
shmget:29:194 shmat:30:196 shmctl:31:195 msgget:68:186 msgsnd:69:189 msgrcv:70:188 msgctl:71:187 semget:64:190
semop:65:193 semctl:66:191 semtimedop:220:192 mq_open:240:180 mq_unlink:241:181 memfd_create:319:279
memfd_secret:447:447 vmsplice:278:75 splice:275:76 tee:276:77 sendfile:40:71 sendmsg:46:211 sendmmsg:307:269
setpriority:141:140 ioprio_set:251:30 sched_setaffinity:203:122 sched_setscheduler:144:119 sched_setparam:142:118
sched_setattr:314:274 process_madvise:440:440 process_mrelease:448:448 move_pages:279:239 migrate_pages:256:238
mbind:237:235 personality:135:92 uselib:134:- lookup_dcookie:212:18 pidfd_send_signal:424:424
rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 tkill:200:130
setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16
io_setup:206:0 io_destroy:207:1 io_submit:209:2 io_cancel:210:3 io_getevents:208:4 io_pgetevents:333:292
sync:162:81 syncfs:306:267 flock:73:32 timer_create:222:107
"""
# Landlock does not guard owners, modes and times. Owners and modes are refused where files of the caller's uid can be
# seen, times where any file of the host can: it may be open to all.
_OWNERS = " chmod:90:- fchmod:91:52 fchmodat:268:53 chown:92:- fchown:93:55 lchown:94:- fchownat:260:54"
_TIMES = " utime:132:- utimes:235:- futimesat:261:- utimensat:280:88"
_TRUNCATE = " truncate:76:45"  # which Landlock guards from its third version on
_JUDGED = """
clone:56:220 clone3:435:435 socketpair:53:199 setsockopt:54:208 prctl:157:167 prlimit64:302:261 rt_sigaction:13:134
kill:62:129 tgkill:234:131 fcntl:72:25 ioctl:16:29 open:2:- openat:257:56 openat2:437:437
"""
_LAST_KNOWN = 450  # a system call newer than this table is answered "not implemented"
_EPERM, _ENOSYS = 1, 38
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def prctl(option: int, value: int = 0) -> None:
    """prctl(2) with an integer; an unknown option is passed over, as older kernels and other systems have it."""
    if sys.platform == "linux":
        _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _syscall(number: int, *arguments: object) -> int:
    result = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return result


def landlock_version() -> int:
    """Landlock's ABI version, 0 where there is none."""
    try:
        return _syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def _ruleset(version: int, ground: Ground) -> int:
    """A Landlock ruleset's descriptor: read the libraries, write below the folder, no TCP, no signals out."""
    known = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    fields = [known, 3 if version >= 4 else 0, 3 if version >= 6 else 0]  # bind+connect; abstract sockets+signals
    attributes = struct.pack("=QQQ", *fields)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    rules = [*ground.readable(), *((path, 1 << 2) for path in _DEVICES), ("/dev/null", 1 << 1 | 1 << 2)]
    for path, rights in [*rules, (ground.folder, (_READ | _WRITE) & known)]:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # this machine has no such folder
        try:
            if not os.path.isdir(path):
                rights &= ~(1 << 3)
            rule = struct.pack("=Qi", rights, descriptor)
            _syscall(_LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
        finally:
            os.close(descriptor)
    return ruleset


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = [entry.split(":") for entry in table.split()]
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def _filter(refused: str, *, signals_scoped: bool, truncate_guarded: bool, pid: int) -> bytes:
    """The seccomp program: refuse the tables `refused`, judge a few calls by an argument, allow the rest.

    Where Landlock cannot keep signals inside, kill reaches only the program's first process and its group; where it does
    not guard truncation, no file is cut by opening it for reading.
    """
    column, arch = _MACHINES[platform.machine()]
    allow, refuse, missing = (_return(code) for code in (0x7FFF0000, 0x50000 | _EPERM, 0x50000 | _ENOSYS))
    judged = _numbers(_JUDGED, column)
    code = [_load(4), _jump(0x15, arch, 1, 0), _return(0x80000000), _load(0), _jump(0x25, _LAST_KNOWN, 0, 1), missing]

    def unless(offset: int, *values: int) -> list[bytes]:  # refuse where the argument is one of these
        count = len(values)
        tests = [_jump(0x15, value, count - 1 - place, int(place == count - 1)) for place, value in enumerate(values)]
        return [_load(offset), *tests, refuse, allow]

    def only(offset: int, *values: int) -> list[bytes]:  # refuse where it is none of these
        tests = [_jump(0x15, value, len(values) - place, 0) for place, value in enumerate(values)]
        return [_load(offset), *tests, refuse, allow]

    blocks = {
        "clone": [_load(16), _jump(0x45, _NAMESPACE_FLAGS, 0, 1), refuse, allow],
        "clone3": [missing],  # its flags lie behind a pointer; libc then falls back to clone
        # AF_UNIX, which asyncio needs, and streams only: a datagram socket can send to any address
        "socketpair": [
            _load(16), _jump(0x15, 1, 0, 3), _load(24), _and(0xF), _jump(0x15, 1, 1, 0), refuse, allow,
        ],
        # SOL_SOCKET: the sizes of buffers, forced or not, which are the kernel's memory
        "setsockopt": [_load(24), _jump(0x15, 1, 1, 0), allow, *unless(32, 7, 8, 32, 33)],
        "prctl": unless(16, PR_SET_PDEATHSIG, PR_SET_DUMPABLE),
        "prlimit64": [_load(16), _jump(0x15, 0, 1, 0), refuse, allow],  # pid 0: itself
        "rt_sigaction": unless(16, 17),  # SIGCHLD: with it ignored, the CPU time of children is counted nowhere
        # Not: owners and signals of descriptors, leases, notices, sizes of pipes. Locks: F_GETLK, F_SETLK, F_SETLKW,
        # which databases need; of a file that may only be read they lock no other reader out, as flock's would.
        "fcntl": only(24, 0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032, 1034),
        "ioctl": only(24, 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451),  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, CLEX
    }  # fmt: skip
    if not signals_scoped:
        own = [_load(16), _jump(0x15, pid, 2, 0), _jump(0x15, 0, 1, 0), refuse, allow]
        blocks |= {"kill": own, "tgkill": own}
    if not truncate_guarded:
        # O_TRUNC where the mode is neither to write nor to read and write
        cut = [_and(0x203), _jump(0x15, 0x200, 1, 0), _jump(0x15, 0x203, 0, 1), refuse, allow]
        blocks |= {"open": [_load(24), *cut], "openat": [_load(32), *cut], "openat2": [missing]}
    for name, block in blocks.items():
        if name in judged:
            code += [_jump(0x15, judged[name], 0, len(block)), *block]
    for number in _numbers(refused, column).values():
        code += [_jump(0x15, number, 0, 1), refuse]
    return b"".join([*code, allow])


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", 0x20, 0, 0, offset)


def _and(mask: int) -> bytes:
    return struct.pack("=HBBI", 0x54, 0, 0, mask)


def _jump(operation: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _return(value: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, value)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


class Confinement:
    """One rung, prepared once in the worker and applied in each child. `uid` is None where the caller's own is kept."""

    def __init__(self, rung: str, ground: Ground, uid: int | None) -> None:
        self.rung, self.uid, self.ground, self._ruleset = rung, uid, ground, -1
        self._version, self._code = 0, b""
        self.sums_seen = False
        """Whether what a program holds can be counted: its descriptors must be seen."""
        # Where the root is read-only and not the host's, owners, modes and times of what can be seen are the program's.
        self._own_root = rung == NAMESPACES or ground.container
        if rung != "rlimits":
            self._version = landlock_version()
            if self._version < 1 or platform.machine() not in _MACHINES or sys.byteorder != "little":
                raise OSError(f"no Landlock here (version {self._version}, {platform.machine()})")
            self._ruleset = _ruleset(self._version, ground)
            self._code = self._filter(0)

    def _filter(self, pid: int) -> bytes:
        refused, guarded = _REFUSED, self._own_root or self._version >= 3
        if not self._own_root:
            refused += _TIMES + ("" if guarded else _TRUNCATE) + ("" if self.uid is not None else _OWNERS)
        return _filter(refused, signals_scoped=self._version >= 6, truncate_guarded=guarded, pid=pid)

    @property
    def guarantees(self) -> list[str]:
        """Names from `sandbox.GUARANTEES`."""
        held = [*LIMITS_HOLD, *(ISOLATION_HOLDS if self._code else CONTAINER_HOLDS if self.ground.container else ())]
        held += [name for name in SUMS_HOLD if self.sums_seen]
        return [*held, "hidden_host"] if self._code and self._own_root else held

    def apply(self) -> None:
        """Give everything up, for good. Raises OSError when any part is refused: then nothing may run."""
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        elif self.rung == NAMESPACES:
            drop_capabilities()
        # Seen by the worker (`holdings.py`) and, under Landlock, by no program. One byte keeps core dumps from handlers.
        seen = self._code and resource.getrlimit(resource.RLIMIT_CORE)[0] == 1
        prctl(PR_SET_DUMPABLE, 1 if seen else 0)
        prctl(PR_SET_PDEATHSIG, 9)  # after the change of uid, which clears it
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if not self._code:
            return
        _syscall(_LANDLOCK_RESTRICT, ctypes.c_int(self._ruleset), ctypes.c_uint32(0))
        code = self._code if self._version >= 6 else self._filter(os.getpid())
        program = _Program(len(code) // 8, code)
        if _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), "seccomp filter refused")


def drop_capabilities() -> None:
    """Give up what the owner of a user namespace may do in it."""
    if _libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) < 0:
        raise OSError(ctypes.get_errno(), "capabilities could not be dropped")


def _proof(confinement: Confinement) -> None:
    """Apply it here and try: raises when it does not hold or breaks plain programs. Runs in a forked child."""
    confinement.apply()
    folder = confinement.ground.folder
    probe = os.path.join(folder, "probe")
    with open(probe, "w") as file:
        file.write("x")
    os.unlink(probe)
    import colorsys  # noqa: F401 - an import that is not cached shows that the library can be read

    if confinement.rung == "rlimits":
        return
    for attempt in (lambda: os.listdir("/proc"), lambda: os.mkdir(folder + "/../probe"), _open_socket):
        try:
            attempt()
        except OSError:
            continue
        raise AssertionError("confinement does not hold")


def _open_socket() -> None:
    _syscall(_numbers(_REFUSED, _MACHINES[platform.machine()][0])["socket"], 1, 1, 0)


def _proves(confinement: Confinement) -> bool:
    """Whether a child that applied it found that it holds; looks, too, whether such a child's descriptors are seen."""
    from holdings import can_see  # beside the worker; the launcher imports this file as well

    (hearing, say), (waiting, go) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            _proof(confinement)
            os.write(say, b"y")
            os.read(waiting, 1)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(say)
    os.close(waiting)
    if os.read(hearing, 1) and confinement.rung != "rlimits":
        confinement.sums_seen |= can_see(pid, confinement.uid)
    os.close(go)
    os.close(hearing)
    return os.waitpid(pid, 0)[1] == 0


def strongest(wanted: str, ground: Ground, seed: int) -> Confinement:
    """The strongest rung that proves itself, or exactly the one `wanted`. `folder/run` is the program's folder.

    As root the child gets a uid of its own for each worker (61184-65279, systemd's range for such users, from `seed`,
    the worker's process id), so that it cannot touch root's processes or files and counts its own processes only.
    """
    root = os.getuid() == 0
    uids: list[int | None] = [61184 + seed % 4096, 65534] if root else [None]
    refusals: list[str] = []
    for rung in RUNGS[1:] if wanted == "auto" else (wanted,):
        for uid in [*uids, None] if root and rung == "rlimits" else uids:
            try:
                confinement = Confinement(rung, ground, uid)
            except OSError as error:
                refusals.append(f"{rung}: {error}")
                continue
            if uid is not None:
                os.chown(ground.folder, uid, uid)
            if _proves(confinement):
                return confinement
            refusals.append(f"{rung} as uid {uid}: did not hold when tried")
    raise OSError(f"no confinement works here: {'; '.join(refusals)}")

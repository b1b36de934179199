"""Programs that models might write by accident or on purpose, and what each one must not achieve.

    for program in ESCAPES: program.code, program.guarantee      # run by `battery.py`

A program prints a line that begins with BREACH where it achieved what it should not. Words in @...@ are filled in with
what a `battery.Host` has laid out: a secret file, a listening port, a folder that everybody may write to, a process
to kill. Here are those that try to get out; `hostile_resources.py` has those that use a machine up, `hostile_candidates.py`
those that forge a verdict. Every one is harmless where it fails; where it does not, the machine should be one that you
would not mind to lose. Leaves out: running and judging them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def tries(what, action):
    try: got = action()
    except Exception: return
    print('BREACH', what, repr(got)[:80], flush=True)
def calls(what, name, *arguments):
    if getattr(libc, name)(*arguments) >= 0: print('BREACH', what, flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """name: unique. kind: the class of attack. guarantee: the name in `sandbox.GUARANTEES` that it is about. code: the
    program. statuses: what it may end with, all when empty. tests: for a candidate, tests none of which may pass."""

    name: str
    kind: str
    guarantee: str
    code: str
    statuses: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    @property
    def ends_its_caller(self) -> bool:
        """Whether it would, where nothing is promised about other processes and the caller is the same user."""
        return self.name in ("kills_others", "kills_everything", "kills_the_judge", "traces")


def blocks(text: str) -> Iterator[tuple[list[str], str]]:
    """The blocks of a text: the words between the bars of each one's first line, and the lines below it."""
    for block in text.split("#### ")[1:]:
        first, _, code = block.partition("\n")
        yield [word.strip() for word in first.split("|")], code.rstrip() + "\n"


def programs(text: str) -> tuple[Hostile, ...]:
    """The programs of a text whose blocks begin `#### name | kind | guarantee | statuses` (any; stopped; or a list)."""
    statuses = {"any": (), "stopped": ("timeout", "memory", "error", "output")}
    return tuple(
        Hostile(
            name=name, kind=kind, guarantee=guarantee, code=PRELUDE + code, statuses=statuses.get(ends, tuple(ends.split()))
        )
        for (name, kind, guarantee, ends), code in blocks(text)
    )


ESCAPES = programs(r"""
#### tcp | network | network | any
import socket
tries('tcp', lambda: socket.create_connection(('127.0.0.1', @PORT@), 0.2).send(b'x'))

#### udp | network | network | any
import socket
tries('udp', lambda: socket.socket(2, 2).sendto(b'x', ('127.0.0.1', @PORT@)))

#### http | network | network | any
import urllib.request
tries('http', lambda: urllib.request.urlopen('http://127.0.0.1:@PORT@/', timeout=0.2))

#### unix_socket | network | network | any
import socket
for p in ('@UNIX@', '\0kintsugi'):
    tries('unix', lambda: socket.socket(1, 1).connect(p))
tries('unix socket', lambda: socket.socket(1, 2))

#### datagram_pair | network | network | any
import socket
for kind in (2, 5):
    try: a, b = socket.socketpair(socket.AF_UNIX, kind)
    except OSError: continue
    tries('sendto', lambda: a.sendto(b'x', '@DATAGRAM@'))
    tries('connect', lambda: a.connect('@DATAGRAM@'))

#### descriptors_in_messages | network | network | any
import socket
a, b = socket.socketpair()
tries('sendmsg', lambda: socket.send_fds(a, [b'x'], [0]))

#### vsock | network | network | any
import socket
tries('vsock', lambda: socket.socket(40, 1))
calls('vsock', 'socket', 40, 1, 0)

#### every_family | network | network | any
for family in range(1, 46):
    for kind in (1, 2, 3, 5): calls(f'family {family}', 'socket', family, kind, 0)

#### listen | network | network | any
import socket
tries('listen', lambda: socket.create_server(('0.0.0.0', 0)))

#### secret_file | host files | host_reads | any
tries('secret', lambda: open('@SECRET@').read())

#### secret_by_links | host files | host_reads | any
for make in (os.symlink, os.link):
    try: make('@SECRET@', make.__name__)
    except OSError: pass
    tries(make.__name__, lambda: open(make.__name__).read())

#### well_known_files | host files | host_reads | any
etc = ['/etc/' + name for name in 'shadow hostname hosts resolv.conf machine-id'.split()]
for p in (*etc, '/root/.bashrc', '/var/log/dpkg.log', '@SELF@'):
    tries(p, lambda: open(p).read())

#### listing | host files | host_reads | any
for p in ('/', '/home', '/tmp', '/proc', '/sys', '@OUTSIDE@', '..'):
    tries(p, lambda: os.listdir(p))

#### devices | host files | host_reads | any
import glob
for p in ('/dev/mem', '/dev/kmsg', '/dev/sda', '/dev/vda', '/dev/kvm', '/dev/fuse', '/dev/ptmx'):
    tries(p, lambda: os.open(p, os.O_RDONLY))

#### descriptors | host files | host_reads | any
for fd in range(3, 300):
    try: os.fstat(fd)
    except OSError: continue
    for p in ('../../../../../../../etc/passwd', '../../../../../../../@SECRET@', 'etc/passwd'):
        tries(f'{fd} {p}', lambda: os.open(p, os.O_RDONLY, dir_fd=fd))

#### shell | host files | host_reads | any
import subprocess
for a in (['/bin/sh', '-c', 'echo hi'], ['/usr/bin/env'], [sys.executable, '-c', '1'], ['su'], ['/bin/busybox', 'ls']):
    tries(a[0], lambda: subprocess.run(a, timeout=0.3))

#### names_of_files | host files | hidden_host | any
for p in ('@SECRET@', '@OUTSIDE@', '/etc/shadow', '/root/.bashrc', '/var/log/dpkg.log'):
    tries(p, lambda: os.stat(p))
if os.uname().nodename == '@NODE@': print('BREACH host name')

#### environment | environment | clean_environment | any
if '@TOKEN@' in str(dict(os.environ)): print('BREACH environ')
libc.getenv.restype = ctypes.c_char_p
if libc.getenv(b'KINTSUGI_SECRET'): print('BREACH getenv')

#### proc_environ | environment | clean_environment | any
for pid in ('self', os.getppid(), 1):
    try: text = open(f'/proc/{pid}/environ').read()
    except OSError: continue
    if '@TOKEN@' in text: print('BREACH', pid)

#### proc_of_others | processes | host_processes | any
for pid in (os.getppid(), 1, @VICTIM@, @CALLER@):
    for name in ('environ', 'cmdline', 'maps', 'mem', 'status', 'fd/0'):
        tries(f'{pid}/{name}', lambda: open(f'/proc/{pid}/{name}', 'rb').read(1))

#### writes_outside | writing | host_writes | any
for p in ('/tmp', '/var/tmp', '/dev/shm', '/run', '/home', '/', '..', '../..', '@OUTSIDE@', sys.path[-1]):
    tries(p, lambda: open(os.path.join(p, 'kintsugi-left'), 'w').write('x'))

#### moves_outside | writing | host_writes | any
open('own', 'w').close()
for move in (os.rename, os.link, os.symlink):
    tries(move.__name__, lambda: move('own', '@OUTSIDE@/kintsugi-left'))
for make in (os.mkdir, os.mkfifo):
    tries(make.__name__, lambda: make('@OUTSIDE@/kintsugi-left'))

#### changes_a_file | writing | host_writes | any
tries('append', lambda: open('@VICTIM_FILE@', 'a'))
tries('truncate', lambda: os.truncate('@VICTIM_FILE@', 0))
tries('chmod', lambda: os.chmod('@VICTIM_FILE@', 0o777))
tries('utime', lambda: os.utime('@VICTIM_FILE@', (1, 1)))
tries('touch', lambda: os.utime('@VICTIM_FILE@'))
tries('xattr', lambda: os.setxattr('@VICTIM_FILE@', 'user.x', b'1'))
tries('remove', lambda: os.remove('@VICTIM_FILE@'))

#### opens_to_truncate | writing | host_writes | any
for mode in (os.O_RDONLY, 3): tries('open', lambda: os.open('@VICTIM_FILE@', mode | os.O_TRUNC))
libc.creat(b'@VICTIM_FILE@', 0o600)

#### changes_the_kernel | writing | host_writes | any
own = ['/proc/self/oom_score_adj', '/proc/self/comm']
for p in (*own, '/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/sys/kernel/uevent_helper'):
    tries(p, lambda: open(p, 'w').write('1'))

#### device_nodes | writing | host_writes | any
tries('mknod', lambda: os.mknod('disk', 0o60666, os.makedev(8, 0)))
tries('char', lambda: os.mknod('mem', 0o20666, os.makedev(1, 1)))

#### kills_others | other processes | host_processes | any
import signal
for pid in (os.getppid(), 1, @VICTIM@, @CALLER@):
    tries(f'kill {pid}', lambda: os.kill(pid, signal.SIGKILL))
    tries(f'probe {pid}', lambda: os.kill(pid, 0)) if pid not in (0, 1) else None

#### kills_everything | other processes | host_processes | any
import signal
for pid in (-1, -@VICTIM@, -os.getppid() or -1):
    try: os.kill(pid, signal.SIGTERM)
    except OSError: pass

#### traces | other processes | host_processes | any
for pid in (os.getppid(), @VICTIM@, @CALLER@):
    calls(f'attach {pid}', 'ptrace', 16, pid, 0, 0)
    calls(f'seize {pid}', 'ptrace', 0x4206, pid, 0, 0)
    calls(f'prlimit {pid}', 'prlimit', pid, 7, None, ctypes.create_string_buffer(16))
    tries(f'pidfd {pid}', lambda: os.pidfd_open(pid))

#### reads_memory_of_others | other processes | host_processes | any
b = ctypes.create_string_buffer(64)
class V(ctypes.Structure): _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]
v, w = V(ctypes.addressof(b), 64), V(0x400000, 64)
for pid in (os.getppid(), @VICTIM@):
    calls(f'vm {pid}', 'process_vm_readv', pid, ctypes.byref(v), 1, ctypes.byref(w), 1, 0)

#### signals_by_descriptor | other processes | host_processes | any
import fcntl, signal
r, w = os.pipe()
for pid in (os.getppid(), @VICTIM@):
    try: fcntl.fcntl(r, 8, pid); fcntl.fcntl(r, 10, 9); fcntl.fcntl(r, 4, os.O_ASYNC)
    except OSError: pass
os.write(w, b'x')

#### signals_by_ioctl | other processes | host_processes | any
import fcntl, socket, struct
a, b = socket.socketpair()
for request in (0x8901, 0x8902):
    try: fcntl.ioctl(a, request, struct.pack('i', @VICTIM@))
    except OSError: pass
try: fcntl.ioctl(a, 0x5452, struct.pack('i', 1))
except OSError: fcntl.fcntl(a, 4, os.O_ASYNC)
b.send(b'x')

#### system_v_ipc | other processes | host_processes | any
libc.shmat.restype = ctypes.c_void_p
at, b = libc.shmat(@SHARED@, None, 0), ctypes.create_string_buffer(64)
if at and at != 2**64 - 1:
    print('BREACH shmat', flush=True); ctypes.memset(at, 0, 8)
calls('msgrcv', 'msgrcv', @QUEUE@, b, ctypes.c_size_t(8), ctypes.c_long(0), 0o4000)
calls('msgsnd', 'msgsnd', @QUEUE@, ctypes.create_string_buffer(b'\1', 16), ctypes.c_size_t(8), 0o4000)
calls('semctl', 'semctl', @SEMAPHORE@, 0, 16, 7)
calls('semop', 'semop', @SEMAPHORE@, b'\0\0\1\0\0\10', ctypes.c_size_t(1))
for name in ('shmctl', 'msgctl'): calls(name, name, @SHARED@ if name == 'shmctl' else @QUEUE@, 0, None)

#### ipc_calls | privileges | kernel_surface | any
n = {'x86_64': (278, 30, 31, 65, 66, 69, 70, 71, 220, 241), 'aarch64': (75, 196, 195, 193, 191, 189, 188, 187, 192, 181)}
for number in n[os.uname().machine]:
    if libc.syscall(number, -1, None, 0, 0, 0) >= 0 or ctypes.get_errno() != 1: print('BREACH', number)

#### what_all_share | privileges | kernel_surface | any
import fcntl, struct
n = {'x86_64': (206, 306, 222), 'aarch64': (0, 267, 107)}[os.uname().machine]
c, own, lib = ctypes.c_ulong(0), open('own', 'w'), os.open(os.__file__, os.O_RDONLY)
calls('asynchronous input', 'syscall', n[0], 100, ctypes.byref(c))
calls('syncfs', 'syscall', n[1], own.fileno())
calls('timer', 'syscall', n[2], 1, None, ctypes.byref(c))
tries('flock', lambda: fcntl.flock(os.open('/dev/null', os.O_RDONLY), 2 | 4))
tries('notices', lambda: fcntl.fcntl(os.open('.', os.O_RDONLY), 1026, 2))
tries('lease', lambda: fcntl.fcntl(own, 1024, 1))
for request in (0x40086602, 0x40087602): tries('flags', lambda: fcntl.ioctl(lib, request, struct.pack('q', 0)))

#### daemon | daemons | clean_state | ok
import time
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    for n in range(100):
        time.sleep(0.05)
        try: open(f'left{n}', 'w').close()
        except OSError: pass
else: print('done')

#### deaf_daemon | daemons | clean_state | ok error timeout
import signal, time
for s in (1, 2, 15, 17):
    try: signal.signal(s, signal.SIG_IGN)
    except OSError: pass
if os.fork() == 0:
    os.setsid(); libc.prctl(36, 1, 0, 0, 0); libc.prctl(1, 0, 0, 0, 0)
    while True:
        if os.fork() == 0: os.setsid(); time.sleep(0.2); os._exit(0)
        time.sleep(0.05)

#### user_namespace | privileges | kernel_surface | any
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000): calls(f'unshare {flag:x}', 'unshare', flag)
for p in ('/proc/self/ns/user', '/proc/1/ns/mnt', '/proc/@VICTIM@/ns/mnt'):
    try: fd = os.open(p, os.O_RDONLY)
    except OSError: continue
    calls(p, 'setns', fd, 0)

#### mounts | privileges | kernel_surface | any
os.mkdir('m')
calls('tmpfs', 'mount', b'x', b'm', b'tmpfs', 0, 0)
calls('bind', 'mount', b'/', b'm', 0, 4096, 0)
calls('umount', 'umount2', b'/', 2)
tries('chroot', lambda: os.chroot('m'))
calls('remount', 'mount', 0, b'/', 0, 32 | 4096, 0)

#### becomes_root | privileges | kernel_surface | any
tries('setuid', lambda: os.setuid(0)) if os.getuid() else print('BREACH root')
tries('setgroups', lambda: os.setgroups([0]))
calls('sethostname', 'sethostname', b'x', 1)
calls('personality', 'personality', 0x0040000)
tries('own new privileges', lambda: 1 / (1 - libc.prctl(39, 0, 0, 0, 0)))

#### odd_system_calls | privileges | kernel_surface | any
n = {'x86_64': (250, 298, 321, 323, 246, 169, 103), 'aarch64': (219, 241, 280, 282, 104, 142, 116)}[os.uname().machine]
b = ctypes.create_string_buffer(256)
for number in (*n, 425, 426, 427):
    if libc.syscall(number, 16, b, 0, 0, 0) >= 0: print('BREACH', number)

#### leaves_files | state | clean_state | ok error
for n in ('left', '.hidden', 'with\nnewline', 'x' * 255): open(n, 'w').close()
os.makedirs('a/' * 200); os.mkdir('closed'); open('closed/in', 'w').close()
try: os.chmod('closed', 0)
except OSError: pass
os.symlink('/', 'link')

#### marks_its_input | state | clean_state | any
import fcntl
fcntl.fcntl(0, 4, os.O_NONBLOCK | os.O_APPEND)
fcntl.flock(0, 2)

#### marks_its_folder | state | clean_state | any
import fcntl, struct
acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHI', tag, 0, 2**32 - 1) for tag in (1, 4, 32))
for p in ('.', '..'):
    tries('mark', lambda: os.setxattr(p, 'user.left', b'x'))
    tries('no rights', lambda: os.setxattr(p, 'system.posix_acl_default', acl))
    try: os.utime(p, (12345, 12345))
    except OSError: pass
tries('flags', lambda: fcntl.ioctl(os.open('.', os.O_RDONLY), 0x40086602, struct.pack('q', 0xC0)))

#### closes_its_folder | state | clean_state | any
for p in ('..', '.'):
    try: os.chmod(p, 0)
    except OSError: pass

#### patches_the_interpreter | state | clean_state | any
import builtins, json, random
builtins.print = builtins.len = builtins.open = None
json.loads = json.dumps = None
sys.path.clear(); sys.modules.clear(); os.environ['LEFT'] = '1'; os.fork = os.pipe = None; os.umask(0o777)

#### poisons_imports | state | clean_state | ok
for n in ('random', 'json', 'sitecustomize', 'usercustomize', 'colorsys'):
    open(n + '.py', 'w').write('print("poisoned")')
os.mkdir('__pycache__')

#### writes_to_the_worker | state | clean_state | any
import json
for fd in range(0, 256):
    if fd in (1, 2): continue
    for text in (b'\0\0\0\2{}', b'\0\0\0\20{"status": "ok"}', b'[0, null]\n'):
        try: os.write(fd, text)
        except OSError: break
""")

"""Programs that use up a machine: disk, memory, processes, open files, output, time. See `hostile_programs.py`."""

from __future__ import annotations

from kintsugi.sandboxes.hostile_programs import programs

BOMBS = programs(r"""
#### fills_its_folder | filling | files_size | stopped
for n in range(10**6):
    with open(f'f{n}', 'wb') as f: f.write(bytes(2**20))

#### one_large_file | filling | files_size | stopped
f = open('f', 'wb')
while True: f.write(bytes(2**20))

#### sparse_file | filling | files_size | ok error
f = open('f', 'wb')
tries('sparse', lambda: f.truncate(2**40))
f.seek(2**40)
tries('seek', lambda: (f.write(b'x'), f.flush()))

#### empty_files | filling | files_size | stopped
n = 0
while True:
    open(f'{n:0200}', 'w').close(); n += 1

#### deep_folders | filling | files_size | stopped
while True:
    os.mkdir('d'); os.chdir('d')

#### deleted_files | filling | files_size | any
import time
f = []
for n in range(8):
    f.append(os.open('x', os.O_RDWR | os.O_CREAT)); os.unlink('x')
    for _ in range(3): os.write(f[-1], bytes(2**20))
time.sleep(0.5)
print('BREACH', sum(os.fstat(one).st_blocks for one in f) >> 11, 'MiB')

#### deleted_and_mapped_files | filling | files_size | any
import time
libc.mmap.restype, n, word = ctypes.c_void_p, 0, ctypes.c_size_t
for _ in range(8):
    f = os.open('x', os.O_RDWR | os.O_CREAT); os.unlink('x')
    for _ in range(3): os.write(f, bytes(2**20))
    n += libc.mmap(None, word(4096), 1, 1, f, word(0)) != 2**64 - 1; os.close(f)  # Python's mmap keeps a descriptor
time.sleep(0.5)
print('BREACH', n * 3, 'MiB')

#### closed_folder | filling | files_size | any
import time
os.mkdir('d', 0o300)
for n in range(8):
    f = os.open(f'd/{n}', os.O_WRONLY | os.O_CREAT)
    for _ in range(3): os.write(f, bytes(2**20))
time.sleep(0.5)
print('BREACH 24 MiB')

#### shared_and_let_go | memory | memory | any
import mmap, time
r, w = os.pipe()
for _ in range(8):
    if not os.fork():
        m = mmap.mmap(-1, 2**27)
        for at in range(0, 2**27, 2**24):
            m[at : at + 2**24] = bytes(2**24)
            m.madvise(mmap.MADV_DONTNEED)  # no longer resident in this process, and still in memory
        os.write(w, b'x'); time.sleep(9)
n = sum(len(os.read(r, 1)) for _ in range(8))
time.sleep(0.5)
print('BREACH', n * 128, 'MiB')

#### a_page_for_a_byte | memory | memory | any
import socket
f, (a, b) = os.open('f', os.O_RDWR | os.O_CREAT), socket.socketpair()
os.write(f, bytes(4096))
tries('sendfile', lambda: os.sendfile(a.fileno(), f, 0, 1))  # the whole page is kept and one byte counted

#### shared_memory | filling | memory | any
for name in range(64):
    f = libc.memfd_create(b'm', 0)
    if f >= 0: os.truncate(f, 2**28); os.write(f, bytes(2**26)); print('BREACH memfd')
    s = libc.shmget(name + 1, 2**26, 0o1600)
    if s >= 0: print('BREACH shmget')
    tries('shm', lambda: os.write(os.open(f'/dev/shm/k{name}', os.O_CREAT | os.O_RDWR), bytes(2**26)))
    break

#### output_flood | filling | output | output
while True: print('x' * 1000)

#### error_flood | filling | output | output
while True: os.write(2, b'x' * 65536)

#### output_of_children | filling | output | output
for _ in range(4): os.fork()
while True: os.write(1, b'x' * 4096)

#### pipes | filling | memory | stopped
p = []
while True:
    a, b = os.pipe(); p += [a, b]; os.set_blocking(b, False); os.write(b, bytes(65536))
    if len(p) > 300: print('BREACH pipes')

#### pipes_of_many | filling | memory | any
import time
r, w = os.pipe()
for _ in range(13):
    if os.fork() == 0:
        keep = [os.pipe() for _ in range(28)]; os.write(w, b'.'); time.sleep(9)
for _ in range(13): os.read(r, 1)
time.sleep(0.5)
print('BREACH', 13 * 28, 'pipes')

#### many_mappings | memory | memory | stopped
import time
word, n = ctypes.c_size_t, 24000
libc.mmap.restype = ctypes.c_void_p
at = libc.mmap(None, word(n * 4096), 3, 0x22, -1, word(0))
for page in range(0, n, 2): libc.mprotect(ctypes.c_void_p(at + page * 4096), word(4096), 1)
for _ in range(13):
    if os.fork() == 0: break
time.sleep(9)

#### socket_buffers | filling | memory | any
import socket, time
block, (r, w) = bytes(2**16), os.pipe()
def fill():
    n, keep = 0, []
    try:
        while n < 20 * 2**20:
            keep.append(socket.socketpair())
            for s in keep[-1]:
                s.setblocking(False)
                for option in (7, 8, 32, 33):
                    try: s.setsockopt(1, option, 2**24)
                    except OSError: pass
                try:
                    while True: n += s.send(block)
                except BlockingIOError: pass
    except OSError: pass
    return n, keep
for _ in range(13):
    if os.fork() == 0:
        n, keep = fill(); os.write(w, b'%d\n' % n); time.sleep(9)
t = b''
while t.count(b'\n') < 13: t += os.read(r, 99)
time.sleep(0.3)
print('BREACH', sum(map(int, t.split())) >> 20, 'MiB', flush=True)

#### list_bomb | memory | memory | memory
x = []
while True: x.append(bytes(10**6))

#### huge_list | memory | memory | memory
x = [0] * 10**10

#### mapped_memory | memory | memory | stopped
import mmap
m = []
while True:
    m.append(mmap.mmap(-1, 2**24)); m[-1].write(bytes(2**24))

#### memory_in_children | memory | memory | stopped
import time
for _ in range(3): os.fork()
x = bytearray(os.urandom(2**20) * 60)
time.sleep(9)

#### memory_without_a_leader | memory | memory | stopped
import threading, time
r, w = os.pipe()
def hold():
    time.sleep(0.05)
    b = b'x' * (60 * 2**20)
    os.write(w, b'.'); time.sleep(9)
threading.stack_size(2**18)
for _ in range(4):
    if os.fork() == 0:
        threading.Thread(target=hold).start()
        libc.syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)
for n in range(4): os.read(r, 1)
time.sleep(0.15)
print('BREACH 240 MiB', flush=True)

#### claims_to_be_out_of_memory | memory | memory | error
print('\nMemoryError', file=sys.stderr)
raise SystemExit(1)

#### compressed_bomb | memory | memory | memory timeout
import zlib
c = zlib.compressobj(9)
d = b''.join(c.compress(bytes(2**24)) for _ in range(32)) + c.flush()
len(zlib.decompress(d))

#### deep_recursion | memory | memory | error memory timeout
sys.setrecursionlimit(10**9)
class A:
    def __repr__(self): return repr(self)
repr(A())

#### wild_pointer | memory | memory | error
ctypes.string_at(1)

#### fork_bomb | processes | processes | stopped
while True:
    try: os.fork()
    except OSError: pass

#### session_bomb | processes | processes | stopped
while True:
    try:
        if os.fork() == 0: os.setsid()
    except OSError: pass

#### thread_bomb | processes | processes | stopped
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(9,)).start()
    except RuntimeError: time.sleep(0.01)

#### open_file_bomb | processes | processes | any
f = []
try:
    while True: f.append(os.open('/dev/null', os.O_RDONLY))
except OSError: pass
if len(f) > 300: print('BREACH', len(f))

#### busy_loop | time | cpu_time | timeout
while True: pass

#### ignores_signals | time | wall_time | timeout
import signal, time
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(60)

#### busy_and_deaf | time | cpu_time | timeout
import signal
for s in (1, 2, 15, signal.SIGXCPU): signal.signal(s, signal.SIG_IGN)
while True: pass

#### busy_in_c | time | cpu_time | timeout
import re
re.match('(a*)*$', 'a' * 64 + 'b')

#### busy_children | time | cpu_time | timeout
for _ in range(3): os.fork()
while True: pass

#### uncounted_children | time | cpu_time | any
import signal, time
try: signal.signal(signal.SIGCHLD, signal.SIG_IGN)
except OSError: pass
(r, w), start = os.pipe(), time.monotonic()
for _ in range(6):
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                end = time.process_time() + 0.012
                while time.process_time() < end: pass
                os.write(w, b'.'); os._exit(0)
            try: os.wait()
            except ChildProcessError: pass
n = 0
while True:
    n += len(os.read(r, 99))
    if n * 0.012 > 0.8: print('BREACH', n * 0.012, 's', flush=True); break

#### children_of_a_thread | time | cpu_time | timeout
import threading, time
def fork():
    for _ in range(3):
        if os.fork() == 0:
            while True: pass
    time.sleep(60)
threading.Thread(target=fork).start()

#### stops_itself | time | wall_time | timeout
import signal
os.kill(os.getpid(), signal.SIGSTOP)

#### waits_for_input | time | wall_time | timeout
r, w = os.pipe()
os.read(r, 1)

#### endless_goodbye | time | cpu_time | timeout
import atexit
@atexit.register
def again():
    while True: pass
""")

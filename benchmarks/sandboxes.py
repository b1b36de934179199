"""Programs a second and CPU milliseconds a program: every sandbox here beside a bare `python -c` loop, interleaved.

    python benchmarks/sandboxes.py [--programs 100] [--rounds 5] [--parallel 2] [--site] [--json]

All run the same MBPP-sized programs, `parallel` at once, in turns, so that a busy machine slows all alike: read the
ratio, not the rates. The bare loop is `python -I -S -c`, or with `--site` a plain `python -c`, each from a warm file
cache. CPU is that of this process, of all it has reaped and of every living worker with all that it has reaped; an
engine's own (dockerd, containerd, its shims) stands apart. Then each sandbox has 128 callers at once, with the longest
time that the event loop stood still, and one worker (or container) is killed and the time to the next answer taken.
Leaves out: the pool's start. Docker has its row where an engine answers (`make docker-engine`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from kintsugi.errors import KintsugiError
from kintsugi.sandboxes import docker_sandbox
from kintsugi.sandboxes.confinement import RUNGS
from kintsugi.sandboxes.docker_sandbox import DockerSandbox
from kintsugi.sandboxes.interpreter_files import interpreter
from kintsugi.sandboxes.local_sandbox import LocalSandbox
from kintsugi.sandboxes.worker_pool import WorkerPool

PROGRAM = """
import re, math, heapq
from collections import Counter
def similar(a, b):
    return tuple(sorted(set(a) & set(b)))
def smallest(values, n):
    return heapq.nsmallest(n, values)
def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(math.sqrt(n)) + 1))
assert similar((3, 4, 5, 6), (5, 7, 4, 10)) == (4, 5)
assert smallest([25, 35, 22, 85, 14, 65, 75, 22, 58], 3) == [14, 22, 22]
assert [n for n in range(50) if is_prime(n)][-1] == 47
assert Counter(re.findall(r"[a-z]", "abracadabra")).most_common(1) == [("a", 5)]
print({number})
"""


CALLERS = 128
TICKS = os.sysconf("SC_CLK_TCK")


class Figures(NamedTuple):
    """Of one batch: programs a second, CPU milliseconds a program, and the engine's CPU milliseconds a program."""

    rate: float
    cpu_ms: float
    engine_ms: float


def cpu_s(sandbox: WorkerPool | None) -> float:
    """CPU seconds of this process, of its living descendants, of all that these have reaped, and of containers."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    roots = containers(sandbox) if isinstance(sandbox, DockerSandbox) else []
    pids = [*children(os.getpid()), *roots]
    for pid in pids:  # grows while it is walked
        pids += children(pid)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + sum(ticks(pid, 4) for pid in pids) / TICKS


def engine_s() -> float:
    """CPU seconds of the engine's own processes."""
    found = [pid for name in ("dockerd", "containerd", "containerd-shim") for pid in named(name)]
    return sum(ticks(pid, 2) for pid in found) / TICKS


def named(name: str) -> list[int]:
    """Process ids of a program; a name of 15 letters stands for longer ones."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip()[:15] == name:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def ticks(pid: int, fields: int) -> int:
    """User and system time of a process, with `fields` = 4 of what it has reaped as well."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return sum(int(word) for word in words[11 : 11 + fields])


def children(pid: int) -> list[int]:
    try:  # each thread has children of its own
        threads = [*Path(f"/proc/{pid}/task").iterdir()]
        return [int(word) for thread in threads for word in (thread / "children").read_text().split()]
    except OSError:
        return []


def containers(sandbox: DockerSandbox) -> list[int]:
    """Process ids, on this machine, of the containers' first processes."""
    client, label = sandbox._client, f"{docker_sandbox.LABEL}={sandbox._label}"
    found = [one["Id"] for one in client.containers(filters={"label": label})]
    return [client.inspect_container(name)["State"]["Pid"] for name in found]


def measured(batch: Callable[[list[str]], list[str]], programs: list[str], sandbox: WorkerPool | None) -> Figures:
    """Of one batch, whose answers are checked."""
    engine, cpu, started = engine_s(), cpu_s(sandbox), time.perf_counter()
    answers = batch(programs)
    took = time.perf_counter() - started
    cpu, engine = cpu_s(sandbox) - cpu, engine_s() - engine
    expected = [f"{number}\n" for number in range(len(programs))]
    if answers != expected:
        wrong = next(pair for pair in zip(answers, expected, strict=True) if pair[0] != pair[1])
        raise SystemExit(f"wrong answer: expected {wrong[1]!r}, found {wrong[0]!r}")
    return Figures(len(programs) / took, cpu / len(programs) * 1000, engine / len(programs) * 1000)


def bare_loop(parallel: int, site: bool) -> Callable[[list[str]], list[str]]:
    python = [interpreter(), *([] if site else ["-I", "-S"]), "-c"]

    def one(program: str) -> str:
        return subprocess.run([*python, program], capture_output=True, text=True, check=True).stdout

    def batch(programs: list[str]) -> list[str]:
        with ThreadPoolExecutor(parallel) as pool:
            return list(pool.map(one, programs))

    return batch


def crowd(sandbox: WorkerPool) -> tuple[float, float]:
    """128 callers at once: seconds until all are answered, and the longest time that the loop stood still."""

    async def ask() -> tuple[float, float]:
        longest, last = 0.0, time.perf_counter()

        async def beat() -> None:
            nonlocal longest, last
            while True:
                await asyncio.sleep(0.005)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now

        heart = asyncio.create_task(beat())
        started = time.perf_counter()
        results = await asyncio.gather(*(sandbox.arun(PROGRAM.replace("{number}", str(n))) for n in range(CALLERS)))
        took = time.perf_counter() - started
        heart.cancel()
        if [result.stdout for result in results] != [f"{n}\n" for n in range(CALLERS)]:
            raise SystemExit("a caller got a wrong answer")
        return took, longest

    return asyncio.run(ask())


def replacement(sandbox: WorkerPool) -> float:
    """Seconds from the death of every worker to the next right answer."""
    before = sandbox.stats().replaced
    if isinstance(sandbox, DockerSandbox):
        victims = containers(sandbox)
    else:
        victims = [pid for keeper in children(os.getpid()) for pid in children(keeper)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    started = time.perf_counter()
    if sandbox.run("print(1)").stdout != "1\n":
        raise SystemExit("no right answer after a worker was killed")
    took = time.perf_counter() - started
    assert sandbox.stats().replaced > before, "nothing was killed"
    return took


def opened(parallel: int) -> list[WorkerPool]:
    """Every sandbox that opens here."""
    found: list[WorkerPool] = []
    for rung in RUNGS:
        try:
            found.append(LocalSandbox(workers=parallel, confinement=rung, allow_unsafe=True))
        except KintsugiError as error:
            print(f"local/{rung}: {error}", file=sys.stderr)
    if reason := docker_sandbox.unavailable():
        print(f"docker: {reason}", file=sys.stderr)
    else:
        found.append(DockerSandbox(workers=parallel))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=100, help="a batch")
    parser.add_argument("--rounds", type=int, default=5, help="batches of each way, in turns")
    parser.add_argument("--parallel", type=int, default=2, help="programs at once")
    parser.add_argument("--site", action="store_true", help="the bare loop with site-packages")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    programs = [PROGRAM.replace("{number}", str(number)) for number in range(options.programs)]
    sandboxes: dict[str, WorkerPool | None] = {"bare python -c": None}
    sandboxes |= {sandbox.backend: sandbox for sandbox in opened(options.parallel)}
    bare = bare_loop(options.parallel, options.site)
    ways: dict[str, Callable[[list[str]], list[str]]] = {
        name: (lambda batch, sandbox=sandbox: [one.stdout for one in sandbox.run_many(batch)]) if sandbox else bare
        for name, sandbox in sandboxes.items()
    }
    figures: dict[str, list[Figures]] = {name: [] for name in ways}
    for name, batch in ways.items():
        measured(batch, programs[:10], sandboxes[name])  # starts the workers, warms the file cache
    for _ in range(options.rounds):
        for name, batch in ways.items():
            figures[name].append(measured(batch, programs, sandboxes[name]))
    extra: dict[str, dict[str, float]] = {}
    for name, sandbox in sandboxes.items():
        if sandbox is not None:
            answered, still = crowd(sandbox)
            extra[name] = {"callers_s": round(answered, 2), "loop_still_ms": round(still * 1000, 1)}
    for name, sandbox in sandboxes.items():
        if sandbox is not None:
            extra[name]["replaced_s"] = round(replacement(sandbox), 2)
            sandbox.close()
    report(figures, extra, options.json)


def report(figures: dict[str, list[Figures]], extra: dict[str, dict[str, float]], as_json: bool) -> None:
    bare = [one.rate for one in figures["bare python -c"]]
    rows: list[dict[str, Any]] = [
        {
            "way": name,
            "programs_per_s": round(statistics.median(one.rate for one in mine), 1),
            "cpu_ms": round(statistics.median(one.cpu_ms for one in mine), 2),
            "engine_ms": round(statistics.median(one.engine_ms for one in mine), 2) if "docker" in name else 0.0,
            # round by round, since neighbours in time met the same machine
            "times_bare": round(statistics.median(one.rate / bare[index] for index, one in enumerate(mine)), 2),
            "times_bare_lowest": round(min(one.rate / bare[index] for index, one in enumerate(mine)), 2),
            **extra.get(name, {}),
        }
        for name, mine in figures.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    heads = {
        "programs_per_s": "programs/s", "cpu_ms": "CPU ms", "engine_ms": "engine ms", "times_bare": "x bare",
        "times_bare_lowest": "lowest", "callers_s": "128 at once", "loop_still_ms": "still ms", "replaced_s": "replaced s",
    }  # fmt: skip
    print(f"{'way':36}" + "".join(f"{head:>12}" for head in heads.values()))
    for row in rows:
        print(f"{row['way']:36}" + "".join(f"{row.get(key, ''):>12}" for key in heads))


if __name__ == "__main__":
    main()

"""Programs a second and CPU milliseconds a program: the local sandbox beside a bare `python -c` loop, interleaved.

    python benchmarks/sandboxes.py [--programs 100] [--rounds 5] [--parallel 2] [--json]

Both run the same MBPP-sized programs, `parallel` at once, in turns, so that a busy machine slows both alike: read the
ratio, not the rates. The bare loop is `python -I -S -c`, or with `--site` a plain `python -c`, each from a warm file
cache. CPU is that of this process, of all it has reaped and of the living workers with all they have reaped: a
launcher's work is a cost as well. Leaves out: Docker, which has its own rows once its backend is there, and the
pool's start.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kintsugi.sandboxes.local_sandbox import LocalSandbox

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


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def reaped_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def workers_cpu_s() -> float:
    """CPU of this process's living children and of all that they have reaped."""
    total = 0
    for name in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        words = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
        total += sum(int(word) for word in words[11:15])
    return total / os.sysconf("SC_CLK_TCK")


def measured(batch: Callable[[list[str]], list[str]], programs: list[str]) -> tuple[float, float]:
    """(programs a second, CPU ms a program) of one batch, whose answers are checked."""
    cpu, started = own_cpu_s() + reaped_cpu_s() + workers_cpu_s(), time.perf_counter()
    answers = batch(programs)
    took = time.perf_counter() - started
    cpu = own_cpu_s() + reaped_cpu_s() + workers_cpu_s() - cpu
    expected = [f"{number}\n" for number in range(len(programs))]
    if answers != expected:
        wrong = next(pair for pair in zip(answers, expected, strict=True) if pair[0] != pair[1])
        raise SystemExit(f"wrong answer: expected {wrong[1]!r}, found {wrong[0]!r}")
    return len(programs) / took, cpu / len(programs) * 1000


def bare_loop(parallel: int, site: bool) -> Callable[[list[str]], list[str]]:
    python = [getattr(sys, "_base_executable", sys.executable), *([] if site else ["-I", "-S"]), "-c"]

    def one(program: str) -> str:
        return subprocess.run([*python, program], capture_output=True, text=True, check=True).stdout

    def batch(programs: list[str]) -> list[str]:
        with ThreadPoolExecutor(parallel) as pool:
            return list(pool.map(one, programs))

    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--programs", type=int, default=100, help="programs a batch")
    parser.add_argument("--rounds", type=int, default=5, help="batches of each way, in turns")
    parser.add_argument("--parallel", type=int, default=len(os.sched_getaffinity(0)), help="programs at once")
    parser.add_argument("--site", action="store_true", help="the bare loop loads site, as a plain python -c does")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    programs = [PROGRAM.replace("{number}", str(number)) for number in range(options.programs)]
    ways: dict[str, Callable[[list[str]], list[str]]] = {"bare python -c": bare_loop(options.parallel, options.site)}
    opened = []
    for rung in ("landlock+seccomp", "rlimits"):
        sandbox = LocalSandbox(workers=options.parallel, confinement=rung, allow_unsafe=True)
        opened.append(sandbox)
        ways[f"local/{rung}"] = lambda batch, sandbox=sandbox: [result.stdout for result in sandbox.run_many(batch)]
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for batch in ways.values():
        measured(batch, programs[:10])  # starts the workers, warms the file cache
    for _ in range(options.rounds):
        for name, batch in ways.items():
            figures[name].append(measured(batch, programs))
    for sandbox in opened:
        sandbox.close()
    report(figures, options.json)


def report(figures: dict[str, list[tuple[float, float]]], as_json: bool) -> None:
    bare = [rate for rate, _ in figures["bare python -c"]]
    rows = [
        {
            "way": name,
            "programs_per_s": round(statistics.median(rate for rate, _ in pairs), 1),
            "cpu_ms": round(statistics.median(cpu for _, cpu in pairs), 2),
            # round by round, since neighbours in time met the same machine
            "times_bare": round(statistics.median(rate / bare[index] for index, (rate, _) in enumerate(pairs)), 2),
            "times_bare_lowest": round(min(rate / bare[index] for index, (rate, _) in enumerate(pairs)), 2),
        }
        for name, pairs in figures.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'way':26}{'programs/s':>12}{'CPU ms':>9}{'x bare':>9}{'lowest':>9}")
    for row in rows:
        print(
            f"{row['way']:26}{row['programs_per_s']:>12}{row['cpu_ms']:>9}{row['times_bare']:>9}{row['times_bare_lowest']:>9}"
        )


if __name__ == "__main__":
    main()

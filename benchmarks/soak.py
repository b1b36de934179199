"""Ten thousand programs through one sandbox, a tenth of them hostile: is anything left, is any verdict wrong?

    python benchmarks/soak.py [--programs 10000] [--kind local] [--parallel 2] [--json]

Nine in ten are plain: programs with a known answer, programs that fail in a known way, candidates with tests that pass
or fail. The tenth is the battery's, over and over (`kintsugi/sandboxes/battery.py`), beside plain ones in the other
workers. Before (once every worker is warm) and after, it counts: processes of the sandbox, descriptors, threads and
resident memory of this process, resident memory of the workers, bytes in temporary folders. Exit code 1 when a verdict
was wrong, anything leaked or a worker had to be replaced. Leaves out: speed (`sandboxes.py`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kintsugi.sandboxes.battery import HOSTILE, Host, resident_mb
from kintsugi.sandboxes.hostile_programs import Hostile
from kintsugi.sandboxes.sandbox import Limits, Sandbox, open_sandbox

LIMITS = Limits(wall_s=2.0, cpu_s=1.0, memory_mb=128, processes=16, output_bytes=16384, files_mb=4)
HARSH = Limits(wall_s=0.6, cpu_s=0.3, memory_mb=128, processes=16, output_bytes=4096, files_mb=4)
ALLOWED = {
    "processes": 0,
    "descriptors": 4,
    "threads": 2,
    "resident_mb": 30,
    "workers_mb": 30,
    "temporary_mb": 2,
    "folders": 0,
}
"""How much more of each may be there at the end."""


def plain(sandbox: Sandbox, number: int) -> str:
    """One plain program; what was wrong with its answer, or ""."""
    kind, rng = number % 6, random.Random(number)
    values = [rng.randrange(1000) for _ in range(20)]
    if kind == 0:
        run = sandbox.run(f"print(sum({values}))", limits=LIMITS)
        right = (run.status, run.stdout) == ("ok", f"{sum(values)}\n")
    elif kind == 1:
        run = sandbox.run(
            "import sys\nprint(sorted(map(int, sys.stdin.read().split())))", stdin=" ".join(map(str, values)), limits=LIMITS
        )
        right = (run.status, run.stdout) == ("ok", f"{sorted(values)}\n")
    elif kind == 2:
        run = sandbox.run(f"x = {values}\nprint(x[0])\nx[99]", limits=LIMITS)
        right = (run.status, run.exit_code, run.stdout) == ("error", 1, f"{values[0]}\n") and "IndexError" in run.stderr
    elif kind == 3:
        code = "import data\nopen('out.txt', 'w').write(str(max(data.x)))\nprint(open('out.txt').read())"
        run = sandbox.run(code, files={"data.py": f"x = {values}\n"}, limits=LIMITS)
        right = (run.status, run.stdout) == ("ok", f"{max(values)}\n")
    else:
        tests = [
            f"assert f({values}) == {sorted(values)}",
            f"assert f([3, {values[0] + 4}, 1])[0] == 1",
            "assert f([]) == []",
        ]
        code = "def f(x):\n    return sorted(x)" if kind == 4 else "def f(x):\n    return sorted(x)[:-1]"
        judged = sandbox.run_tests(code, tests, limits=LIMITS)
        run, right = judged.run, judged.passed == (3 if kind == 4 else 2) and judged.judging == "two processes"
    return "" if right else f"plain {number}: {run}"


def hostile(sandbox: Sandbox, program: Hostile, host: Host) -> str:
    """One hostile program; what it achieved or ended wrongly with, or ""."""
    if program.tests:
        judged = sandbox.run_tests(program.code, program.tests, limits=HARSH)
        return f"{program.name}: passed {judged.passed}" if judged.passed else ""
    run = sandbox.run(host.fill_in(program.code), limits=HARSH)
    promised = program.guarantee in sandbox.guarantees
    if promised and "BREACH" in run.stdout:
        return f"{program.name}: {run.stdout[:200]}"
    # These limits are shorter than the battery's: on a busy machine time may stop a bomb before memory does.
    allowed = (*program.statuses, *(() if "ok" in program.statuses else ("timeout",)))
    wrong = program.statuses and run.status not in allowed
    return f"{program.name}: {run.status} {run.stderr[-200:]}" if wrong or run.status == "sandbox_failed" else ""


def census(sandbox: Sandbox, folders: list[Path]) -> dict[str, float]:
    """What is there now."""
    gc.collect()
    count: Callable[[], int] = getattr(sandbox, "count_processes", lambda: 0)
    files = [path for folder in folders for path in folder.rglob("*") if not path.is_symlink()]
    return {
        "processes": count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "resident_mb": round(resident_mb(), 1),
        "workers_mb": round(sum(map(_resident_mb, _descendants(os.getpid()))), 1),
        "temporary_mb": round(sum(_size(path) for path in files) / (1 << 20), 2),
        "folders": sum(path.is_dir() for path in files),
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (thread / "children").read_text().split()]
    except OSError:
        return []
    return found + [below for child in found for below in _descendants(child)]


def _resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    except OSError:
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--kind", default="local")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with open_sandbox(options.kind, workers=options.parallel, limits=LIMITS) as sandbox, Host() as host:
        found = soak(sandbox, host, options.programs, options.parallel)
    print(json.dumps(found, indent=2) if options.json else "\n".join(f"{key:16}{value}" for key, value in found.items()))
    sys.exit(0 if found["held"] else 1)


def soak(sandbox: Sandbox, host: Host, programs: int, parallel: int) -> dict[str, Any]:
    backend = sandbox.run("print(1)").backend
    own: Path | None = getattr(sandbox, "_folder", None)
    folders = [folder for folder in (own, host.folder) if folder is not None]
    attacks = [one for one in HOSTILE if "host_processes" in sandbox.guarantees or not one.ends_its_caller]

    def one(number: int) -> str:
        return hostile(sandbox, attacks[number // 10 % len(attacks)], host) if number % 10 == 9 else plain(sandbox, number)

    with ThreadPoolExecutor(2 * parallel) as callers:
        wrong = [said for said in callers.map(one, range(min(200, programs))) if said]
        before, started = census(sandbox, folders), time.monotonic()
        wrong += [said for said in callers.map(one, range(200, programs)) if said]
        took = time.monotonic() - started
        wrong += host.harm()
        after = census(sandbox, folders)
    leaked = {name: after[name] - before[name] for name in before if after[name] - before[name] > ALLOWED[name]}
    stats = sandbox.stats()
    return {
        "backend": backend,
        "programs": programs,
        "hostile": programs // 10,
        "seconds": round(took, 1),
        "statuses": dict(Counter(stats.by_status)),
        "replaced": stats.replaced,
        "wrong": wrong[:20],
        "before": before,
        "after": after,
        "leaked": leaked,
        "held": not wrong and not leaked and not stats.replaced,
    }


if __name__ == "__main__":
    main()

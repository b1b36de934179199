"""Recipes side by side over seeds: one table with paired intervals, one picture.

    python benchmarks/compare.py --recipes self_training envisions rerest --seeds 3 explore.budget_tokens=45000

Every recipe of a seed starts from that seed's warm start (made once, on the shelf beside the run folders). Seeds run in
parallel processes of one thread each; a run that is there already is gone on with, so an interrupted comparison is not
lost. Each run's CPU seconds are noted in its folder (`cpu.json`; the first recipe of a seed pays for the warm start).
`benchmarks/demo.py` is this with the recipe `demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def run_seed(recipes: list[str], seed: int, folder: Path, overrides: list[str]) -> list[Path]:
    """All recipes of one seed, one after another; the folders of their runs."""
    from kintsugi.training.recipe import load_recipe
    from kintsugi.training.run import recipe_of

    done = []
    for recipe in recipes:
        out = folder / f"{recipe}-{seed}"
        new = [recipe, f"seed={seed}", *overrides, "--out", str(out)]
        begun = (out / "run.json").exists()
        if begun and recipe_of(out) != load_recipe(recipe, [f"seed={seed}", *overrides]):
            raise SystemExit(f"{out} was begun with other settings: remove it, or give another --out")
        what = ["--resume", str(out)] if begun else new
        command = [sys.executable, "-m", "kintsugi", "train", *what, "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as said:
            asked = subprocess.Popen(command, stdout=said, stderr=said, text=True, env=environment)
            _, status, usage = os.wait4(asked.pid, 0)
            asked.returncode = os.waitstatus_to_exitcode(status)
            if asked.returncode:
                said.seek(0)
                raise SystemExit(f"{' '.join(command)} failed with {asked.returncode}:\n{said.read().strip()[-2000:]}")
        note = out / "cpu.json"
        cpu = usage.ru_utime + usage.ru_stime + (json.loads(note.read_text()) if note.exists() else 0.0)
        note.write_text(json.dumps(round(cpu, 1)))
        print(f"{out}  {time.monotonic() - started:.0f} s, {cpu:.0f} CPU-s in all", file=sys.stderr, flush=True)
        done.append(out)
    return done


def compare_recipes(recipes: list[str], seeds: list[int], folder: Path, jobs: int, overrides: list[str]) -> list[Path]:
    """Run what is missing; all run folders, recipe by recipe."""
    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(lambda seed: run_seed(recipes, seed, folder, overrides), seeds))
    return [runs[index] for index in range(len(recipes)) for runs in found]


def main(default_recipes: tuple[str, ...] = ("self_training", "envisions", "rerest", "kintsugi")) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="recipe settings for every run")
    parser.add_argument("--recipes", nargs="+", default=list(default_recipes))
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at once")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of the run folders")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args()
    import kintsugi

    seeds = [options.first_seed + number for number in range(options.seeds)]
    runs = compare_recipes(options.recipes, seeds, options.out, options.jobs, options.overrides)
    found = kintsugi.compare(runs)
    print(json.dumps(found.as_dict(), indent=2) if options.json else found)


if __name__ == "__main__":
    main()

"""Does repair pay? On tasks whose k samples all failed: one repair against one fresh sample of the same weights.

    python benchmarks/repair.py --seeds 8
    python benchmarks/repair.py --recipe alfworld_notes --seeds 3 --worth 2 --out runs/notes    # many turns

Runs the recipe `repair` (longer programs; repairs train the policy, fresh samples are measured only) for every seed. An
unsolved task gets one repair after another until one is right, at most 8 (they are shorter), and, apart from them, one
fresh sample after another until one is right, at most 4. A repair that repeats the very line objected to is drawn again, at
most twice, and its tokens count. Printed: how often one try succeeds and the ratio, with a bootstrap over seeds and tasks;
and how many of these tasks are rescued at equal generated tokens, and at equal processed tokens (context run through the
model, plus generated): those of `--worth` fresh samples of the task.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from compare import compare_recipes

Try = tuple[bool, int, int]
"""(right, generated tokens, processed tokens) of one attempt."""


def tries(run: Path) -> dict[tuple[int, str], dict[str, list[Try]]]:
    """By (round, task): the "repair" and "fresh" attempts of an unsolved task, in order."""
    import kintsugi
    from kintsugi.training.exploration import FIRST_EXTRA

    found: dict[tuple[int, str], dict[str, list[Try]]] = defaultdict(lambda: {"repair": [], "fresh": []})
    with kintsugi.Ledger.open(run / "ledger.sqlite", create=False, read_only=True) as ledger:
        for episode in ledger.episodes(purpose=["explore", "measure"]):
            if episode.sample < FIRST_EXTRA:
                continue
            one = episode.trajectories[0]
            kind = "fresh" if episode.sample >= 2 * FIRST_EXTRA else "repair"
            generated = one.cost.generated_tokens
            attempt = (one.success, generated, generated + one.cost.processed_tokens)
            found[episode.round, episode.task_id][kind].append(attempt)
    return {key: value for key, value in found.items() if value["repair"] and value["fresh"]}


def rescued(attempts: list[Try], budget: float, tokens: int) -> bool:
    """Whether a right attempt comes before `budget` tokens are spent; `tokens` says which count (1 or 2)."""
    spent = 0
    for attempt in attempts:
        spent += attempt[tokens]
        if spent > budget * (1 + 1e-9):
            return False
        if attempt[0]:
            return True
    return False


def measure(runs: list[Path], worth: int) -> dict[str, Any]:
    """The figures over all runs; `worth`: the token budget of a task, in fresh attempts."""
    from kintsugi.training.intervals import rate_ratio

    hits: list[tuple[int, int, int, int]] = []
    seeds: list[int] = []
    by_round: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    budgets: dict[str, dict[str, list[int]]] = {name: {"repair": [], "fresh": []} for name in ("generated", "processed")}
    groups: list[int] = []
    for number, run in enumerate(runs):
        found = tries(run)
        for (round_number, _), both in found.items():
            row = [count for kind in ("repair", "fresh") for count in (sum(t[0] for t in both[kind]), len(both[kind]))]
            hits.append((row[0], row[1], row[2], row[3]))
            seeds.append(number)
            by_round[round_number] = [a + b for a, b in zip(by_round[round_number], row, strict=True)]
        for index, name in enumerate(("generated", "processed"), start=1):
            for both in found.values():
                budget = worth * mean(t[index] for t in both["fresh"])  # the task's own: long ones need more
                for kind in ("repair", "fresh"):
                    budgets[name][kind].append(int(rescued(both[kind], budget, index)))
        groups += [number] * len(found)
    columns = list(zip(*hits, strict=True))
    single = rate_ratio(*map(list, columns), groups=seeds)
    ones = [1] * len(groups)
    result: dict[str, Any] = {
        "seeds": len(runs),
        "unsolved_tasks": len(hits),
        "repairs": sum(columns[1]),
        "repair_success": sum(columns[0]) / sum(columns[1]),
        "fresh_success": sum(columns[2]) / sum(columns[3]),
        "ratio": [single.ratio, single.low, single.high],
        "by_round": {n: {"repair": r[0] / r[1], "fresh": r[2] / r[3]} for n, r in sorted(by_round.items())},
    }
    for name, kinds in budgets.items():
        gap = rate_ratio(kinds["repair"], ones, kinds["fresh"], ones, groups=groups)
        result[f"rescued_at_equal_{name}_tokens"] = {
            "repair": mean(kinds["repair"]), "fresh": mean(kinds["fresh"]), "ratio": [gap.ratio, gap.low, gap.high]
        }  # fmt: skip
    return result


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    ratio = "{:.2f} [{:.2f}, {:.2f}]".format
    rounds = " · ".join(f"{100 * r['repair']:.1f}/{100 * r['fresh']:.1f}" for r in found["by_round"].values())
    lines = [
        f"{found['seeds']} seeds, {found['unsolved_tasks']} unsolved tasks, {found['repairs']} repairs",
        f"{'':34}{'repair':>8}{'fresh':>8}  ratio, 95 %",
        f"{'success of one try':34}{found['repair_success']:>8.1%}{found['fresh_success']:>8.1%}  {ratio(*found['ratio'])}",
    ]
    for name in ("generated", "processed"):
        one = found[f"rescued_at_equal_{name}_tokens"]
        label = f"rescued at equal {name} tokens"
        lines.append(f"{label:34}{one['repair']:>8.1%}{one['fresh']:>8.1%}  {ratio(*one['ratio'])}")
    return "\n".join([*lines, f"repair/fresh by round, %: {rounds}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--recipe", default="repair", help="one that repairs unsolved tasks and measures fresh samples")
    parser.add_argument("--seeds", type=int, default=8, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worth", type=int, default=4, help="token budget of an unsolved task, in fresh attempts")
    parser.add_argument("--out", type=Path, default=Path("runs/repair"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_intermixed_args()
    seeds = [options.first_seed + number for number in range(options.seeds)]
    runs = compare_recipes([options.recipe], seeds, options.out, options.jobs, options.overrides)
    found = measure(runs, options.worth)
    print(json.dumps(found, indent=2) if options.json else table(found))


if __name__ == "__main__":
    main()

"""Does repair pay? On tasks whose k samples all failed: one repair against one fresh sample of the same weights.

    python benchmarks/repair.py --seeds 8
    python benchmarks/repair.py --recipe alfworld_notes --seeds 3 --worth 2 --out runs/notes    # many turns

Runs the recipe `repair` (longer programs; repairs train the policy, fresh samples are measured only) for every seed. An
unsolved task gets one repair after another until one is right, at most 8 (they are shorter), and, apart from them, one
fresh sample after another until one is right, at most 4. A repair that repeats the very line objected to is drawn again, at
most twice, and its tokens count. Printed, with a bootstrap over seeds and tasks: how often the first repair and the first
fresh sample of a task are right, and the same per 1,000 generated tokens; how often any try is (later ones are at harder
tasks, and repairs go on longer); and how many of these tasks are rescued with equal tokens, those of `--worth` fresh samples
of the task: generated ones, and processed ones (context run through the model, plus generated).
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from compare import compare_recipes

Try = tuple[bool, int, int]
"""(right, generated tokens, processed tokens) of one attempt."""
KINDS = ("repair", "fresh")


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
    found = [(number, key, both) for number, run in enumerate(runs) for key, both in tries(run).items()]
    seeds = [number for number, _, _ in found]
    result: dict[str, Any] = {
        "seeds": len(runs),
        "unsolved_tasks": len(found),
        "repairs": sum(len(both["repair"]) for _, _, both in found),
        "first_by_round": {},
    }
    for number in sorted({key[0] for _, key, _ in found}):
        firsts = [both for _, key, both in found if key[0] == number]
        result["first_by_round"][number] = {kind: mean(one[kind][0][0] for one in firsts) for kind in KINDS}

    def compare(name: str, counts: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """counts: (right, out of) a task, by kind."""
        from kintsugi.training.intervals import rate_ratio

        columns = [[pair[part] for pair in counts[kind]] for kind in KINDS for part in (0, 1)]
        gap = rate_ratio(*columns, groups=seeds)
        rates = {kind: sum(p[0] for p in counts[kind]) / sum(p[1] for p in counts[kind]) for kind in KINDS}
        result[name] = {**rates, "ratio": [gap.ratio, gap.low, gap.high]}

    each = {kind: [both[kind] for _, _, both in found] for kind in KINDS}
    compare("first_try", {kind: [(one[0][0], 1) for one in each[kind]] for kind in KINDS})
    compare("first_try_per_1000_tokens", {kind: [(one[0][0], one[0][1] / 1000) for one in each[kind]] for kind in KINDS})
    compare("any_try", {kind: [(sum(t[0] for t in one), len(one)) for one in each[kind]] for kind in KINDS})
    for index, name in enumerate(("generated", "processed"), start=1):
        budgets = [worth * mean(t[index] for t in both["fresh"]) for _, _, both in found]  # long tasks need more
        right = {
            kind: [(rescued(one, budget, index), 1) for one, budget in zip(each[kind], budgets, strict=True)]
            for kind in KINDS
        }
        compare(f"rescued_at_equal_{name}_tokens", right)
    return result


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{found['seeds']} seeds, {found['unsolved_tasks']} unsolved tasks, {found['repairs']} repairs",
        f"{'':42}{'repair':>8}{'fresh':>8}  ratio, 95 %",
    ]
    for name, one in found.items():
        if isinstance(one, dict) and "ratio" in one:
            form = "{:8.2f}" if "per_1000" in name else "{:8.1%}"
            rates = "".join(form.format(one[kind]) for kind in KINDS)
            lines.append(f"{name.replace('_', ' '):42}{rates}  {'{:.2f} [{:.2f}, {:.2f}]'.format(*one['ratio'])}")
    rounds = " · ".join(f"{100 * r['repair']:.1f}/{100 * r['fresh']:.1f}" for r in found["first_by_round"].values())
    return "\n".join([*lines, f"first try by round, repair/fresh, %: {rounds}"])


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

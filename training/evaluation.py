"""Held-out success of a policy version: greedy pass@1, and sampled pass@k when the recipe asks for it.

Evaluations are episodes like all others: they go through the rollout and are on the ledger, so a killed evaluation goes on
where it was, and every number can be traced to its attempts. Tasks on which the environment broke are left out and counted,
and so are samples: `Evaluation.errors` holds the greedy ones, `metrics` has `sampled_errors` and `sandbox_failed` (of both
kinds, those that the sandbox broke) where there are any.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan
from kintsugi.graphs.rollout import rollout
from kintsugi.ledger import Ledger
from kintsugi.records import Episode, Evaluation, Task, Verdict
from kintsugi.training.intervals import pass_at_k

OnDone = Callable[[Episode], None]


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything printable; the same on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big") >> 1


def evaluation_plans(
    tasks: Sequence[Task], *, run_id: str, round: int, version: str, seed: int, samples: int
) -> list[EpisodePlan]:
    """Sample 0 of each task, or samples 1 to `samples` when `samples` > 0."""
    numbers = range(1, samples + 1) if samples else range(1)
    return [
        EpisodePlan(
            run_id=run_id,
            purpose="evaluate",
            round=round,
            task=task,
            sample=number,
            seed=seed_of(seed, "evaluate", task.hash, number),
            policy_version=version,
        )
        for task in tasks
        for number in numbers
    ]


async def play_plans(
    plans: Sequence[EpisodePlan], cast: Cast, ledger: Ledger, on_done: OnDone | None = None
) -> list[Episode]:
    """Play what is not on the ledger yet; all of the plans' episodes, in their order."""
    await rollout(plans, cast, commit=ledger.commit_episodes, known=ledger.has_episodes, on_done=on_done)
    found = {episode.id: episode for episode in ledger.episodes(id=[plan.episode_id for plan in plans])}
    return [found[plan.episode_id] for plan in plans]


def evaluation_of(
    greedy: Sequence[Episode],
    sampled: Sequence[Episode],
    *,
    run_id: str,
    round: int,
    arm: str,
    version: str,
    ks: Sequence[int] = (),
) -> Evaluation:
    """The record of what these episodes show."""
    outcomes: dict[str, int] = {}
    details: dict[str, list[float]] = defaultdict(list)
    for episode in greedy:
        if _broke(episode):
            continue
        outcomes[episode.task_id] = int(episode.success)
        for name, value in _verdict(episode).detail.items():
            details[name].append(value)
    broken = [episode for episode in (*greedy, *sampled) if _broke(episode)]
    errors = sum(map(_broke, greedy))
    lost = {
        "sampled_errors": len(broken) - errors,
        "sandbox_failed": sum(
            getattr(episode.trajectories[-1].messages[-1], "error", "") == "sandbox_failed" for episode in broken
        ),
    }
    return Evaluation(
        run_id=run_id,
        round=round,
        arm=arm,
        policy_version=version,
        outcomes=outcomes,
        pass_at_k=_pass_at(sampled, ks),
        metrics={name: sum(values) / len(values) for name, values in sorted(details.items())}
        | {name: float(count) for name, count in lost.items() if count},
        errors=errors,
    )


def lost_text(evaluation: Evaluation) -> str:
    """What was left out, such as "3 tasks, 1 sample lost to the environment (2 of them to the sandbox)"; "" for nothing."""
    samples, sandbox = (int(evaluation.metrics.get(name, 0)) for name in ("sampled_errors", "sandbox_failed"))
    counts = [f"{n} {what}{'s' * (n > 1)}" for n, what in ((evaluation.errors, "task"), (samples, "sample")) if n]
    of_them = f" ({sandbox} of them to the sandbox)" if sandbox else ""
    return f"{', '.join(counts)} lost to the environment{of_them}" if counts else ""


def _broke(episode: Episode) -> bool:
    return episode.trajectories[-1].stop == "error"


def _pass_at(episodes: Sequence[Episode], ks: Sequence[int]) -> Mapping[str, float]:
    tries: dict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        if not _broke(episode):
            tries[episode.task_id].append(episode.success)
    result = {}
    for k in ks:
        values = [pass_at_k(len(found), sum(found), k) for found in tries.values() if len(found) >= k]
        if values:
            result[str(k)] = sum(values) / len(values)
    return result


def _verdict(episode: Episode) -> Verdict:
    last = episode.trajectories[-1].messages[-1]
    assert isinstance(last, Verdict), "a finished attempt ends with its verdict"
    return last

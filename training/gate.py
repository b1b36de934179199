"""The gate: does the challenger become the champion? A pure decision over two evaluations of the same held-out tasks.

`decide` compares greedy outcomes task by task. The rule is the recipe's (`[gate] rule = "not_worse"`); a challenger
that is not promoted stays in the ledger, and the champion explores the next round. Not here: running the evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from kintsugi.config import StrictConfig
from kintsugi.errors import LearningError
from kintsugi.records import Evaluation
from kintsugi.training.intervals import Interval, paired_outcomes, sign_test


class GateConfig(StrictConfig):
    """When a challenger is promoted.

    rule: "not_worse" (held-out success fell by no more than `max_drop`), "better" (it rose, with a one-sided exact
    McNemar p <= `alpha`), "always", "never". alpha: also sets the printed interval, 1 - alpha. max_drop: a fraction of
    the tasks (0.02 = two points), used by "not_worse" alone.
    """

    rule: Literal["not_worse", "better", "always", "never"] = "not_worse"
    alpha: float = Field(default=0.05, gt=0, lt=1)
    max_drop: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """promote: the challenger becomes the champion. reason: one sentence with the numbers. difference: challenger minus
    champion, a fraction of `num_tasks`; interval: of that difference; p_value: two-sided exact McNemar."""

    promote: bool
    reason: str
    difference: float
    interval: Interval
    p_value: float
    num_tasks: int


def decide(champion: Evaluation, challenger: Evaluation, config: GateConfig) -> Decision:
    """Compare two evaluations on the tasks that both have.

    The tasks must be the same, except for as many as the other side lost to environment errors; LearningError
    otherwise, and when none is left.

    Example: `decide(champion, challenger, GateConfig()).reason` →
    "promoted (rule not_worse): 61.0 % against 58.5 % of 200 tasks (+2.5 points, 95 % -2.2 to +7.1, 14 won, 9 lost, …)"
    """
    tasks = _shared_tasks(champion, challenger)
    old = {task: champion.outcomes[task] for task in tasks}
    new = {task: challenger.outcomes[task] for task in tasks}
    gap = paired_outcomes(new, old, confidence=1 - config.alpha)
    wins = sum(1 for task in tasks if new[task] > old[task])
    losses = sum(1 for task in tasks if new[task] < old[task])
    promote = {
        # Counts, not rates: a drop of exactly max_drop must not fail by a rounding error.
        "not_worse": wins - losses >= -config.max_drop * len(tasks) - 1e-9,
        "better": wins > losses and sign_test(wins, losses, "greater") <= config.alpha,
        "always": True,
        "never": False,
    }[config.rule]
    reason = (
        f"{'promoted' if promote else 'kept the champion'} (rule {config.rule}): "
        f"{100 * sum(new.values()) / len(tasks):.1f} % against {100 * sum(old.values()) / len(tasks):.1f} % "
        f"of {len(tasks)} tasks ({100 * gap.difference:+.1f} points, {100 * (1 - config.alpha):g} % "
        f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}, {wins} won, {losses} lost, p = {gap.p_value:.2g})"
    )
    return Decision(
        promote=promote,
        reason=reason,
        difference=gap.difference,
        interval=(gap.low, gap.high),
        p_value=gap.p_value,
        num_tasks=len(tasks),
    )


def _shared_tasks(champion: Evaluation, challenger: Evaluation) -> list[str]:
    shared = champion.outcomes.keys() & challenger.outcomes.keys()
    only_champion = len(champion.outcomes) - len(shared)
    only_challenger = len(challenger.outcomes) - len(shared)
    if only_champion > challenger.errors or only_challenger > champion.errors:
        raise LearningError(
            f"expected the champion ({champion.policy_version}) and the challenger ({challenger.policy_version}) to be "
            f"evaluated on the same held-out tasks, found {only_champion + only_challenger} tasks on one side only: "
            "evaluate both with the same split, limit and seed"
        )
    if not shared:
        raise LearningError(
            "expected held-out tasks to compare the challenger on, found none: raise the recipe's number of held-out "
            "tasks, or see why the environment broke on all of them"
        )
    return sorted(shared)

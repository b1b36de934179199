"""What an evaluation records: outcomes, samples, and what the environment or the sandbox lost."""

from __future__ import annotations

from pathlib import Path

from kintsugi.ledger import Ledger
from kintsugi.records import Action, Episode, Evaluation, Observation, Trajectory, Verdict
from kintsugi.training.evaluation import evaluation_of, lost_text


def episode(task: str, sample: int = 0, *, right: bool = True, error: str = "") -> Episode:
    verdict = Verdict(success=right, reward=float(right), detail={} if error else {"tests": 0.5}, error=error)
    tried = Trajectory(
        id=f"{task}-{sample}", episode_id=f"{task}-{sample}", task_id=task, environment="x", stage="explore", attempt=0,
        policy_version="v0", round=1, stop="error" if error else "success" if right else "failure",
        hard_reward=float(right), messages=(Observation(text="?"), Action(text="!"), verdict),
    )  # fmt: skip
    return Episode(
        id=tried.id, run_id="r", purpose="evaluate", round=1, task_id=task, environment="x", sample=sample, seed=0,
        policy_version="v0", trajectories=(tried,),
    )  # fmt: skip


def evaluated(greedy: list[Episode], sampled: list[Episode]) -> Evaluation:
    return evaluation_of(greedy, sampled, run_id="r", round=1, arm="main", version="v0", ks=(1,))


def test_what_the_sandbox_lost_is_counted_and_said(tmp_path: Path) -> None:
    greedy = [episode("a"), episode("b", right=False, error="sandbox_failed"), episode("c", right=False, error="timeout")]
    sampled = [episode("a", 1), episode("a", 2, right=False), episode("b", 1, right=False, error="sandbox_failed")]
    found = evaluated(greedy, sampled)
    assert (found.outcomes, found.errors, found.pass_at_k) == ({"a": 1}, 2, {"1": 0.5})
    assert found.metrics == {"tests": 0.5, "sampled_errors": 1.0, "sandbox_failed": 2.0}
    assert lost_text(found) == "2 tasks, 1 sample lost to the environment (2 of them to the sandbox)"
    with Ledger.open(tmp_path) as ledger:
        ledger.add_evaluation(found)
        assert ledger.evaluations(run_id="r") == [found]


def test_nothing_is_said_where_nothing_was_lost() -> None:
    found = evaluated([episode("a"), episode("b", right=False)], [])
    assert (found.metrics, found.errors, lost_text(found)) == ({"tests": 0.5}, 0, "")

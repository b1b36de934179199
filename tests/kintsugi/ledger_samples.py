"""Small, deterministic records for the tests of the ledger, its exports and its command."""

from __future__ import annotations

from kintsugi.records import (
    Action,
    Checkpoint,
    Cost,
    Critique,
    Dataset,
    DatasetRow,
    Episode,
    Evaluation,
    Fault,
    Message,
    Observation,
    Stop,
    Task,
    Tokens,
    Trajectory,
    Verdict,
)

RUN = "run-1"


def make_task(number: int = 0, split: str = "train") -> Task:
    return Task(id=f"t{number}", environment="sums", split=split, prompt=f"What is {number} + 1?", payload={"gold": number})


def make_episode(
    number: int = 0,
    *,
    round: int = 0,
    sample: int = 0,
    stops: tuple[Stop, ...] = ("failure", "success"),
    seconds: float = 0.5,
    purpose: str = "explore",
    first_text: str = "",
    saw_gold: bool = False,
) -> Episode:
    """An exploration of task `number`, each attempt after the first a refinement of the one before."""
    task, id_ = make_task(number), f"{purpose[0]}{round}-{number:04d}-{sample}"
    parts = []
    for attempt, stop in enumerate(stops):
        text = first_text if first_text and not attempt else f"print({number} + {attempt})"
        fault = Fault(kept="", bad=text, note="never used 1") if stop == "failure" else None
        tokens = Tokens(context_ids=(1, 2, 3 + number), completion_ids=(7, 8 + attempt), logprobs=(-0.1, -1 / 3))
        messages: list[Message] = [Observation(text=task.prompt)]
        if attempt:
            messages.append(Critique(text="SECRET ADVICE", author="refiner"))
        messages.append(Action(text=text, prefill=text[:5], tokens=tokens))
        won = stop == "success"
        feedback = "" if won else f"attempt {attempt}: result {number}"
        messages.append(Verdict(success=won, reward=float(won), feedback=feedback, fault=fault, detail={"exact": won / 1}))
        parts.append(
            Trajectory(
                id=f"{id_}-a{attempt}",
                episode_id=id_,
                task_id=task.id,
                environment="sums",
                stage="refine" if attempt else "explore",
                attempt=attempt,
                policy_version=f"policy-{round}",
                round=round,
                messages=tuple(messages),
                stop=stop,
                hard_reward=float(won),
                soft_reward=-0.2,
                feedback=feedback,
                parent_id=f"{id_}-a{attempt - 1}" if attempt else None,
                saw_gold=saw_gold,
                cost=Cost(generated_tokens=2, processed_tokens=3, seconds=seconds, executions=1),
            )
        )
    return Episode(
        id=id_,
        run_id=RUN,
        purpose=purpose,  # pyright: ignore[reportArgumentType]
        round=round,
        task_id=task.id,
        environment="sums",
        sample=sample,
        seed=2**64 - 1 - number,
        policy_version=f"policy-{round}",
        trajectories=tuple(parts),
        path=("agent", "environment"),
    )


def make_dataset(*episodes: Episode, round: int = 0) -> Dataset:
    """Each episode's last attempt as a repair of its first."""
    rows = []
    for episode in episodes:
        first, last = episode.trajectories[0], episode.trajectories[-1]
        ids, mask = next(last.token_rows())
        rows.append(
            DatasetRow(
                kind="repair",
                task_id=episode.task_id,
                trajectory_id=last.id,
                ids=ids,
                mask=mask,
                rejected_trajectory_id=first.id,
                rejected_ids=(1, 2),
                rejected_mask=(0, 1),
                weight=0.5,
            )
        )
    return Dataset(run_id=RUN, round=round, target="agent", rows=tuple(rows))


def make_checkpoint(version: str = "policy-1", round: int = 0) -> Checkpoint:
    return Checkpoint(
        version=version,
        run_id=RUN,
        round=round,
        role="agent",
        path=f"checkpoints/{version}",
        base="small",
        adapter=False,
        parent="policy-0",
        dataset_hash="abcd",
        steps=10,
        loss=0.123456789,
    )


def make_evaluation(round: int = 0) -> Evaluation:
    return Evaluation(
        run_id=RUN,
        round=round,
        arm="main",
        policy_version=f"policy-{round}",
        outcomes={"t1": 1, "t2": 0},
        pass_at_k={"1": 0.5},
        metrics={"exact": 0.5},
        errors=1,
    )

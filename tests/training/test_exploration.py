"""Exploration: what is counted, what is repaired, when the budget ends it, and what never reaches a pool."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kintsugi.agents.policies.policy import Completion, Request
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.config import validate
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.worlds import Worlds
from kintsugi.ledger import Ledger
from kintsugi.records import Action, Cost, Episode, Fault, Observation, Task, Trajectory, Verdict
from kintsugi.sandboxes.environments.environment import ProgramEnvironment
from kintsugi.training.exploration import FIRST_EXTRA, Exploration, count, generated, worth_repairing
from kintsugi.training.recipe import Recipe
from kintsugi.training.selection import SelectConfig, build_pool


def attempt(id: str, right: bool = False, tokens: int = 10, stop: str = "", **more: Any) -> Trajectory:
    verdict = Verdict(success=right, reward=0, fault=more.pop("fault", None), error=more.pop("error", ""))
    values: dict[str, Any] = {
        "task_id": "t",
        "episode_id": "e",
        "environment": "x",
        "stage": "refine" if more.get("parent_id") else "explore",
        "attempt": 0,
        "policy_version": "v0",
        "round": 1,
        "stop": stop or ("success" if right else "failure"),
        "hard_reward": float(right),
        "messages": (Observation(text="?"), Action(text=id), verdict),
        "cost": Cost(generated_tokens=tokens, processed_tokens=2 * tokens),
    }
    return Trajectory(id=id, **{**values, **more})


def episode(task: str, sample: int, *attempts: Trajectory, purpose: Any = "explore") -> Episode:
    return Episode(
        id=f"{task}-{sample}", run_id="r", purpose=purpose, round=1, task_id=task, environment="x", sample=sample, seed=0,
        policy_version="v0", trajectories=attempts,
    )  # fmt: skip


def test_count() -> None:
    found = count(
        [
            episode("solved", 0, attempt("a", True)),
            episode("solved", 1, attempt("b"), attempt("c", True, 5, parent_id="b")),  # repaired in its episode
            episode("rescued", 0, attempt("d")),
            episode("rescued", 1, attempt("e", stop="error", error="sandbox_failed")),
            episode("rescued", FIRST_EXTRA, attempt("f", True, 4, parent_id="d")),
            episode("rescued", FIRST_EXTRA + 1, attempt("g", False, 4, parent_id="d")),
            episode("rescued", 2 * FIRST_EXTRA, attempt("h", True, 7), purpose="measure"),
            episode("hopeless", 0, attempt("i", stop="truncated")),
            episode("hopeless", 1, attempt("j", stop="error", error="no reply within 60 s")),
            episode("hopeless", 2 * FIRST_EXTRA, attempt("k", False, 7)),
        ],
        k=2,
    )
    assert found.plain() == {
        "tasks": 3,
        "samples": 6,
        "samples_right": 1,
        "solved": 1,
        "repairs": 3,
        "repairs_right": 2,
        "rescued": 1,
        "fresh": 2,
        "fresh_right": 1,
        "fresh_rescued": 1,
        "generated_tokens": 6 * 10 + 5 + 8 + 14,
        "processed_tokens": 2 * (6 * 10 + 5 + 8 + 14),
        "repair_generated": 13,
        "repair_processed": 26,
        "fresh_generated": 14,
        "fresh_processed": 28,
        "errors": 2,
        "sandbox_failed": 1,
    }
    assert count([], 5).tasks == 0


def test_worth_repairing() -> None:
    """The longest faultless beginning first, then the more confident; what the environment broke never."""
    early, late = Fault(kept="a\n", bad="b", note="n"), Fault(kept="a\nb\n", bad="c", note="n")
    tries = [
        attempt("early", fault=early, soft_reward=-0.1),
        attempt("late", fault=late, soft_reward=-9.0),
        attempt("surer", fault=early, soft_reward=-0.05),
        attempt("broke", stop="error", fault=late),
        attempt("right", True),
        attempt("cut", stop="truncated"),
    ]
    assert [one.id for one in worth_repairing(tries)] == ["late", "surer", "early", "cut"]
    assert worth_repairing(reversed(tries)) == worth_repairing(tries)  # type: ignore[arg-type]


class Sums(ProgramEnvironment):
    """Tasks "0" to "n": right is "yes"; for odd ones nobody says it at first."""

    name = "sums"

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> list[Task]:
        return [Task(id=str(n), environment=self.name, split=split, prompt=f"task {n}") for n in range(limit or 4)]

    async def judge(self, task: Task, action: str) -> Verdict:
        return Verdict(success=action.endswith("yes"), reward=float(action.endswith("yes")), feedback="no")


class Sayer:
    """Solves even tasks, and with the `mends`-th repair any other; each answer is three tokens long."""

    name, version = "sayer", "s0"

    def __init__(self, mends: int = 1) -> None:
        self.forgotten, self.mends = 0, mends
        self.repairs: Counter[str] = Counter()

    async def complete(self, request: Request) -> list[Completion]:
        task, _, objection = request.messages[-1]["content"].partition("<bad>")
        self.repairs[task] += bool(objection)
        mended = objection and self.repairs[task] >= self.mends
        text = "yes" if mended or int(task.split()[-1]) % 2 == 0 else "no"
        return [Completion(text=text, prompt_ids=(1, 2), token_ids=(3, 4, 5), logprobs=(-1.0,) * 3, processed_tokens=2)]

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        return (-1.0,)

    async def forget(self) -> None:
        self.forgotten += 1

    async def close(self) -> None:
        return None


def explore(tasks: int = 4, policy: Sayer | None = None, ledger: Ledger | None = None, **changes: Any) -> list[Episode]:
    """The episodes of one round with k = 2, in waves of two tasks; on a ledger of its own unless one is given."""
    if ledger is None:
        with tempfile.TemporaryDirectory() as folder, Ledger.open(folder) as own:
            return explore(tasks, policy, own, **changes)
    repair = RepairConfig.model_validate(changes.pop("repair", {}))
    plain = {
        "name": "x", "environment": {"name": "sums"}, "warm_start": {},
        "explore": {"tasks": tasks, "k": 2, **changes}, "repair": repair.model_dump(), "episode": {"wave": 4},
    }  # fmt: skip
    recipe = validate(Recipe, plain, "x")
    environment = Sums()
    policy = policy or Sayer()
    roles = {name: Role(name=name, policy=policy, prompt=load_prompt("bare", name)) for name in ("actor", "refiner")}
    cast = Cast(roles=roles, worlds=Worlds(environment), repair=repair, episode=EpisodeConfig(wave=4))

    async def play() -> list[Episode]:
        explorer = Exploration(recipe, cast, ledger, run_id="r", round=1, version="s0")
        return await explorer.play(environment.tasks("train", limit=tasks), lambda episode: None)

    return asyncio.run(play())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path) as opened:
        yield opened


def test_only_unsolved_tasks_are_repaired() -> None:
    repair = {"who": "self", "on": "unsolved", "form": "rollback", "budget": 3, "fresh": "measured", "redraws": 0}
    found = explore(policy=Sayer(mends=2), repair=repair)
    extra = [one for one in found if one.sample >= FIRST_EXTRA]
    assert len(found) == 8 + len(extra) and {one.task_id for one in extra} == {"1", "3"}
    mine = {one.sample: one for one in extra if one.task_id == "1"}
    fresh = [2 * FIRST_EXTRA + number for number in range(3)]
    assert sorted(mine) == [FIRST_EXTRA, FIRST_EXTRA + 1, *fresh], "until one of its kind is right"
    assert [mine[FIRST_EXTRA + number].success for number in range(2)] == [False, True]
    counted = count(found, 2)
    assert (counted.solved, counted.rescued, counted.repairs, counted.fresh, counted.fresh_right) == (2, 2, 4, 6, 0)
    fewer = explore(policy=Sayer(mends=9), repair={**repair, "fresh_budget": 1})
    numbers = sorted(one.sample for one in fewer if one.task_id == "1" and one.sample >= FIRST_EXTRA)
    assert numbers == [*range(FIRST_EXTRA, FIRST_EXTRA + 3), 2 * FIRST_EXTRA]
    more = explore(policy=Sayer(mends=9), repair={**repair, "fresh_budget": 4})
    numbers = sorted(one.sample for one in more if one.task_id == "1" and one.sample >= FIRST_EXTRA)
    assert numbers == [*range(FIRST_EXTRA, FIRST_EXTRA + 3), *range(2 * FIRST_EXTRA, 2 * FIRST_EXTRA + 4)]
    assert not any(one.sample >= FIRST_EXTRA for one in explore(repair={**repair, "budget": 0}))
    assert not any(one.sample >= FIRST_EXTRA for one in explore())


def test_a_failed_repair_is_repaired_in_turn() -> None:
    """The second repair goes on from the first one, where that got further than the samples did."""
    repair = {"who": "self", "on": "unsolved", "form": "rollback", "budget": 2, "redraws": 0}
    found = explore(policy=Sayer(mends=2), repair=repair)
    attempts = {one.id: one for episode in found for one in episode.trajectories}
    second = next(e.trajectories[0] for e in found if e.task_id == "1" and e.sample == FIRST_EXTRA + 1)
    assert attempts[second.parent_id or ""].stage in ("explore", "refine") and second.success


@pytest.mark.parametrize(("fresh", "purpose"), [("measured", "measure"), ("pooled", "explore")])
def test_measured_samples_are_in_no_pool(ledger: Ledger, fresh: str, purpose: str) -> None:
    """A yardstick is on record and no more: neither in a pool nor in the budget; "pooled" ones are in both."""
    repair = {"who": "self", "on": "unsolved", "form": "rollback", "budget": 1}
    found = explore(repair={**repair, "fresh": fresh}, ledger=ledger)
    drawn = [one for one in found if one.sample >= 2 * FIRST_EXTRA]
    assert {one.purpose for one in drawn} == {purpose} and len(drawn) == 2
    pool = build_pool(ledger.trajectories(run_id="r", purpose="explore"), SelectConfig(dedup="none"), round=1)
    ids = {one.id for task in pool.tasks for one in (*task.chosen, *task.rejected)}
    assert {one.trajectories[0].id in ids for one in drawn} == {fresh == "pooled"}
    assert generated(found) == 3 * (8 + 2 + (2 if fresh == "pooled" else 0))


def test_budget() -> None:
    """Exploring ends at the wave nearest to the budget; a wave costs twelve: two tasks, two samples, three tokens."""
    assert len(explore(8)) == 16
    assert len(explore(8, budget_tokens=1)) == 4
    assert len(explore(8, budget_tokens=12)) == 4
    assert len(explore(8, budget_tokens=17)) == 4
    assert len(explore(8, budget_tokens=18)) == 8
    assert len(explore(8, budget_tokens=29)) == 8
    assert len(explore(8, budget_tokens=30)) == 12
    repair = {"who": "self", "on": "unsolved", "form": "rollback", "budget": 1}
    assert len(explore(8, budget_tokens=13, repair=repair)) == 5, "repairs are paid from the same budget"


def test_repeated_waves_are_not_played_again(ledger: Ledger) -> None:
    """A second call plays nothing, counts the same, and tells its policies to forget only before waves it plays."""
    policy = Sayer()
    repair = {"who": "self", "on": "unsolved", "form": "rollback", "budget": 2, "fresh": "measured"}
    first = explore(6, policy, ledger, repair=repair)
    assert policy.forgotten == 3
    again = explore(6, policy, ledger, repair=repair)
    assert policy.forgotten == 3 and count(again, 2) == count(first, 2)
    assert [one.id for one in again] == [one.id for one in first]
    explore(8, policy, ledger, repair=repair)
    assert policy.forgotten == 4

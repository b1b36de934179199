"""Selection: from the trajectories of all rounds to what the next policy learns from. Pure functions over records.

`build_pool` keeps, for each task, its chosen (verified) and rejected trajectories: merged slot by slot, without
duplicates, ranked. `select` takes a pool to a `Selection` of trajectory ids and pairs; the dataset builder turns those
into rows. ENVISIONS, Re-ReST, STaR and plain self-training are settings of `SelectConfig`:

    ENVISIONS       merge=true  memory="all_rounds"  dedup="exact"  rank="soft"    explore_cap=10     repair_cap=2
    Re-ReST         merge=false memory="this_round"  dedup="none"   rank="soft"    explore_cap="all"  repair_cap=0
    STaR + Env      merge=true  memory="all_rounds"  dedup="exact"  rank="random"  explore_cap=10     repair_cap=0

With merge=false the chosen of a task are D_M and D_R together (Re-ReST: verified drafts and verified rewrites). The
result depends neither on the order of the input nor on anything but the arguments. Trajectories that ended in "error"
and those without an action are never used; those that saw a gold answer, and rewrites of them, only with `saw_gold`.

De-duplication is per task. (ENVISIONS' published code de-duplicates across tasks, which drops a right program because
another task has it too; that is not repeated here.) Not here: token rows, weights, held-out checks.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from kintsugi.config import StrictConfig
from kintsugi.records import Pair, Trajectory


def _number_or_all(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and value >= 0):
        return value
    raise ValueError('a number from 0 up, or "all"')


Cap = Annotated[int | str, BeforeValidator(_number_or_all)]
SortKey = Callable[[Trajectory], tuple[float, str]]


class SelectConfig(StrictConfig):
    """What is kept and how many rows a task gives; the recipe's `[select]`.

    memory: trajectories of all rounds, or of this round alone. dedup: "exact" keeps the best-ranked of equal texts of a
    task. rank: "soft" (highest self-reward first, unknown last), "random" (seeded), "shortest" (fewest turns, then
    fewest sampled tokens or characters). merge: ENVISIONS' slot-by-slot merge of attempts and their rewrites.
    explore_cap, repair_cap, pair_cap: most rows of a kind per task, or "all"; with repair_cap above 0 one chosen is
    kept back from the explore rows where there are several. task_cap: most explore and repair rows together.
    saw_gold: admit trajectories whose maker saw a gold answer. min_soft: least self-reward (nats a token) of a chosen
    one; one without a self-reward then fails. min_hard: a chosen one is verified by hard reward >= min_hard instead of
    by success (ReST's threshold). match: the right answer that a wrong one is paired with when it has no verified
    rewrite of its own: the best-ranked, or the one with the longest common beginning ("nearest"). skip_mastered: a task
    whose attempts all succeeded gives no rows: the policy has nothing to learn from it. soft_temperature: a task's explore
    rows are weighted by the softmax of their self-rewards over this temperature (nats), 1 in the mean; None: all alike.
    """

    memory: Literal["all_rounds", "this_round"] = "all_rounds"
    dedup: Literal["none", "exact"] = "exact"
    rank: Literal["soft", "random", "shortest"] = "soft"
    merge: bool = False
    explore_cap: Cap = 10
    repair_cap: Cap = 2
    pair_cap: Cap = "all"
    task_cap: Cap = "all"
    saw_gold: bool = False
    min_soft: float | None = None
    min_hard: float | None = None
    match: Literal["ranked", "nearest"] = "ranked"
    skip_mastered: bool = False
    soft_temperature: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskPool:
    """One task's trajectories, best first. parents: id of a verified rewrite → the failed attempt that it repairs (also
    where merging took that attempt out of `rejected`)."""

    task_id: str
    chosen: tuple[Trajectory, ...]
    rejected: tuple[Trajectory, ...]
    parents: Mapping[str, Trajectory]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The long-term memory as selection sees it: tasks in the order of their ids. soft: self-rewards by trajectory id."""

    tasks: tuple[TaskPool, ...]
    soft: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to learn from.

    explore: trajectory ids for rows x → y⁺. repairs: rows (x, y⁻) → y⁺ for a refiner that shares the actor's weights.
    pairs: y⁺ preferred to y⁻ (DPO), each trajectory at most once. reflector: rows (x, y⁻) → y⁺ for a separate
    reflector, one for each failed attempt of a solved task. weights: of chosen ones by id, 1 where it says nothing."""

    explore: tuple[str, ...]
    repairs: tuple[Pair, ...]
    pairs: tuple[Pair, ...]
    reflector: tuple[Pair, ...]
    weights: Mapping[str, float] = field(default_factory=dict)


def build_pool(
    trajectories: Iterable[Trajectory],
    config: SelectConfig,
    *,
    round: int,
    seed: int = 0,
    rescored: Mapping[str, float] | None = None,
) -> Pool:
    """The pool at the end of `round`. rescored: self-rewards by trajectory id that stand in for the recorded ones: of whole
    attempts where only a part was sampled, or under the present policy (a pool of several rounds otherwise compares the
    self-rewards of several models)."""
    admitted = _admitted(trajectories, config, round)
    soft = {one.id: (rescored or {}).get(one.id, one.soft_reward) for one in admitted.values()}
    key = _sort_key(config, soft, seed)
    by_task: dict[str, list[Trajectory]] = {}
    for trajectory in sorted(admitted.values(), key=key):
        by_task.setdefault(trajectory.task_id, []).append(trajectory)
    pools = []
    for task_id in sorted(by_task):
        everything = by_task[task_id]
        if config.skip_mastered and all(_verified(one, config) for one in everything):
            continue
        kept = merge_slots(everything, config, soft) if config.merge else everything
        chosen = [one for one in kept if _verified(one, config) and _confident(soft[one.id], config)]
        rejected = [one for one in kept if not _verified(one, config)]
        if config.dedup == "exact":
            chosen, rejected = _distinct(chosen), _distinct(rejected)
        parents = {one.id: parent for one in chosen if (parent := _failed_parent(one, admitted, config)) is not None}
        pools.append(TaskPool(task_id=task_id, chosen=tuple(chosen), rejected=tuple(rejected), parents=parents))
    return Pool(tasks=tuple(pools), soft=soft)


def select(pool: Pool, config: SelectConfig) -> Selection:
    """Rows and pairs of every task, tasks in the order of their ids."""
    explore: list[str] = []
    repairs: list[Pair] = []
    pairs: list[Pair] = []
    reflector: list[Pair] = []
    weights: dict[str, float] = {}
    for task in pool.tasks:
        rows, repair_rows = rows_of(task, config)
        explore += rows
        if config.soft_temperature is not None:
            weights |= soft_weights({name: pool.soft.get(name) for name in rows}, config.soft_temperature)
        repairs += repair_rows
        pairs += preference_pairs(task)[: _cap(config.pair_cap)]
        reflector += reflector_pairs(task, nearest=config.match == "nearest")[: _cap(config.pair_cap)]
    return Selection(
        explore=tuple(explore), repairs=tuple(repairs), pairs=tuple(pairs), reflector=tuple(reflector), weights=weights
    )


def soft_weights(soft: Mapping[str, float | None], temperature: float) -> dict[str, float]:
    """Softmax of one task's self-rewards, 1 in the mean; nothing when one of them is unknown.

    Right attempts are all verified alike; the one that the policy itself finds likelier is the steadier lesson."""
    known = [value for value in soft.values() if value is not None]
    if len(known) < max(1, len(soft)):
        return {}
    best = max(known)
    scale = {name: math.exp((value - best) / temperature) for name, value in soft.items() if value is not None}
    total = math.fsum(scale.values())
    return {name: len(scale) * value / total for name, value in scale.items()}


def merge_slots(
    trajectories: Iterable[Trajectory], config: SelectConfig, soft: Mapping[str, float | None]
) -> list[Trajectory]:
    """ENVISIONS' merge, for trajectories of any tasks, in the order given.

    A slot is an attempt and its rewrites (rewrites of rewrites too), and keeps one of them: a rewrite replaces what the
    slot holds when that is wrong and the rewrite right, or both are right and the rewrite has the higher self-reward.
    Wrong rewrites are dropped. Source: ENVISIONS (arXiv 2406.11736) and its published selection code."""
    ordered = list(trajectories)
    known = {one.id: one for one in ordered}
    holds: dict[str, Trajectory] = {}
    for one in sorted(ordered, key=lambda one: (_depth(one, known), one.attempt, one.id)):
        root = _root(one, known)
        held = holds.get(root.id)
        if held is None:
            holds[root.id] = one
        elif _verified(one, config):
            better = _soft_value(soft[one.id]) > _soft_value(soft[held.id])
            if not _verified(held, config) or better:
                holds[root.id] = one
    winners = {one.id for one in holds.values()}
    return [one for one in ordered if one.id in winners]


def rows_of(task: TaskPool, config: SelectConfig) -> tuple[list[str], list[Pair]]:
    """Explore rows and repair rows of one task, as ENVISIONS takes them: with P chosen and R rejected the top
    min(explore_cap, max(1, P - 1)) are explore rows; min(repair_cap, P - explore rows, R) repair rows pair the m-th
    best rejected with the next-ranked chosen. Without repair rows nothing is kept back: min(explore_cap, P)."""
    kept_back = 1 if _cap(config.repair_cap) != 0 else 0
    num = len(task.chosen)
    num_explore = min(_limit(config.explore_cap, num), max(1, num - kept_back), num)
    num_explore = min(num_explore, _limit(config.task_cap, num))
    num_repair = min(_limit(config.repair_cap, num), num - num_explore, len(task.rejected))
    num_repair = min(num_repair, _limit(config.task_cap, num) - num_explore)
    explore = [one.id for one in task.chosen[:num_explore]]
    answers = task.chosen[num_explore : num_explore + num_repair]
    return explore, [_pair(task, wrong, right) for wrong, right in zip(task.rejected, answers, strict=False)]


def preference_pairs(task: TaskPool) -> list[Pair]:
    """DPO pairs of one task in the order of the chosen: a verified rewrite against its own failed parent first, then
    the other chosen against the best-ranked rejected that are left. Each trajectory is used at most once, and never two
    equal texts. Source: Re-ReST (arXiv 2406.01495), DPO extension."""
    used: set[str] = set()
    rejected_of: dict[str, Trajectory] = {}
    for chosen in task.chosen:
        parent = task.parents.get(chosen.id)
        if parent is not None and parent.id not in used and parent.text != chosen.text:
            rejected_of[chosen.id] = parent
            used.add(parent.id)
    for chosen in task.chosen:
        if chosen.id in rejected_of:
            continue
        free = (one for one in task.rejected if one.id not in used and one.text != chosen.text)
        wrong = next(free, None)
        if wrong is not None:
            rejected_of[chosen.id] = wrong
            used.add(wrong.id)
    return [_pair(task, rejected_of[one.id], one) for one in task.chosen if one.id in rejected_of]


def reflector_pairs(task: TaskPool, *, nearest: bool = False) -> list[Pair]:
    """Rows for a reflector: each failed attempt of one solved task with its own verified rewrite, else with the
    best-ranked right answer (`nearest`: with the one that shares the longest beginning with it). Verified rewrites come
    first. Source: Re-ReST (arXiv 2406.01495), training the reflector."""
    own: dict[str, tuple[Trajectory, Trajectory]] = {}
    for chosen in task.chosen:
        parent = task.parents.get(chosen.id)
        if parent is not None and parent.text != chosen.text:
            own.setdefault(parent.id, (parent, chosen))
    pairs = [_pair(task, parent, chosen) for parent, chosen in own.values()]
    for wrong in task.rejected:
        answers = [one for one in task.chosen if one.text != wrong.text]
        if wrong.id in own or not answers:
            continue
        right = max(answers, key=lambda one: _shared_beginning(one.text, wrong.text)) if nearest else answers[0]
        pairs.append(_pair(task, wrong, right))
    return pairs


def _admitted(trajectories: Iterable[Trajectory], config: SelectConfig, round: int) -> dict[str, Trajectory]:
    known = {one.id: one for one in trajectories}
    first = round if config.memory == "this_round" else 0
    return {
        one.id: one
        for one in known.values()
        if one.stop != "error"
        and one.actions
        and first <= one.round <= round
        and (config.saw_gold or not any(ancestor.saw_gold for ancestor in _line(one, known)))
    }


def _verified(trajectory: Trajectory, config: SelectConfig) -> bool:
    return trajectory.success if config.min_hard is None else trajectory.hard_reward >= config.min_hard


def _confident(soft: float | None, config: SelectConfig) -> bool:
    return config.min_soft is None or (soft is not None and soft >= config.min_soft)


def _soft_value(soft: float | None) -> float:
    return float("-inf") if soft is None else soft


def _sort_key(config: SelectConfig, soft: Mapping[str, float | None], seed: int) -> SortKey:
    """Best first; ties, and "random", are settled by the id, so that the order of the input never matters."""
    if config.rank == "random":
        return lambda one: (0.0, hashlib.sha256(f"{seed}:{one.id}".encode()).hexdigest())
    if config.rank == "shortest":
        return lambda one: (_length(one), one.id)
    return lambda one: (-_soft_value(soft[one.id]), one.id)


def _length(trajectory: Trajectory) -> float:
    actions = trajectory.actions
    size = sum(len(one.text) if one.tokens is None else len(one.tokens.completion_ids) for one in actions)
    return len(actions) * 1e9 + size


def _shared_beginning(first: str, second: str) -> int:
    """How many characters two texts have in common from the start on."""
    alike = itertools.takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False))
    return sum(1 for _ in alike)


def _distinct(ranked: list[Trajectory]) -> list[Trajectory]:
    first: dict[str, Trajectory] = {}
    for trajectory in ranked:
        first.setdefault(trajectory.text.strip(), trajectory)
    return list(first.values())


def _line(trajectory: Trajectory, known: Mapping[str, Trajectory]) -> list[Trajectory]:
    """The trajectory, its parent, its parent's parent … as far as they are known."""
    line = {trajectory.id: trajectory}
    last = trajectory
    while (parent := known.get(last.parent_id or "")) is not None and parent.id not in line:
        line[parent.id] = last = parent
    return list(line.values())


def _root(trajectory: Trajectory, known: Mapping[str, Trajectory]) -> Trajectory:
    return _line(trajectory, known)[-1]


def _depth(trajectory: Trajectory, known: Mapping[str, Trajectory]) -> int:
    return len(_line(trajectory, known))


def _failed_parent(trajectory: Trajectory, known: Mapping[str, Trajectory], config: SelectConfig) -> Trajectory | None:
    parent = known.get(trajectory.parent_id or "")
    if parent is None or parent.task_id != trajectory.task_id or _verified(parent, config):
        return None
    return parent


def _pair(task: TaskPool, rejected: Trajectory, chosen: Trajectory) -> Pair:
    return Pair(task_id=task.task_id, rejected_id=rejected.id, chosen_id=chosen.id)


def _cap(cap: Cap) -> int | None:
    return None if cap == "all" else int(cap)


def _limit(cap: Cap, most: int) -> int:
    return most if cap == "all" else int(cap)

"""Selection by hand on small pools, and by its laws on random ones."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kintsugi.config import validate
from kintsugi.errors import ConfigError
from kintsugi.records import Action, Observation, Pair, Tokens, Trajectory
from kintsugi.training.recipe import load_recipe
from kintsugi.training.selection import (
    Pool,
    SelectConfig,
    Selection,
    build_pool,
    merge_slots,
    preference_pairs,
    reflector_pairs,
    select,
    soft_weights,
)
from kintsugi.training.stages import nothing_to_learn


def tried(id: str, right: bool = True, *, task: str = "t", soft: float | None = -1.0, **more: Any) -> Trajectory:
    """A single-turn trajectory whose text is its id unless told."""
    text = more.pop("text", f"print({id!r})")
    values: dict[str, Any] = {
        "episode_id": "e",
        "environment": "x",
        "stage": "refine" if "parent_id" in more else "explore",
        "attempt": 1 if "parent_id" in more else 0,
        "policy_version": "v0",
        "round": 0,
        "stop": "success" if right else "failure",
        "hard_reward": float(right),
        "messages": (Observation(text="?"), Action(text=text)),
    }
    return Trajectory(id=id, task_id=task, soft_reward=soft, **{**values, **more})


def pool_of(*trajectories: Trajectory, round: int = 0, seed: int = 0, **config: Any) -> Pool:
    return build_pool(trajectories, SelectConfig(**config), round=round, seed=seed)


def ids(pool: Pool) -> tuple[list[str], list[str]]:
    (task,) = pool.tasks
    return [one.id for one in task.chosen], [one.id for one in task.rejected]


def test_merge_is_envisions_slot_by_slot() -> None:
    attempts = [
        tried("a", False), tried("a2", True, parent_id="a"),  # wrong → right: replaced
        tried("b", True, soft=-2.0), tried("b2", True, soft=-1.0, parent_id="b"),  # both right, surer: replaced
        tried("c", True, soft=-1.0), tried("c2", True, soft=-2.0, parent_id="c"),  # both right, less sure: kept
        tried("d", True), tried("d2", False, soft=-0.1, parent_id="d"),  # rewrite broke it: dropped
        tried("e", False), tried("e2", False, parent_id="e"),  # wrong rewrite: dropped
        tried("f", False), tried("f2", False, parent_id="f"), tried("f3", True, parent_id="f2"),  # right at the third
    ]  # fmt: skip
    soft = {one.id: one.soft_reward for one in attempts}
    kept = [one.id for one in merge_slots(attempts, SelectConfig(), soft)]
    assert kept == ["a2", "b2", "c", "d", "e", "f3"]
    assert [one.id for one in merge_slots(attempts[::-1], SelectConfig(), soft)] == kept[::-1]


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "explore", "repair"),  # methods.md, ENVISIONS 7
    [(0, 3, 0, 0), (1, 3, 1, 0), (2, 3, 1, 1), (3, 0, 2, 0), (5, 1, 4, 1), (12, 5, 10, 2), (11, 5, 10, 1)],
)
def test_envisions_counts(num_right: int, num_wrong: int, explore: int, repair: int) -> None:
    right = [tried(f"r{i:02}", soft=-float(i)) for i in range(num_right)]
    wrong = [tried(f"w{i}", False, soft=-float(i)) for i in range(num_wrong)]
    config = SelectConfig(merge=True)
    result = select(build_pool(right + wrong, config, round=0), config)
    assert result.explore == tuple(f"r{i:02}" for i in range(explore))
    # The m-th best rejected is answered by the next-ranked chosen after the explore rows.
    expected = [Pair(task_id="t", rejected_id=f"w{m}", chosen_id=f"r{explore + m:02}") for m in range(repair)]
    assert list(result.repairs) == expected


def test_without_repair_rows_nothing_is_kept_back() -> None:
    config = SelectConfig(explore_cap="all", repair_cap=0)
    drafts = [tried("a"), tried("b", False), tried("c", parent_id="b")]
    result = select(build_pool(drafts, config, round=0), config)
    assert set(result.explore) == {"a", "c"} and result.repairs == ()  # D_M and D_R
    capped = SelectConfig(task_cap=1)
    assert len(select(build_pool(drafts, capped, round=0), capped).explore) == 1


def test_ranks() -> None:
    few = Action(text="a much longer text", tokens=Tokens(completion_ids=(1,), logprobs=(-3.0,)))
    many = Action(text="short", tokens=Tokens(completion_ids=(1, 2), logprobs=(-0.1, -0.1)))
    tries = [
        tried("sure", soft=-0.1, messages=(many,)),
        tried("short", soft=-3.0, messages=(few,)),
        tried("turns", soft=None, messages=(few, few)),
    ]
    assert ids(pool_of(*tries, rank="soft"))[0] == ["sure", "short", "turns"]
    assert ids(pool_of(*tries, rank="shortest"))[0] == ["short", "sure", "turns"]
    orders = {tuple(ids(pool_of(*tries, rank="random", seed=seed))[0]) for seed in range(40)}
    assert len(orders) == 6  # every order comes up
    assert ids(pool_of(*tries, rank="random", seed=3)) == ids(pool_of(*tries[::-1], rank="random", seed=3))


def test_rescored_self_rewards_stand_in() -> None:
    tries = [tried("old", soft=-0.1, round=0), tried("new", soft=-0.2, round=1)]
    assert ids(build_pool(tries, SelectConfig(), round=1))[0] == ["old", "new"]
    assert ids(build_pool(tries, SelectConfig(), round=1, rescored={"old": -5.0}))[0] == ["new", "old"]


def test_duplicates_go_within_a_task_and_stay_across_tasks() -> None:
    tries = [tried("a", text="x", soft=-2.0), tried("b", text="x ", soft=-1.0), tried("c", text="x", task="u")]
    pool = pool_of(*tries)
    assert [[one.id for one in task.chosen] for task in pool.tasks] == [["b"], ["c"]]
    assert len(pool_of(*tries, dedup="none").tasks[0].chosen) == 2


def test_memory() -> None:
    tries = [tried("old", round=0), tried("now", round=1), tried("later", round=2)]
    assert set(ids(pool_of(*tries, round=1))[0]) == {"old", "now"}
    assert ids(pool_of(*tries, round=1, memory="this_round"))[0] == ["now"]


def test_errors_empty_ones_and_gold_are_left_out() -> None:
    tries = [
        tried("ok"),
        tried("crash", stop="error"),
        tried("mute", False, messages=(Observation(text="?"),)),
        tried("peeked", saw_gold=True),
        tried("child", parent_id="peeked"),
        tried("cut", stop="truncated", hard_reward=0.7),
    ]
    assert ids(pool_of(*tries)) == (["ok"], ["cut"])
    assert set(ids(pool_of(*tries, saw_gold=True))[0]) == {"ok", "peeked", "child"}
    assert set(ids(pool_of(*tries, min_hard=0.5))[0]) == {"ok", "cut"}


def test_min_soft_leaves_out_without_rejecting() -> None:
    tries = [tried("sure", soft=-0.1), tried("unsure", soft=-4.0), tried("unknown", soft=None)]
    assert ids(pool_of(*tries, min_soft=-1.0)) == (["sure"], [])


def test_preference_pairs_prefer_the_own_parent() -> None:
    tries = [
        tried("top", soft=-0.1),
        tried("w1", False, soft=-0.1), tried("w2", False, soft=-0.2),
        tried("fix", soft=-3.0, parent_id="w1"),
        tried("same", False, text="print('top')", soft=-0.01),
    ]  # fmt: skip
    for merge in (False, True):  # merging takes w1 out of the rejected; it is still its rewrite's other side
        (task,) = pool_of(*tries, merge=merge).tasks
        assert [(pair.rejected_id, pair.chosen_id) for pair in preference_pairs(task)] == [("w2", "top"), ("w1", "fix")]


def test_reflector_pairs() -> None:
    tries = [
        tried("best", text="z = 9", soft=-0.1), tried("near", text="a = 1\nb = 2", soft=-0.9),
        tried("w1", False, text="a = 1\nb = 3"),
        tried("w2", False, text="q"), tried("fix", text="q + 1", soft=-2.0, parent_id="w2"),
    ]  # fmt: skip
    (task,) = pool_of(*tries).tasks
    plain = [(pair.rejected_id, pair.chosen_id) for pair in reflector_pairs(task)]
    assert plain == [("w2", "fix"), ("w1", "best")]
    near = [(pair.rejected_id, pair.chosen_id) for pair in reflector_pairs(task, nearest=True)]
    assert near == [("w2", "fix"), ("w1", "near")]


def random_tries(rng: random.Random) -> list[Trajectory]:
    tries: list[Trajectory] = []
    for task in range(rng.randint(1, 4)):
        for slot in range(rng.randint(1, 8)):
            parent: str | None = None
            for depth in range(rng.randint(1, 3)):
                id = f"{task}-{slot}-{depth}"
                right = rng.random() < 0.4
                more: dict[str, Any] = {"parent_id": parent, "attempt": depth, "stage": "refine"} if parent else {}
                if rng.random() < 0.1:
                    more["stop"] = rng.choice(["error", "truncated"])
                tries.append(
                    tried(
                        id,
                        right,
                        task=f"t{task}",
                        text=str(rng.randint(0, 8)) + ("+" if right else "-"),
                        soft=rng.choice([None, -1.0, -rng.random()]),
                        round=slot % 3,
                        saw_gold=rng.random() < 0.1,
                        **more,
                    )
                )
                parent = id
    return tries


def random_config(rng: random.Random) -> SelectConfig:
    return SelectConfig(
        memory=rng.choice(["all_rounds", "this_round"]),
        dedup=rng.choice(["none", "exact"]),
        rank=rng.choice(["soft", "random", "shortest"]),
        merge=rng.random() < 0.5,
        explore_cap=rng.choice([0, 1, 3, "all"]),
        repair_cap=rng.choice([0, 1, 2, "all"]),
        pair_cap=rng.choice([1, "all"]),
        task_cap=rng.choice([1, 4, "all"]),
        saw_gold=rng.random() < 0.2,
        min_soft=rng.choice([None, -0.8]),
        match=rng.choice(["ranked", "nearest"]),
    )


@pytest.mark.parametrize("seed", range(200))
def test_laws_on_random_pools(seed: int) -> None:
    rng = random.Random(seed)
    tries, config = random_tries(rng), random_config(rng)
    pool = build_pool(tries, config, round=1, seed=seed)
    result = select(pool, config)
    shuffled = rng.sample(tries, len(tries))
    assert select(build_pool(shuffled + shuffled[:2], config, round=1, seed=seed), config) == result
    check_laws(result, config, {one.id: one for one in tries})


def check_laws(result: Selection, config: SelectConfig, by_id: dict[str, Trajectory]) -> None:
    every_pair = [*result.repairs, *result.pairs, *result.reflector]
    for id in [*result.explore, *(pair.chosen_id for pair in every_pair)]:
        assert by_id[id].success
        assert config.min_soft is None or (by_id[id].soft_reward or -9) >= config.min_soft
    used = {*result.explore, *(id for pair in every_pair for id in (pair.chosen_id, pair.rejected_id))}
    for id in used:
        one = by_id[id]
        assert one.stop != "error" and one.round <= 1
        assert config.memory == "all_rounds" or one.round == 1
        assert config.saw_gold or not one.saw_gold
    for pair in every_pair:
        right, wrong = by_id[pair.chosen_id], by_id[pair.rejected_id]
        assert pair.task_id == right.task_id == wrong.task_id
        assert not wrong.success and wrong.text != right.text
    assert not set(result.explore) & {pair.chosen_id for pair in result.repairs}
    assert len(set(result.explore)) == len(result.explore)
    in_pairs = [id for pair in result.pairs for id in (pair.chosen_id, pair.rejected_id)]
    assert len(set(in_pairs)) == len(in_pairs)
    assert len({pair.rejected_id for pair in result.reflector}) == len(result.reflector)
    for task in {one.task_id for one in by_id.values()}:
        rows = [id for id in result.explore if by_id[id].task_id == task]
        repairs = [pair for pair in result.repairs if pair.task_id == task]
        assert config.explore_cap == "all" or len(rows) <= int(config.explore_cap)
        assert config.repair_cap == "all" or len(repairs) <= int(config.repair_cap)
        assert config.task_cap == "all" or len(rows) + len(repairs) <= int(config.task_cap)
        if config.dedup == "exact":
            assert len({by_id[id].text for id in rows}) == len(rows)


def test_config_errors_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match='"explore_cap" expects a number from 0 up, or "all", found some'):
        validate(SelectConfig, {"explore_cap": "some"}, "select")
    with pytest.raises(ConfigError, match="explore_cap"):
        validate(SelectConfig, {"explor_cap": 3}, "select")


def test_why_nothing_is_learned() -> None:
    """Each reason has its own remedy."""
    recipe = load_recipe("self_training")
    dpo = recipe.model_copy(update={"learn": recipe.learn.model_copy(update={"loss": "dpo"})})
    right, wrong = tried("a"), tried("b", False)
    for known, why, told in (
        ([wrong], recipe, "no attempt succeeded"),
        ([right], recipe, "every attempt succeeded"),
        ([right, wrong], dpo, "no right attempt stands beside a wrong one"),
        ([right, wrong], recipe, "the selection keeps none of 1 right attempts of 2"),
    ):
        assert told in nothing_to_learn(known, why)


def test_self_reward_weights() -> None:
    """By hand: softmax of −1 and −2 over temperature 1 is 0.731 and 0.269; the mean of the weights is 1 a task."""
    tries = [tried("a", soft=-1.0), tried("b", soft=-2.0)]
    config = SelectConfig(repair_cap=0, soft_temperature=1.0)
    weights = select(build_pool(tries, config, round=0), config).weights
    assert weights == {"a": pytest.approx(1.4621, abs=1e-4), "b": pytest.approx(0.5379, abs=1e-4)}
    assert select(pool_of(*tries, repair_cap=0), SelectConfig(repair_cap=0)).weights == {}
    assert soft_weights({"a": -1.0, "b": None}, 1.0) == {}, "an unknown self-reward leaves the task's rows alike"

"""Records: plain values and back, hashes that stay, token rows, rewards and what follows from them."""

from __future__ import annotations

import dataclasses
import enum
import json
import time
from typing import Any

import pytest

from kintsugi import records
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
    Observation,
    Pair,
    Task,
    Tokens,
    Trajectory,
    Verdict,
    content_hash,
    from_plain,
    message_from_plain,
    to_plain,
)

TASK = Task(
    id="t", environment="e", split="train", prompt="2 + 2 = é?", payload={"answer": 4, "deep": {"list": [1, [2.5, None]]}}
)
TOKENS = Tokens(context_ids=(1, 2), completion_ids=(3, 4), logprobs=(-0.5, -1.25))
FAULT = Fault(kept="a = 1\n", bad="b = a", note="why?")
VERDICT = Verdict(success=False, reward=0.25, feedback="no", fault=FAULT, detail={"f1": 0.5})
COST = Cost(generated_tokens=2, processed_tokens=5, seconds=0.5, executions=1)
TRAJECTORY = Trajectory(
    id="a1",
    episode_id="e1",
    task_id="t",
    environment="e",
    stage="refine",
    attempt=1,
    policy_version="v",
    round=2,
    messages=(
        Observation(text="2 + 2?"),
        Critique(text="count", author="refiner"),
        Action(text="5", prefill="", tokens=TOKENS),
        Observation(text="hm"),
        Action(text="6"),
        VERDICT,
    ),
    stop="failure",
    hard_reward=0.25,
    soft_reward=-0.875,
    feedback="no",
    parent_id="a0",
    cost=COST,
)
EPISODE = Episode(
    id="e1",
    run_id="r",
    purpose="explore",
    round=2,
    task_id="t",
    environment="e",
    sample=3,
    seed=2**62,
    policy_version="v",
    trajectories=(TRAJECTORY, dataclasses.replace(TRAJECTORY, id="a2", parent_id=None, soft_reward=None)),
    path=("agent", "environment"),
)
ROW = DatasetRow(
    kind="pair",
    task_id="t",
    trajectory_id="a1",
    ids=(1, 2, 3),
    mask=(0, 0, 1),
    rejected_trajectory_id="a2",
    rejected_ids=(1, 4),
    rejected_mask=(0, 1),
    weight=0.5,
)
ALL: list[Any] = [
    TASK,
    TOKENS,
    FAULT,
    VERDICT,
    COST,
    TRAJECTORY,
    EPISODE,
    ROW,
    Observation(text="o"),
    Action(text="kept\nnew", prefill="kept\n", tokens=dataclasses.replace(TOKENS, restart=True)),
    Critique(text="c"),
    Pair(task_id="t", rejected_id="a2", chosen_id="a1"),
    Dataset(run_id="r", round=1, target="main", rows=(ROW, dataclasses.replace(ROW, kind="explore"))),
    Checkpoint(
        version="v1",
        run_id="r",
        round=1,
        role="actor",
        path="policies/v1",
        base="b",
        adapter=True,
        parent="v0",
        dataset_hash="h",
        steps=10,
        loss=0.5,
    ),
    Evaluation(
        run_id="r", round=1, arm="main", policy_version="v1", outcomes={"t": 1, "u": 0}, pass_at_k={"1": 0.5}, errors=1
    ),
]


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_plain_and_back(record: Any) -> None:
    plain = json.loads(json.dumps(to_plain(record)))
    assert plain == to_plain(record), "plain values are JSON as they stand"
    assert from_plain(type(record), plain) == record
    assert content_hash(from_plain(type(record), plain)) == content_hash(record)


def test_every_record_is_tried() -> None:
    known = {value for value in vars(records).values() if dataclasses.is_dataclass(value) and isinstance(value, type)}
    assert known == {type(record) for record in ALL}
    for cls in known:
        assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
        assert all(item.kw_only for item in dataclasses.fields(cls)), cls


def test_messages_carry_their_kind() -> None:
    for message in TRAJECTORY.messages:
        assert to_plain(message)["kind"] == type(message).kind
        assert message_from_plain(to_plain(message)) == message
    with pytest.raises(TypeError):
        from_plain(Observation, {"text": "x", "txet": "y"})
    with pytest.raises(TypeError):
        from_plain(Observation, {})
    with pytest.raises(KeyError):
        message_from_plain({"kind": "song", "text": "la"})


def test_hashes_stay() -> None:
    """Episode ids and dataset hashes are made of these: a change makes every ledger and resumed run a stranger."""
    assert content_hash((1, 2, 3)) == content_hash([1, 2, 3]) == "a615eeaee21de517"
    assert content_hash({"b": (1.5, None, True), "a": "é"}) == "a1611df53c3ccfce"
    assert content_hash(TRAJECTORY) == "3fd17299936d61da"
    assert Dataset(run_id="r", round=1, target="main", rows=(ROW,)).hash == "abf8275083e15599"
    assert TASK.hash == "e2254ea6f164ea99"


def test_hashes_tell_what_differs() -> None:
    assert dataclasses.replace(TASK, id="other", split="heldout").hash == TASK.hash
    assert dataclasses.replace(TASK, payload={"answer": 5}).hash != TASK.hash
    rows = (ROW, dataclasses.replace(ROW, weight=0.25))
    hashes = {Dataset(run_id="r", round=1, target="main", rows=some).hash for some in (rows, rows[:1], rows[::-1], ())}
    assert len(hashes) == 4


def test_lists_of_anything_become_plain() -> None:
    class Way(enum.IntEnum):
        up = 1

    assert to_plain((1, (2, (FAULT,)), {"x": (TOKENS, None)}))[1][1][0] == to_plain(FAULT)
    assert to_plain([True, None, "a", 1.5]) == [True, None, "a", 1.5]
    assert to_plain({1: (Way.up, FAULT)}) == {"1": [Way.up, to_plain(FAULT)]}
    ids = [1, 2]
    assert to_plain(ids) is not ids, "plain values share no list with the record"


def test_long_rows_are_hashed_fast() -> None:
    rows = tuple(dataclasses.replace(ROW, ids=tuple(range(20_000)), mask=(1,) * 20_000) for _ in range(10))
    started = time.process_time()
    to_plain(rows)
    taken = time.process_time() - started
    started = time.process_time()
    assert not any(dataclasses.is_dataclass(item) for row in rows for item in (*row.ids, *row.mask))
    looking_at_each = time.process_time() - started
    assert taken < looking_at_each / 2


# -- trajectories ----------------------------------------------------------------------------------------------------------


def acted(*tokens: Tokens | None) -> Trajectory:
    messages: list[Any] = [Observation(text="go")]
    for one in tokens:
        messages += [Action(text="x", tokens=one), Observation(text="seen")]
    return dataclasses.replace(TRAJECTORY, messages=tuple(messages))


def test_token_rows_join_the_turns() -> None:
    rows = list(acted(TOKENS, Tokens(context_ids=(5,), completion_ids=(6, 7))).token_rows())
    assert rows == [((1, 2, 3, 4, 5, 6, 7), (0, 0, 1, 1, 0, 1, 1))]


def test_token_rows_break_where_the_context_was_built_anew() -> None:
    again = Tokens(context_ids=(1, 9), completion_ids=(8,), restart=True)
    rows = list(acted(TOKENS, again, Tokens(context_ids=(5,), completion_ids=(6,))).token_rows())
    assert rows == [((1, 2, 3, 4), (0, 0, 1, 1)), ((1, 9, 8, 5, 6), (0, 0, 1, 0, 1))]
    assert list(acted(dataclasses.replace(again)).token_rows()) == [((1, 9, 8), (0, 0, 1))]


@pytest.mark.parametrize(
    "tokens",
    [
        (),
        (None,),
        (TOKENS, None),
        (None, TOKENS),
        (Tokens(completion_ids=(1,)),),
        (TOKENS, Tokens(completion_ids=(1,), restart=True)),
    ],
)
def test_no_token_rows_where_something_is_unknown(tokens: Any) -> None:
    assert list(acted(*tokens).token_rows()) == []


def test_what_a_trajectory_tells() -> None:
    assert TRAJECTORY.text == "5\n6" and TRAJECTORY.fault == FAULT and not TRAJECTORY.success
    assert dataclasses.replace(TRAJECTORY, messages=()).fault is None
    assert not EPISODE.success
    won = dataclasses.replace(TRAJECTORY, stop="success")
    assert dataclasses.replace(EPISODE, trajectories=(TRAJECTORY, won)).success
    assert not dataclasses.replace(EPISODE, trajectories=()).success
    twice = COST + COST
    assert twice == Cost(generated_tokens=4, processed_tokens=10, seconds=1.0, executions=2)
    assert ALL[-1].success_rate == 0.5 and dataclasses.replace(ALL[-1], outcomes={}).success_rate == 0.0


def test_half_characters_have_a_hash() -> None:
    """A server's JSON may hold a lone surrogate; all other texts keep the hash they had."""
    assert content_hash("\ud800") != content_hash("\ud801")
    assert content_hash({"a": "é 你"}) == "9c52c7cdfda12961"

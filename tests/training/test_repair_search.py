"""Where a repair begins: hand-made attempts whose best place is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kintsugi.records import Action, Fault, Observation, Tokens, Trajectory, Verdict
from kintsugi.training.repair_search import PATIENCE, UNKNOWN_LINE, best_place, line_chances, places

TEXTS = {1: "a", 2: "b", 3: "c", 9: "\n"}


def decode(ids: Any) -> str:
    return "".join(TEXTS[number] for number in ids)


def attempt(
    name: str, *chances: float, fault: int | None = None, parent: str | None = None, kept: str = "", **more: Any
) -> Trajectory:
    """Lines "a", "b", "c" … sampled with these probabilities; `fault`: the line objected to."""
    ids = [number for line in range(len(chances)) for number in (line % 3 + 1, 9)][:-1]
    logprobs = [value for chance in chances for value in (math.log(chance), 0.0)][:-1]
    text = kept + decode(ids)
    lines = text.splitlines(keepends=True)
    found = None if fault is None else Fault(kept="".join(lines[:fault]), bad=lines[fault].strip(), note="n")
    tokens = Tokens(context_ids=(7,), completion_ids=tuple(ids), logprobs=tuple(logprobs))
    action = Action(text=text, prefill=kept, tokens=more.pop("tokens", tokens))
    values: dict[str, Any] = {"stop": "failure", "soft_reward": -0.1, **more}
    return Trajectory(
        id=name, episode_id="e", task_id="t", environment="x", stage="refine" if parent else "explore", attempt=0,
        policy_version="v", round=1, hard_reward=0.0, parent_id=parent,
        messages=(Observation(text="?"), action, Verdict(success=False, reward=0, fault=found)), **values,
    )  # fmt: skip


def kept_of(*tried: Trajectory) -> tuple[str, str] | None:
    place = best_place(tried, decode)
    return None if place is None else (place.attempt.id, place.kept)


def test_the_located_line_of_a_sure_policy() -> None:
    assert kept_of(attempt("x", 0.99, 0.99, 0.99, fault=1)) == ("x", "a\n")


def test_a_doubted_line_before_it() -> None:
    """The environment objects to the third line; the policy itself hardly believed in the first."""
    assert kept_of(attempt("x", 0.1, 0.99, 0.9, fault=2)) == ("x", "")


def test_without_a_located_fault_the_doubted_line() -> None:
    assert kept_of(attempt("x", 0.99, 0.3, 0.99)) == ("x", "a\n")


def test_the_attempt_with_less_left_to_write() -> None:
    early, late = attempt("early", 0.9, 0.9, 0.9, fault=0), attempt("late", 0.9, 0.9, 0.9, fault=2)
    assert kept_of(early, late) == ("late", "a\nb\n") == kept_of(late, early)


def test_what_was_tried_in_vain_gives_way() -> None:
    """Three failed repairs from the deepest place: another place has its turn."""
    one, other = attempt("x", 0.95, 0.95, 0.5, fault=2), attempt("y", 0.95, 0.5, 0.5, fault=1)
    assert kept_of(one, other) == ("x", "a\nb\n")
    vain = [attempt(f"r{n}", 0.9, fault=0, parent="x", kept="a\nb\n", stop="error") for n in range(3)]
    assert kept_of(one, other, *vain) == ("y", "a\n")


def test_a_failed_repair_is_an_attempt() -> None:
    """It mended the second line; its kept line has its parent's chance, and the third line is objected to now."""
    parent = attempt("x", 0.9, 0.2, 0.9, fault=1)
    child = attempt("r", 0.9, 0.9, fault=2, parent="x", kept="a\n")
    assert kept_of(parent, child) == ("r", "a\na\n")
    chances = line_chances(child, {"x": parent}, decode)
    assert chances == pytest.approx([math.log(0.9)] * 3)
    assert line_chances(child, {}, decode)[0] == math.log(UNKNOWN_LINE)


def test_promise_is_a_probability() -> None:
    """By hand: first mistake in line 0 with 0.1, in line 1 (located) with 0.9; one line after the first, none after that."""
    one = attempt("x", 0.9, 0.5, fault=1)
    found = places(one, line_chances(one, {}, decode), 0.5, {"a\n": 2})
    assert [place.promise for place in found] == pytest.approx([0.1 * 0.5, 0.9 * PATIENCE**2])


def test_nothing_to_repair_and_no_log_probabilities() -> None:
    assert kept_of() is None
    assert kept_of(attempt("x", 0.9, stop="error")) is None
    blind = attempt("x", 0.9, 0.9, 0.9, fault=1, tokens=None)
    assert best_place([blind], None) is not None
    deep = attempt("y", 0.9, 0.9, 0.9, fault=2, tokens=None)
    place = best_place([blind, deep], None)
    assert place is not None and place.attempt.id == "y"
    nothing = attempt("z", 0.9, tokens=None)
    assert best_place([nothing], decode) is not None

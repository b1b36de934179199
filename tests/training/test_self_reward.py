"""Self-rewards of repairs that sampled only a part of their text, by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from kintsugi.records import Trajectory
from kintsugi.training.selection import SelectConfig, build_pool
from kintsugi.training.self_reward import sampled_lines, self_rewards

from .test_repair_search import attempt, decode


def test_kept_lines_count_as_their_parent_sampled_them() -> None:
    """Parent: lines with 0.5, 0.2, 0.9 (a newline is free). The repair keeps the first and is sure of the rest."""
    parent = attempt("x", 0.5, 0.2, 0.9, fault=1)
    child = attempt("r", 1.0, 1.0, parent="x", kept="a\n", stop="success", soft_reward=0.0)
    grandchild = attempt("g", 0.25, parent="r", kept="a\na\n")
    known = {one.id: one for one in (parent, child, grandchild)}
    found = self_rewards(known, decode)
    assert found == {
        "r": pytest.approx(math.log(0.5) / 5),  # a, newline | a, newline, b
        "g": pytest.approx((math.log(0.5) + math.log(0.25)) / 5),  # a, newline, a, newline | a
    }


def test_unknown_parts_are_left_to_what_is_on_record() -> None:
    """A parent that is not there, or one without log-probabilities, gives no made-up number."""
    child = attempt("r", 0.9, parent="x", kept="a\n")
    silent = attempt("x", 0.9, 0.9, tokens=None)
    assert self_rewards({"r": child}, decode) == {} == self_rewards({"r": child, "x": silent}, decode)
    assert sampled_lines(child, {}, decode) == [None, [math.log(0.9)]]
    assert sampled_lines(child, {}, None) == [None, None]


def test_a_short_sure_ending_does_not_outrank_a_whole_attempt() -> None:
    """Recorded alone, the repair's one sure line would rank it first."""

    def won(one: Trajectory) -> Trajectory:
        return dataclasses.replace(one, hard_reward=1.0, stop="success")

    whole = won(attempt("w", 0.8, 0.8, soft_reward=math.log(0.8) * 2 / 3))
    parent = attempt("x", 0.1, 0.9, fault=1)
    repair = won(attempt("r", 0.99, parent="x", kept="a\n", soft_reward=math.log(0.99)))
    tries = {one.id: one for one in (whole, parent, repair)}
    ranked = [
        [one.id for one in build_pool(tries.values(), SelectConfig(), round=1, rescored=scores).tasks[0].chosen]
        for scores in ({}, self_rewards(tries, decode))
    ]
    assert ranked == [["r", "w"], ["w", "r"]]

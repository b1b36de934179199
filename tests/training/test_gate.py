"""The gate promotes on what the rule says, pairs by task, and refuses what cannot be compared."""

import pytest

from kintsugi.config import validate
from kintsugi.errors import ConfigError, LearningError
from kintsugi.records import Evaluation
from kintsugi.training.gate import GateConfig, decide


def evaluation(outcomes: dict[str, int], version: str = "v1", errors: int = 0) -> Evaluation:
    return Evaluation(run_id="r", round=1, arm="main", policy_version=version, outcomes=outcomes, errors=errors)


def right(*solved: int, num: int = 100) -> dict[str, int]:
    return {f"t{i}": int(i in solved) for i in range(num)}


def test_not_worse_promotes_a_rise_and_a_tie_and_keeps_on_a_fall() -> None:
    champion = evaluation(right(*range(50)), "v1")
    rise = decide(champion, evaluation(right(*range(55)), "v2"), GateConfig())
    assert rise.promote and rise.difference == pytest.approx(0.05) and rise.num_tasks == 100
    assert "55.0 % against 50.0 % of 100 tasks (+5.0 points" in rise.reason and "5 won, 0 lost" in rise.reason
    tie = decide(champion, evaluation(right(*range(1, 51)), "v2"), GateConfig())
    assert tie.promote and tie.difference == 0 and tie.p_value == 1.0
    fall = decide(champion, evaluation(right(*range(49)), "v2"), GateConfig())
    assert not fall.promote and fall.reason.startswith("kept the champion")


def test_max_drop_is_exact() -> None:
    champion = evaluation(right(*range(50)))
    challenger = evaluation(right(*range(47)))
    assert decide(champion, challenger, GateConfig(max_drop=0.03)).promote
    assert not decide(champion, challenger, GateConfig(max_drop=0.029)).promote


def test_better_asks_for_evidence() -> None:
    champion = evaluation(right(*range(50)))
    config = GateConfig(rule="better")
    assert not decide(champion, evaluation(right(*range(54))), config).promote  # 4 to 0: p = 0.0625
    assert decide(champion, evaluation(right(*range(55))), config).promote  # 5 to 0: p = 0.03125
    assert not decide(champion, champion, config).promote
    assert not decide(champion, evaluation(right(*range(20))), config).promote


def test_always_and_never() -> None:
    good, bad = evaluation(right(*range(90))), evaluation(right(1))
    assert decide(good, bad, GateConfig(rule="always")).promote
    assert not decide(bad, good, GateConfig(rule="never")).promote


def test_other_tasks_are_refused() -> None:
    with pytest.raises(LearningError, match="same held-out tasks, found 2 tasks on one side only"):
        decide(evaluation({"a": 1, "b": 0}), evaluation({"a": 1, "c": 0}), GateConfig())
    with pytest.raises(LearningError, match="found none"):
        decide(evaluation({}), evaluation({}), GateConfig())


def test_a_task_lost_to_an_environment_error_is_left_out() -> None:
    decision = decide(evaluation({"a": 0, "b": 1}), evaluation({"a": 1}, errors=1), GateConfig())
    assert decision.promote and decision.num_tasks == 1


def test_config_names_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match="max_drop"):
        validate(GateConfig, {"max_drp": 0.1}, "gate")
    with pytest.raises(ConfigError, match="rule"):
        validate(GateConfig, {"rule": "maybe"}, "gate")

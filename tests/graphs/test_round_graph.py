"""The round graph: order of stages, and graph checkpoints that let a killed run end as an undisturbed one does."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import LearningError
from kintsugi.graphs.round_graph import STAGES, RoundState, Stage, run_rounds


class Toy:
    """Stages that note their calls and change the state as the real ones do. `fails`: "round:stage" → error, once."""

    def __init__(self, *, without: tuple[str, ...] = (), fails: dict[str, BaseException] | None = None) -> None:
        self.calls: list[str] = []
        self.without, self.fails = without, fails or {}

    def table(self) -> dict[str, Stage]:
        return {name: self.stage(name) for name in STAGES if name not in self.without}

    def stage(self, name: str) -> Stage:
        async def run(state: RoundState) -> dict[str, Any]:
            place = f"{state['round']}:{name}"
            self.calls.append(place)
            if place in self.fails:
                raise self.fails.pop(place)
            if name == "prepare":
                return {"round": 1, "champion": "start", "versions": {"start": "policies/start"}}
            if name == "select":
                return {"datasets": {"main": f"hash {state['round']} of {state['champion']}"}}
            if name == "learn":
                version = f"round-{state['round']}"
                return {"trained": {"main": version}, "versions": {**state["versions"], version: f"policies/{version}"}}
            if name == "promote":
                return {"round": state["round"] + 1, "champion": state["trained"]["main"]}
            return {}

        return run


def start(rounds: int) -> RoundState:
    return RoundState(round=0, rounds=rounds, champion="", versions={}, datasets={}, trained={}, path=[])


def run(toy: Toy, path: Path, rounds: int = 2, thread: str = "run") -> RoundState:
    return asyncio.run(run_rounds(toy.table(), start(rounds), path / "rounds.sqlite", thread))


def expected(rounds: int, without: tuple[str, ...] = ()) -> list[str]:
    each = [name for name in STAGES[1:] if name not in without]
    return ["0:prepare", *(f"{number}:{name}" for number in range(1, rounds + 1) for name in each)]


@pytest.mark.parametrize("without", [(), ("reflect",)])
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_stages_in_order(tmp_path: Path, rounds: int, without: tuple[str, ...]) -> None:
    toy = Toy(without=without)
    state = run(toy, tmp_path, rounds)
    assert toy.calls == state["path"] == expected(rounds, without)
    assert state["champion"] == (f"round-{rounds}" if rounds else "start") and state["round"] == rounds + 1
    assert len(state["versions"]) == rounds + 1


def test_many_rounds_meet_no_limit(tmp_path: Path) -> None:
    assert len(run(Toy(), tmp_path, 30)["path"]) == 1 + 7 * 30


@pytest.mark.parametrize("place", expected(2))
def test_resumed_where_it_stopped(tmp_path: Path, place: str) -> None:
    undisturbed = run(Toy(), tmp_path, thread="undisturbed")
    error = LearningError("no rows")
    toy = Toy(fails={place: error})
    with pytest.raises(LearningError) as caught:
        run(toy, tmp_path)
    assert caught.value is error and toy.calls[-1] == place
    before = toy.calls[:-1]
    again = Toy()
    state = run(again, tmp_path)
    assert before + again.calls == expected(2), "stages already done are not repeated, none is left out"
    assert state == undisturbed


def test_killed_and_resumed_again_and_again(tmp_path: Path) -> None:
    undisturbed = run(Toy(), tmp_path, thread="undisturbed")
    toy = Toy(fails={"1:explore": KeyboardInterrupt(), "1:learn": SystemExit(1), "2:promote": RuntimeError("x")})
    for raised in (KeyboardInterrupt, SystemExit, RuntimeError):
        with pytest.raises(raised):
            run(toy, tmp_path)
    assert run(toy, tmp_path) == undisturbed
    twice = {"1:explore", "1:learn", "2:promote"}
    assert sorted(toy.calls) == sorted([*expected(2), *twice])


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    first = run(Toy(), tmp_path)
    again = Toy()
    assert run(again, tmp_path) == first and again.calls == []


def test_threads_are_runs_of_their_own(tmp_path: Path) -> None:
    run(Toy(), tmp_path, thread="a")
    other = Toy()
    run(other, tmp_path, thread="b")
    assert other.calls == expected(2)
    with sqlite3.connect(tmp_path / "rounds.sqlite") as database:
        counts = dict(database.execute("select thread_id, count(*) from checkpoints group by thread_id"))
    # One for the input, one before the first stage, one after each stage.
    assert set(counts) == {"a", "b"} and 1 + 7 * 2 + 1 <= counts["a"] <= 1 + 7 * 2 + 2

"""langgraph.json and what it points at: graphs that LangGraph Studio can load, and that play without a model."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from pydantic import ValidationError

from kintsugi.graphs import studio_graphs
from kintsugi.graphs.episode_state import finished_episode

ROOT = Path(__file__).parents[2]
SETTINGS = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))


def load(path: str) -> Any:
    """What Studio's server does with a path: import the file, call the factory."""
    file, _, name = path.partition(":")
    spec = importlib.util.spec_from_file_location("studio_probe", ROOT / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)()


def test_settings() -> None:
    assert SETTINGS["dependencies"] == ["."] and set(SETTINGS["graphs"]) == {"episode", "rounds"}
    assert all((ROOT / path.partition(":")[0]).is_file() for path in SETTINGS["graphs"].values())


@pytest.mark.parametrize("name", sorted(SETTINGS["graphs"]))
def test_every_path_gives_a_graph_that_runs_on_empty_input(name: str) -> None:
    graph = load(SETTINGS["graphs"][name])
    assert isinstance(graph, CompiledStateGraph)
    state = asyncio.run(graph.ainvoke({}))
    assert json.loads(json.dumps(state)) == state, "plain values alone"
    assert graph.get_input_jsonschema()["properties"].keys() == {"task" if name == "episode" else "rounds"}
    assert graph.get_output_jsonschema()["properties"].keys() >= {"path"}
    assert len(graph.get_graph(xray=True).nodes) > len(graph.get_graph().nodes), "its inner nodes are seen"


def test_an_episode_slips_and_is_mended() -> None:
    graph = studio_graphs.episode()
    found = [finished_episode(asyncio.run(graph.ainvoke({"task": number}))) for number in range(3)]
    assert [[one.success for one in episode.trajectories] for episode in found] == [[False, True], [False, True], [True]]
    assert found[0].path == ("agent", "environment", "refiner", "environment")
    assert found[0].trajectories[0].feedback and found[0].trajectories[1].parent_id == found[0].trajectories[0].id
    assert len({episode.task_id for episode in found}) == 3


def test_every_step_is_seen_and_kept() -> None:
    """As Studio runs it: with a checkpointer, inner nodes streamed one by one, every state to go back to."""

    async def play() -> Any:
        graph = studio_graphs.episode()
        graph.checkpointer = InMemorySaver()
        config: Any = {"configurable": {"thread_id": "1"}}
        nodes = []
        async for _, update in graph.astream({"task": 0}, config, stream_mode="updates", subgraphs=True):
            nodes += list(update)
        states = [state async for state in graph.aget_state_history(config)]
        return nodes, states

    nodes, states = asyncio.run(play())
    assert nodes == ["deal", "agent", "environment", "refiner", "environment", "episode"]
    assert finished_episode(states[0].values).success and states[-1].next == ("__start__",)


@pytest.mark.parametrize(("name", "input"), [("episode", {"task": 99}), ("rounds", {"rounds": -1})])
def test_input_is_checked(name: str, input: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        asyncio.run(getattr(studio_graphs, name)().ainvoke(input))


def test_rounds_learn_what_was_mended_and_nothing_else() -> None:
    graph = studio_graphs.rounds()
    state = asyncio.run(graph.ainvoke({"rounds": 2}))
    assert state["champion"] == "round-2" and state["round"] == 3
    assert [place for place in state["path"] if place.endswith(("prepare", "promote"))] == [
        "0:prepare",
        "1:promote",
        "2:promote",
    ]
    assert state["versions"] == {
        "start": "by heart: nothing",
        "round-1": "by heart: 6 programs",
        "round-2": "by heart: 6 programs",
    }
    assert len(state["datasets"]["main"]) == 16


def test_held_out_success_is_really_measured() -> None:
    stages = studio_graphs._Rounds()
    asyncio.run(stages._measure("start"))
    assert stages.rates["start"] == pytest.approx(1 / 3)
    stages.books["cheat"] = {task.prompt: task.payload["program"] for task in stages.stage.tasks["heldout"]}
    asyncio.run(stages._measure("cheat"))
    assert stages.rates["cheat"] == 1.0

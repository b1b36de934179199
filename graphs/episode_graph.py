"""The episode graph: agent, environment, refiner and reflector wired as a LangGraph state machine.

`build_episode_graph(cast)` compiles it; the recipe's `[repair]` chooses its edges. Batch rollouts compile it without a
checkpointer (`kintsugi.graphs.rollout`), interactive episodes with one, so that they can be paused, edited, rewound and
branched at any node. Drawing is in `kintsugi.graphs.drawing`.

    start → agent ⇄ environment → (refiner | reflector) → environment … → end

After a reflection the agent acts: at once, or (`repair.form = "from_turn"`) once the environment has done kept turns again.
"""

from __future__ import annotations

import time
from typing import Any

from langgraph.graph import END, START, StateGraph

from kintsugi.graphs.episode_nodes import Cast, Node, nodes
from kintsugi.graphs.episode_state import EpisodeState


def build_episode_graph(cast: Cast, *, checkpointer: Any = None, **options: Any) -> Any:
    """The compiled graph. `options` go to LangGraph's `compile` (`interrupt_before`, …)."""
    graph: Any = StateGraph(EpisodeState)
    table = nodes(cast)
    for name, node in table.items():
        graph.add_node(name, timed(node))
    repairer = next((name for name in ("refiner", "reflector") if name in table), None)
    graph.add_edge("agent", "environment")
    if repairer is None:
        graph.add_edge(START, "agent")
        graph.add_conditional_edges("environment", _Router(cast, None), {"agent": "agent", "end": END})
    else:
        graph.add_conditional_edges(START, _begin(repairer), {"agent": "agent", repairer: repairer})
        exits = {"agent": "agent", "end": END}
        if cast.repair.in_episode:
            exits[repairer] = repairer
        graph.add_conditional_edges("environment", _Router(cast, repairer), exits)
        if cast.repair.form == "from_turn":
            graph.add_conditional_edges(repairer, _go_on, {"agent": "agent", "environment": "environment"})
        else:
            graph.add_edge(repairer, "agent" if cast.repair.reflects else "environment")
    return graph.compile(checkpointer=checkpointer, **options)


def timed(node: Node) -> Node:
    """The node, which notes how long each of its visits took."""

    async def run(state: EpisodeState) -> EpisodeState:
        started = time.monotonic()
        new = await node(state)
        return {**new, "seconds": [*state.get("seconds", []), round(time.monotonic() - started, 4)]}

    return run


def recursion_limit(cast: Cast) -> int:
    """Most node visits of one episode, for LangGraph's own guard: every attempt's turns, and the repairers'."""
    attempts = 1 + cast.repair.rounds
    return attempts * (2 * cast.max_turns + 2) + 5


def _begin(repairer: str) -> Any:
    async def route(state: EpisodeState) -> str:
        return repairer if state["plan"].get("repair_of") else "agent"

    return route


async def _go_on(state: EpisodeState) -> str:
    """After a reflection: the environment where turns are to be done again, else the agent."""
    current = state["current"]
    return "environment" if current is not None and current["messages"][-1].get("kept") else "agent"


class _Router:
    """Where an episode goes after the environment spoke. Async, or LangGraph would ask a thread at every turn."""

    def __init__(self, cast: Cast, repairer: str | None) -> None:
        self.cast, self.repairer = cast, repairer

    async def __call__(self, state: EpisodeState) -> str:
        if state["current"] is not None:
            return "agent"
        last = state["attempts"][-1]
        repairs_done = sum(attempt["parent_id"] is not None for attempt in state["attempts"])
        repair = self.cast.repair
        if self.repairer is None or not repair.in_episode or repairs_done >= repair.rounds or last["stop"] == "error":
            return "end"
        return self.repairer if repair.on == "all" or last["stop"] != "success" else "end"

"""The round graph: the stages of self-training as a LangGraph state machine with a durable checkpoint after each.

    prepare → explore → (reflect) → reward → select → learn → evaluate → promote → explore … → end

With no rounds, `prepare` is all there is.

Verify and repair are nodes of the episode graph, which `explore` runs many times. What a stage does is given from
outside (`training.stages`): this room knows only in which order messages flow. The state is plain values; whatever is
large is in the ledger or the run folder, under a name that the state holds.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict  # before Python 3.12, schemas (LangGraph Studio asks for them) need this one

STAGES = ("prepare", "explore", "reflect", "reward", "select", "learn", "evaluate", "promote")


class RoundState(TypedDict):
    """round: the one in progress, from 1 (0 is the start policy's evaluation). rounds: how many. champion: the promoted
    policy version. versions: folder of each version, relative to the run. datasets: dataset hashes of this round by
    target. trained: versions trained in this round by target. path: stages done, as "round:stage"."""

    round: int
    rounds: int
    champion: str
    versions: dict[str, str]
    datasets: dict[str, str]
    trained: dict[str, str]
    path: Annotated[list[str], operator.add]


Stage = Callable[[RoundState], Awaitable[dict[str, Any]]]


def build_round_graph(stages: Mapping[str, Stage], *, checkpointer: Any = None) -> Any:
    """The compiled graph. `stages` has one coroutine a name of `STAGES` ("reflect" may be missing)."""
    graph: Any = StateGraph(RoundState)
    names = [name for name in STAGES if name in stages]
    for name in names:
        graph.add_node(name, _noted(name, stages[name]))
    graph.add_edge(START, names[0])
    for before, after in pairwise(names):
        if before != "prepare":
            graph.add_edge(before, after)
    for name in ("prepare", "promote"):
        graph.add_conditional_edges(name, _next_round, {"explore": "explore", "end": END})
    return graph.compile(checkpointer=checkpointer)


async def run_rounds(stages: Mapping[str, Stage], start: RoundState, checkpoints: Path, thread: str) -> RoundState:
    """Run, or go on with, the rounds whose graph checkpoints are in `checkpoints` (an SQLite file)."""
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(str(checkpoints)) as saver:
        graph = build_round_graph(stages, checkpointer=saver)
        config = {"configurable": {"thread_id": thread}, "recursion_limit": 20 + 10 * start["rounds"]}
        known = await graph.aget_state(config)
        begun = bool(known.values)
        if begun and not known.next:
            return known.values
        return await graph.ainvoke(None if begun else start, config, durability="sync")


def _noted(name: str, stage: Stage) -> Stage:
    async def node(state: RoundState) -> dict[str, Any]:
        changes = await stage(state)
        return {**changes, "path": [f"{state['round']}:{name}"]}

    return node


def _next_round(state: RoundState) -> str:
    return "explore" if state["round"] <= state["rounds"] else "end"

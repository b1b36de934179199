"""Many episodes at once over shared policies: bounded, repeatable, committed wave by wave.

A *wave* is a fixed list of plans that run concurrently and are committed together: its composition depends on the plans
alone, never on timing, so batches (and with them float rounding and samples) are the same from run to run, and a run that
was killed repeats exactly the waves that were not committed. Policies drop their KV caches between waves for the same
reason. No LangGraph checkpoint is written here.

An exception in one episode (a policy that cannot be reached) ends the wave and reaches the caller as it was raised;
whatever an agent or environment does wrong does not: that is on the episode's record.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar

from kintsugi.agents.policies.policy import live
from kintsugi.graphs.episode_graph import build_episode_graph, recursion_limit
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan, finished_episode, start_state
from kintsugi.records import Episode

T = TypeVar("T")
FEW_COLLECTIONS = (10_000, 10, 10)
"""Thresholds of Python's cyclic collector while a wave plays: at its own (700) it took a quarter of all the time."""


def waves(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` cut into stretches of `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def forget(cast: Cast) -> None:
    """Drop every policy's KV cache (where it has one), so that a wave does not depend on what ran before it."""
    for policy in {id(role.policy): role.policy for role in cast.roles.values()}.values():
        clear = getattr(policy, "forget", None)
        if clear is not None:
            await clear()


async def play_wave(
    plans: Sequence[EpisodePlan], cast: Cast, *, on_done: Callable[[Episode], None] | None = None
) -> list[Episode]:
    """Play the plans concurrently; episodes come back in the plans' order.

    The first exception cancels the other episodes and is raised itself, once all of them have ended.
    """
    # False, not None: inside a stage of the round graph, None would take over that graph's checkpointer.
    graph = build_episode_graph(cast, checkpointer=False)
    config: Any = {"recursion_limit": recursion_limit(cast)}
    policies = list({id(role.policy): role.policy for role in cast.roles.values()}.values())
    entered = [0]
    all_in = asyncio.Event()

    async def play(plan: EpisodePlan) -> Episode:
        async with AsyncExitStack() as stack:
            for policy in policies:
                await stack.enter_async_context(live(policy))
            # No episode asks before all are counted in: else the first batch would depend on who was fastest.
            entered[0] += 1
            if entered[0] == len(plans):
                all_in.set()
            await all_in.wait()
            state = await graph.ainvoke(start_state(plan), config)
        episode = finished_episode(state)
        if on_done is not None:
            on_done(episode)
        return episode

    try:
        with _few_collections():
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(play(plan)) for plan in plans]
        return [task.result() for task in tasks]
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
    raise first


@contextmanager
def _few_collections() -> Iterator[None]:
    before = gc.get_threshold()
    if 0 < before[0] < FEW_COLLECTIONS[0]:  # not where it is off, or rarer already
        gc.set_threshold(*FEW_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def rollout(
    plans: Iterable[EpisodePlan],
    cast: Cast,
    *,
    commit: Callable[[Sequence[Episode]], object],
    known: Callable[[Sequence[str]], set[str]] = lambda ids: set(),
    on_done: Callable[[Episode], None] | None = None,
) -> int:
    """Play all plans in waves of `cast.episode.wave`; returns how many episodes were played now.

    commit: called once a wave. known: which of these episode ids are committed already; such waves are skipped whole.
    """
    played = 0
    for wave in waves(list(plans), cast.episode.wave):
        ids = {plan.episode_id for plan in wave}
        if ids <= known(sorted(ids)):
            continue
        await forget(cast)
        episodes = await play_wave(wave, cast, on_done=on_done)
        commit(episodes)
        played += len(episodes)
    return played

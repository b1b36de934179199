"""The live worlds of running attempts, kept out of the graph's state.

A graph state holds plain values only, so a world is found by its attempt's key, and rebuilt by replaying the attempt's
actions when it is not there or has gone further than the state (a resumed, rewound or branched episode). A crash of the
environment is met here: one retry on a fresh world, then `WorldBroke`, which the environment node turns into a verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from kintsugi.records import Task
from kintsugi.sandboxes.environments.environment import Environment, Reply, World


class WorldBroke(Exception):
    """An environment failed twice on the same action; `str()` is the reason for the record."""


@dataclass
class _Live:
    world: World
    actions: list[str]


class Worlds:
    """Worlds of one environment by attempt key. `timeout_s` bounds one turn of the environment, in seconds."""

    def __init__(self, environment: Environment, *, timeout_s: float = 60.0) -> None:
        self.environment = environment
        self.timeout_s = timeout_s
        self.crashes = 0
        self._live: dict[str, _Live] = {}

    async def observe(self, task: Task) -> str:
        """The first observation of a fresh attempt at `task`."""
        if self.environment.max_turns == 1:
            return task.prompt
        world = await self.environment.start(task)
        try:
            return await world.observe()
        finally:
            await world.close()

    async def act(self, key: str, task: Task, before: Sequence[str], action: str) -> Reply:
        """The reply to `action` after the actions `before`. Raises WorldBroke after a second crash or timeout."""
        reason = ""
        for _ in range(2):
            try:
                async with asyncio.timeout(self.timeout_s * (1 + len(before))):
                    live = await self._world(key, task, before)
                    reply = await live.world.act(action)
                live.actions.append(action)
                if reply.verdict is not None and reply.verdict.error:
                    reason = reply.verdict.error
                else:
                    return reply
            except TimeoutError:
                reason = f"no reply within {self.timeout_s:g} s"
            except Exception as error:  # an environment is foreign code: whatever it raises is data, see house.md
                reason = f"{type(error).__name__}: {error}"[:300]
            self.crashes += 1
            await self.leave(key)
        raise WorldBroke(reason)

    async def leave(self, key: str) -> None:
        """Close the world of an attempt that is over; a world that breaks while closing is gone all the same."""
        live = self._live.pop(key, None)
        if live is not None:
            try:
                await asyncio.wait_for(live.world.close(), self.timeout_s)
            except Exception:
                self.crashes += 1

    async def close(self) -> None:
        """Close every world that is still open."""
        for key in list(self._live):
            await self.leave(key)

    async def _world(self, key: str, task: Task, before: Sequence[str]) -> _Live:
        live = self._live.get(key)
        if live is not None and live.actions == list(before):
            return live
        await self.leave(key)
        live = _Live(await self.environment.start(task), [])
        self._live[key] = live
        await live.world.observe()
        for action in before:
            await live.world.act(action)
            live.actions.append(action)
        return live

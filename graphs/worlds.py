"""The live worlds of running attempts, kept out of the graph's state.

A graph state holds plain values only, so a world is found by its attempt's key, and rebuilt by replaying the attempt's
actions when it is not there or has gone further than the state (a resumed, rewound or branched episode). A crash of the
environment is met here: one retry on a fresh world, then `WorldBroke`, which the nodes turn into a verdict. A
KintsugiError is no crash: it says what a user must mend (no sandbox of that kind here), and is raised as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kintsugi.errors import KintsugiError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.environment import Environment, Reply, World
from kintsugi.sandboxes.turn_clock import TookTooLong, bounded

T = TypeVar("T")


class WorldBroke(Exception):
    """An environment failed twice on the same action; `str()` is the reason for the record."""


@dataclass
class _Live:
    world: World
    actions: list[str]


class Worlds:
    """Worlds of one environment by attempt key. `timeout_s` bounds one turn of the environment, in seconds; time that it
    waits in line for a worker is not counted (`sandboxes.turn_clock`).

    crashes: how often the environment broke or took too long, retries included.
    """

    def __init__(self, environment: Environment, *, timeout_s: float = 60.0) -> None:
        self.environment = environment
        self.timeout_s = timeout_s
        self.crashes = 0
        self._live: dict[str, _Live] = {}
        self._broke: dict[str, list[str]] = {}

    async def observe(self, key: str, task: Task) -> str:
        """The first observation of a fresh attempt at `task`; its world waits for the first action.

        Raises WorldBroke after a second crash or timeout."""
        if self.environment.max_turns == 1:
            return task.prompt
        return (await self._twice(key, lambda: self._fresh(key, task)))[1]

    async def act(self, key: str, task: Task, before: Sequence[str], action: str) -> Reply:
        """The reply to `action` after the actions `before`. Raises WorldBroke after a second crash or timeout."""

        async def turn() -> Reply:
            live = await self._world(key, task, before)
            reply = await self._bounded(live.world.act(action))
            live.actions.append(action)
            if reply.verdict is not None and reply.verdict.error:
                raise WorldBroke(reply.verdict.error)
            return reply

        return await self._twice(key, turn)

    async def leave(self, key: str) -> None:
        """Close the world of an attempt that is over; a world that breaks while closing is gone all the same."""
        live = self._live.pop(key, None)
        if live is not None:
            try:
                await self._bounded(live.world.close())
            except Exception:
                self.crashes += 1

    def broke(self, key: str) -> tuple[str, ...]:
        """Why the world of an attempt broke since this was last asked, each time."""
        return tuple(self._broke.pop(key, ()))

    async def close(self) -> None:
        """Close every world that is still open."""
        for key in list(self._live):
            await self.leave(key)

    async def _twice(self, key: str, turn: Callable[[], Awaitable[T]]) -> T:
        reason = ""
        for _ in range(2):
            try:
                return await turn()
            except (KintsugiError, asyncio.CancelledError):
                await self.leave(key)  # it may have done half a turn: whoever goes on replays
                raise
            except WorldBroke as broke:
                reason = str(broke)
            except Exception as error:  # an environment is foreign code: whatever it raises is data, see house.md
                reason = f"{type(error).__name__}: {error}"[:300]
            self.crashes += 1
            self._broke.setdefault(key, []).append(reason)
            await self.leave(key)
        raise WorldBroke(reason)

    async def _bounded(self, step: Awaitable[T]) -> T:
        try:
            return await bounded(step, self.timeout_s)
        except TookTooLong as late:
            raise WorldBroke(str(late)) from None

    async def _fresh(self, key: str, task: Task) -> tuple[_Live, str]:
        await self.leave(key)
        live = self._live[key] = _Live(await self._bounded(self.environment.start(task)), [])
        return live, await self._bounded(live.world.observe())

    async def _world(self, key: str, task: Task, before: Sequence[str]) -> _Live:
        live = self._live.get(key)
        if live is not None and live.actions == list(before):
            return live
        live, _ = await self._fresh(key, task)
        for action in before:
            await self._bounded(live.world.act(action))
            live.actions.append(action)
        return live

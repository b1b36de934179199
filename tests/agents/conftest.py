"""Real local servers for tests, each in a thread of its own: `served(policy)` and `handled(handler)`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import pytest
from aiohttp import web

from kintsugi.agents.policies.chat_server import serve
from kintsugi.agents.policies.policy import Policy

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def _in_thread(start: Callable[[], Awaitable[tuple[str, Callable[[], Awaitable[None]]]]]) -> Iterator[str]:
    """Run `start` in a loop of its own; it gives a url and what stops it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    url, stop = asyncio.run_coroutine_threadsafe(_await(start()), loop).result(10)
    try:
        yield url
    finally:
        asyncio.run_coroutine_threadsafe(_await(stop()), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def _served(policy: Policy, model: str = "") -> Iterator[str]:

    async def start() -> tuple[str, Callable[[], Awaitable[None]]]:
        server = await serve(policy, model=model)
        return server.url, server.close

    with _in_thread(start) as url:
        yield url


@contextmanager
def _handled(handler: Handler) -> Iterator[str]:

    async def start() -> tuple[str, Callable[[], Awaitable[None]]]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1", runner.cleanup

    with _in_thread(start) as url:
        yield url


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


@pytest.fixture
def served() -> Callable[..., AbstractContextManager[str]]:
    """A context manager: the base url of a policy behind `chat_server`."""
    return _served


@pytest.fixture
def handled() -> Callable[[Handler], AbstractContextManager[str]]:
    """A context manager: the base url (ending in /v1) of a server where a handler answers every request."""
    return _handled

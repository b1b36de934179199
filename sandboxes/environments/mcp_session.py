"""One connection to an MCP server: a program spoken to over its pipes, or an address.

    server = Server(command=("python", "my_server.py"), env={}, cwd=None, url="", headers={})
    session = Session(server, timeout_s=30, start_s=120)
    await session.open()                                    # starts the program, shakes hands, lists the tools
    result = await session.call("add", {"a": 2, "b": 3})    # Result(text="5", error=False)
    await session.close()                                   # the program has ended, and what it started

All of it belongs to one event loop. `ServerBroke` says that the server died, hung, or cannot be reached; what a tool
objects to is a `Result` with `error`. Left out: resources, prompts, sampling and elicitation requests of servers, the older
SSE transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kintsugi.sandboxes.environments.marked_processes import end_marked, new_mark, sessions_of

LONGEST_RESULT: Final = 4_000
_OURS: Final = frozenset((-32000, -32001, 408))
"""Error codes of a connection that closed and of a request that took too long, in the SDK."""


class ServerBroke(RuntimeError):
    """The server died, hung, or cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a server is. command: program and arguments, () for a server at `url` (streamable HTTP). env: variables beside
    PATH, HOME and the like. headers: sent with each request to `url`."""

    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.url or " ".join(self.command)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a tool gave, as text. error: it objected. value: the structured form, where it gave one."""

    text: str
    error: bool
    value: Any = None


class Session:
    """The connection; see the module. timeout_s: longest wait for a tool; start_s: for the server to be up. tools: what it
    offers, after `open`. alive: it can be asked."""

    def __init__(self, server: Server, timeout_s: float, start_s: float) -> None:
        self.server, self.timeout_s, self.start_s = server, timeout_s, start_s
        self._mark = new_mark()
        self.tools: list[Any] = []
        self._session: Any = None
        self._leave = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._said: Any = None

    @property
    def alive(self) -> bool:
        return self._session is not None and self._task is not None and not self._task.done()

    async def open(self) -> None:
        """Connect. Raises ServerBroke."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(ready))
        try:
            async with asyncio.timeout(self.start_s):
                await asyncio.shield(ready)
        except TimeoutError:
            ready.cancel()  # nobody hears of it any more
            await self.close(patience_s=0.0)
            raise ServerBroke(f"not up within {self.start_s:g} s{self.last_words()}") from None
        except BaseException:  # being cancelled, too: no program may stay
            ready.cancel()
            await self.close(patience_s=0.0)
            raise

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Result:
        """What the tool gives. Raises ServerBroke."""
        from mcp import MCPError

        if not self.alive:
            raise ServerBroke("it has ended")
        try:
            async with asyncio.timeout(self.timeout_s):
                found = await self._session.call_tool(name, dict(arguments))
        except TimeoutError:
            await self.close(patience_s=0.0)
            raise ServerBroke(f"{name} gave no answer within {self.timeout_s:g} s") from None
        except MCPError as error:
            if error.code in _OURS:
                await self.close()
                raise ServerBroke(f"{error.message}{self.last_words()}"[:300]) from None
            return Result(text=_storable(error.message), error=True)
        except (ValueError, RuntimeError) as error:  # an answer against the tool's schema: the SDK does not let it through
            return Result(text=_storable(f"{name} gave an answer that cannot be used: {_one_line(error)}"), error=True)
        except Exception as error:  # a server is foreign code, and so is what its answers do to the SDK
            await self.close()
            raise ServerBroke(_one_line(error)) from None
        texts = [f"[{block.type}]" if (text := getattr(block, "text", None)) is None else text for block in found.content]
        return Result(text=_storable("\n".join(texts)), error=bool(found.is_error), value=found.structured_content)

    async def close(self, patience_s: float = 10.0) -> None:
        """Disconnect, and wait until the program has ended, with what it started; harmless twice. patience_s: how long it
        may take over its end before it is killed."""
        self._leave.set()
        self._session = None
        sessions = sessions_of(self._mark) if self.server.command else set()
        if self._task is not None and not self._task.done():
            if patience_s <= 0:
                self._end(sessions)
            _, late = await asyncio.wait([self._task], timeout=max(patience_s, 1.0))
            if late:
                self._task.cancel()
                await asyncio.wait([self._task])
        self._end(sessions)

    def _end(self, sessions: set[int]) -> None:
        if self.server.command:
            end_marked(self._mark, sessions)

    def last_words(self) -> str:
        """What the program wrote to standard error last."""
        if self._said is None or self._said.closed:
            return ""
        size = os.fstat(self._said.fileno()).st_size
        words = os.pread(self._said.fileno(), 400, max(0, size - 400)).decode("utf-8", "replace")
        return f"; it said: {' '.join(words.split())}" if words.strip() else ""

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        """Keep the connection open until `close`: the SDK wants it left by the task that made it."""
        from mcp import ClientSession

        try:
            async with self._streams() as (read, write), ClientSession(read, write) as session:
                await session.initialize()
                self.tools = await _all_tools(session)
                self._session = session
                if not ready.done():
                    ready.set_result(None)
                await self._leave.wait()
        except Exception as error:  # the SDK raises groups of whatever its tasks met
            if not ready.done():
                ready.set_exception(ServerBroke(f"{_one_line(error)}{self.last_words()}"[:400]))
        finally:
            self._session = None
            if not ready.done():
                ready.cancel()
            if self._said is not None:
                self._said.close()

    @contextlib.asynccontextmanager
    async def _streams(self) -> AsyncIterator[tuple[Any, Any]]:
        if self.server.url:
            import httpx2
            from mcp.client.streamable_http import streamable_http_client

            timeout = httpx2.Timeout(self.timeout_s, read=None)
            async with (
                httpx2.AsyncClient(headers=dict(self.server.headers), timeout=timeout, follow_redirects=True) as client,
                streamable_http_client(self.server.url, http_client=client) as streams,
            ):
                yield streams[0], streams[1]
            return
        from mcp import StdioServerParameters
        from mcp.client.stdio import stdio_client

        program, *arguments = self.server.command
        asked = StdioServerParameters(
            command=program,
            args=arguments,
            env={**self.server.env, **self._mark},
            cwd=self.server.cwd,
            encoding_error_handler="replace",
        )
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - lives as long as it
        async with stdio_client(asked, errlog=self._said) as streams:
            yield streams[0], streams[1]


async def _all_tools(session: Any) -> list[Any]:
    from mcp.types import PaginatedRequestParams

    found, cursor = [], None
    while True:
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor) if cursor else None)
        found += page.tools
        cursor = page.next_cursor
        if not cursor:
            return found


def _one_line(error: BaseException) -> str:
    """The innermost error of a group, on one line."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    said = _storable(" ".join(str(error).split()))
    return f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__


def _storable(text: str) -> str:
    text = text.encode(errors="replace").decode().replace("\0", "?")
    return text if len(text) <= LONGEST_RESULT else text[:LONGEST_RESULT] + "…"

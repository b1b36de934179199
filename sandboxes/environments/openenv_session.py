"""One session on an OpenEnv server, and a server of one's own.

    session = Session("http://localhost:8000", timeout_s=30)
    answer = await session.ask("reset", {"seed": 3})        # {"observation": {…}, "reward": None, "done": False}
    answer = await session.ask("step", {"message": "hello"})
    await session.close()

`Refused` is what the server's schema or its environment says of an action; the session goes on. `ServerBroke`: the server is
down, hangs, or ended the session. Protocol: OpenEnv 0.10, `openenv/core/env_server/http_server.py`, endpoint `/ws`. Left
out: its MCP messages, and signing in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from kintsugi.errors import ConfigError
from kintsugi.sandboxes.environments.marked_processes import Watcher, end_marked, new_mark
from kintsugi.sandboxes.environments.printed_number import readable

_REFUSALS: Final = ("VALIDATION_ERROR", "EXECUTION_ERROR")
_FULL: Final = "CAPACITY_REACHED"
_LARGEST: Final = 100 << 20


class Refused(RuntimeError):
    """The server did not take an action, and says why."""


class ServerBroke(RuntimeError):
    """The server is down, hangs, or ended the session."""


class ServerFull(ServerBroke):
    """The server has no place for another session now."""


class Session:
    """A connection, made at the first request. Belongs to one event loop."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    @property
    def held(self) -> bool:
        """Whether it has a connection, and so a place on the server."""
        return self._socket is not None

    async def ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to a "reset" or "step". Raises Refused, ServerFull and ServerBroke."""
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await self._exchange(kind, data)
        except TimeoutError:
            await self.close()
            raise ServerBroke(f"no answer within {self.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            await self.close()
            raise ServerBroke(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None
        said = answer.get("data") or {}
        if not isinstance(said, Mapping):
            await self.close()
            raise ServerBroke(f"expected an object as data, found {type(said).__name__}")
        if answer.get("type") != "error":
            return dict(said)
        if said.get("code") in _REFUSALS:
            raise Refused(_objection(said))
        await self.close()
        broke = ServerFull if said.get("code") == _FULL else ServerBroke
        raise broke(f"{said.get('code')}: {readable(str(said.get('message')), 200)}")

    async def close(self) -> None:
        """End the session; harmless twice."""
        web_socket, self._socket = self._socket, None
        http, self._http = self._http, None
        if web_socket is not None and not web_socket.closed:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await web_socket.send_str('{"type": "close"}')
                    await web_socket.close()
        if http is not None:
            await http.close()

    async def _exchange(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        web_socket = self._socket
        if web_socket is None:
            if kind != "reset":
                raise aiohttp.ClientError("the session has ended")
            http = self._http = aiohttp.ClientSession()
            web_socket = self._socket = await http.ws_connect(f"{self.url}/ws", max_msg_size=_LARGEST)
        with contextlib.suppress(ConnectionError):  # a full server says so first and then closes
            await web_socket.send_str(json.dumps({"type": kind, "data": dict(data)}))
        message = await web_socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise aiohttp.ClientError(f"it ended the session ({message.type.name.lower()})")
        answer = json.loads(message.data)
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer


class ServerProcess:
    """A server that `command` starts at a free port. It ends, with what it started, at `close` or when this process ends,
    however that does. url: where it will be."""

    def __init__(self, command: str, start_s: float) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.url, self.start_s = f"http://127.0.0.1:{port}", start_s
        if "{port}" not in command:
            raise ConfigError(f'openenv.command: expected "{{port}}" where the port belongs, found "{command}"')
        words = [word.replace("{port}", str(port)) for word in shlex.split(command)]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self._mark = new_mark()
        self._watcher = Watcher(self._mark)
        try:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env={**os.environ, **self._mark},
                start_new_session=True,
            )
        except OSError as error:
            self._watcher.close()
            self._said.close()
            raise ConfigError(f'openenv.command: "{words[0]}" cannot be started ({error.strerror})') from None

    def wait(self) -> None:
        """Until it takes connections. Raises ServerBroke with its last words."""
        deadline = time.monotonic() + self.start_s
        port = int(self.url.rpartition(":")[2])
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        size = os.fstat(self._said.fileno()).st_size
        words = os.pread(self._said.fileno(), 300, max(0, size - 300)).decode("utf-8", "replace")
        how = "it ended" if self.process.poll() is not None else f"it did not listen within {self.start_s:g} s"
        raise ServerBroke(f"{how}; it said: {' '.join(words.split())}")

    def close(self) -> None:
        """End it and what it started; harmless twice."""
        if self._said.closed:
            return
        end_marked(self._mark, {self.process.pid} if self.process.returncode is None else ())
        self.process.wait()
        self._watcher.close()
        self._said.close()


async def action_schema(url: str, timeout_s: float) -> dict[str, Any]:
    """The JSON schema of the server's actions. Raises ServerBroke."""
    try:
        limit = aiohttp.ClientTimeout(total=timeout_s)
        async with aiohttp.ClientSession(timeout=limit) as http, http.get(f"{url}/schema") as response:
            found = await response.json() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise ServerBroke(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None
    action = found.get("action") if isinstance(found, dict) else None
    if not isinstance(action, dict):
        raise ServerBroke("what answers has no /schema with an action: it is no OpenEnv server")
    return action


def _objection(said: Mapping[str, Any]) -> str:
    """What a refusal says, in one line."""
    errors = said.get("errors")
    parts = [
        f"{'.'.join(map(str, place)) if isinstance(place := error.get('loc'), list) else place}: {error.get('msg', '')}"
        for error in (errors if isinstance(errors, list) else ())
        if isinstance(error, Mapping)
    ]
    return f"The environment did not take it: {readable('; '.join(parts) or str(said.get('message')), 300)}."

"""JSON over HTTP to a model server, for `endpoint_policy`: one session an event loop, retries, and errors in one
sentence.

    client = EndpointClient("http://localhost:8000/v1", key_name="OPENAI_API_KEY")
    reply = await client.post("chat/completions", {...})   # a dict, or PolicyError

Retried with growing waits: 408, 429, 5xx, refused and reset connections. Not retried: everything else, a timeout
included (the server may still be at work on it). An `error` in an answer of 200, which some proxies give, counts as the
status that it names or describes. The key is read from the environment at each call and never shown,
not even when a server's error repeats it. Left out: streaming, proxies, anything that is not JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
from yarl import URL

from kintsugi.errors import ConfigError, PolicyError

MOST_WAIT_S = 30.0
"""Longest wait between two tries, whatever the server asks for."""

TRY_AGAIN = frozenset((408, 429, *range(500, 600)))
"""Statuses after which the same request may succeed."""

CHECK_OPTIONS = "Check the options (extra_body changes what is sent)."

_TOO_MANY = re.compile(r"rate.?limit|too.many.requests|quota", re.IGNORECASE)


class StatusError(PolicyError):
    """The server answered with an error status. `status`: HTTP's number; `body`: what it said, short, without the key;
    `retry_after_s`: how long it asks to be left alone."""

    def __init__(self, message: str, status: int, body: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.body, self.retry_after_s = status, body, retry_after_s


class EndpointClient:
    """Speaks JSON with one server.

    url: the base that paths are added to, usually ending in /v1. key_name: environment variable of the API key; unset
    or empty sends none. max_concurrent: most requests at once (per event loop). retries: tries after the first one.
    backoff_s: first wait; each next one is twice as long.
    """

    def __init__(
        self,
        url: str,
        *,
        key_name: str = "OPENAI_API_KEY",
        timeout_s: float = 120.0,
        max_concurrent: int = 64,
        retries: int = 3,
        backoff_s: float = 0.5,
    ) -> None:
        self._base = _parse(url)
        self.shown_url = str(self._base.with_user(None).with_query(None)).rstrip("/")
        self._key_name, self._timeout_s, self._retries, self._backoff_s = key_name, timeout_s, retries, backoff_s
        self._max_concurrent = max(1, max_concurrent)
        self._sessions: dict[asyncio.AbstractEventLoop, tuple[aiohttp.ClientSession, asyncio.Semaphore]] = {}

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to `body` at `path` below the base; a path that starts with "/" stands beside a base's /v1."""
        return self._as_object(await self._call("POST", path, body))

    async def get(self, path: str) -> Any:
        """What stands at `path`: any JSON."""
        return await self._call("GET", path, None)

    async def close(self) -> None:
        """Close this loop's session, and those of loops that have ended."""
        here = asyncio.get_running_loop()
        for loop in [loop for loop in self._sessions if loop is here or loop.is_closed()]:
            session, _ = self._sessions.pop(loop)
            await session.close()

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        root = self._base.path.rstrip("/")
        whole = root.removesuffix("/v1") + path if path.startswith("/") else f"{root}/{path}"
        url = self._base.with_path(whole).with_query(self._base.query)
        session, slots = await self._session()
        async with slots:
            for number in range(self._retries + 1):
                last, asked_s = number == self._retries, 0.0
                try:
                    return await self._once(session, method, url, body)
                except StatusError as error:
                    if last or error.status not in TRY_AGAIN:
                        raise
                    asked_s = error.retry_after_s
                except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                    if last:
                        raise PolicyError(self._unreachable(error)) from None
                wait_s = self._backoff_s * 2**number * random.uniform(0.75, 1.25)  # so that 64 do not return as one
                await asyncio.sleep(min(max(wait_s, asked_s), MOST_WAIT_S))
        raise AssertionError("the last try returns or raises")

    async def _once(
        self, session: aiohttp.ClientSession, method: str, url: URL, body: Mapping[str, Any] | None
    ) -> Any:
        key = os.environ.get(self._key_name, "").strip()
        if not key.isprintable():
            raise PolicyError(f"the API key in {self._key_name} has unprintable characters: set it again, on one line.")
        headers = {"Authorization": f"Bearer {key}"} if key and not url.user else {}  # a url's own credentials win
        try:
            async with session.request(method, url, json=body, headers=headers) as response:
                raw = await response.read()
        except TimeoutError:
            raise PolicyError(
                f"expected an answer from {self.shown_url} within {self._timeout_s:g} s, found none: raise timeout_s "
                f"or ask for fewer tokens."
            ) from None
        except (aiohttp.InvalidURL, aiohttp.ClientResponseError) as error:
            raise PolicyError(
                f"expected an HTTP server at {self.shown_url}, found something else ({type(error).__name__}): "
                f"check the url."
            ) from None
        text, wait_s = raw.decode(errors="replace"), _seconds(response.headers.get("Retry-After", ""))
        if response.status >= 400:
            raise self._status_error(response.status, text, key, wait_s)
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError):
            raise self._no_object(_short(text, key)) from None
        if error := _error_inside(reply):
            raise self._status_error(_status_of(error), json.dumps(error), key, wait_s, answered="200 with an error")
        return reply

    def _as_object(self, reply: Any) -> dict[str, Any]:
        if not isinstance(reply, dict):
            raise self._no_object(_short(json.dumps(reply), ""))
        return reply

    def _no_object(self, found: str) -> PolicyError:
        return PolicyError(
            f'expected a JSON object from {self.shown_url}, found "{found}": check that the url is an '
            f"OpenAI-compatible base (it mostly ends in /v1)."
        )

    def _status_error(self, status: int, text: str, key: str, wait_s: float, answered: str = "") -> StatusError:
        """`text`: what the server said. answered: what it answered with, if not with this status."""
        body, answer = _short(_message(text), key), f"{self.shown_url} answered {answered or status}"
        said = f'{answer}: "{body}"' if body else answer
        if status in (401, 403):
            found = "one that it refuses" if key else "none"
            message = f"{said}. Expected an API key in the environment variable {self._key_name}, found {found}."
        elif status == 404:
            message = f"{said}. Check the url (it mostly ends in /v1) and the model's name."
        elif status == 429:
            message = f"{said}, {self._retries + 1} times. Lower max_concurrent, or wait for the quota."
        elif status >= 500:
            message = f"{said}, {self._retries + 1} times. Look at the server's log."
        else:
            message = f"{said}. {CHECK_OPTIONS}"
        return StatusError(message, status, body, wait_s)

    def _unreachable(self, error: Exception) -> str:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return (
            f"expected a model server at {self.shown_url}, found none that keeps a connection ({reason}) in "
            f"{self._retries + 1} tries: start it, or check the url."
        )

    async def _session(self) -> tuple[aiohttp.ClientSession, asyncio.Semaphore]:
        """This loop's session and slots: neither may be shared between event loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                connector=aiohttp.TCPConnector(limit=self._max_concurrent),
            )
            self._sessions[loop] = session, asyncio.Semaphore(self._max_concurrent)
            for ended in [one for one in self._sessions if one.is_closed()]:
                old, _ = self._sessions.pop(ended)
                await old.close()
        return self._sessions[loop]


def _parse(url: str) -> URL:
    try:
        parsed = URL(url)
        good = parsed.scheme in ("http", "https") and bool(parsed.host)
    except (ValueError, TypeError):
        good, parsed = False, URL()
    if not good:
        raise ConfigError(
            f'expected a url such as http://localhost:8000/v1, found "{url}": begin it with http:// or https://'
        )
    return parsed


def _error_inside(reply: Any) -> Any:
    """The error in an answer of 200: its own, or that of a choice whose sampling broke off."""
    if not isinstance(reply, dict):
        return None
    choices = reply.get("choices")
    inner = [choice.get("error") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    return next((error for error in (reply.get("error"), *inner) if error), None)


def _status_of(error: Any) -> int:
    """The status that an error means which came with 200: the one it names, 429 for a limit in words, else 400."""
    codes = [error.get("code"), error.get("status")] if isinstance(error, dict) else []
    numbers = [int(code) for code in codes if isinstance(code, int) or (isinstance(code, str) and code.isdecimal())]
    named = next((number for number in numbers if 400 <= number < 600), None)
    return named or (429 if _TOO_MANY.search(json.dumps(error)) else 400)


def _message(text: str) -> str:
    """The message in an error body of any of the usual shapes, or the text as it is."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return re.sub(r"<[^>]*>", " ", text)
    inner: Any = body[0] if isinstance(body, list) and len(body) == 1 else body
    for name in ("error", "message", "detail"):
        if isinstance(inner, dict) and inner.get(name):
            inner = inner[name]
    return inner if isinstance(inner, str) else json.dumps(inner)


def _short(text: str, key: str) -> str:
    if key:
        text = text.replace(key, "***")
    text = " ".join(text.split()).replace('"', "'")
    return text if len(text) <= 200 else text[:199] + "…"


def _seconds(retry_after: str) -> float:
    """The header as seconds; its other form, a date, counts as 0."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        return 0.0

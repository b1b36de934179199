"""Live Wikipedia as pages to search, through the MediaWiki API.

    pages = WikipediaPages()                                  # or another wiki: WikipediaPages("https://…/w/api.php")
    page = await pages.page("Marie Curie")                    # redirects followed; None when there is none
    await pages.similar("physicist two Nobel prizes", 5)      # titles

A page is its plain text, cut into sentences. Disambiguation pages count as none: the search then names what they list.
Pages are kept in memory (most recent 2,000), so that an episode that is replayed reads what it read before; the same
question asked on another day may read a changed page. At most four requests run at once; 429 and 5xx are retried twice.

Where there is no network, or the server refuses, every call raises DataError with one sentence. Left out: tables, images,
logging in, dumps (make a corpus of one: `page_index.read_corpus`).
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments.page_index import Page, split_sentences, title_key

WIKIPEDIA: Final = "https://en.wikipedia.org/w/api.php"
_AGENT: Final = "kintsugi-agents (research on question answering; one reader, cached)"
_MOST_KEPT: Final = 2_000
_LONGEST_TITLE: Final = 250


_OVERLOADED = ("ratelimited", "maxlag", "readonly", "internal_api_error", "unknown_action")
"""How the codes begin of errors that are not about the words of a query."""


class WikipediaPages:
    """Reads one wiki. api: address of its `api.php`; timeout_s: of one request; retry_s: wait before the first retry."""

    def __init__(self, api: str = WIKIPEDIA, *, timeout_s: float = 15.0, retry_s: float = 1.0) -> None:
        self.api, self.timeout_s, self.retry_s = api, timeout_s, retry_s
        self._pages: OrderedDict[str, Page | None] = OrderedDict()
        self._found: OrderedDict[tuple[str, int], list[str]] = OrderedDict()
        self._session: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(4)

    async def page(self, title: str) -> Page | None:
        """The page, or None where there is none of that title (or a disambiguation). Raises DataError."""
        plain = _plain(title)
        key = title_key(plain)
        if not plain:
            return None
        if key not in self._pages:
            wanted = {"prop": "extracts|pageprops", "explaintext": "1", "exsectionformat": "plain", "redirects": "1"}
            reply = await self._ask({**wanted, "ppprop": "disambiguation", "titles": plain})
            _keep(self._pages, key, _page_of(reply))
        self._pages.move_to_end(key)
        return self._pages[key]

    async def similar(self, query: str, number: int) -> list[str]:
        """Titles by the wiki's own search. Raises DataError."""
        plain = _plain(query)
        if not plain:
            return []
        if (plain, number) not in self._found:
            reply = await self._ask({"list": "search", "srsearch": plain, "srlimit": str(number)})
            hits = _inside(reply, "query", "search")
            titles = [hit["title"] for hit in hits or () if isinstance(hit, Mapping) and isinstance(hit.get("title"), str)]
            _keep(self._found, (plain, number), titles[:number])
        return list(self._found[plain, number])

    async def close(self) -> None:
        """Close the connection; calling it twice is harmless."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, query: Mapping[str, str]) -> dict[str, Any]:
        import aiohttp

        asked = {"action": "query", "format": "json", "formatversion": "2", **query}
        async with await self._slot():
            for tries_left in (2, 1, 0):
                try:
                    async with (await self._opened()).get(self.api, params=asked) as response:
                        status, body = response.status, await response.read()
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    raise self._unreachable(type(error).__name__) from None
                if (status == 429 or status >= 500) and tries_left:
                    await asyncio.sleep(self.retry_s * (3 - tries_left))
                    continue
                if status >= 400:
                    raise self._unreachable(f"status {status}")
                return self._read(body)
        raise AssertionError("the last try returns or raises")

    def _read(self, body: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise self._unreachable("the reply is no JSON object")
        if "error" not in reply:
            return reply
        if str(_inside(reply, "error", "code")).startswith(_OVERLOADED):
            raise self._unreachable(str(_inside(reply, "error", "info"))[:120])
        return {}  # it refuses these words: nothing is found by them

    async def _slot(self) -> asyncio.Semaphore:
        """This loop's slots: neither they nor a session may be shared between event loops."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            await self.close()
            self._loop, self._slots = loop, asyncio.Semaphore(4)
        return self._slots

    async def _opened(self) -> Any:
        import aiohttp

        if self._session is None:
            clock = aiohttp.ClientTimeout(total=self.timeout_s)
            self._session = aiohttp.ClientSession(timeout=clock, headers={"User-Agent": _AGENT}, trust_env=True)
        return self._session

    def _unreachable(self, reason: str) -> DataError:
        return DataError(
            f"searching live Wikipedia needs a network, and {self.api} gave no answer ({reason}): search the questions' own "
            'paragraphs (corpus="question") or a local corpus (corpus="a folder or .jsonl file") instead.'
        )


def _page_of(reply: Mapping[str, Any]) -> Page | None:
    pages = _inside(reply, "query", "pages")
    first = pages[0] if isinstance(pages, list) and pages else None
    if not isinstance(first, Mapping) or first.get("missing") or first.get("invalid"):
        return None
    if "disambiguation" in (first.get("pageprops") or {}):
        return None
    text, title = first.get("extract"), first.get("title")
    if not isinstance(text, str) or not isinstance(title, str) or not text.strip():
        return None
    return Page(title=title, sentences=split_sentences(text))


def _plain(text: str) -> str:
    """`text` without what has a meaning of its own in titles (a bar separates several), at most as long as one may be."""
    plain = "".join(char if char.isprintable() and char not in "|<>[]{}#" else " " for char in text)
    while len(plain.encode()) > _LONGEST_TITLE:
        plain = plain[: _LONGEST_TITLE * len(plain) // len(plain.encode()) or 1]
    return " ".join(plain.split())


def _inside(reply: Mapping[str, Any], *names: str) -> Any:
    found: Any = reply
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _keep(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    kept[key] = value
    while len(kept) > _MOST_KEPT:
        kept.popitem(last=False)

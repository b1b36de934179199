"""Live Wikipedia against a local stub of the MediaWiki API: pages, redirects, searches, retries, and no network at all."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments.conformance import malformed_actions
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.wikipedia_pages import WikipediaPages

TEXTS = {
    "Avonmere": "Avonmere is a town. It lies on the Tarn.\n\nHistory\nIt was founded in 1312. Its mill burnt down.",
    "Tarn": "The Tarn is a river. It flows into the Grey Sea.",
}
Test = Callable[[WikipediaPages, list[dict[str, str]]], Awaitable[None]]


class Stub:
    """Answers as api.php does; the first `failures` requests get status 503."""

    def __init__(self, failures: int = 0, body: str | None = None) -> None:
        self.failures, self.body = failures, body
        self.seen: list[dict[str, str]] = []
        self.agents: list[str] = []

    async def __call__(self, http: web.Request) -> web.Response:
        self.seen.append(dict(http.query))
        self.agents.append(http.headers.get("User-Agent", ""))
        if len(self.seen) <= self.failures:
            return web.Response(status=503)
        if self.body is not None:
            return web.Response(text=self.body)
        if http.query.get("list") == "search":
            hits = [{"title": title} for title in TEXTS if http.query["srsearch"].lower() in TEXTS[title].lower()]
            return web.json_response({"query": {"search": hits[: int(http.query["srlimit"])]}})
        return web.json_response({"query": {"pages": [self.page(http.query["titles"])]}})

    def page(self, title: str) -> dict[str, Any]:
        if title == "Mercury":
            return {"title": title, "extract": "Mercury may refer to:", "pageprops": {"disambiguation": ""}}
        title = {"Avon-Mere": "Avonmere"}.get(title, title)
        return {"title": title, "extract": TEXTS[title]} if title in TEXTS else {"title": title, "missing": True}


async def served(stub: Stub) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_get("/w/api.php", stub)
    runner = web.AppRunner(app)
    await runner.setup()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    return runner, f"http://127.0.0.1:{listening.getsockname()[1]}/w/api.php"


def against(stub: Stub, test: Test, **options: Any) -> None:
    async def main() -> None:
        runner, url = await served(stub)
        pages = WikipediaPages(url, retry_s=0.01, **options)
        try:
            await test(pages, stub.seen)
        finally:
            await pages.close()
            await pages.close()
            await runner.cleanup()

    asyncio.run(main())


def test_pages_and_searches() -> None:
    async def test(pages: WikipediaPages, seen: list[dict[str, str]]) -> None:
        page = await pages.page("Avon-Mere")
        assert page is not None and page.title == "Avonmere", "redirects are followed"
        assert page.sentences[:2] == ("Avonmere is a town.", "It lies on the Tarn.") and "History" in page.sentences
        assert await pages.page("Nowhere") is None and await pages.page("Mercury") is None
        assert await pages.similar("grey sea", 5) == ["Tarn"] and await pages.similar("is a", 1) == ["Avonmere"]
        asked = len(seen)
        assert await pages.page("Avon-Mere") == page and await pages.similar("grey sea", 5) == ["Tarn"]
        assert len(seen) == asked, "asked once"
        assert await pages.page("|#<>") is None and await pages.similar("\ud800", 5) == [] and len(seen) == asked
        await pages.page("x" * 999 + "é|Tarn")
        assert len(seen[-1]["titles"].encode()) <= 250 and "|" not in seen[-1]["titles"]

    stub = Stub()
    against(stub, test)
    assert all("kintsugi" in agent for agent in stub.agents), "Wikimedia wants to know who asks"


def test_retries_and_refusals() -> None:
    async def fine(pages: WikipediaPages, seen: list[dict[str, str]]) -> None:
        assert await pages.page("Tarn") is not None and len(seen) == 3

    async def refused(pages: WikipediaPages, seen: list[dict[str, str]]) -> None:
        with pytest.raises(DataError, match=r"needs a network, and .*status 503.*corpus=\"question\""):
            await pages.page("Tarn")
        assert len(seen) == 3

    against(Stub(failures=2), fine)
    against(Stub(failures=9), refused)
    refusal = '{"error": {"code": "unknown_action", "info": "no such action"}}'
    for body, said in (("<html>", "no JSON"), (refusal, "no such action")):

        async def odd(pages: WikipediaPages, seen: list[dict[str, str]], said: str = said) -> None:
            with pytest.raises(DataError, match=said):
                await pages.similar("Tarn", 5)

        against(Stub(body=body), odd)


def test_words_that_the_wiki_refuses_find_nothing() -> None:
    async def nothing(pages: WikipediaPages, seen: list[dict[str, str]]) -> None:
        assert await pages.similar("insource:/(/", 5) == [] and await pages.page("insource:/(/") is None

    against(Stub(body='{"error": {"code": "cirrussearch-regex-syntax-error", "info": "unclosed"}}'), nothing)


def test_without_a_network_one_sentence() -> None:
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}/w/api.php"  # bound, not listening: refused
    environment = open_environment("hotpotqa", {"corpus": "wikipedia", "api": url})

    async def main() -> None:
        world = await environment.start(environment.tasks("train", limit=1)[0])
        with pytest.raises(DataError) as caught:
            await world.act("search[Tarn]")
        said = str(caught.value)
        assert "needs a network" in said and url in said and "corpus=" in said and "\n" not in said
        assert (await world.act("think: hm")).observation == "OK.", "only what searches needs it"
        await environment.close()

    asyncio.run(main())
    closed.close()


def test_an_episode_on_the_stub() -> None:
    async def main() -> None:
        runner, url = await served(Stub())
        environment = open_environment("hotpotqa", {"corpus": "wikipedia", "api": url})
        try:
            task = environment.tasks("train", limit=1)[0]
            assert "context" not in task.payload
            world = await environment.start(task)
            said = [(await world.act(action)).observation for action in ("search[Grey Sea]", "search[Avonmere]")]
            assert said[0] == 'There is no page "Grey Sea". Similar: Tarn.'
            assert said[1].startswith("Avonmere: Avonmere is a town. It lies on the Tarn. History")
            assert (await world.act("lookup[mill]")).observation == "(Result 1 / 1) Its mill burnt down."
            verdict = (await world.act(f"finish[{task.payload['answer']}]")).verdict
            assert verdict is not None and verdict.success
            for action in malformed_actions("search[Tarn]"):
                await (await environment.start(task)).act(action)
        finally:
            await environment.close()
            await runner.cleanup()

    asyncio.run(main())


def test_one_reader_in_several_event_loops() -> None:
    """A session belongs to its loop: another loop gets its own, and what was read stays."""
    stub = Stub()
    pages = WikipediaPages("http://127.0.0.1:9/w/api.php")

    async def main(title: str) -> None:
        runner, pages.api = await served(stub)
        assert await pages.page(title) is not None
        await runner.cleanup()

    asyncio.run(main("Tarn"))
    asyncio.run(main("Avonmere"))
    asyncio.run(pages.close())
    assert len(stub.seen) == 2

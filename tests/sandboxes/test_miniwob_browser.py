"""The browser behind MiniWoB++: what pages reach (nothing), what dies and comes back, what is left (nothing)."""

from __future__ import annotations

import asyncio
import http.server
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, MissingExtra
from kintsugi.sandboxes.environments import miniwob_chromium
from kintsugi.sandboxes.environments.miniwob_browser import Browser, Tab, TookTooLong
from kintsugi.sandboxes.environments.miniwob_chromium import BrowserDied, Refused
from kintsugi.sandboxes.environments.miniwob_page import pages_folder, play
from kintsugi.sandboxes.environments.miniwob_program import parse_commands
from tests.sandboxes.miniwob_trials import needs_browser, needs_pages


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def browser(folder: Path) -> Iterator[Browser]:
    opened = Browser(tabs=2, timeout_s=20.0)
    yield opened
    opened.close()
    assert list(folder.iterdir()) == [] and processes_of(folder) == []


def processes_of(folder: Path) -> list[str]:
    """Live processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.decode(errors="replace"))
    return found


async def two(tab: Tab) -> Any:
    return await tab.evaluate("1 + 1")


@needs_browser
def test_any_loop_and_any_thread_may_ask_and_close_leaves_nothing(browser: Browser, folder: Path) -> None:
    assert browser.starts == 0 and browser.pid is None
    assert asyncio.run(browser.use(two)) == 2 and asyncio.run(browser.use(two)) == 2 and browser.ask(two) == 2
    assert browser.starts == 1 and processes_of(folder)
    browser.close()
    browser.close()
    assert list(folder.iterdir()) == [] and processes_of(folder) == []
    assert browser.ask(two) == 2 and browser.starts == 2


@needs_browser
def test_a_script_that_throws_is_refused_and_costs_only_its_tab(browser: Browser) -> None:
    with pytest.raises(Refused, match="no such thing"):
        browser.ask(lambda tab: tab.evaluate("throw Error('no such thing')"))
    with pytest.raises(Refused):
        browser.ask(lambda tab: tab.call("Page.noSuchCommand"))
    assert browser.ask(two) == 2 and browser.starts == 1


@needs_browser
def test_tabs_share_nothing_but_the_browser(browser: Browser) -> None:
    async def both() -> list[Any]:
        barrier = asyncio.Barrier(2)

        async def remember(tab: Tab) -> Any:
            await tab.evaluate("window.mine = (window.mine || 0) + 1")
            async with asyncio.timeout(10):
                await barrier.wait()
            return tab.context, await tab.evaluate("window.mine")

        return list(await asyncio.gather(browser.use(remember), browser.use(remember)))

    (one, first), (other, second) = asyncio.run(both())
    assert one != other and first == second == 1 and browser.starts == 1


@needs_browser
def test_work_that_hangs_is_given_up_and_others_go_on(folder: Path) -> None:
    browser = Browser(tabs=2, timeout_s=6.0)
    try:
        browser.ask(two)
        with pytest.raises(TookTooLong):
            browser.ask(lambda tab: tab.evaluate("while (true) {}"))
        assert browser.ask(two) == 2
        with pytest.raises(TookTooLong):
            browser.ask(lambda tab: asyncio.sleep(60))
        assert browser.ask(two) == 2 and browser.starts == 1
    finally:
        browser.close()
    assert list(folder.iterdir()) == [] and processes_of(folder) == []


@needs_browser
def test_a_killed_browser_comes_back_and_the_work_is_done_again(browser: Browser) -> None:
    tries: list[int] = []

    async def killed_once(tab: Tab) -> Any:
        tries.append(tab.process.pid)
        if len(tries) == 1:
            os.kill(tab.process.pid, signal.SIGKILL)
        return await tab.evaluate("6 * 7")

    assert browser.ask(killed_once) == 42 and len(set(tries)) == 2 and browser.starts == 2

    async def always(tab: Tab) -> Any:
        os.kill(tab.process.pid, signal.SIGKILL)
        return await tab.evaluate("6 * 7")

    with pytest.raises(BrowserDied):
        browser.ask(always)
    assert browser.ask(two) == 2


@needs_browser
def test_close_ends_work_under_way(browser: Browser) -> None:
    async def main() -> Any:
        work = asyncio.ensure_future(browser.use(lambda tab: tab.evaluate("new Promise(() => 0)")))
        while browser.pid is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        await asyncio.to_thread(browser.close)
        async with asyncio.timeout(10):
            await work

    with pytest.raises(BrowserDied):
        asyncio.run(main())


@needs_browser
def test_a_browser_killed_before_a_page_has_loaded_is_noticed_at_once(browser: Browser) -> None:
    tries: list[int] = []

    async def loads(tab: Tab) -> int:
        tries.append(tab.process.pid)
        if len(tries) == 1:
            asyncio.get_running_loop().call_later(0.5, os.kill, tab.process.pid, signal.SIGKILL)
            await tab.go("data:text/html,<script>while (true) {}</script>")
        return 42

    began = time.monotonic()
    assert browser.ask(loads) == 42 and len(set(tries)) == 2
    assert time.monotonic() - began < browser.timeout_s


def test_the_browser_ends_with_a_killed_parent(folder: Path) -> None:
    script = (
        "import sys, tempfile, time\ntempfile.tempdir = sys.argv[1]\n"
        "from kintsugi.sandboxes.environments.miniwob_browser import Browser\n"
        "browser = Browser()\nprint(browser.ask(lambda tab: tab.evaluate('2')), flush=True)\ntime.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "2\n"
    child.kill()
    child.wait()
    deadline = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(folder) == []


@needs_browser
def test_python_that_ends_without_close_leaves_nothing(folder: Path) -> None:
    script = (
        "import sys, tempfile\ntempfile.tempdir = sys.argv[1]\n"
        "from kintsugi.sandboxes.environments.miniwob_browser import Browser\n"
        "browser = Browser()\nprint(browser.ask(lambda tab: tab.evaluate('2')))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "2\n" and ended.returncode == 0, ended.stderr
    assert list(folder.iterdir()) == [] and processes_of(folder) == []


@needs_browser
@needs_pages
def test_pages_reach_no_server_and_no_file(browser: Browser) -> None:
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    urls = [f"http://{host}:{port}/" for host in ("127.0.0.1", "localhost", socket.gethostname(), "[::1]")]
    page = (pages_folder() / "click-test.html").as_uri()

    async def tries(tab: Tab) -> list[Any]:
        await tab.go(page)
        told = []
        told.append(await tab.evaluate("fetch('file:///etc/passwd').then((r) => r.text()).catch(() => 'nothing')"))
        for url in urls:
            told.append(await tab.evaluate(f"fetch('{url}').then((r) => r.text()).catch(() => 'nothing')"))
            await tab.evaluate(f"new Image().src = '{url}image'; navigator.sendBeacon('{url}beacon', 'x'); 0")
        socket_told = "new Promise((go) => {const s = new WebSocket('ws://127.0.0.1:%d/'); s.onerror = () => go('nothing')})"
        return [*told, await tab.evaluate(socket_told % port)]

    async def navigates(tab: Tab) -> Any:
        return await tab.call("Page.navigate", url=urls[0])

    try:
        assert set(browser.ask(tries)) == {"nothing"}
        assert "errorText" in browser.ask(navigates)
        time.sleep(0.3)
        assert asked == []
    finally:
        server.shutdown()
        server.server_close()


@needs_browser
@needs_pages
def test_what_a_program_says_is_text_to_the_page(browser: Browser) -> None:
    nasty = "<img src=x onerror='window.hacked=1'></script><script>window.hacked=1</script>\"); window.hacked=1; (\"${1}`'\\"
    commands = parse_commands(f"agent.click_xpath('//input')\nagent.type({nasty!r})\nagent.click_xpath({nasty[:200]!r})")
    assert commands.objection is None

    async def work(tab: Tab) -> Any:
        seen = await play(tab, pages_folder(), "enter-text", 3, [commands.commands])
        value = await tab.evaluate("document.querySelector('#tt').value")
        return seen, value, await tab.evaluate("window.hacked"), await tab.evaluate("WOB_RAW_REWARD_GLOBAL")

    seen, value, hacked, reward = browser.ask(work)
    assert value == nasty and hacked is None and reward == 0 and not seen.done
    assert "is no XPath" in seen.problem


def test_a_missing_browser_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Chromium's program"):
        Browser(binary=tmp_path / "none").ask(two)
    monkeypatch.setattr(miniwob_chromium, "BINARIES", ("no-such-browser",))
    with pytest.raises(MissingExtra, match="apt-get install chromium"):
        Browser().ask(two)

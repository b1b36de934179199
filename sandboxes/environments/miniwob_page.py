"""A MiniWoB++ page in a browser's tab: opened at a seed, acted on by commands, looked at.

    seen = await play(tab, folder, "click-button", seed=7, programs=[commands])
    seen.done, seen.raw_reward, seen.html

A page is loaded anew for each attempt, which finds nothing of another's. `first_looks` acts on nothing, and seeds a page
that is loaded again and again (a fifteenth of the work), but for those that differ then. A page's clock is put far off
before it starts (the raw reward knows no time), and animations are off, so the same commands always find the same page.

A command is a real mouse or key event; a place that is covered on all sides is clicked by script instead. The clipboard
is this attempt's own: the computer's is never touched. Text of a program reaches the page as JSON, as the argument of a
function, or as keys, and is never part of a script.

Left out: dragging, drawing, and pages that measure time.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import missing_extra
from kintsugi.sandboxes.environments.miniwob_browser import Tab
from kintsugi.sandboxes.environments.miniwob_chromium import Refused
from kintsugi.sandboxes.environments.miniwob_program import KEYS, Command

MAX_KEYED: Final = 60
"""Characters in a row that are typed key by key: a key takes a page 5 to 10 ms."""
SIZE: Final = (160, 210)
"""Pixels of a page: width, height."""

ANEW: Final = ("use-slider",)
"""Of ENVISIONS' pages, those whose HTML is another when they are seeded a second time; found by trying all."""

_OPEN: Final = """(seed) => {
  if (window.jQuery) jQuery.fx.off = true;
  core.EPISODE_MAX_TIME = 2e9;
  Math.seedrandom(seed);
  core.startEpisodeReal();
  core.getDOMInfo();
}"""

_LOOK: Final = """async () => {
  await new Promise((go) => setTimeout(() => setTimeout(go, 0), 0));
  const own = ['reward-display', 'sync-task-cover', 'click-canvas'];
  const shown = (el) => el.getClientRects().length > 0 && getComputedStyle(el).visibility !== 'hidden';
  const parts = [...document.body.children].filter((el) => el.id === 'wrap' || (!own.includes(el.id) && shown(el)));
  const html = parts.map((el) => {
    const copy = el.cloneNode(true);
    copy.querySelectorAll('style, script').forEach((one) => one.remove());
    for (const one of [copy, ...copy.querySelectorAll('*')])
      for (const name of ['data-wob_ref', 'data-wob_eps', 'data-tampered']) one.removeAttribute(name);
    return copy.outerHTML;
  }).join('\\n').replace(/[ \\t]*\\n\\s*/g, '\\n').trim();
  const fields = [...document.querySelectorAll('input, textarea, select')].filter(shown).map((el) => {
    const name = (el.localName + (el.id ? '#' + el.id : '')).slice(0, 60);
    if (el.type === 'checkbox' || el.type === 'radio') return el.checked ? name + ' is checked' : '';
    const value = el.localName === 'select' ? [...el.selectedOptions].map((one) => one.text).join(', ') : el.value;
    return value ? name + ' holds "' + value.slice(0, 60) + '"' : '';
  }).filter(Boolean).slice(0, 12);
  return {html, fields, query: core.getUtterance(), done: WOB_DONE_GLOBAL, raw: WOB_RAW_REWARD_GLOBAL};
}"""

_FIND: Final = """(xpath) => {
  let found;
  try { found = document.evaluate(xpath, document, null, XPathResult.ORDERED_NODE_SNAPSHOT_TYPE, null); }
  catch (error) { return {problem: 'is no XPath that finds elements'}; }
  const all = [];
  for (let i = 0; i < found.snapshotLength; i++) {
    const node = found.snapshotItem(i);
    if (node instanceof Element && node.id !== 'sync-task-cover') all.push(node);
  }
  if (!all.length) {
    const leaf = (el) => el.getClientRects().length && !el.children.length;
    const named = [...document.querySelectorAll('#wrap *')].filter(leaf);
    const short = (el) => '<' + el.localName + (el.id ? ' id="' + el.id.slice(0, 30) + '"' : '') + '>' +
      (el.textContent.trim().slice(0, 30));
    return {problem: 'finds no element', there: named.slice(0, 15).map(short)};
  }
  const shown = (el) => el.getClientRects().length > 0 && getComputedStyle(el).visibility !== 'hidden';
  const inList = (el) => el.localName === 'option' && el.closest('select') && shown(el.closest('select'));
  const el = all.find((one) => inList(one) || shown(one));
  if (!el) return {problem: 'finds only elements that are not shown'};
  window.kintsugiFound = el;
  if (inList(el)) return {option: true};
  el.scrollIntoView({block: 'center', inline: 'center'});
  const box = el.getClientRects()[0];
  const free = (x, y) => { const top = document.elementFromPoint(x, y); return top && (el === top || el.contains(top)); };
  for (const down of [0.5, 0.25, 0.75, 0.1, 0.9]) for (const right of [0.5, 0.25, 0.75, 0.1, 0.9]) {
    const x = box.left + box.width * right, y = box.top + box.height * down;
    if (free(x, y)) return {x, y};
  }
  return {covered: true, x: box.left + box.width / 2, y: box.top + box.height / 2};
}"""

_CHOOSE: Final = """() => {
  const option = window.kintsugiFound, list = option.closest('select');
  list.focus();
  if (list.multiple) option.selected = !option.selected; else list.selectedIndex = option.index;
  for (const kind of ['input', 'change']) list.dispatchEvent(new Event(kind, {bubbles: true}));
}"""

_CLICK: Final = "() => { const el = window.kintsugiFound; el.click ? el.click() : el.dispatchEvent(new Event('click')); }"

_FOCUS: Final = """() => {
  const el = document.activeElement;
  const takes = el && (el.localName === 'textarea' || (el.localName === 'input' &&
    !['checkbox', 'radio', 'button', 'submit'].includes(el.type)));
  let selected = String(getSelection());
  if (takes && el.selectionStart !== null) selected = el.value.slice(el.selectionStart, el.selectionEnd);
  return {takes: Boolean(takes), kind: takes ? el.type : '', selected};
}"""

_FILL: Final = """(value) => {
  const el = document.activeElement;
  el.value = value;
  for (const kind of ['input', 'change']) el.dispatchEvent(new Event(kind, {bubbles: true}));
}"""

_CODES: Final = {
    "Enter": 13, "Tab": 9, " ": 32, "Escape": 27, "Backspace": 8, "Delete": 46, "Home": 36, "End": 35, "PageUp": 33,
    "PageDown": 34, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip
_EDITS: Final = ("all", "copy", "cut", "paste")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A page as it stands. html: of what is shown. fields: sentences about what fields hold. query: the page's task.
    done: the page ended the attempt, with raw_reward in [-1, 1]. problem: why the last program stopped before its end.
    command: the one that stopped it, or ended the attempt. notes: sentences about commands that did nothing.
    picture: a PNG, when asked for."""

    html: str
    query: str
    fields: tuple[str, ...] = ()
    done: bool = False
    raw_reward: float = 0.0
    problem: str = ""
    command: Command | None = None
    notes: tuple[str, ...] = ()
    picture: bytes = b""


def pages_folder() -> Path:
    """The folder of the package's pages; the package itself is not imported. Raises MissingExtra."""
    found = importlib.util.find_spec("miniwob")
    if found is None or not found.submodule_search_locations:
        raise missing_extra("miniwob", "web")
    return Path(found.submodule_search_locations[0]) / "html" / "miniwob"


async def play(
    tab: Tab, folder: Path, page: str, seed: int, programs: Sequence[Sequence[Command]] = (), *, picture: bool = False
) -> Seen:
    """The page after `programs`, each of which stops at its first problem. picture: take one."""
    await tab.go((folder / f"{page}.html").as_uri())
    await _script(tab, _OPEN, str(seed))
    hands = _Hands(tab)
    seen = await _look(tab)
    for program in programs:
        seen = replace(seen, problem="", command=None, notes=())
        for command in program:
            if seen.done:
                break
            try:
                problem = await hands.do(command)
                now = await _look(tab)
            except Refused:  # our scripts do not throw on a page of the package: it went to another one
                return replace(seen, problem=f"{command} left the page", command=command)
            seen = replace(now, problem=problem, command=command, notes=tuple(hands.notes))
            if problem:
                break
        hands.notes.clear()
    return replace(seen, picture=await _picture(tab)) if picture else seen


async def first_looks(tab: Tab, folder: Path, page: str, seeds: Sequence[int]) -> list[Seen]:
    """The page as it is at first, at each of the seeds."""
    seen = []
    for number, seed in enumerate(seeds):
        if number == 0 or page in ANEW:
            await tab.go((folder / f"{page}.html").as_uri())
        await _script(tab, _OPEN, str(seed))
        seen.append(await _look(tab))
    return seen


class _Hands:
    """Mouse, keyboard and clipboard of one attempt."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab
        self.clipboard = ""
        self.notes: list[str] = []

    async def do(self, command: Command) -> str:
        """Do one command; what is wrong with it, or nothing."""
        match command.name:
            case "type":
                kind = await self._needs_focus(command)
                value = field_value(kind, command.text)
                if value is not None:
                    await _script(self.tab, _FILL, value)
                else:
                    await self._write(command.text)
            case "press":
                name = command.text.lower().replace("command", "ctrl").replace("control", "ctrl")
                await self._press(KEYS.get(name, command.text), command)
            case _:
                return await self._point(command)
        return ""

    async def _write(self, text: str) -> None:
        """Keys for what a keyboard has, if it is short; the rest comes as an input method brings it, at once."""
        for run in re.findall(r"[\n\t]|[^\n\t]+", text):
            if len(run) > MAX_KEYED or not run.isascii():
                await self.tab.call("Input.insertText", text=run)
            else:
                await asyncio.gather(*(self._key(char) for char in run))

    async def _point(self, command: Command) -> str:
        found = await _script(self.tab, _FIND, command.text)
        if "problem" in found:
            there = "; the page shows " + ", ".join(found["there"]) if found.get("there") else ""
            return f"{command} {found['problem']}{there}"
        if command.name == "click_option" and not found.get("option"):
            return f"{command} finds no option of a list: click_xpath clicks other elements"
        if found.get("option"):
            if command.name != "movemouse":
                await _script(self.tab, _CHOOSE)
        elif command.name == "movemouse":
            await self._mouse("mouseMoved", found, button="none")
        elif found.get("covered"):
            await _script(self.tab, _CLICK)
        else:
            await asyncio.gather(self._mouse("mousePressed", found), self._mouse("mouseReleased", found))
        return ""

    def _mouse(self, kind: str, at: Any, button: str = "left") -> Any:
        return self.tab.call("Input.dispatchMouseEvent", type=kind, x=at["x"], y=at["y"], button=button, clickCount=1)

    async def _needs_focus(self, command: Command) -> str:
        """The kind of field that has the focus, "" for none."""
        focus = await _script(self.tab, _FOCUS)
        if not focus["takes"]:
            self.notes.append(f"line {command.line}: nothing that takes text had the focus; click a field first")
        return focus["kind"]

    async def _press(self, key: str, command: Command) -> None:
        if key not in _EDITS:
            await asyncio.gather(*(self._key(key) for _ in range(command.times)))
            return
        if key == "all":
            keys = {"key": "a", "code": "KeyA", "windowsVirtualKeyCode": 65, "modifiers": 2}
            down = self.tab.call("Input.dispatchKeyEvent", type="rawKeyDown", **keys, commands=["selectAll"])
            await asyncio.gather(down, self.tab.call("Input.dispatchKeyEvent", type="keyUp", **keys))
        elif key == "paste":
            await self._needs_focus(command)
            await self.tab.call("Input.insertText", text=self.clipboard)
        else:  # no key event: the browser would copy too, to a clipboard that all its pages share
            self.clipboard = (await _script(self.tab, _FOCUS))["selected"]
            if key == "cut" and self.clipboard:
                await self._key("Delete")

    async def _key(self, key: str) -> None:
        key = {"\n": "Enter", "\t": "Tab"}.get(key, key)
        if key in _CODES:
            text = {"Enter": "\r", " ": " "}.get(key, "")
            keys = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": _CODES[key]}
        else:
            text = key
            code = ord(key.upper()) if key.isascii() and key.isalnum() else 0
            keys = {"key": key, "windowsVirtualKeyCode": code}
        down = {"type": "keyDown", "text": text, "unmodifiedText": text} if text else {"type": "rawKeyDown"}
        call = self.tab.call
        await asyncio.gather(
            call("Input.dispatchKeyEvent", **down, **keys), call("Input.dispatchKeyEvent", type="keyUp", **keys)
        )


def field_value(kind: str, text: str) -> str | None:
    """What a date's or time's field of the browser holds for a text; None where keys are to be pressed.

    Such a field has parts of which a click picks one, so what keys do in it depends on where it was clicked.

    >>> field_value("date", "06/11/2018"), field_value("time", "4:21 PM")
    ('2018-06-11', '16:21')
    """
    text = text.strip()
    if kind == "date":
        if match := re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", text):
            return f"{match[3]}-{int(match[1]):02}-{int(match[2]):02}"
        return text if re.fullmatch(r"\d{4}-\d\d-\d\d", text) else None
    if kind == "time" and (match := re.fullmatch(r"(\d{1,2}):(\d\d)\s*([AaPp][Mm])?", text)):
        hours = int(match[1]) % 12 + 12 * (match[3].lower() == "pm") if match[3] else int(match[1])
        return f"{hours:02}:{match[2]}"
    return None


async def _look(tab: Tab) -> Seen:
    found = await _script(tab, _LOOK)
    return Seen(
        html=found["html"],
        query=found["query"],
        fields=tuple(found["fields"]),
        done=found["done"],
        raw_reward=float(found["raw"]),
    )


async def _picture(tab: Tab) -> bytes:
    await tab.evaluate("void (core.cover_div.style.display = 'none')")  # it hides what the attempt left behind
    clip = {"x": 0, "y": 0, "width": SIZE[0], "height": SIZE[1], "scale": 2}
    found = await tab.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    return base64.b64decode(found["data"])


async def _script(tab: Tab, function: str, *arguments: Any) -> Any:
    """The value of one of the functions above."""
    return await tab.evaluate(f"({function})({', '.join(json.dumps(one) for one in arguments)})")

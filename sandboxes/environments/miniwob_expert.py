"""A scripted expert for MiniWoB++: a program for a page from the prompt alone, which is what an agent reads.

    program = expert("click-button", task.prompt)       # 'agent.click_xpath(\\'//button[text()="Ok"]\\')'

It knows ENVISIONS' 44 pages, and is what `gold` gives. Two pages need more than the prompt: guess-number is won by trying
every number in one program, and click-checkboxes-soft by the lists of words that mean the same in the page's own
file. Left out: other pages, and attempts under way.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Callable, Mapping
from functools import cache
from html.parser import HTMLParser
from typing import Final

from kintsugi.sandboxes.environments.miniwob_page import pages_folder

SUBMIT: Final = '//button[@id="subbtn"]'


def expert(page: str, prompt: str) -> str | None:
    """The program for a prompt of a page; None for a page that it does not know."""
    plays = _PLAYS.get(page)
    if plays is None:
        return None
    head, _, body = prompt.partition("\nPage:\n")
    return "\n".join(plays(head.removeprefix("Task: "), body))


# Commands


def click(xpath: str) -> str:
    return f"agent.click_xpath({xpath!r})"


def choose(text: str) -> str:
    return f"agent.click_option({f'//option[text()={quoted(text)}]'!r})"


def write(text: str) -> str:
    return f"agent.type({text!r})"


def press(key: str, times: int = 1) -> list[str]:
    """Nothing for no presses."""
    return [f"agent.press({key!r}, {times})" if times > 1 else f"agent.press({key!r})"] if times else []


def quoted(text: str) -> str:
    """A text in an XPath, which has no way to write both kinds of quotes."""
    return f'"{text}"' if '"' not in text else f"'{text}'"


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    return match[1] if match else ""


# Pages


def _button(task: str, page: str) -> list[str]:
    return [click(f"//button[text()={quoted(found('Click on the .(.*). button', task))}]")]


def _checkboxes(task: str, page: str) -> list[str]:
    names = found(r"Select (.*) and click Submit", task)
    ticks = [] if names == "nothing" else names.split(", ")
    return [*(click(f"//label[text()={quoted(name)}]/input") for name in ticks), click(SUBMIT)]


def _similar(task: str, page: str) -> list[str]:
    wanted = found(r"similar to (.*) and click Submit", task).split(", ")
    labels = [html.unescape(text) for text in re.findall(r'id="ch\d+">([^<]*)', page)]
    groups = [set(group) for group in _same_meaning()]
    ticks = [label for label in labels if any(label in group and group & set(wanted) for group in groups)]
    return [*(click(f"//label[text()={quoted(label)}]/input") for label in ticks), click(SUBMIT)]


@cache
def _same_meaning() -> list[list[str]]:
    text = (pages_folder() / "click-checkboxes-soft.html").read_text(encoding="utf-8")
    return ast.literal_eval(found(r"SYNONYMS = (\[.*?\n\])", text) or "[]")


def _list(task: str, page: str) -> list[str]:
    names = found(r"Select (.*) from the (?:scroll )?list", task).split(", ")
    return [*map(choose, names), click('//button[text()="Submit"]')]


def _date_picker(task: str, page: str) -> list[str]:
    month, day = (int(part) for part in found(r"(\d\d/\d\d)/\d{4}", task).split("/"))
    back = [click('//a[@title="Prev"]')] * (12 - month)  # it opens on the last month that can be chosen
    return [click('//input[@id="datepicker"]'), *back, click(f'//td[@data-handler]/a[text()="{day}"]'), click(SUBMIT)]


def _color(task: str, page: str) -> list[str]:
    return [click(f'//div[@data-color="{found("Click on the (.*) colored box", task).rstrip(";")}"]')]


def _dialog(task: str, page: str) -> list[str]:
    label = found(r'labeled "(.*)"', task) or "x"
    return [click('//button[@title="Close"]' if label == "x" else f"//button[text()={quoted(label)}]")]


def _link(task: str, page: str) -> list[str]:
    return [click(f'//span[@class="alink" and text()={quoted(found("link .(.*).[.]", task))}]')]


def _shades(task: str, page: str) -> list[str]:
    color = found(r"shades of (\w+)", task)
    count = page.count(f'<span data-color="{color}"')
    return [*(click(f'(//span[@data-color="{color}"])[{n}]') for n in range(1, count + 1)), click('//button[@id="submit"]')]


def shapes(page: str) -> list[tuple[str, str, str, str]]:
    """(size, color, kind, text) of the things in a drawing, in order: ("large", "red", "shape", "circle")."""
    things = []
    for tag, marks, text in re.findall(r"<(text|rect|circle|polygon) ([^>]*)>([^<]*)", page):
        marks = dict(re.findall(r'([\w-]+)="([^"]*)"', marks))
        points = [float(point.split(",")[0]) for point in marks.get("points", "0,0").split()]
        sizes = {"text": marks.get("font-size", "0")[:-2], "rect": marks.get("width"), "polygon": points[-1] - points[0]}
        size = float(sizes.get(tag) or 0) or 2 * float(marks.get("r", 0))
        named = {"rect": "rectangle", "circle": "circle", "polygon": "triangle"}.get(tag, text)
        kind = "shape" if tag != "text" else "digit" if text.isdigit() else "letter"
        things.append(("large" if size > 15 else "small", marks["fill"], kind, named))
    return things


def _shape(task: str, page: str) -> list[str]:
    *words, what = found(r"Click on an? (.*)", task).split(" ")
    for number, (size, color, kind, text) in enumerate(shapes(page), start=1):
        if all(word in (size, color) for word in words) and what in ("item", kind, text):
            return [click(f'//*[@id="area_svg"]/*[{number}]')]
    return []


def _name_of_shape(task: str, page: str) -> list[str]:
    ((_, _, kind, text),) = shapes(page)
    return [click(f'//button[@data-type="{text if kind == "shape" else kind}"]')]


def _copy(task: str, page: str) -> list[str]:
    number = found(r"from the (\d)", task)
    source = f'//textarea[@id="text-{number}"]' if number else "//textarea"
    keys = [*press("ctrl+a"), *press("ctrl+c")]
    return [click(source), *keys, click('//input[@id="answer-input"]'), *press("ctrl+v"), click(SUBMIT)]


def _into(field: str, text: str) -> list[str]:
    return [click(field), write(text)]


def _password(task: str, page: str) -> list[str]:
    word = found(r'"(.*)"', task)
    return [*_into('//input[@id="password"]', word), *_into('//input[@id="verify"]', word), click(SUBMIT)]


def _text(pattern: str) -> Callable[[str, str], list[str]]:
    return lambda task, page: [*_into('//input[@id="tt"]', html.unescape(found(pattern, task))), click(SUBMIT)]


def _letters(task: str, page: str) -> list[str]:
    return [*_into('//input[@id="tt"]', "".join(re.findall(r"deg\);\">(.)</span>", page))), click(SUBMIT)]


def _table(task: str, page: str) -> list[str]:
    row = re.escape(html.escape(found(r"value of (.*) into", task), quote=False))
    value = html.unescape(found(rf"<td>{row}</td><td>(.*?)</td>", page))
    return [*_into('//input[@id="tt"]', value), click(SUBMIT)]


def _focus(task: str, page: str) -> list[str]:
    return [click(f'//input[@id="tt{found(r"the (.).. input", task)}"]')]


def _guess(task: str, page: str) -> list[str]:
    return [line for n in range(10) for line in (click('//input[@id="tt"]'), *press("ctrl+a"), write(str(n)), click(SUBMIT))]


def _sum(task: str, page: str) -> list[str]:
    left, sign, right, equals = re.search(r'"math-problem">(\w+) ([-+x]) (\w+) = (\d*)', page).groups()  # type: ignore[union-attr]
    if not equals:
        value = {"+": int(left) + int(right), "-": int(left) - int(right), "x": int(left) * int(right)}[sign]
    elif left == "x":
        value = int(equals) - int(right) if sign == "+" else int(equals) + int(right)
    else:
        value = int(equals) - int(left) if sign == "+" else int(left) - int(equals)
    return [*_into('//input[@id="math-answer"]', str(value)), click(SUBMIT)]


def _movies(task: str, page: str) -> list[str]:
    genre, name, year = re.search(r"for (.*) movies directed by (.*) from year (\d+)", task).groups()  # type: ignore[union-attr]
    lines: list[str] = []
    for labels, text in ((("Genre",), genre), (("Director",), name), (("Year", "Released"), year)):
        test = " or ".join(f'contains(text(), "{label}")' for label in labels)
        lines += _into(f'//*[@id="area"]//*[{test}]/..//input', text)
    button = " or ".join(f'text()="{label}"' for label in ("Submit", "Search", "Go!"))
    return [*lines, click(f'//*[@id="area"]//*[{button}]')]


class _Tree(HTMLParser):
    """The names in a file tree, each with the numbers of the folders that it lies in; numbers as of `//span`, from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, list[int]]] = []
        self._folders: list[int] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "ul":
            self._folders.append(len(self.names))
        self._open = tag == "span"

    def handle_endtag(self, tag: str) -> None:
        if tag == "ul":
            self._folders.pop()
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.names.append((data, self._folders[1:]))


def _tree(task: str, page: str) -> list[str]:
    tree = _Tree()
    tree.feed(page)
    wanted = found(r'named "(.*)"', task)
    for number, (name, folders) in enumerate(tree.names, start=1):
        if name == wanted:
            return [click(f'(//ul[@id="tree"]//span)[{one}]') for one in (*folders, number)]
    return []


def _search(task: str, page: str) -> list[str]:
    number = int(found(r"click the (\d)", task))
    turn = [click(f'//ul[@id="pagination"]//a[text()="{(number + 2) // 3}"]')] if number > 3 else []
    go = [*_into('//input[@id="search-text"]', found(r'"(.*?)"', task)), click('//button[@id="search"]')]
    return [*go, *turn, click(f'//a[@data-result="{number - 1}"]')]


def _posts(task: str, page: str) -> list[str]:
    name, user = re.search(r'"(.*)" button on all posts by (\S+)', task).groups()  # type: ignore[union-attr]
    users = re.findall(r'class="username">(.*?)</span>', page)
    mine = [number for number, one in enumerate(users, start=1) if one == user]
    buttons = [click(f'//div[@class="media"][{number}]//span[@class="{name.lower()}"]') for number in mine]
    return [*buttons, click('//button[text()="Submit"]')]


def _slider(task: str, page: str) -> list[str]:
    steps = int(found(r"Select (-?\d+)", task)) - int(found(r'id="val">(-?\d+)', page))
    handle = click('//span[contains(@class, "ui-slider-handle")]')
    return [handle, *press("arrowright" if steps > 0 else "arrowleft", abs(steps)), click(SUBMIT)]


def _spinner(task: str, page: str) -> list[str]:
    steps = int(found(r"Select (-?\d+)", task))
    arrow = "up" if steps > 0 else "down"
    return [*[click(f'//a[contains(@class, "ui-spinner-{arrow}")]')] * abs(steps), click(SUBMIT)]


def _always(*xpaths: str) -> Callable[[str, str], list[str]]:
    return lambda task, page: [click(xpath) for xpath in xpaths]


_PLAYS: Final[Mapping[str, Callable[[str, str], list[str]]]] = {
    "choose-date": _date_picker,
    "choose-list": _list,
    "click-button": _button,
    "click-button-sequence": _always(SUBMIT, '//button[@id="subbtn2"]'),
    "click-checkboxes": _checkboxes,
    "click-checkboxes-large": _checkboxes,
    "click-checkboxes-soft": _similar,
    "click-checkboxes-transfer": _checkboxes,
    "click-collapsible": _always("//h3", SUBMIT),
    "click-color": _color,
    "click-dialog": _dialog,
    "click-dialog-2": _dialog,
    "click-link": _link,
    "click-option": _checkboxes,
    "click-scroll-list": _list,
    "click-shades": _shades,
    "click-shape": _shape,
    "click-tab": lambda task, page: [click(f'//a[text()="{found("(Tab #[0-9]+)", task)}"]')],
    "click-test": _always(SUBMIT),
    "click-test-2": _always(SUBMIT),
    "click-widget": lambda task, page: [click(f'//*[@data-type="{found("a .([a-z]+). widget", task)}"]')],
    "copy-paste": _copy,
    "copy-paste-2": _copy,
    "enter-date": _text(r"Enter (\S+) as the date"),
    "enter-password": _password,
    "enter-text": _text(r'Enter "(.*)" into'),
    "enter-text-dynamic": _text(r'Enter "(.*)" into'),
    "enter-time": _text(r"Enter (.*) as the time"),
    "focus-text": _always('//input[@id="tt"]'),
    "focus-text-2": _focus,
    "guess-number": _guess,
    "identify-shape": _name_of_shape,
    "multi-layouts": _movies,
    "multi-orderings": _movies,
    "navigate-tree": _tree,
    "read-table": _table,
    "search-engine": _search,
    "simple-algebra": _sum,
    "simple-arithmetic": _sum,
    "social-media-all": _posts,
    "text-transform": _letters,
    "unicode-test": _button,
    "use-slider": _slider,
    "use-spinner": _spinner,
}

"""Layouts as VPGen writes them: phrases with boxes, on a square of 100 bins each way; read, written and drawn.

    Objects: two skiers (2), a ski lift (1)
    Layout: two skiers [(10, 40, 35, 95), (52, 38, 80, 96)] a ski lift [(0, 2, 99, 30)]

`Objects:` names what is drawn and how often; it is the first of VPGen's two answers, may be missing, and is not judged.
The layout lists boxes `(x1, y1, x2, y2)`, the left upper and the right lower corner, whole numbers from 0 to 99; one
phrase after another, on one line or many. A phrase in quotes, as in `the word 'stop' [(…)]`, is text in the picture.
Stricter than VPGen's own reader, which drops a layout with an odd box without a word: here the first odd box is told.

`draw_layout` shows a layout to people, as labelled boxes. Source: Cho et al. 2023 (arXiv 2305.15328).
Left out: what a painter makes of it (`vpgen_gligen.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from kintsugi.errors import missing_extra
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.program_of_thought import Objection

BINS: Final = 100
PIXELS: Final = 512
"""Width and height of the picture that GLIGEN makes of a layout."""
MAX_BOXES: Final = 30
"""As many as GLIGEN paints."""
MAX_PHRASE: Final = 120

_BOX: Final = re.compile(r"\(([^()\[\]]{0,80})\)")
_BETWEEN: Final = re.compile(r"[\s,;]*")
_COUNTED: Final = re.compile(r"([^(),;:]{1,120})\((\d{1,3})\)")
_HEADING: Final = re.compile(r"^[ \t]*(objects|layout|coordinates|boxes)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_QUOTED: Final = re.compile(r"(?:^|(?<=\s))['\"‘“]([^'\"‘’“”]{1,60})['\"’”](?=\s|$|[.,!?])")
_FRAMES: Final = ("#d1495b", "#30638e", "#3c8d5a", "#edae49", "#7b4fa3", "#00798c", "#a0522d", "#4d4d4d")

Corners = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Box:
    """One box: its phrase and corners in bins, 0 to 99."""

    phrase: str
    corners: Corners

    @property
    def pixels(self) -> Corners:
        """The corners in pixels of the picture, cut to whole numbers as VPEval's detector cuts them."""
        left, top, right, bottom = (int(side / (BINS - 1) * PIXELS) for side in self.corners)
        return left, top, right, bottom

    @property
    def written(self) -> str | None:
        """The text that is written in the picture here, None for a box of anything else."""
        found = _QUOTED.search(self.phrase)
        return found[1] if found else None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """boxes: in the order written. counted: phrase → number, as `Objects:` has them; empty without it."""

    boxes: tuple[Box, ...]
    counted: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return write_layout([(box.phrase, box.corners) for box in self.boxes])


def read_layout(text: str) -> Layout | Objection:
    """The layout, or the first thing to object to, with its line in `text` (from 1). Never raises."""
    objects, start = _parts(text)
    boxes: list[Box] = []
    place = start
    while (opened := text.find("[", place)) >= 0:
        line = text.count("\n", 0, opened) + 1
        phrase = " ".join(re.split(r"[\n\]]", text[place:opened])[-1].split()).strip(" ,;:.-*`")
        closed = text.find("]", opened)
        if closed < 0:
            return Objection(text=f"The list of boxes of line {line} is not closed: ] is missing.", line=line, note="no ]")
        if not phrase or len(phrase) > MAX_PHRASE:
            return Objection(text=f"Boxes without a short phrase before them (line {line}).", line=line, note="no phrase")
        found = _boxes(phrase, text[opened + 1 : closed], line)
        if isinstance(found, Objection):
            return found
        boxes += found
        if len(boxes) > MAX_BOXES:
            return Objection(text=f"Expected at most {MAX_BOXES} boxes.", line=line, note="too many boxes")
        place = closed + 1
    if not boxes:
        return Objection(text="The answer holds no layout: write phrases with boxes, as in a dog [(20, 40, 60, 90)].")
    return Layout(boxes=tuple(boxes), counted=_counted(objects))


def _parts(text: str) -> tuple[str, int]:
    """What stands under `Objects:`, and where the layout begins."""
    headings = list(_HEADING.finditer(text))
    layouts = [found for found in headings if found[1].lower() != "objects"]
    start = layouts[-1].end() if layouts else 0
    objects = next((found for found in headings if found[1].lower() == "objects"), None)
    if objects is None:
        return "", start
    end = next((found.start() for found in headings if found.start() > objects.start()), None)
    said = text[objects.end() : end] if end is not None else text[objects.end() :].partition("\n")[0]
    if not layouts:
        start = objects.end() + len(said)
    return said, start


def _boxes(phrase: str, inner: str, line: int) -> list[Box] | Objection:
    boxes = []
    place = 0
    while place < len(inner):
        place = _BETWEEN.match(inner, place).end()  # pyright: ignore[reportOptionalMemberAccess]
        if place >= len(inner):
            break
        found = _BOX.match(inner, place)
        corners = _corners(found[1]) if found else None
        if found is None or corners is None:
            shown = readable(found[0] if found else inner[place:], 40)
            text = f'Expected boxes (x1, y1, x2, y2) of whole numbers from 0 to {BINS - 1}, found "{shown}"'
            return Objection(text=f"{text} (line {line}).", line=line, note="no box")
        if corners[2] <= corners[0] or corners[3] <= corners[1]:
            text = f"The box ({found[1].strip()}) has no area: x2 must be greater than x1, and y2 than y1"
            return Objection(text=f"{readable(text, 160)} (line {line}).", line=line, note="no area")
        boxes.append(Box(phrase=phrase, corners=corners))
        place = found.end()
    if not boxes:
        text = f'"{readable(phrase, 40)}" has no box (line {line}).'
        return Objection(text=text, line=line, note="no box")
    return boxes


def _corners(text: str) -> Corners | None:
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != 4 or not all(re.fullmatch(r"[0-9]{1,2}", number) for number in numbers):
        return None
    left, top, right, bottom = map(int, numbers)
    return left, top, right, bottom


def _counted(text: str) -> tuple[tuple[str, int], ...]:
    return tuple((" ".join(phrase.split()), int(number)) for phrase, number in _COUNTED.findall(text[:4000]))


def write_layout(boxes: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Phrases and corners as both lines of an answer; boxes of the same phrase stand together."""
    groups: dict[str, list[str]] = {}
    for phrase, corners in boxes:
        groups.setdefault(phrase, []).append(f"({', '.join(map(str, corners))})")
    objects = ", ".join(f"{phrase} ({len(found)})" for phrase, found in groups.items())
    layout = " ".join(f"{phrase} [{', '.join(found)}]" for phrase, found in groups.items())
    return f"Objects: {objects}\nLayout: {layout}"


def draw_layout(layout: Layout, caption: str = "") -> Any:
    """The layout as a Pillow image of 512 x 512 pixels: a labelled frame each, text where text is written, and the
    caption below. Needs Pillow."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise missing_extra("drawing layouts", "vision") from error

    picture = Image.new("RGB", (PIXELS, PIXELS + (28 if caption else 0)), "#fbfaf7")
    pen = ImageDraw.Draw(picture, "RGBA")
    phrases = list(dict.fromkeys(box.phrase for box in layout.boxes))
    large_first = sorted(layout.boxes, key=lambda box: -_area(box.pixels))
    for box in large_first:
        color = _FRAMES[phrases.index(box.phrase) % len(_FRAMES)]
        left, top, right, bottom = box.pixels
        pen.rectangle((left, top, right, bottom), fill=f"{color}30", outline=color, width=3)
        label = _drawable(box.phrase)
        if box.written is not None:
            size = max(10, min((bottom - top) // 2, int(1.7 * (right - left) / max(1, len(box.written)))))
            font = ImageFont.load_default(size)
            pen.text(((left + right) / 2, (top + bottom) / 2), _drawable(box.written), "#111111", font=font, anchor="mm")
        wide = pen.textlength(label, font=ImageFont.load_default(13))
        pen.rectangle((left, top, left + wide + 8, top + 18), fill=color)
        pen.text((left + 4, top + 1), label, "#ffffff", font=ImageFont.load_default(13))
    if caption:
        pen.text((8, PIXELS + 5), _drawable(caption)[:70], "#111111", font=ImageFont.load_default(14))
    return picture


def _area(corners: Corners) -> int:
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def _drawable(text: str) -> str:
    """Text that the font built into Pillow can draw on one line."""
    return "".join(char if char.isprintable() and ord(char) < 0x250 else "?" for char in text)

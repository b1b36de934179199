"""VPEval's rules, to the letter: whether detected objects show an object, a count, a relation, a scale, a text.

    boxes = [Detection("dog", (10, 200, 120, 400)), Detection("car", (200, 180, 500, 420))]
    spatial_skill(["dog", "car"], boxes, "right")     True: the car is right of the dog

The order matters: a relation tells of the *second* label as seen from the first. Thresholds are VPEval's: centres must
differ by more than 5 pixels, areas by more than 5 % (and by less, to be the same); one pair that fits is enough. Its
rules for counts (`count_skill`) run model text as Python; here the comparisons that this can mean are read instead,
with what comes of the odd ones. Its oddities are kept and pointed out, since scores shall be comparable.

Where detections come from is not told here: `vpgen_judge.py` takes them from a layout. Source: Cho et al. 2023 (arXiv
2305.15328) and its repository. Left out: `vqa`, and relations that VPEval asks a language model about ("skip").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CENTRE_PIXELS: Final = 5
AREA_SHARE: Final = 0.05
SPATIAL: Final = ("left", "right", "above", "below", "front", "behind")
"""Relations that are judged by detections, in the order in which they are looked for in the relation's text."""
_NUMBERS: Final = {"one": "1", "two": "2", "three": "3", "four": "4"}
_STRIPPED: Final = ".,?!*"


@dataclass(frozen=True)
class Detection:
    """label: what was found. box: x1, y1, x2, y2 in whole pixels. depth: its rank, smaller is nearer."""

    label: str
    box: tuple[int, int, int, int]
    depth: float = 0.0


def object_skill(detections: Sequence[Detection]) -> bool:
    """At least one was found of the one label that was looked for."""
    return len(detections) > 0


def count_skill(detections: Sequence[Detection], target: str) -> bool:
    """Whether the number found fits `target`, such as "==3", ">1" or "three".

    Oddities: a number alone is put behind the count ("3" with 2 found is 23), so any find passes; ">=", "<=" and "!="
    are turned into what Python cannot read, so nothing passes."""
    for word, digit in _NUMBERS.items():
        target = target.replace(word, digit)
    if not target.strip():
        return len(detections) > 0
    found = re.fullmatch(r"\s*(==|=|<|>|)\s*(\d{1,6})\s*", target)
    if found is None or (target[:1].isspace() and found[1] in ("", "=")):
        return False  # "2 3" and "2= =3" are no Python
    sign, number, num_found = found[1], int(found[2]), len(detections)
    if not sign:
        return num_found > 0
    if len(found[2]) > 1 and found[2].startswith("0") and number:
        return False  # Python reads no 03
    return {"<": num_found < number, ">": num_found > number}.get(sign, num_found == number)


def relation_named(text: str) -> str:
    """Which of `SPATIAL` a relation's text names; "" when VPEval would not look at detections."""
    return next((word for word in SPATIAL if word in text), "")


def scale_named(text: str) -> str:
    """smaller, bigger or same; "" when VPEval would not look at detections."""
    return next((name for part, name in (("small", "smaller"), ("big", "bigger"), ("same", "same")) if part in text), "")


def spatial_skill(labels: Sequence[str], detections: Sequence[Detection], relation: str) -> bool:
    """Whether some second one stands in `relation` ("left", …, or "next": beside it) to some first one."""
    return any(_related(first, second, relation) for first, second in _pairs(labels, detections))


def scale_skill(labels: Sequence[str], detections: Sequence[Detection], scale: str) -> bool:
    """Whether some second one is smaller or bigger than some first one, or of the same size.

    Oddity: of two labels that are the same word, one box is its own pair, and has the same size."""
    name = scale_named(scale)
    return any(_scaled(first, second, name) for first, second in _pairs(labels, detections))


def text_skill(read: Sequence[str], target: str) -> bool:
    """Whether the text was read, as one piece; `read` as it came: full stops and the like go, letters become small."""
    cleaned = ("".join(char for char in one.strip() if char not in _STRIPPED) for one in read)
    return target.lower() in [one.lower().encode("ascii", "ignore").decode() for one in cleaned]


def _pairs(labels: Sequence[str], detections: Sequence[Detection]) -> list[tuple[Detection, Detection]]:
    if len(detections) < 2:
        return []
    firsts = [one for one in detections if one.label == labels[0]]
    seconds = [one for one in detections if one.label == labels[1]]
    return [(first, second) for second in seconds for first in firsts]


def _related(first: Detection, second: Detection, relation: str) -> bool:
    across = (second.box[0] + second.box[2]) / 2 - (first.box[0] + first.box[2]) / 2
    down = (second.box[1] + second.box[3]) / 2 - (first.box[1] + first.box[3]) / 2
    return {
        "next": abs(across) > CENTRE_PIXELS,
        "left": across < -CENTRE_PIXELS,
        "right": across > CENTRE_PIXELS,
        "above": down < -CENTRE_PIXELS,
        "below": down > CENTRE_PIXELS,
        "front": second.depth < first.depth,
        "behind": second.depth > first.depth,
    }.get(relation, False)


def _scaled(first: Detection, second: Detection, scale: str) -> bool:
    area = _area(first)
    if not area:
        return False
    ratio = _area(second) / area
    if scale == "same":
        return abs(1 - ratio) < AREA_SHARE
    bigger = ratio > 1 if scale == "bigger" else ratio < 1
    return scale in ("bigger", "smaller") and bigger and abs(1 - ratio) > AREA_SHARE


def _area(one: Detection) -> int:
    return (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])

"""VPEval's rules, to the letter: whether detected objects show an object, a count, a relation, a scale, a text.

    boxes = [Detection("dog", (10, 200, 120, 400)), Detection("car", (200, 180, 500, 420))]
    spatial_skill(["dog", "car"], boxes, "right")     True: the car is right of the dog

The order matters: a relation tells of the *second* label as seen from the first. Thresholds are VPEval's: centres must
differ by more than 5 pixels, areas by more than 5 % (and by less, to be the same); one pair that fits is enough. Its
rules for counts (`count_skill`) run model text as Python; here it is read as arithmetic, and never run. Its oddities are
kept and pointed out, since scores shall be comparable.

Where detections come from is not told here: `vpgen_judge.py` takes them from a layout. Source: Cho et al. 2023 (arXiv
2305.15328) and its repository. Left out: `vqa`, and relations that VPEval asks a language model about ("skip").
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

CENTRE_PIXELS: Final = 5
AREA_SHARE: Final = 0.05
SPATIAL: Final = ("left", "right", "above", "below", "front", "behind")
"""Relations that are judged by detections, in the order in which they are looked for in the relation's text."""
_NUMBERS: Final = {"one": "1", "two": "2", "three": "3", "four": "4"}
_STRIPPED: Final = ".,?!*"
_LONGEST_TARGET: Final = 200
_LARGEST: Final = 1e12
_SIGNS: Final = {ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_, ast.Invert: operator.invert}
_COMPARED: Final[Mapping[type, Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_COUNTED: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip


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

    VPEval puts the target behind the number and runs that as Python: so "3" with 2 found is 23, and "2 or more" with 5 is
    `52 or more`, both of which pass. What is no arithmetic, comparison or logic of numbers fails, as names do there."""
    for word, digit in _NUMBERS.items():
        target = target.replace(word, digit)
    if "=" in target and "==" not in target and not (">" in target and "<" in target):
        target = f"={target}"
    if len(target) > _LONGEST_TARGET:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "5or 6", which Python still reads
            lines = ast.parse(f"x = {len(detections)}{target}").body
        values = [_value(line.value) for line in lines if isinstance(line, ast.Assign | ast.Expr)]
        names = [line.targets for line in lines if isinstance(line, ast.Assign)]
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return False
    assigned = [value for line, value in zip(lines, values, strict=False) if isinstance(line, ast.Assign)]
    alone = all(len(one) == 1 and isinstance(one[0], ast.Name) and one[0].id == "x" for one in names)
    return len(values) == len(lines) and alone and bool(assigned[-1])


def _value(node: ast.expr) -> Any:
    """The value of an expression of numbers, and of texts and tuples as they stand. Raises ValueError for others."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=parts):
            return tuple(_value(part) for part in parts)
        case ast.UnaryOp(op=op, operand=inner):
            return _SIGNS[type(op)](_value(inner))
        case ast.BoolOp(op=op, values=parts):
            found = _value(parts[0])
            for part in parts[1:]:
                if bool(found) == isinstance(op, ast.Or):
                    return found  # what stands behind is not looked at
                found = _value(part)
            return found
        case ast.Compare(left=first, ops=ops, comparators=others):
            left = _value(first)
            for op, other in zip(ops, others, strict=True):
                right = _value(other)
                if type(op) not in _COMPARED:
                    raise ValueError("no comparison of numbers")
                if not _COMPARED[type(op)](left, right):
                    return False
                left = right
            return True
        case ast.IfExp(test=test, body=body, orelse=other):
            return _value(body if _value(test) else other)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _COUNTED:
            return _COUNTED[type(op)](_number(_value(left)), _number(_value(right)))
    raise ValueError("no arithmetic of numbers")


def _number(value: Any) -> int | float:
    if not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise ValueError("no number to count with")
    return value


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

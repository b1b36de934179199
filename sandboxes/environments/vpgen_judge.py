"""What a caption asks of a layout, as VPEval's checks: made from its records, judged on the boxes, told as feedback.

    checks = checks_of_record({"id": "count_val_001763", "text": "a photo of four wine glasses", "objects": […]})
    judged = judge_layout(read_layout(text), checks)

A record of a skill becomes one check, as VPEval's `skill_based_main.py` makes its program; an open-ended record's program
(`objectEval(image, 'bear');…`) is read with `ast`, piece by piece: VPEval executes it. Pieces that VPEval cannot run are
left out, as there; `vqa`, and relations it would ask a language model about, need a picture: they are counted as
not judged.

**On a layout** a box is a detection of a label when its phrase is about it (`noun_words.names`: "a red car" shows a car).
Centres and areas are those of the boxes on a picture of 512 pixels. Depth is not on a layout: of two boxes the one that
reaches further down is taken to be nearer, as on flat ground. Text is what stands in quotes in a phrase. Left out: what
a painter then makes of it.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kintsugi.sandboxes.environments.noun_words import names
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.vpeval_skills import (
    Detection,
    count_skill,
    object_skill,
    relation_named,
    scale_named,
    scale_skill,
    spatial_skill,
    text_skill,
)
from kintsugi.sandboxes.environments.vpgen_layout import BINS, Box, Layout, write_layout

SKILLS: Final = ("object", "count", "spatial", "scale", "text")
_SIDES: Final = {
    "left": "to the left of", "right": "to the right of", "above": "above", "below": "below", "front": "in front of",
    "behind": "behind", "next": "beside",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Check:
    """skill: of `SKILLS`. labels: what is looked for, in order. target: the count ("==3"), relation, scale or text."""

    skill: str
    labels: tuple[str, ...]
    target: str = ""

    @property
    def sub_skill(self) -> str:
        """What VPEval reports apart: the relation, the scale, or the number; "" for objects and texts."""
        return self.target.removeprefix("==") if self.skill in ("count", "spatial", "scale") else ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """passed: of each check, in their order. sentences: about those that failed."""

    passed: tuple[bool, ...]
    sentences: tuple[str, ...]


def checks_of_record(record: Mapping[str, Any]) -> list[Check]:
    """The check of a skill's record. Raises KeyError, IndexError or AttributeError when it is not in the schema."""
    skill = record["id"].split("_")[0]
    labels = tuple(one["coconame"] for one in record["objects"])
    last = record["objects"][-1] if record["objects"] else {}
    if skill == "object":
        return [Check(skill=skill, labels=labels[:1])]
    if skill == "count":
        return [Check(skill=skill, labels=labels[:1], target=f"=={len(labels)}")]
    if skill == "spatial":
        relation = relation_named(last["relation"].split("_")[0])
        return [Check(skill=skill, labels=(labels[0], labels[1]), target=relation)]
    if skill == "scale":
        return [Check(skill=skill, labels=(labels[0], labels[1]), target=scale_named(last["scale"]))]
    if skill == "text":
        return [Check(skill=skill, labels=(), target=record["text"].split("'")[1])]
    raise KeyError(skill)


def checks_of_code(code: str) -> tuple[list[Check], int]:
    """The checks of an open-ended program, and how many of its pieces only a picture could answer."""
    checks: list[Check] = []
    unjudged = 0
    for piece in code.split(";"):
        cleaned = piece.replace("iamge", "image").replace("\\\\", "").replace("\\", "")
        for single, double in ((" '", ' "'), ("',", '",'), ("')", '")')):
            cleaned = cleaned.replace(single, double)
        try:
            call = ast.parse(cleaned.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        found = _check_of_call(call)
        checks += [found] if isinstance(found, Check) else []
        unjudged += found == "picture"
    return checks, unjudged


def _check_of_call(call: ast.expr) -> Check | str:
    """A check, "picture" for what only a picture can answer, "" for what VPEval cannot run."""
    match call:
        case ast.Call(func=ast.Name(id="vqa"), args=[_, ast.Constant(), ast.Constant(value=str(choices)), ast.Constant()]):
            return "picture" if "," in choices else ""
        case ast.Call(func=ast.Name(id="objectEval"), args=[ast.Name(id="image"), ast.Constant(value=str(label))]) if label:
            return Check(skill="object", labels=(label,))
        case ast.Call(
            func=ast.Name(id="countEval"),
            args=[
                ast.Call(func=ast.Name(id="objDet"), args=[ast.Name(id="image"), ast.Constant(value=str(label))]),
                ast.Constant(value=str(target)),
            ],
        ):
            return Check(skill="count", labels=(label,), target=target)
        case ast.Call(
            func=ast.Name(id="textEval"),
            args=[ast.Call(func=ast.Name(id="ocr"), args=[ast.Name(id="image")]), ast.Constant(value=str(text))],
        ):
            return Check(skill="text", labels=(), target=text)
        case ast.Call(
            func=ast.Name(id="spatialEval" | "scaleEval" as name), args=[ast.Name(id="image"), ast.Constant(value=str(said))]
        ) if said.count(",") == 2:
            first, second, relation = said.split(",")
            target = relation_named(relation) if name == "spatialEval" else scale_named(relation)
            skill = "spatial" if name == "spatialEval" else "scale"
            return Check(skill=skill, labels=(first, second), target=target) if target else "picture"
    return ""


# Judging


def detections(layout: Layout, labels: Sequence[str]) -> list[Detection]:
    """The boxes that show a label, label by label, as VPEval's detector is asked."""
    return [
        Detection(label, box.pixels, -float(box.corners[3]))
        for label in labels
        for box in layout.boxes
        if names(_unquoted(box), label)
    ]


def judge_layout(layout: Layout, checks: Sequence[Check]) -> Judged:
    passed = [_passes(layout, check) for check in checks]
    sentences = [_sentence(layout, check) for check, right in zip(checks, passed, strict=True) if not right]
    return Judged(passed=tuple(passed), sentences=tuple(dict.fromkeys(sentences)))


def _passes(layout: Layout, check: Check) -> bool:
    found = detections(layout, check.labels)
    if check.skill == "object":
        return object_skill(found)
    if check.skill == "count":
        return count_skill(found, check.target)
    if check.skill == "spatial":
        return spatial_skill(check.labels, found, check.target)
    if check.skill == "scale":
        return scale_skill(check.labels, found, check.target)
    return text_skill([box.written for box in layout.boxes if box.written is not None], check.target)


def _unquoted(box: Box) -> str:
    """The phrase without the text that is written there: "the word 'dog'" shows no dog."""
    return box.phrase if box.written is None else box.phrase.replace(box.written, " ")


def _sentence(layout: Layout, check: Check) -> str:
    """What is wrong, in words made of the caption's own demand and of the layout."""
    number = {label: len(detections(layout, [label])) for label in check.labels}
    missing = [label for label, found in number.items() if not found]
    if check.skill == "text":
        said = [readable(box.written, 30) for box in layout.boxes if box.written is not None]
        what = f"the texts in quotes are {', '.join(said)}" if said else "no phrase holds a text in quotes"
        return f"Text: the caption's text is not written on the picture; {what}."
    if missing and check.skill != "count":
        return f"{check.skill.capitalize()}: no box shows {' or '.join(readable(one, 40) for one in missing)}."
    first, second = (readable(label, 40) for label in (*check.labels, "")[:2])
    if check.skill == "count":
        found = number[check.labels[0]]
        return (
            f"Count: {found} box{'' if found == 1 else 'es'} show{'s' if found == 1 else ''} {first}, not the number wanted."
        )
    boxes = _where(layout, check.labels)
    if check.skill == "spatial":
        return f"Spatial: no {second} stands {_SIDES[check.target]} a {first}; {boxes}."
    wanted = "as large as" if check.target == "same" else f"{check.target} than"
    return f"Scale: no {second} is {wanted} a {first}; {boxes}."


def _where(layout: Layout, labels: Sequence[str]) -> str:
    parts = []
    for label in dict.fromkeys(labels):
        shown = [box for box in layout.boxes if names(_unquoted(box), label)]
        parts.append(f"{readable(label, 40)} is at {', '.join(str(box.corners) for box in shown[:3])}")
    return " and ".join(parts)


# Layouts that pass

_TRIES: Final = 400


def gold_layout(checks: Sequence[Check], seed: str) -> str | None:
    """A layout that passes every check, found by drawing boxes at random; None when none was found."""
    rng = random.Random(f"layout {seed}")
    needed: dict[str, int] = {}
    for check in checks:
        for label in check.labels:
            needed[label] = max(needed.get(label, 0), 1)
        if check.skill == "count":
            needed[check.labels[0]] = _number_for(check.target)
        if check.skill in ("spatial", "scale") and len(set(check.labels)) == 1:
            needed[check.labels[0]] = max(needed[check.labels[0]], 2)
    texts = [check.target for check in checks if check.skill == "text"]
    wanted = [label for label, number in needed.items() for _ in range(number)]
    if len(wanted) + len(texts) > 16 or not checks:
        return None
    for _ in range(_TRIES):
        boxes = _drawn([*wanted, *(f"the text '{text}'" for text in texts)], rng)
        layout = Layout(boxes=tuple(Box(phrase=phrase, corners=corners) for phrase, corners in boxes))
        if all(judge_layout(layout, checks).passed):
            return write_layout(boxes)
    return None


def _number_for(target: str) -> int:
    fitting = (number for number in range(1, 17) if count_skill([Detection("", (0, 0, 1, 1))] * number, target))
    return next(fitting, 1)


def _drawn(phrases: Sequence[str], rng: random.Random) -> list[tuple[str, tuple[int, int, int, int]]]:
    """A box for each phrase, in cells of a grid that do not overlap; few, so that equal sizes are common."""
    side = next(n for n in range(1, 5) if n * n >= len(phrases))
    side = max(side, 2) if len(phrases) > 1 else 1
    cells = rng.sample(range(side * side), len(phrases))
    wide = BINS // side
    drawn = []
    for phrase, cell in zip(phrases, cells, strict=True):
        width, height = (rng.choice((wide // 2, wide - 4)) for _ in range(2))
        left = (cell % side) * wide + (wide - width) // 2
        top = (cell // side) * wide + (wide - height) // 2
        drawn.append((phrase, (left, top, min(left + width, BINS - 1), min(top + height, BINS - 1))))
    return drawn

"""Invented pictures with questions about them, in GQA's official schema: the bundled set. Made anew for any seed.

    records, scenes = make_records("train", number=48, seed=0)
    draw_scene(scenes["train-0-3"]).save("picture.png")

A picture is a scene graph (objects in boxes with a color, a material and a size, relations, a place) and can be drawn
with Pillow: a labelled box each, which is enough for a person to check an answer. Questions come with the official
fields: question, answer, fullAnswer, imageId, types, and `semantic`, the functional program. Answers are told from what
was drawn at random, not by running the programs. Left out: what real photographs are like; results on these say nothing
about GQA.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kintsugi.errors import missing_extra
from kintsugi.sandboxes.environments.noun_words import is_kind

SPLITS: Final = ("train", "heldout", "demonstrations")
WIDTH: Final = 480
HEIGHT: Final = 320

_PLACES: Final = {
    "kitchen": "table chair cup bowl oven cat apple knife",
    "park": "bench dog bicycle ball tree bird kite woman",
    "street": "car bus truck bicycle sign man dog bag",
    "office": "desk chair laptop lamp book cup printer woman",
    "farm": "tractor cow horse fence barn chicken cart man",
    "beach": "boat umbrella towel ball dog chair kite girl",
    "bedroom": "bed lamp pillow desk cat book chair clock",
}
_COLORS: Final = {
    "red": "#d84a3a", "blue": "#3f6fd1", "green": "#4d9a4f", "yellow": "#e8c440", "white": "#f4f4f0", "black": "#3a3a3a",
    "brown": "#8b5e3c", "gray": "#9a9a9a", "orange": "#e58a2f", "purple": "#8a58b0",
}  # fmt: skip
_MADE_OF: Final = {
    "table chair bench desk bed fence barn cart boat": ("wood", "metal", "plastic"),
    "cup bowl knife oven lamp sign clock bicycle tractor": ("metal", "plastic", "glass"),
    "bag ball kite umbrella towel pillow": ("leather", "plastic", "cloth"),
}
_MATERIALS: Final = {name: materials for names, materials in _MADE_OF.items() for name in names.split()}
_SIZES: Final = ("large", "small")
_STANDS: Final = ("table", "desk", "bench", "bed", "chair")
_LIES: Final = ("cup", "bowl", "cat", "apple", "knife", "laptop", "lamp", "book", "ball", "bag", "clock")

Scene = dict[str, Any]
Step = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question with its answer, program and official types."""

    question: str
    answer: str
    full: str
    steps: list[Step]
    structural: str
    semantic: str
    detailed: str


def make_records(split: str, *, number: int, seed: int = 0) -> tuple[dict[str, Any], dict[str, Scene]]:
    """`number` questions (id → record) and the pictures they are about (id → scene graph); pictures of two splits, or of
    two seeds, share nothing."""
    rng = random.Random(f"gqa {split} {seed}")
    records: dict[str, Any] = {}
    scenes: dict[str, Scene] = {}
    for place in itertools.count():
        if len(records) >= number:
            break
        image = f"{split}-{seed}-{place}"
        scene = _scene(random.Random(rng.random()))
        ask = _Ask(scene, random.Random(rng.random()))
        for kind in range(4):
            asked = _QUESTIONS[(4 * place + kind) % len(_QUESTIONS)](ask)
            if asked is None or len(records) >= number:
                continue
            key = hashlib.sha256(f"{image} {asked.question}".encode()).hexdigest()[:12]
            scenes[image] = scene
            records[key] = _record(asked, image)
    return records, scenes


def _record(asked: _Asked, image: str) -> dict[str, Any]:
    types = {"structural": asked.structural, "semantic": asked.semantic, "detailed": asked.detailed}
    shown = [f"{step['operation']}: {step['argument']} {step['dependencies'] or ''}".strip() for step in asked.steps]
    return {
        "question": asked.question,
        "answer": asked.answer,
        "fullAnswer": asked.full,
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": None, "local": None},
        "entailed": [],
        "equivalent": [],
        "types": types,
        "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
        "semantic": asked.steps,
        "semanticStr": "->".join(shown),
    }


# Pictures


def _scene(rng: random.Random) -> Scene:
    place = rng.choice(sorted(_PLACES))
    names = rng.sample(_PLACES[place].split(), 5)
    if rng.random() < 0.5:
        names[-1] = names[0]  # two of a kind, told apart by their colors
    colors = rng.sample(sorted(_COLORS), len(names))
    columns = rng.sample(range(len(names)), len(names))
    objects: dict[str, Any] = {}
    for number, (name, color, column) in enumerate(zip(names, colors, columns, strict=True)):
        attributes = [color, rng.choice(_SIZES)]
        if name in _MATERIALS:
            attributes.append(rng.choice(_MATERIALS[name]))
        wide = WIDTH // len(names)
        w, h = rng.randrange(wide // 2, wide - 12), rng.randrange(50, 120)
        x, y = column * wide + rng.randrange(6, wide - w), rng.randrange(10, HEIGHT - h - 10)
        objects[str(number + 1)] = {
            "name": name, "x": x, "y": y, "w": w, "h": h, "attributes": attributes, "relations": [],
        }  # fmt: skip
    _relate(objects, rng)
    return {"width": WIDTH, "height": HEIGHT, "place": place, "objects": objects}


def _relate(objects: Mapping[str, Any], rng: random.Random) -> None:
    """Left and right for every pair, and one thing on another where that can be."""
    for one, other in itertools.permutations(objects, 2):
        side = "left" if objects[one]["x"] < objects[other]["x"] else "right"
        objects[one]["relations"].append({"object": other, "name": f"to the {side} of"})
    pairs = [
        (one, other)
        for one, other in itertools.permutations(objects, 2)
        if objects[one]["name"] in _LIES and objects[other]["name"] in _STANDS
    ]
    if pairs:
        one, other = rng.choice(pairs)
        objects[one]["relations"].append({"object": other, "name": "on"})


def draw_scene(scene: Mapping[str, Any]) -> Any:
    """The picture as a Pillow image: every object a box in its color with its name. Needs Pillow."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise missing_extra("drawing pictures", "vision") from error

    picture = Image.new("RGB", (scene["width"], scene["height"]), "#e9e4d8")
    pen = ImageDraw.Draw(picture)
    for one in scene["objects"].values():
        color = next((_COLORS[word] for word in one["attributes"] if word in _COLORS), "#cccccc")
        x, y = one["x"], one["y"]
        pen.rectangle((x, y, x + one["w"], y + one["h"]), fill=color, outline="#222222", width=2)
        dark = "black" in one["attributes"]
        pen.text((x + 5, y + 5), one["name"], fill="#ffffff" if dark else "#111111")
    return picture


# Questions


class _Ask:
    """A picture being asked about: what can be named without doubt, and steps that find it."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene, self.rng = scene, rng
        self.objects: Mapping[str, Any] = scene["objects"]

    def thing(self, *without: str, having: Sequence[str] = ()) -> str:
        """The id of some object; "" when there is none that fits."""
        fitting = [
            key
            for key, one in self.objects.items()
            if key not in without and (not having or set(having) & set(one["attributes"]))
        ]
        return self.rng.choice(fitting) if fitting else ""

    def called(self, key: str) -> tuple[str, list[Step]]:
        """How the object is named in a question, and the steps to it."""
        one = self.objects[key]
        steps = [_step("select", f"{one['name']} ({key})")]
        if sum(other["name"] == one["name"] for other in self.objects.values()) > 1:
            return f"the {self.color(key)} {one['name']}", [*steps, _step("filter color", self.color(key), 0)]
        return f"the {one['name']}", steps

    def color(self, key: str) -> str:
        return self.objects[key]["attributes"][0]

    def material(self, key: str) -> str:
        return (*self.objects[key]["attributes"], "", "")[2]

    def name(self, key: str) -> str:
        return self.objects[key]["name"]

    def side(self, key: str) -> str:
        one = self.objects[key]
        return "left" if (one["x"] + one["w"] / 2) / self.scene["width"] < 0.5 else "right"

    def other_color(self, key: str) -> str:
        return self.rng.choice(sorted(set(_COLORS) - {self.color(key)}))

    def absent(self) -> str:
        """A noun of which there is nothing in the picture."""
        everything = sorted({word for words in _PLACES.values() for word in words.split()})
        names = {one["name"] for one in self.objects.values()}
        return self.rng.choice(
            [word for word in everything if word not in names and not any(is_kind(name, word) for name in names)]
        )


def _step(operation: str, argument: str = "", *dependencies: int) -> Step:
    return {"operation": operation, "argument": argument, "dependencies": list(dependencies)}


def _then(steps: list[Step], operation: str, argument: str) -> list[Step]:
    return [*steps, _step(operation, argument, len(steps) - 1)]


def _joined(left: list[Step], right: list[Step], operation: str, argument: str = "") -> list[Step]:
    """Both programs, one after another, and a last step over their ends."""
    moved = [{**step, "dependencies": [number + len(left) for number in step["dependencies"]]} for step in right]
    return [*left, *moved, _step(operation, argument, len(left) - 1, len(left) + len(moved) - 1)]


def _yes(right: bool) -> str:
    return "yes" if right else "no"


def _asked(question: str, answer: str, full: str, steps: list[Step], types: str) -> _Asked:
    structural, semantic, detailed = types.split()
    return _Asked(
        question=question[0].upper() + question[1:], answer=answer, full=full[0].upper() + full[1:], steps=steps,
        structural=structural, semantic=semantic, detailed=detailed,
    )  # fmt: skip


def _what_color(ask: _Ask) -> _Asked | None:
    key = ask.thing()
    one = ask.objects[key]
    if sum(other["name"] == one["name"] for other in ask.objects.values()) > 1:
        size = one["attributes"][1]
        if sum(other["name"] == one["name"] and size in other["attributes"] for other in ask.objects.values()) > 1:
            return None
        said, steps = f"the {size} {one['name']}", [_step("select", one["name"]), _step("filter size", size, 0)]
    else:
        said, steps = ask.called(key)
    steps = _then(steps, "query", "color")
    return _asked(f"what color is {said}?", ask.color(key), f"{said} is {ask.color(key)}.", steps, "query attr directOf")


def _is_color(ask: _Ask) -> _Asked | None:
    key = ask.thing()
    if sum(ask.name(key) == other["name"] for other in ask.objects.values()) > 1:
        return None
    said, steps = ask.called(key)
    color = ask.color(key) if ask.rng.random() < 0.5 else ask.other_color(key)
    steps = _then(steps, "verify color", color)
    right = color == ask.color(key)
    full = f"{_yes(right)}, {said} is {ask.color(key)}."
    return _asked(f"is {said} {color}?", _yes(right), full, steps, "verify attr verifyAttr")


def _is_both(ask: _Ask) -> _Asked | None:
    key = ask.thing()
    if sum(ask.name(key) == other["name"] for other in ask.objects.values()) > 1:
        return None
    said, steps = ask.called(key)
    color = ask.color(key) if ask.rng.random() < 0.7 else ask.other_color(key)
    size = ask.rng.choice(_SIZES)
    right = {color, size} <= set(ask.objects[key]["attributes"])
    end = len(steps) - 1
    steps = [*steps, _step("verify size", size, end), _step("verify color", color, end), _step("and", "", end + 1, end + 2)]
    full = f"{_yes(right)}, {said} is {' and '.join(ask.objects[key]['attributes'][:2])}."
    return _asked(f"is {said} both {size} and {color}?", _yes(right), full, steps, "logical attr verifyAttrs")


def _is_there(ask: _Ask) -> _Asked | None:
    right = ask.rng.random() < 0.5
    name = ask.name(ask.thing()) if right else ask.absent()
    steps = _then([_step("select", name)], "exist", "?")
    full = f"{_yes(right)}, there is {'a' if right else 'no'} {name}."
    return _asked(f"is there a {name} in the picture?", _yes(right), full, steps, "verify obj exist")


def _are_there_both(ask: _Ask) -> _Asked | None:
    word = ask.rng.choice(("and", "or"))
    sides = [(True, ask.name(ask.thing())), (False, ask.absent())]
    if ask.rng.random() < 0.4:
        sides[1] = (True, ask.name(ask.thing()))
    if ask.rng.random() < 0.3:
        sides[0] = (False, ask.absent())
    if sides[0][1] == sides[1][1]:
        return None
    right = all(there for there, _ in sides) if word == "and" else any(there for there, _ in sides)
    left, other = (_then([_step("select", name)], "exist", "?") for _, name in sides)
    start = "are there both" if word == "and" else "is there either"
    question = f"{start} a {sides[0][1]} {word} a {sides[1][1]}?"
    detailed = "existAnd" if word == "and" else "existOr"
    return _asked(question, _yes(right), f"{_yes(right)}.", _joined(left, other, word), f"logical obj {detailed}")


def _which_color(ask: _Ask) -> _Asked | None:
    key = ask.thing()
    if sum(ask.name(key) == other["name"] for other in ask.objects.values()) > 1:
        return None
    said, steps = ask.called(key)
    options = [ask.color(key), ask.other_color(key)]
    ask.rng.shuffle(options)
    steps = _then(steps, "choose color", "|".join(options))
    question = f"is {said} {options[0]} or {options[1]}?"
    return _asked(question, ask.color(key), f"{said} is {ask.color(key)}.", steps, "choose attr chooseAttr")


def _which_side(ask: _Ask) -> _Asked | None:
    key = ask.thing()
    said, steps = ask.called(key)
    question, full = f"on which side of the picture is {said}?", f"{said} is on the {ask.side(key)} of the picture."
    return _asked(question, ask.side(key), full, _then(steps, "query", "hposition"), "query attr positionQuery")


def _left_or_right(ask: _Ask) -> _Asked | None:
    key = ask.thing()
    other = ask.thing(key)
    if sum(ask.name(key) == one["name"] for one in ask.objects.values()) > 1:
        return None
    said, steps = ask.called(other)
    side = "left" if ask.objects[key]["x"] < ask.objects[other]["x"] else "right"
    name = ask.name(key)
    steps = _then(steps, "choose rel", f"{name},to the left of|to the right of,s ({key})")
    question = f"is the {name} to the left or to the right of {said}?"
    return _asked(question, side, f"the {name} is to the {side} of {said}.", steps, "choose rel relChooser")


def _what_lies(ask: _Ask) -> _Asked | None:
    for key, one in ask.objects.items():
        for relation in one["relations"]:
            if relation["name"] == "on":
                said, steps = ask.called(relation["object"])
                steps = _then(_then(steps, "relate", f"_,on,s ({key})"), "query", "name")
                full = f"the {one['name']} is on {said}."
                return _asked(f"what is on {said}?", one["name"], full, steps, "query rel relS")
    return None


def _which_kind(ask: _Ask) -> _Asked | None:
    for kind in ("animal", "furniture", "vehicle", "person", "device"):
        fitting = [key for key, one in ask.objects.items() if is_kind(one["name"], kind) and one["name"] != kind]
        if len(fitting) == 1:
            color, name = ask.color(fitting[0]), ask.name(fitting[0])
            steps = _then([_step("select", f"{kind} ({fitting[0]})"), _step("filter color", color, 0)], "query", "name")
            question = f"what is the {color} {kind} called?" if kind != "person" else f"who is in {color}?"
            return _asked(question, name, f"it is a {name}.", steps, "query cat categoryAttr")
    return None


def _which_place(ask: _Ask) -> _Asked | None:
    place = ask.scene["place"]
    steps = _then([_step("select", "scene")], "query", "place")
    return _asked("which place is it?", place, f"it is a {place}.", steps, "query global place")


def _same_material(ask: _Ask) -> _Asked | None:
    materials = sorted({material for options in _MATERIALS.values() for material in options})
    key = ask.thing(having=materials)
    other = ask.thing(key, having=materials) if key else ""
    if not other:
        return None
    (said, left), (also, right) = ask.called(key), ask.called(other)
    alike = ask.material(key) == ask.material(other)
    question = f"are {said} and {also} made of the same material?"
    steps = _joined(left, right, "same material")
    return _asked(question, _yes(alike), f"{_yes(alike)}.", steps, "compare attr twoSame")


_QUESTIONS: Final[Sequence[Callable[[_Ask], _Asked | None]]] = (
    _what_color, _is_color, _which_side, _is_there, _what_lies, _is_both, _left_or_right, _which_place, _which_color,
    _same_material, _which_kind, _are_there_both, _what_color,
)  # fmt: skip
"""Thirteen kinds of question: pictures take four each, in turn, so that every kind meets every picture's place."""

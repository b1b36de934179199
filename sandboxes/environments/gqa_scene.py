"""A picture seen through its scene graph, in GQA's official schema: the tools' answers without any model, on a CPU.

    sight = SceneSight({"width": 400, "height": 300, "objects": {"1": {"name": "car", "x": 20, …}}})

A graph: `{width, height, location?, weather?, objects: {id: {name, x, y, w, h, attributes[], relations[{object, name}]}}}`.
Read too, where somebody added them: `labels` of an object (other names it goes by), its `position` (where no box is
known), and `place`, `room`, `activity` of the scene.

**Names** match in the singular or through the table of kinds (`noun_words`). **left, right, top, bottom**: which half of
the picture the box's centre lies in; **middle**: the middle third. "to the left of" and "to the right of", "above" and
"below", "in front of" and "behind" are read both ways. Left out: relations that no annotator wrote down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kintsugi.sandboxes.environments.gqa_program import ANYTHING, SCENE, Thing
from kintsugi.sandboxes.environments.noun_words import is_kind, kinds, singular

_WORDS: Final = {
    "color": "white black red green blue yellow brown gray grey orange pink purple silver gold golden tan beige maroon "
    "dark-brown light-brown dark-blue light-blue dark-green light-green blond brunette cream-colored turquoise dark "
    "light dark-gray light-gray khaki teal violet copper ivory dark-colored light-colored multicolored colorful red-brown",
    "material": "wood wooden metal plastic glass paper stone leather brick concrete cloth cotton denim rubber ceramic "
    "porcelain marble cardboard wire chrome aluminum steel stainless-steel iron brass clay straw wicker fabric felt "
    "styrofoam foam wool lace silk granite cement asphalt gravel tile chain-link lattice",
    "size": "large small huge tiny big little giant enormous",
    "shape": "round square rectangular triangular oval circular curved octagonal spherical flat",
    "pattern": "striped plaid checkered floral spotted dotted printed checked patterned camouflage",
    "pose": "standing sitting lying crouching kneeling bending leaning squatting",
    "activity": "walking running sleeping reading eating drinking playing talking looking jumping riding swimming surfing "
    "skiing skateboarding snowboarding resting grazing flying working cooking waiting posing singing dancing",
    "sportactivity": "surfing skiing skateboarding snowboarding skating swimming batting riding jumping playing pitching "
    "hitting-ball swinging windsurfing",
    "age": "young old adult elderly",
    "length": "long short",
    "height": "tall short",
    "weather": "sunny cloudy rainy clear cloudless partly-cloudy overcast foggy stormy snowy",
    "cleanliness": "clean dirty stained messy",
    "hardness": "hard soft",
    "thickness": "thick thin",
    "width": "wide narrow",
    "depth": "deep shallow",
    "weight": "heavy light",
    "tone": "dark light bright",
    "texture": "smooth rough",
    "fatness": "fat thin skinny slim",
    "face expression": "happy sad smiling angry",
    "gender": "male female",
    "race": "asian white black",
    "state": "open closed empty full",
    "room": "kitchen bathroom bedroom living-room office dining-room hallway",
}  # fmt: skip
VALUES: Final = {kind.strip(): frozenset(word.replace("-", " ") for word in words.split()) for kind, words in _WORDS.items()}
_LISTED: Final = frozenset().union(*VALUES.values(), ("left", "right", "top", "bottom", "middle"))
_INVERSE: Final = {
    "to the left of": "to the right of",
    "above": "below",
    "in front of": "behind",
    "over": "under",
}
_INVERSE_BOTH: Final = {**_INVERSE, **{value: key for key, value in _INVERSE.items()}}
_SHORT: Final = {"left of": "to the left of", "right of": "to the right of", "left": "to the left of"}
_ALIKE: Final = {"wooden": "wood", "grey": "gray", "metallic": "metal", "golden": "gold"}
_POSITIONS: Final = {"hposition": ("left", "middle", "right"), "vposition": ("top", "middle", "bottom")}
_PLACES: Final = ("place", "room", "location")


class SceneSight:
    """A `Sight` on one scene graph. Reads it and changes nothing."""

    def __init__(self, scene: Mapping[str, Any]) -> None:
        self.scene = scene
        self.objects: Mapping[str, Any] = scene["objects"]

    def find(self, name: str) -> list[Thing]:
        wanted = _norm(name)
        if wanted == "scene":
            return [SCENE]
        exact = [key for key in self.objects if self._called(key, wanted)]
        found = exact or [key for key in self.objects if is_kind(self.objects[key]["name"], wanted)]
        return [self._thing(key) for key in found]

    def related(self, name: str, relation: str, things: Sequence[Thing], *, forward: bool) -> list[Thing]:
        keys, found = {thing.key for thing in things}, self.find(name)
        relation = _norm(relation)
        relation = _SHORT.get(relation, relation)
        if relation.startswith("same "):
            kind = relation.removeprefix("same ")
            values = {self.value(thing, kind) for thing in things} - {""}
            return [thing for thing in found if thing.key not in keys and self.value(thing, kind) in values]
        pairs = self._pairs(relation)
        if forward:
            return [thing for thing in found if any((thing.key, key) in pairs for key in keys)]
        return [thing for thing in found if any((key, thing.key) in pairs for key in keys)]

    def holds(self, thing: Thing, attribute: str) -> bool:
        wanted = _alike(_norm(attribute))
        if any(wanted in names for names in _POSITIONS.values()) and wanted in self._places_of(thing):
            return True
        if thing.key == SCENE.key:
            return any(_norm(str(self.scene.get(kind, ""))) == wanted for kind in (*_PLACES, "weather", "activity"))
        return wanted in {_alike(_norm(one)) for one in self.objects[thing.key].get("attributes", ())}

    def value(self, thing: Thing, kind: str) -> str:
        kind = _norm(kind)
        if thing.key == SCENE.key:
            return self._scene_value(kind)
        if kind == "name":
            return thing.name
        if kind in _POSITIONS:
            return next((one for one in self._places_of(thing) if one in _POSITIONS[kind] and one != "middle"), "")
        attributes = [_norm(one) for one in self.objects[thing.key].get("attributes", ())]
        known = VALUES.get(kind, frozenset())
        # An attribute of no listed kind is the answer for want of another: annotators write what they like.
        fitting = [one for one in attributes if one in known] or [one for one in attributes if one not in _LISTED]
        return fitting[0] if fitting else ""

    def pick(self, things: Sequence[Thing], options: Sequence[str]) -> str:
        for option in options:
            wanted = _norm(option)
            if any(self.holds(thing, wanted) for thing in things):
                return option
        for option in options:
            if any(thing.key != SCENE.key and self._called(thing.key, _norm(option)) for thing in things):
                return option
        # A scene's place or weather is also what its things are and look like.
        scene = any(thing.key == SCENE.key for thing in things)
        return next((option for option in options if scene and self.find(option)), "")

    def ask(self, question: str) -> str | None:
        return None

    def _thing(self, key: str) -> Thing:
        one = self.objects[key]
        box = tuple(float(one[side]) for side in ("x", "y", "w", "h")) if all(side in one for side in "xywh") else None
        return Thing(key, one["name"], box)  # pyright: ignore[reportArgumentType]

    def _called(self, key: str, wanted: str) -> bool:
        if wanted in (ANYTHING, "_"):
            return True
        one = self.objects[key]
        called = {_norm(one["name"]), *(_norm(label) for label in one.get("labels", ()))}
        return wanted in called or singular(wanted) in {singular(name) for name in called}

    def _pairs(self, relation: str) -> set[tuple[str, str]]:
        """(subject, object) of everything in that relation, said either way round."""
        turned = _INVERSE_BOTH.get(relation)
        pairs = set()
        for key, one in self.objects.items():
            for said in one.get("relations", ()):
                name = _norm(said["name"])
                if name == relation:
                    pairs.add((key, str(said["object"])))
                if name == turned:
                    pairs.add((str(said["object"]), key))
        return pairs

    def _places_of(self, thing: Thing) -> list[str]:
        """Where the thing lies: half of the picture, and the middle third, across and down."""
        if thing.key == SCENE.key:
            return []
        said = self.objects[thing.key].get("position")
        if said:
            return [str(value) for value in said.values()]
        if thing.box is None or not self.scene.get("width") or not self.scene.get("height"):
            return []
        across = (thing.box[0] + thing.box[2] / 2) / self.scene["width"]
        down = (thing.box[1] + thing.box[3] / 2) / self.scene["height"]
        places = ["left" if across < 0.5 else "right", "top" if down < 0.5 else "bottom"]
        return [*places, *(["middle"] if 1 / 3 <= across <= 2 / 3 or 1 / 3 <= down <= 2 / 3 else [])]

    def _scene_value(self, kind: str) -> str:
        if kind == "name":
            return ""
        asked = _PLACES if kind in _PLACES else (kind,)
        said = next((str(self.scene[one]) for one in asked if self.scene.get(one)), "")
        if said or kind not in kinds():
            return _norm(said)
        return next((one["name"] for one in self.objects.values() if is_kind(one["name"], kind)), "")


def _norm(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()


def _alike(word: str) -> str:
    return _ALIKE.get(word, word)

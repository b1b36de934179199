"""Invented captions in the schema of VPEval's skill-based prompts: the bundled set. Made anew for any seed.

    make_records("train", number=60, seed=0)      [{"id": "count_train_0_1", "text": "three red kites", "objects": […]}, …]

Five skills in turn: object, count, spatial, scale, text. Every split has nouns and texts of its own, so that no caption
stands in two. Left out: open-ended captions, whose programs people wrote.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

SPLITS: Final = ("train", "heldout", "demonstrations")
_NOUNS: Final = {
    "train": "kite lantern turtle wagon teapot candle violin rocket barrel canoe parrot stool tractor pumpkin ladder drum "
    "snail anchor",
    "heldout": "balloon tiger mailbox guitar lighthouse acorn sofa whale trumpet windmill beetle helmet",
    "demonstrations": "owl piano basket igloo camel bucket",
}
_TEXTS: Final = {
    "train": "harbour morning recipe thunder velvet compass orchard signal marble whistle",
    "heldout": "lantern festival quarry meadow tickets sunrise",
    "demonstrations": "bakery journey cellar",
}
_SURFACES: Final = (
    "a sign that says '{}'",
    "a poster that reads '{}'",
    "a shop window with '{}' written on it",
    "a book called '{}'",
)
_FRAMES: Final = ("{}", "a photo of {}", "a drawing of {}", "a postcard of {}")
_NUMBERS: Final = ("one", "two", "three", "four")
_RELATIONS: Final = {
    "left": "to the left of", "right": "to the right of", "above": "above", "below": "below", "front": "in front of",
    "behind": "behind",
}  # fmt: skip
_MOST_MISSED: Final = 1000
_SCALES: Final = {"bigger": "that is bigger than", "smaller": "that is smaller than", "same": "of the same size as"}


def make_records(split: str, *, number: int, seed: int = 0, skills: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`number` records with different captions, of `skills` in turn (all without). Raises ValueError when there are not
    that many."""
    wanted = [skill for skill in _MAKERS if skill in skills or not skills]
    rng = random.Random(f"vpgen {split} {seed}")
    records: dict[str, dict[str, Any]] = {}
    missed = 0  # draws in a row that were there before
    while len(records) < number:
        if not wanted or missed > _MOST_MISSED:
            raise ValueError(f"there are only {len(records)} different captions of {split}")
        # When one skill's captions are all used up, the others fill its place.
        skill = wanted[(len(records) + missed // 50) % len(wanted)]
        text, objects = _MAKERS[skill](split, rng)
        missed = missed + 1 if text in records else 0
        records.setdefault(text, {"id": f"{skill}_{split}_{seed}_{len(records)}", "text": text, "objects": objects})
    return list(records.values())


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _objects(*names: str, **last: Any) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = [{"id": place, "coconame": name, "relation": None} for place, name in enumerate(names)]
    if last:
        objects[-1] |= last
    return objects


def _object(split: str, rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    noun = rng.choice(_NOUNS[split].split())
    return rng.choice(_FRAMES).format(_a(noun)), _objects(noun)


def _count(split: str, rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    noun, number = rng.choice(_NOUNS[split].split()), rng.randrange(1, 5)
    many = noun if number == 1 else f"{noun}{'es' if noun.endswith('x') else 's'}"
    return rng.choice(_FRAMES).format(f"{_NUMBERS[number - 1]} {many}"), _objects(*[noun] * number)


def _spatial(split: str, rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    first, second = rng.sample(_NOUNS[split].split(), 2)
    relation = rng.choice(tuple(_RELATIONS))
    text = rng.choice(_FRAMES).format(f"{_a(second)} {_RELATIONS[relation]} {_a(first)}")
    return text, _objects(first, second, relation=f"{relation}_0")


def _scale(split: str, rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    first, second = rng.sample(_NOUNS[split].split(), 2)
    scale = rng.choice(tuple(_SCALES))
    text = rng.choice(_FRAMES).format(f"{_a(second)} {_SCALES[scale]} {_a(first)}")
    return text, _objects(first, second, scale=scale)


def _text(split: str, rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    return rng.choice(_SURFACES).format(rng.choice(_TEXTS[split].split())), []


_MAKERS: Final = {"object": _object, "count": _count, "spatial": _spatial, "scale": _scale, "text": _text}

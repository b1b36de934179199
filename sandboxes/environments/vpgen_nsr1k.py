"""NSR-1K, LayoutGPT's captions with the boxes of COCO pictures, as VPEval's checks.

    rows = nsr1k_records(Path("~/LayoutGPT/dataset/NSR-1K"), "val", ("spatial",))
    checks, layout = checks_and_layout(record)

**Data**: `spatial/spatial.{train,val}.json` and `counting/counting.{train,val}.json`, lists of objects. Spatial:
`{id, prompt, relation, obj1, obj2}` with `obj1` as `[name, [x, y, width, height]]` in 0..1; the relation (left, right, top,
bottom, next to) tells of `obj1` as seen from `obj2`, the reverse of VPEval's order. Counting: `{id, prompt, num_object:
[[name, number], …], object_list: [[name, box], …]}`: a count for each name.

The release repeats itself: 11 spatial captions of a slice's "train" stand in its "val" too, and are left out of "train".

Source: Feng et al. 2023 (LayoutGPT, arXiv 2305.15393), https://github.com/weixi-feng/LayoutGPT. Left out: LayoutGPT's own
measures (precision and recall of counts, a detector's relations): VPEval's checks judge here as elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments.official_records import Row, json_list, texts
from kintsugi.sandboxes.environments.vpgen_judge import Check
from kintsugi.sandboxes.environments.vpgen_layout import BINS, write_layout

MEND: Final = (
    'NSR-1K is in the folder dataset/NSR-1K of https://github.com/weixi-feng/LayoutGPT: name it with the option data="..."'
)
_FOLDERS: Final = {"count": "counting", "spatial": "spatial"}
_RELATIONS: Final = {"left": "left", "right": "right", "top": "above", "bottom": "below", "next to": "next"}


def is_nsr1k(folder: Path) -> bool:
    """Whether the folder holds files of this release."""
    return any(_path(folder, skill, part).is_file() for skill in _FOLDERS for part in ("train", "val"))


def nsr1k_records(folder: Path, part: str, skills: Sequence[str]) -> Iterator[Row]:
    """The records of a part ("train" or "val"), those of the named skills; of all that are there, without. Of "train", those
    whose captions "val" has too are left out."""
    heldout: set[str] = set()
    if part == "train":
        paths = [path for skill in _FOLDERS if (path := _path(folder, skill, "val")).is_file()]
        found = [record for path in paths for record, _ in json_list(path, MEND)]
        heldout = {_caption(record["prompt"]) for record in found if isinstance(record, Mapping) and "prompt" in record}
    for skill in _FOLDERS:
        path = _path(folder, skill, part)
        if skill in skills or (not skills and path.is_file()):
            for record, where in json_list(path, MEND):
                (prompt,) = texts(record, where, MEND, "prompt")
                if _caption(prompt) not in heldout:
                    yield {**record, "nsr1k": skill}, where


def _caption(prompt: Any) -> str:
    return " ".join(str(prompt).lower().split())


def checks_and_layout(record: Mapping[str, Any], where: str) -> tuple[list[Check], str]:
    """A record's checks, and its own boxes as a layout. Raises DataError when it is not in the schema."""
    try:
        if record["nsr1k"] == "spatial":
            (first, first_box), (second, second_box) = record["obj1"], record["obj2"]
            target = _RELATIONS[record["relation"]]
            checks = [Check(skill="spatial", labels=(_name(second), _name(first)), target=target)]
            boxes = [(first, first_box), (second, second_box)]
        else:
            counted = [(_name(name), int(number)) for name, number in record["num_object"]]
            checks = [Check(skill="count", labels=(name,), target=f"=={number}") for name, number in counted]
            boxes = [(name, box) for name, box in record["object_list"]]
        layout = write_layout([(_name(name), _corners(box)) for name, box in boxes])
    except (KeyError, TypeError, ValueError) as error:
        found = json.dumps({key: value for key, value in record.items() if key != "nsr1k"}, default=str)[:120]
        reason = f"{type(error).__name__} {error}"
        raise DataError(f"{where}: expected a record of NSR-1K, found {found} ({reason}); {MEND}") from error
    if not checks:
        raise DataError(f'{where}: expected objects to count in "num_object", found none; {MEND}')
    return checks, layout


def _path(folder: Path, skill: str, part: str) -> Path:
    name = _FOLDERS[skill]
    return folder / name / f"{name}.{part}.json"


def _name(said: Any) -> str:
    if not isinstance(said, str) or not said.strip():
        raise ValueError(f"no name: {said!r}")
    return said


def _corners(box: Sequence[float]) -> tuple[int, int, int, int]:
    """x, y, width, height in 0..1 as two corners on the bins, at least a bin apart."""
    x, y, width, height = (float(one) for one in box)
    left, top = (min(max(round(one * BINS), 0), BINS - 2) for one in (x, y))
    right, bottom = (min(max(round(one * BINS), 0), BINS - 1) for one in (x + width, y + height))
    return left, top, max(right, left + 1), max(bottom, top + 1)

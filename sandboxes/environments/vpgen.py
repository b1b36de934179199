"""VPGen: the layout of a picture for a caption, written as boxes and checked by VPEval's skills.

    environment = open_environment(data="~/VPEval/data", skills=("count", "spatial"))
    environment = open_environment(pictures="pictures")                    # draws every layout that is judged

The agent reads a caption and writes a layout (`vpgen_layout.py`); VPEval's skills check it: object, count, spatial, scale
and text (`vpeval_skills.py`: the official rules; `vpgen_judge.py`: what a layout shows). Pillow draws layouts for people;
GLIGEN paints them on a GPU (`vpgen_gligen.py`, the extra `vision`).

**Data**: VPEval's `data` folder: `skill_based/{skill}_new.json` with `random_ids_{skill}.json` (the first 1,000 ids count,
as in its evaluation), and for `skills=("open",)` the programs of `open_ended/`. There is no official training split:
`heldout` is a fifth of the captions by their hash, `train` the others, `test` all. Or NSR-1K (`vpgen_nsr1k.py`), whose
`val` files are `heldout` and `test`. Bundled: invented captions.

**Right**: every check passes. `detail` has each skill's share, the sub-skills that VPEval reports, and `score`, its
open-ended score over what a layout can answer. **Feedback**: what the boxes show and the caption does not want.

Source: Cho et al. 2023 (arXiv 2305.15328), https://github.com/aszala/VPEval, https://github.com/j-min/VPGen. Left out:
`vqa`; the scores of painted pictures; VPGen's two turns (both of its answers are one message here).
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Fault, Task, Verdict
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.official_records import (
    BUNDLED,
    Made,
    RecordTasks,
    Row,
    first_of,
    read_bytes,
    shared_out,
    texts,
)
from kintsugi.sandboxes.environments.printed_number import is_text
from kintsugi.sandboxes.environments.program_of_thought import MAX_CHARACTERS, AssessedEnvironment, Objection, find_program
from kintsugi.sandboxes.environments.vpgen_invented import SPLITS, make_records
from kintsugi.sandboxes.environments.vpgen_judge import (
    SKILLS,
    Check,
    checks_of_code,
    checks_of_record,
    gold_layout,
    judge_layout,
)
from kintsugi.sandboxes.environments.vpgen_layout import Layout, draw_layout, read_layout, write_layout
from kintsugi.sandboxes.environments.vpgen_nsr1k import MEND as NSR1K_MEND
from kintsugi.sandboxes.environments.vpgen_nsr1k import checks_and_layout, is_nsr1k, nsr1k_records

_HOME: Final = "https://github.com/aszala/VPEval"
_MEND: Final = f'the official files are in the folder data of {_HOME}: name it with the option data="..."'
_FILES: Final = {"train": "train", "heldout": "heldout", "test": "test"}
_ALL: Final = (*SKILLS, "open")
_NUM_IDS: Final = 1000

ABOUT = About(
    kind="layout of a picture, checked by skills",
    metric="VPEval's checks pass on the layout: object, count, spatial, scale, text; accuracy by skill",
    data="skill_based/{skill}_new.json with random_ids_{skill}.json; open_ended/ programs; or NSR-1K's spatial/, counting/",
    splits=("train", "heldout", "test (= both)"),
    licence="MIT",
    home=_HOME,
    bundled=True,
    downloads=tuple(
        Download(url=f"https://raw.githubusercontent.com/aszala/VPEval/main/data/skill_based/{name}", path=name)
        for skill in SKILLS
        for name in (f"{skill}_new.json", f"random_ids_{skill}.json")
    ),
)


def open_environment(
    data: str | Path | None = None,
    skills: Sequence[str] | str | None = None,
    num_tasks: int = 60,
    pictures: str | Path | None = None,
    gligen: Mapping[str, Any] | None = None,
) -> Vpgen:
    """VPGen's captions from the folder `data`, or "bundled" (the default). skills: which of object, count, spatial,
    scale, text and open (a text with commas will do); all that the folder has, without. num_tasks: how many bundled
    tasks `tasks` makes without a limit. pictures: a folder in which every judged layout is drawn. gligen: paint them with
    GLIGEN: options of `vpgen_gligen.GligenPainter`. Raises ConfigError, DataError, MissingExtra."""
    wanted = tuple(part.strip() for part in skills.split(",")) if isinstance(skills, str) else tuple(skills or ())
    for skill in wanted:
        if skill not in _ALL:
            raise ConfigError(f'vpgen.skills: unknown "{skill}": {nearest(skill, _ALL)}')
    if not isinstance(num_tasks, int) or num_tasks < 1:
        raise ConfigError(f"vpgen.num_tasks: expected a whole number from 1, found {num_tasks!r}")
    if str(data) == "hub":
        raise ConfigError(f'vpgen.data: expected a folder or "bundled", found "hub"; {_MEND}')
    if gligen is not None and pictures is None:
        raise ConfigError("vpgen.gligen paints into the folder that vpgen.pictures names: set both")
    return Vpgen(data=data, skills=wanted, num_tasks=num_tasks, pictures=pictures, gligen=gligen)


class Vpgen(RecordTasks, AssessedEnvironment):
    """The environment. A payload holds `checks` and `unjudged`, the number of checks that need a picture."""

    name = "vpgen"
    files = _FILES
    mend = _MEND

    def __init__(
        self,
        *,
        data: str | Path | None,
        skills: tuple[str, ...],
        num_tasks: int,
        pictures: str | Path | None,
        gligen: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(data=data)
        self.skills, self.num_tasks = skills, num_tasks
        self.pictures = Path(pictures).expanduser() if pictures is not None else None
        self._painter: Any = None
        self._painting = asyncio.Lock()
        if gligen is not None:
            from kintsugi.sandboxes.environments.vpgen_gligen import GligenPainter

            self._painter = GligenPainter(**gligen)

    # The data

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Bundled: `limit` tasks, others for another seed. Official: see `RecordTasks`. Raises DataError."""
        if self.source != BUNDLED:
            return super().tasks(split, limit=limit, seed=seed)
        if split not in SPLITS:
            raise DataError(f'vpgen has no split "{split}": {nearest(split, SPLITS)}')
        try:
            number = self.num_tasks if limit is None else limit
            records = make_records(split, number=number, seed=seed, skills=self.skills)
        except ValueError as error:
            raise DataError(f"vpgen cannot make {limit or self.num_tasks} bundled tasks: {error}") from error
        made = [self.made(record, record["id"], split) for record in records]
        return [
            Task(id=f"bundled-{one.key}", environment=self.name, split=split, prompt=one.prompt, payload=one.payload)
            for one in made
        ]

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        if is_nsr1k(folder):
            if odd := set(self.skills) - {"count", "spatial"}:
                raise DataError(f"{folder}: NSR-1K has count and spatial, no {', '.join(sorted(odd))}; {NSR1K_MEND}")
            return nsr1k_records(folder, "train" if official == "train" else "val", self.skills)

        def caption(record: Any, where: str) -> str:
            return " ".join(texts(record, where, _MEND, "text")[0].lower().split())

        return shared_out(self._records(folder), official, caption)

    def _records(self, folder: Path) -> Iterator[Row]:
        found = False
        for skill in self.skills or _ALL:
            reader = self._open_records(folder) if skill == "open" else self._skill_records(folder, skill)
            for row in reader:
                found = True
                yield row
        if not found and self.skills:
            raise DataError(f"{folder}: expected records of {', '.join(self.skills)}, found none; {_MEND}")

    def _skill_records(self, folder: Path, skill: str) -> Iterator[Row]:
        name = f"{skill}_new.json"
        path = first_of(folder, f"skill_based/{name}", f"data/skill_based/{name}", name)
        if not path.is_file() and not self.skills:
            return  # a release may lack a skill; one that was asked for must be there
        records = _json(path)
        rows = records.get("data") if isinstance(records, Mapping) else None
        if not isinstance(rows, list):
            raise DataError(f'{path}: expected an object with a list "data"; {_MEND}')
        ids_path = path.with_name(f"random_ids_{skill}.json")
        chosen = set(map(str, _json(ids_path)[:_NUM_IDS])) if ids_path.is_file() else None
        for number, record in enumerate(rows, 1):
            where = f"{path}, record {number}"
            if chosen is None or texts(record, where, _MEND, "id")[0] in chosen:
                yield record, where

    def _open_records(self, folder: Path) -> Iterator[Row]:
        """One model's file of each data set: the programs are the same for all models."""
        base = next((one for one in (folder / "open_ended", folder / "data/open_ended") if one.is_dir()), None)
        if base is None:
            return
        specific = sorted((base / "model_dataset_specific_prompts").glob("sd_21_*.json"))
        for path in specific or [base / "prompts.json"]:
            for key, record in _json(path).items():
                where = f"{path}, {key}"
                texts(record, where, _MEND, "text", "code", "text_id")
                yield record, where

    def made(self, record: Any, where: str, official: str) -> Made:
        if "nsr1k" in record:
            return _made_of_nsr1k(record, where)
        (text,) = texts(record, where, _MEND, "text")
        unjudged = 0
        if "code" in record:
            checks, unjudged = checks_of_code(record["code"])
            key = record["text_id"]
        else:
            (key,) = texts(record, where, _MEND, "id")
            try:
                checks = checks_of_record(record)
            except (KeyError, IndexError, AttributeError, TypeError) as error:
                reason = f"{type(error).__name__} {error}"
                raise DataError(f'{where}: expected "objects" as the skill of "{key}" needs ({reason}); {_MEND}') from error
        payload = {"checks": _plain(checks), "unjudged": unjudged}
        return Made(key=f"vpgen-{key}", prompt=f'Caption: "{" ".join(text.split())}"', payload=payload)

    async def gold(self, task: Task) -> tuple[str, ...] | None:
        """A layout that passes: the record's own boxes where it has such, else one made from the checks; None where none is
        found or a layout can answer nothing."""
        own = read_layout(task.payload.get("layout", ""))
        if isinstance(own, Layout) and all(judge_layout(own, _checks(task)).passed):
            return (task.payload["layout"],)
        found = gold_layout(_checks(task), task.prompt)
        return (found,) if found is not None else None

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """The gold with the first check's boxes renamed, one box more or less of what is counted, sides exchanged."""
        layout = read_layout(gold[-1])
        if isinstance(layout, Objection):
            return []
        check, boxes = _checks(task)[0], [(box.phrase, box.corners) for box in layout.boxes]
        wrong = [[("a zeppelin", corners) for _, corners in boxes]]
        if check.skill == "count" and check.target.startswith("=="):
            wrong += [boxes[1:], [*boxes, (check.labels[0], (1, 1, 3, 3))]]
        if check.skill in ("spatial", "scale") and check.target not in ("same", "next") and len(boxes) == 2:
            wrong.append([(boxes[0][0], boxes[1][1]), (boxes[1][0], boxes[0][1])])
        return [[write_layout(one)] for one in wrong if one]

    # The verdict

    async def assess(self, task: Task, action: str) -> tuple[Verdict, int]:
        """The verdict, and 1 when there was a layout to check, else 0."""
        checks = _checks(task)
        if len(action) > MAX_CHARACTERS:
            text = f"The answer is too long: write a layout of at most {MAX_CHARACTERS} characters."
            return _failed(checks, Objection(text=text), None), 0
        found = find_program(action, ("layout", "text"))
        layout = read_layout(found.source)
        if isinstance(layout, Objection):
            fault = found.fault_at(layout.line, layout.note) if layout.line is not None and is_text(action) else None
            return _failed(checks, layout, fault), 0
        if self.pictures is not None:
            await self._draw(task, layout)
        judged = judge_layout(layout, checks)
        detail = _detail(checks, judged.passed, read=1.0)
        if not checks:
            text = "Nothing that this caption asks can be seen on a layout."
            return Verdict(success=False, reward=0.0, feedback=text, detail=detail), 1
        if all(judged.passed):
            return Verdict(success=True, reward=1.0, feedback="Every check passes.", detail=detail), 1
        head = f"{sum(judged.passed)} of {len(checks)} checks pass. " if len(checks) > 1 else ""
        feedback = f"{head}{' '.join(judged.sentences[:6])}"
        return Verdict(success=False, reward=0.0, feedback=feedback, detail=detail), 1

    async def _draw(self, task: Task, layout: Layout) -> None:
        """One file a different layout: `TASK-HASH.png`, and `TASK-HASH-gligen.png` where GLIGEN paints."""
        assert self.pictures is not None
        self.pictures.mkdir(parents=True, exist_ok=True)
        stem = f"{task.id}-{sha256(str(layout).encode(errors='replace')).hexdigest()[:8]}".replace("/", "_")
        caption = task.prompt.removeprefix("Caption: ").strip('"')
        path = self.pictures / f"{stem}.png"
        if not path.exists():
            draw_layout(layout, caption).save(path)
        painted = self.pictures / f"{stem}-gligen.png"
        if self._painter is not None and not painted.exists():
            async with self._painting:
                picture = await asyncio.to_thread(self._painter.paint, caption, layout)
                picture.save(painted)


def _plain(checks: Sequence[Check]) -> list[dict[str, Any]]:
    return [asdict(check) | {"labels": list(check.labels)} for check in checks]


def _made_of_nsr1k(record: Mapping[str, Any], where: str) -> Made:
    checks, layout = checks_and_layout(record, where)
    if not isinstance(record.get("id"), int | str):
        raise DataError(f'{where}: expected a number "id", found {record.get("id")!r}; {NSR1K_MEND}')
    payload = {"checks": _plain(checks), "unjudged": 0, "layout": layout}
    prompt = f'Caption: "{" ".join(record["prompt"].split())}"'
    return Made(key=f"vpgen-nsr1k-{record['nsr1k']}-{record['id']}", prompt=prompt, payload=payload)


def _checks(task: Task) -> list[Check]:
    return [Check(skill=one["skill"], labels=tuple(one["labels"]), target=one["target"]) for one in task.payload["checks"]]


def _detail(checks: Sequence[Check], passed: Sequence[bool], *, read: float) -> dict[str, float]:
    """Share of the checks passed: `score` of all, each skill's, each sub-skill's; `read`: there was a layout."""
    found: dict[str, list[bool]] = defaultdict(list)
    for check, right in zip(checks, passed, strict=True):
        found["score"].append(right)
        found[check.skill].append(right)
        if check.sub_skill:
            found[f"{check.skill} {check.sub_skill}"].append(right)
    return {"read": read, **{name: sum(points) / len(points) for name, points in found.items()}}


def _failed(checks: Sequence[Check], objection: Objection, fault: Fault | None) -> Verdict:
    detail = _detail(checks, [False] * len(checks), read=0.0)
    return Verdict(success=False, reward=0.0, feedback=objection.text, fault=fault, detail=detail)


def _json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path, _MEND))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, found something else ({error}); {_MEND}") from error

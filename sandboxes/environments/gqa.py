"""GQA: questions about pictures, answered by a program over vision tools that finds, filters, relates and asks.

    environment = open_environment(data="~/gqa")                                     # scene graphs, on a CPU
    environment = open_environment(data="~/gqa", sight="models", models={"device": "cuda"})

The agent sees the question, never the picture; its program does (`gqa_program.py`: the language and the tools; nothing of
it is executed by Python). Two back ends stand behind the same tools: `sight="scene"`, the picture's scene graph, and
`sight="models"`, an object detector and a question answerer through transformers (`gqa_models.py`).

**Data**: the official release in one folder: `questions/{train,val,testdev}_balanced_questions.json` (or `questions1.2/`),
`sceneGraphs/{train,val}_sceneGraphs.json`, `images/ID.jpg` for the models. Questions whose picture has no scene graph (all
official testdev ones) are left out on the scene back end, where `heldout` is then `val`. Bundled: invented pictures.

**Right**: prediction and answer are the same text (`accuracy`, the official metric; `open` or `binary` beside it by the
official division). **Feedback**: what each tool said, line by line, and the first that found nothing; never the answer.

Source: Hudson and Manning 2019 (arXiv 1902.09506); programs over tools: Gupta and Kembhavi 2022 (arXiv 2211.11559),
Surís et al. 2023 (arXiv 2303.08128). Left out: consistency, validity and plausibility scores; questions with pictures shown
to the agent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.gqa_invented import SPLITS, draw_scene, make_records
from kintsugi.sandboxes.environments.gqa_official import is_open, program_of
from kintsugi.sandboxes.environments.gqa_program import Outcome, Sight, run_program
from kintsugi.sandboxes.environments.gqa_scene import SceneSight
from kintsugi.sandboxes.environments.official_records import BUNDLED, Made, RecordTasks, Row, first_of, read_bytes, texts
from kintsugi.sandboxes.environments.printed_number import is_text, readable
from kintsugi.sandboxes.environments.program_of_thought import (
    MAX_CHARACTERS,
    AssessedEnvironment,
    Objection,
    Program,
    find_program,
)

_HOME: Final = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
_MEND: Final = (
    f"the official files are questions1.2.zip, sceneGraphs.zip and images.zip of {_HOME}: unpack them into one folder, as "
    'questions/, sceneGraphs/ and images/, and name it with the option data="..."'
)
_FILES: Final = {"train": "train", "val": "val", "testdev": "testdev", "heldout": "heldout"}
_SIGHTS: Final = ("scene", "models")
_SHOWN_STEPS: Final = 8

ABOUT = About(
    kind="program over vision tools",
    metric="prediction == answer, the same text (accuracy; binary and open apart)",
    data="questions/{train,val,testdev}_balanced_questions.json with sceneGraphs/ (or images/ for vision models)",
    splits=("train", "val", "testdev", "heldout (= testdev, or val where testdev has no scene graphs)"),
    licence="CC BY 4.0",
    home=_HOME,
    bundled=True,
    downloads=(
        Download(
            url="https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip", path="questions1.2.zip", unpack=True
        ),
        Download(
            url="https://downloads.cs.stanford.edu/nlp/data/gqa/sceneGraphs.zip",
            path="sceneGraphs.zip",
            unpack=True,
        ),
    ),
)


def open_environment(
    data: str | Path | None = None,
    sight: str = "scene",
    models: Mapping[str, Any] | None = None,
    num_tasks: int = 64,
) -> Gqa:
    """GQA from the folder `data`, or "bundled" (the default). sight: "scene" or "models". models: for the latter, options
    of `gqa_models.open_models` (detector, answerer, device, …). num_tasks: how many bundled tasks `tasks` makes without a
    limit. Raises ConfigError, DataError and, without torch, MissingExtra."""
    if sight not in _SIGHTS:
        raise ConfigError(f'gqa.sight: unknown "{sight}": {nearest(sight, _SIGHTS)}')
    if not isinstance(num_tasks, int) or num_tasks < 1:
        raise ConfigError(f"gqa.num_tasks: expected a whole number from 1, found {num_tasks!r}")
    if str(data) == "hub":
        raise ConfigError(f'gqa.data: expected a folder or "bundled", found "hub"; {_MEND}')
    if models and sight != "models":
        raise ConfigError('gqa.models: vision models are used with sight="models" alone')
    return Gqa(data=data, sight=sight, models=models, num_tasks=num_tasks)


class Gqa(RecordTasks, AssessedEnvironment):
    """The environment. A payload holds `answer`, `types`, `semantic`, `image` (its id) and `scene` or `path`."""

    name = "gqa"
    files = _FILES
    mend = _MEND

    def __init__(self, *, data: str | Path | None, sight: str, models: Mapping[str, Any] | None, num_tasks: int) -> None:
        super().__init__(data=data)
        self.sight, self.num_tasks = sight, num_tasks
        self._scenes: dict[str, Any] = {}
        self._options = dict(models or {})
        self._models: Any = None
        self._seeing = asyncio.Lock()
        if sight == "models":
            from kintsugi.sandboxes.environments.gqa_models import check_options

            check_options(self._options)

    # The data

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Bundled: `limit` tasks, others for another seed. Official: see `RecordTasks`. Raises DataError."""
        if self.source != BUNDLED:
            return super().tasks(split, limit=limit, seed=seed)
        if split not in SPLITS:
            raise DataError(f'gqa has no split "{split}": {nearest(split, SPLITS)}')
        records, scenes = make_records(split, number=self.num_tasks if limit is None else limit, seed=seed)
        self._scenes.update(scenes)
        tasks = []
        for key, record in records.items():
            made = self.made((key, record), key, split)
            tasks.append(
                Task(
                    id=f"bundled-{made.key}",
                    environment=self.name,
                    split=split,
                    prompt=made.prompt,
                    payload=dict(made.payload),
                )
            )
        return tasks

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        if official == "heldout":
            with_scenes = self.sight == "models" or self._scene_files(folder, "testdev")
            official = "testdev" if with_scenes else "val"
        name = f"{official}_balanced_questions.json"
        path = first_of(folder, f"questions/{name}", f"questions1.2/{name}", name)
        records = _json_object(path)
        if self.sight == "scene":
            for scene_file in self._scene_files(folder, official):
                self._scenes.update(_json_object(scene_file))
        for key, record in records.items():
            where = f"{path}, question {key}"
            texts(record, where, _MEND, "question", "answer", "imageId")
            if self.sight == "models" or record["imageId"] in self._scenes:
                yield (key, record), where

    def _scene_files(self, folder: Path, official: str) -> list[Path]:
        return sorted((folder / "sceneGraphs").glob(f"{official}*sceneGraphs.json")) or sorted(
            folder.glob(f"{official}*sceneGraphs.json")
        )

    def made(self, record: Any, where: str, official: str) -> Made:
        key, said = record
        image, types, semantic = said["imageId"], said.get("types"), said.get("semantic")
        if not isinstance(types, Mapping) or not isinstance(types.get("structural"), str):
            raise DataError(f'{where}: expected "types" with a text "structural", found {types!r:.60}; {_MEND}')
        if not isinstance(semantic, list):
            raise DataError(f'{where}: expected a list "semantic", found {type(semantic).__name__}; {_MEND}')
        payload = {"answer": said["answer"], "types": dict(types), "semantic": semantic, "image": image}
        if self.folder is not None and self.sight == "models":
            payload["path"] = str(self.folder / "images" / f"{image}.jpg")
        else:
            payload["scene"] = _checked_scene(self._scenes.get(image), image)
        return Made(key=f"gqa-{key}", prompt=f"Picture {image}: {said['question'].strip()}", payload=payload)

    async def gold(self, task: Task) -> tuple[str, ...] | None:
        """The official program, in this language; None where its steps are none of GQA's."""
        try:
            return (program_of(task.payload["semantic"]),)
        except (KeyError, ValueError, IndexError, TypeError):
            return None

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """The last line turned round, and another answer written down."""
        head, _, last = gold[-1].rpartition("\n")
        answer = task.payload["answer"]
        wrong = {"yes": "no", "no": "yes", "left": "right", "right": "left"}.get(answer, f"not {answer}")
        spoiled = [[f'{gold[-1]}\nanswer = "{wrong}"']]
        if answer in ("yes", "no"):
            spoiled.append([f"{head}\nanswer = not ({last.removeprefix('answer = ')})"])
        return spoiled

    # The verdict

    async def assess(self, task: Task, action: str) -> tuple[Verdict, int]:
        """The verdict, and how many programs were run for it (0 when the action is none)."""
        if len(action) > MAX_CHARACTERS:
            text = f"The answer is too long: write a program of at most {MAX_CHARACTERS} characters."
            return _verdict(task, action, None, Outcome(objection=Objection(text=text))), 0
        program = find_program(action)
        if self.sight == "models":
            async with self._seeing:  # one pair of models, one picture at a time
                outcome = await asyncio.to_thread(lambda: run_program(program.source, self._look(task)))
        else:
            outcome = run_program(program.source, SceneSight(task.payload["scene"]))
        return _verdict(task, action, program, outcome), int(outcome.calls > 0)

    def _look(self, task: Task) -> Sight:
        """The models, looking at the task's picture. Raises DataError when it is not there."""
        from kintsugi.sandboxes.environments.gqa_models import open_models, open_picture

        if self._models is None:
            self._models = open_models(**self._options)
        path = task.payload.get("path")
        return self._models.look(open_picture(path) if path else draw_scene(task.payload["scene"]))

    async def close(self) -> None:
        self._models = None


def _verdict(task: Task, action: str, program: Program | None, outcome: Outcome) -> Verdict:
    binary = not is_open(task.payload["types"]["structural"])
    right = outcome.objection is None and outcome.answer == task.payload["answer"]
    answered = float(outcome.objection is None)
    detail = {"accuracy": float(right), "binary" if binary else "open": float(right), "answered": answered}
    if right:
        return Verdict(success=True, reward=1.0, feedback=readable(outcome.answer, 60), detail=detail)
    objection, fault = outcome.objection, None
    if objection is None:
        parts = [f'The check failed: the program answers "{readable(outcome.answer, 60)}".']
    else:
        parts = [objection.text]
    shown = outcome.steps[:_SHOWN_STEPS]
    parts += [f"Line {line}: {said}." for line, said in shown]
    if len(outcome.steps) > len(shown):
        parts.append(f"And {len(outcome.steps) - len(shown)} calls more.")
    line, note = (objection.line, objection.note) if objection is not None else (None, "")
    if outcome.empty is not None and (line is None or line > outcome.empty[0]):
        line, note = outcome.empty[0], "finds nothing"  # what comes later follows from it
    if program is not None and line is not None and is_text(action):
        fault = program.fault_at(line, note)
    return Verdict(success=False, reward=0.0, feedback=" ".join(parts), fault=fault, detail=detail)


def _json_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object of objects, as all of GQA's are."""
    try:
        found = json.loads(read_bytes(path, _MEND))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON object, found something else ({error}); {_MEND}") from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise DataError(f"{path}: expected a JSON object of records, found {type(found).__name__}; {_MEND}")
    return found


def _checked_scene(scene: Any, image: str) -> Any:
    """The scene graph, which the programs' tools read without another look. Raises DataError."""
    objects = scene.get("objects") if isinstance(scene, Mapping) else None
    if not isinstance(objects, Mapping) or not all(
        isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in objects.values()
    ):
        raise DataError(f'picture {image}: expected a scene graph with "objects" that have names, found none; {_MEND}')
    if not all(_is_number(scene.get(side, 0)) for side in ("width", "height")):
        raise DataError(f"picture {image}: expected numbers as width and height, found something else; {_MEND}")
    for key, one in objects.items():
        sides = [one[side] for side in ("x", "y", "w", "h") if side in one]
        words = one.get("attributes", [])
        said = one.get("relations", [])
        if not all(map(_is_number, sides)):
            wanted = "numbers as x, y, w and h"
        elif not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            wanted = "a list of texts as attributes"
        elif not isinstance(said, list) or not all(
            isinstance(way, Mapping) and isinstance(way.get("name"), str) and str(way.get("object")) in objects
            for way in said
        ):
            wanted = "relations with a name and an object of the same picture"
        else:
            continue
        raise DataError(f"picture {image}: expected of the object {key} {wanted}, found something else; {_MEND}")
    return scene


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

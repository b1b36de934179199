"""GQA: golds on the official slice, the official scores, the language, both back ends, schemas, episodes, its page."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError
from kintsugi.records import Verdict
from kintsugi.sandboxes.environments.about import about
from kintsugi.sandboxes.environments.conformance import check, play
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.gqa_invented import draw_scene, make_records
from kintsugi.sandboxes.environments.gqa_official import official_scores
from kintsugi.sandboxes.environments.gqa_program import run_program
from tests.sandboxes.environment_trials import ROOT, SHARED, odd_verdicts, scripted_episodes, transcript, without_clock
from tests.sandboxes.test_gqa_program import SCENE


def bundled(**options: Any) -> Any:
    return open_environment("gqa", {"data": "bundled", **options})


def judged(environment: Any, task: Any, action: str) -> Verdict:
    return asyncio.run(environment.judge(task, action))


# The official slice and the official metric


def test_every_gold_of_the_slice_wins_and_spoiled_ones_do_not() -> None:
    if not (SHARED / "gqa").is_dir():
        pytest.skip(f"GQA's files are not in {SHARED / 'gqa'}")
    environment = open_environment("gqa", {"data": SHARED / "gqa"})
    result = asyncio.run(check_golds(environment))
    assert result.ok and (result.tasks, result.without_gold) == (300, 0), str(result)
    assert dict(result.splits) == {"train": 200, "testdev": 100, "heldout": 100}
    assert len(environment.tasks("testdev")) == 100


def reference_scores(predictions: dict[str, str], questions: dict[str, Any]) -> dict[str, float]:
    """Averages as the official script takes them, written down anew: sums and counts, one pass a score."""

    def mean(chosen: list[str]) -> float:
        return sum(
            1.0 if key in predictions and predictions[key] == questions[key]["answer"] else 0.0 for key in chosen
        ) / len(chosen)

    kinds = {key: one["types"] for key, one in questions.items()}
    groups = {
        "accuracy": list(questions),
        "open": [key for key in questions if kinds[key]["structural"] == "query"],
        "binary": [key for key in questions if kinds[key]["structural"] in ("verify", "choose", "logical", "compare")],
    }
    for kind in ("structural", "semantic"):
        for value in {one[kind] for one in kinds.values()}:
            groups[f"{kind} {value}"] = [key for key in questions if kinds[key][kind] == value]
    return {name: mean(chosen) for name, chosen in groups.items() if chosen}


def test_scores_equal_an_independent_reference() -> None:
    rng = random.Random(6)
    words = ["yes", "no", "red", "Red", "red ", "left", "", "traffic light"]
    for _ in range(5):
        questions = {
            str(key): {
                "answer": rng.choice(words[:3] + words[5:6]),
                "types": {
                    "structural": rng.choice(["query", "verify", "choose", "logical", "compare"]),
                    "semantic": rng.choice(["attr", "rel", "obj", "cat", "global"]),
                },
            }
            for key in range(60)
        }
        predictions = {key: rng.choice(words) for key in questions if rng.random() < 0.9}
        assert official_scores(predictions, questions) == pytest.approx(reference_scores(predictions, questions))


def test_verdicts_are_the_official_points() -> None:
    environment = bundled(num_tasks=240)
    tasks = environment.tasks("train")
    rng = random.Random(1)
    predictions, questions, points = {}, {}, []
    for task in tasks:
        said = rng.choice([task.payload["answer"], task.payload["answer"].upper(), "yes", "no", "red"])
        verdict = judged(
            environment, task, f"picture = scene()\nthings = find('anything')\nx = count(things)\nanswer = '{said}'"
        )
        predictions[task.id], questions[task.id] = said, task.payload
        points.append(verdict.reward)
        kind = "open" if task.payload["types"]["structural"] == "query" else "binary"
        assert verdict.detail[kind] == verdict.detail["accuracy"] == verdict.reward == float(verdict.success)
    assert sum(points) / 240 == pytest.approx(reference_scores(predictions, questions)["accuracy"])
    assert 0 < sum(points) < 240


# The environment


def test_it_conforms() -> None:
    environment = bundled()
    report = asyncio.run(check(environment, num_tasks=20, perturb=environment.perturbed))
    assert report.ok, str(report)


def test_invented_golds_win_and_spoiled_ones_do_not() -> None:
    result = asyncio.run(check_golds(bundled(num_tasks=200)))
    assert result.ok and (result.tasks, result.without_gold) == (600, 0), str(result)


def test_fifty_episodes_at_once_are_the_same_again() -> None:
    environment = bundled()
    episodes, again = scripted_episodes(environment, "vision"), scripted_episodes(environment, "vision")
    assert without_clock(episodes) == without_clock(again)
    assert len(episodes) == 50 and all(episode.success for episode in episodes)
    repaired = [episode for episode in episodes if len(episode.trajectories) == 2]
    assert 5 <= len(repaired) < 50 and all(episode.trajectories[0].feedback for episode in repaired)


def test_a_thousand_odd_actions_all_get_a_verdict() -> None:
    assert asyncio.run(odd_verdicts(bundled())) == []


@pytest.mark.parametrize(
    "action",
    [
        "answer = " + "(" * 500,
        "answer = " + "not " * 4000 + "True",
        "find('a')\n" * 1500,
        "a = find('anything')\n" + "a = filter(a, 'not x')\n" * 600,
        "answer = find('\ud800')",
        "find(*[1])\nanswer = 1",
        "answer = relate([], [], [])",
        "answer = choose(scene(), [])",
        "answer = same(find('x'))",
        "answer = scene()[0][0][0]",
        "answer: str = 'yes'",
        "a = b = 'yes'",
        "answer = find(" + '"' + "x" * 10_000 + '")',
        "answer = 10 ** 10 ** 10",
        "answer = f'{find}'",
        "def f(): return 1\nanswer = f()",
        "answer = (lambda: 1)()",
        "answer = True\x00",
    ],
)
def test_hostile_programs_get_feedback(action: str) -> None:
    environment = bundled()
    (task,) = environment.tasks("train", limit=1)
    (reply,) = asyncio.run(play(environment, task, [action]))
    assert reply.verdict is not None and not reply.verdict.success and not reply.verdict.error
    assert 0 < len(reply.verdict.feedback) < 3000


def test_feedback_tells_what_each_tool_said() -> None:
    environment = bundled()
    task = next(task for task in environment.tasks("train") if "What color is the cup" in task.prompt)
    verdict = judged(environment, task, 'cup = find("dragon")\nred = filter(cup, "red")\nanswer = query(red, "color")')
    assert verdict.feedback.startswith("query has nothing to look at")
    assert "Line 1: find('dragon') found nothing." in verdict.feedback
    assert (
        verdict.fault is not None and verdict.fault.bad == 'cup = find("dragon")' and verdict.fault.note == "finds nothing"
    )
    wrong = judged(environment, task, '```python\ncup = find("cup")\nanswer = query(cup, "size")\n```')
    assert wrong.feedback.startswith("The check failed: the program answers") and "found cup" in wrong.feedback
    assert task.payload["answer"] not in wrong.feedback


def test_tasks_are_others_for_another_seed_and_pictures_are_shared_by_no_splits() -> None:
    environment = bundled()
    first, other = environment.tasks("train", limit=20), environment.tasks("train", limit=20, seed=1)
    assert not {task.prompt for task in first} & {task.prompt for task in other}
    kinds = {task.payload["types"]["detailed"] for task in environment.tasks("heldout", limit=200)}
    assert len(kinds) >= 12
    with pytest.raises(DataError, match='no split "dev"'):
        environment.tasks("dev")


# The official schema


def written(folder: Path, split: str, questions: Any, scenes: Any = None) -> Path:
    (folder / "questions").mkdir(exist_ok=True)
    (folder / "sceneGraphs").mkdir(exist_ok=True)
    (folder / "questions" / f"{split}_balanced_questions.json").write_text(json.dumps(questions))
    if scenes is not None:
        (folder / "sceneGraphs" / f"{split}_sceneGraphs.json").write_text(json.dumps(scenes))
    return folder


QUESTION = {
    "question": "Is the car red?",
    "answer": "yes",
    "imageId": "7",
    "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"},
    "semantic": [
        {"operation": "select", "argument": "car (1)", "dependencies": []},
        {"operation": "verify color", "argument": "red", "dependencies": [0]},
    ],
}


def test_the_official_release_is_read(tmp_path: Path) -> None:
    written(tmp_path, "train", {"1": QUESTION, "2": {**QUESTION, "imageId": "8"}}, {"7": SCENE})
    written(tmp_path, "val", {"3": QUESTION}, {"7": SCENE})
    written(tmp_path, "testdev", {"4": {**QUESTION, "imageId": "9"}})
    environment = open_environment("gqa", {"data": tmp_path})
    assert [task.id for task in environment.tasks("train")] == ["gqa-1"]  # picture 8 has no scene graph
    assert [task.id for task in environment.tasks("heldout")] == ["gqa-3"]  # testdev has none at all: val
    assert environment.tasks("demonstrations") == ()
    with pytest.raises(DataError, match="holds no records"):
        environment.tasks("testdev")
    (task,) = environment.tasks("train")
    assert task.prompt == "Picture 7: Is the car red?"
    assert asyncio.run(check_golds(environment)).ok


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answer": 3}, 'a text "answer"'),
        ({"types": {}}, 'expected "types"'),
        ({"semantic": "select"}, 'a list "semantic"'),
    ],
)
def test_bad_records_are_told(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    written(tmp_path, "train", {"1": {**QUESTION, **change}}, {"7": SCENE})
    with pytest.raises(DataError, match=sentence):
        open_environment("gqa", {"data": tmp_path}).tasks("train")


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ({"width": "wide"}, "numbers as width and height"),
        ({"objects": {"1": {"name": "cat", "x": "a"}}}, "of the object 1 numbers as x, y, w and h"),
        ({"objects": {"1": {"name": "cat", "attributes": None}}}, "a list of texts as attributes"),
        ({"objects": {"1": {"name": "cat", "relations": [{"name": "on"}]}}}, "relations with a name and an object"),
    ],
)
def test_half_a_scene_is_told(tmp_path: Path, spoilt: Any, told: str) -> None:
    written(tmp_path, "train", {"1": QUESTION}, {"7": {**SCENE, **spoilt}})
    with pytest.raises(DataError, match=f"picture 7: expected .*{told}"):
        open_environment("gqa", {"data": tmp_path}).tasks("train")


def test_bad_scenes_files_and_options_are_told(tmp_path: Path) -> None:
    written(tmp_path, "train", {"1": QUESTION}, {"7": {"objects": {"1": {}}}})
    with pytest.raises(DataError, match='a scene graph with "objects"'):
        open_environment("gqa", {"data": tmp_path}).tasks("train")
    written(tmp_path, "train", [])
    with pytest.raises(DataError, match="expected a JSON object of records, found list"):
        open_environment("gqa", {"data": tmp_path}).tasks("train")
    for options, sentence in (
        ({"sight": "scenes"}, 'did you mean "scene"'),
        ({"num_tasks": 0}, "whole number from 1"),
        ({"data": "hub"}, 'a folder or "bundled"'),
        ({"models": {"device": "cpu"}}, 'with sight="models" alone'),
    ):
        with pytest.raises(ConfigError, match=sentence):
            open_environment("gqa", options)


# Vision models, tiny and random


VISION = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in ("torch", "transformers", "PIL")),
    reason='vision models need torch, transformers and Pillow: pip install "kintsugi-agents[train,vision]"',
)
LOOK = """cup = find("cup")
near = relate("chair", "near", cup)
left = relate("chair", "to the left of", cup)
held = relate("anything", "on", cup)
red = filter(cup, "red")
kind = query(cup, "color")
side = query(cup, "hposition")
plain = simple_query("what is this?")
answer = query(scene(), "place")"""


@VISION
@pytest.mark.parametrize("answerer", ["vilt", "blip"])
def test_vision_models_stand_behind_the_same_tools(answerer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kintsugi.sandboxes.environments.gqa_models import open_models
    from tests.sandboxes import tiny_vision

    detector, answering = tiny_vision.owlvit(tmp_path / "detector"), getattr(tiny_vision, answerer)(tmp_path / "answerer")
    monkeypatch.setattr("kintsugi.sandboxes.environments.gqa_models.MAX_THINGS", 2)  # few questions: a quick test
    models = open_models(detector, answering, device="cpu", threshold=0.0)
    _, scenes = make_records("train", number=1)
    picture = draw_scene(next(iter(scenes.values())))
    first, second = run_program(LOOK, models.look(picture)), run_program(LOOK, models.look(picture))
    assert first == second and first.objection is None and first.answer, first
    assert first.calls == 10 and "found cup" in first.steps[0][1]
    if answerer == "vilt":
        assert first.answer in ("yes", "no", "red", "left", "cup")
    boxes = models.boxes(picture, "cup")
    assert len(boxes) == 2 and all(
        0 <= x <= picture.width and 0 <= y <= picture.height and w > 0 and h > 0 for x, y, w, h in boxes
    )
    none = open_models(detector, answering, device="cpu", threshold=1.0).look(picture)
    assert none.find("cup") == []


@VISION
def test_an_episode_with_vision_models(tmp_path: Path) -> None:
    from tests.sandboxes import tiny_vision

    options = {
        "detector": tiny_vision.owlvit(tmp_path / "detector"),
        "answerer": tiny_vision.vilt(tmp_path / "answerer"),
        "device": "cpu",
        "threshold": 0.0,
    }
    environment = bundled(sight="models", models=options)
    task = environment.tasks("train", limit=1)[0]
    one, two = (judged(environment, task, 'cup = find("cup")\nanswer = query(cup, "color")') for _ in range(2))
    assert one == two and one.detail["answered"] == 1.0 and "query(cup, 'color') said" in one.feedback
    written(tmp_path, "train", {"1": QUESTION})
    seen = open_environment("gqa", {"data": tmp_path, "sight": "models", "models": options})
    (real,) = seen.tasks("train")
    with pytest.raises(DataError, match="expected a picture at"):
        judged(seen, real, 'answer = exists(find("car"))')
    (tmp_path / "images").mkdir()
    draw_scene({**SCENE, "objects": {}}).save(tmp_path / "images" / "7.jpg")
    assert judged(seen, real, 'answer = exists(find("car"))').success
    asyncio.run(environment.close())


@VISION
def test_wrong_options_of_vision_models_are_told(tmp_path: Path) -> None:
    from kintsugi.errors import PolicyError
    from kintsugi.sandboxes.environments.gqa_models import open_models

    with pytest.raises(ConfigError, match='did you mean "detector"'):
        bundled(sight="models", models={"detecter": "x"})
    with pytest.raises(ConfigError, match="from 0 to 1"):
        open_models(threshold=3)
    with pytest.raises(PolicyError, match="cannot be loaded"):
        open_models(str(tmp_path / "nothing"))


# What it says of itself


def test_the_pages_transcript_is_what_happens() -> None:
    page = (ROOT / "docs" / "environments" / "gqa.md").read_text(encoding="utf-8")
    shown = page.partition("````text\n")[2].partition("\n````")[0]
    said = re.findall(r"^(?:actor|reflector):\n((?:  .*\n|\n(?=  ))*)", shown + "\n", re.MULTILINE)
    first, second = ("\n".join(line[2:] for line in text.rstrip("\n").split("\n")) for text in said)
    environment = bundled()
    task_id = shown.partition(":")[0].removeprefix("task ")
    (task,) = [task for task in environment.tasks("heldout") if task.id == task_id]
    assert transcript(environment, task, first, second) == shown


def test_it_says_what_it_is() -> None:
    said = about("gqa")
    assert said.bundled and said.licence == "CC BY 4.0" and said.home.startswith("https://") and said.downloads

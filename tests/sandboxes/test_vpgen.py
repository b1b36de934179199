"""VPGen: layouts read and drawn, golds on the official slice, episodes, its page."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError
from kintsugi.records import Verdict
from kintsugi.sandboxes.environments.about import about
from kintsugi.sandboxes.environments.conformance import check
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.gold_self_test import check_golds
from kintsugi.sandboxes.environments.program_of_thought import Objection
from kintsugi.sandboxes.environments.vpeval_skills import Detection, spatial_skill
from kintsugi.sandboxes.environments.vpgen_judge import Check, checks_of_code, checks_of_record, judge_layout
from kintsugi.sandboxes.environments.vpgen_layout import Layout, draw_layout, read_layout, write_layout
from tests.sandboxes.environment_trials import ROOT, SHARED, odd_verdicts, scripted_episodes, transcript, without_clock


def bundled(**options: Any) -> Any:
    return open_environment("vpgen", {"data": "bundled", **options})


def judged(environment: Any, task: Any, action: str) -> Verdict:
    return asyncio.run(environment.judge(task, action))


# Layouts


def test_layouts_are_read_as_vpgen_writes_them() -> None:
    text = (
        "Objects: Two skiers (2), pink (1), black (1), a ski lift (1)\nLayout: Two skiers [(24, 68, 90, 99), "
        "(1, 18, 34, 47)] pink [(0, 29, 30, 95)] black [(17, 17, 68, 25)] a ski lift [(3, 30, 99, 57)]"
    )
    layout = read_layout(text)
    assert isinstance(layout, Layout)
    assert [(box.phrase, box.corners) for box in layout.boxes] == [
        ("Two skiers", (24, 68, 90, 99)), ("Two skiers", (1, 18, 34, 47)), ("pink", (0, 29, 30, 95)),
        ("black", (17, 17, 68, 25)), ("a ski lift", (3, 30, 99, 57)),
    ]  # fmt: skip
    assert layout.counted == (("Two skiers", 2), ("pink", 1), ("black", 1), ("a ski lift", 1))
    assert str(read_layout(str(layout))) == str(layout)
    assert layout.boxes[0].pixels == (124, 351, 465, 512)


@pytest.mark.parametrize(
    "text",
    [
        "a dog [(1, 2, 30, 40)]",
        "```\na dog [(1,2,30,40)]\n```",
        "The dog stands on the left.\nObjects: a dog (1)\nLayout:\na dog [(1, 2, 30, 40)]",
        "- a dog: [(1, 2, 30, 40)],",
        "Layout: a dog [( 1, 2, 30, 40 )]",
        "Objects: a dog (1)\na dog [(1, 2, 30, 40)]",
    ],
)
def test_forms_of_the_same_layout(text: str) -> None:
    layout = read_layout(text)
    assert isinstance(layout, Layout), layout
    assert [(box.phrase, box.corners) for box in layout.boxes] == [("a dog", (1, 2, 30, 40))]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no layout"),
        ("a dog", "holds no layout"),
        ("a dog [(1, 2, 30)]", r'found "\(1, 2, 30\)"'),
        ("a dog [(1, 2, 30, 400)]", "from 0 to 99"),
        ("a dog [(0.1, 0.2, 0.3, 0.4)]", "whole numbers"),
        ("a dog [(1, 2, 30, -4)]", "whole numbers"),
        ("a dog [(30, 2, 30, 40)]", "has no area"),
        ("a dog [(30, 2, 10, 40)]", "x2 must be greater"),
        ("a dog []", "has no box"),
        ("a dog [(1, 2, 3, 4)", "] is missing"),
        ("[(1, 2, 3, 4)]", "without a short phrase"),
        ("a dog [box]", "Expected boxes"),
        ("a dog [(1, 2, 3, 4)] " * 31, "at most 30 boxes"),
        ("a dog [(1, 2, 3, 4)]\n\na cat [(9, 9, 2, 2)]", "line 3"),
    ],
)
def test_odd_layouts_are_objected_to(text: str, sentence: str) -> None:
    found = read_layout(text)
    assert isinstance(found, Objection) and re.search(sentence, found.text), found


def test_what_a_layout_shows() -> None:
    def passes(text: str, skill: str, *labels: str, target: str = "") -> bool:
        layout = read_layout(text)
        assert isinstance(layout, Layout)
        return judge_layout(layout, [Check(skill=skill, labels=labels, target=target)]).passed[0]

    two = "two big dogs [(5, 10, 30, 60), (60, 40, 90, 90)] a car door [(0, 0, 10, 10)]"
    assert passes(two, "object", "dog") and not passes(two, "object", "car") and passes(two, "count", "dog", target="==2")
    assert passes("a wine glass [(1, 1, 9, 9)]", "object", "wine glass")
    assert not passes("a glass [(1, 1, 9, 9)]", "object", "wine glass")
    signs = "a sign that says 'Stop' [(1, 1, 50, 50)]"
    assert passes(signs, "text", target="stop") and passes(signs, "object", "sign") and not passes(signs, "object", "stop")
    assert not passes("the word 'dog' [(1, 1, 50, 50)]", "object", "dog")
    ground = "a dog [(10, 50, 30, 90)] a car [(20, 20, 70, 70)]"
    assert passes(ground, "spatial", "car", "dog", target="front") and passes(
        ground, "spatial", "dog", "car", target="behind"
    )
    assert not passes(ground, "spatial", "dog", "car", target="front")
    near = "a dog [(10, 10, 30, 30)] a car [(11, 10, 31, 30)]"  # 5 pixels of 512 apart, not more
    assert not passes(near, "spatial", "dog", "car", target="right")
    far = "a dog [(10, 10, 30, 30)] a car [(12, 10, 32, 30)]"
    assert passes(far, "spatial", "dog", "car", target="right")


def test_programs_of_open_captions_are_read_and_not_run() -> None:
    code = (
        "objectEval(image, 'bear');vqa(iamge, 'is it brown?', 'yes,no', 'yes');countEval(objDet(image, 'bear'), '>1');"
        "spatialEval(image, 'bear,forest,surrounded by');spatialEval(image, 'bear,tree,left of');"
        "textEval(ocr(image), 'START');"
        "scaleEval(image, 'bear,tree,smaller');countEval(objDet(image, 'a')+objDet(image, 'b'), '>1');if count == 2:;else:;"
        "__import__('os').system('id');spatialEval(image, 'book,on the bottom');count = countEval(objDet(image, 'x'), '==1')"
    )
    checks, unjudged = checks_of_code(code)
    assert unjudged == 2  # the question and the relation that needs one
    assert checks == [
        Check(skill="object", labels=("bear",)), Check(skill="count", labels=("bear",), target=">1"),
        Check(skill="spatial", labels=("bear", "tree"), target="left"), Check(skill="text", labels=(), target="START"),
        Check(skill="scale", labels=("bear", "tree"), target="smaller"),
    ]  # fmt: skip
    assert checks_of_code("(" * 5000) == ([], 0)


# The official slice


def test_every_gold_of_the_slice_wins_and_spoiled_ones_do_not() -> None:
    if not (SHARED / "vpeval").is_dir():
        pytest.skip(f"VPEval's files are not in {SHARED / 'vpeval'}")
    environment = open_environment("vpgen", {"data": SHARED / "vpeval"})
    result = asyncio.run(check_golds(environment))
    assert result.ok and result.splits["test"] == 451, str(result)
    # "a map of Italy" is judged by questions about the picture alone: a layout can answer none.
    assert result.without_gold == 1


def test_real_layouts_stand_as_their_captions_say() -> None:
    """NSR-1K's boxes are of COCO pictures: VPEval's rule and its labels are nearly always of one mind."""
    path = SHARED / "nsr1k" / "spatial" / "spatial.val.json"
    if not path.is_file():
        pytest.skip(f"NSR-1K's layouts are not in {path.parent}")
    sides = {"left": "left", "right": "right", "top": "above", "bottom": "below"}
    tried = right = turned = 0
    for one in json.loads(path.read_text()):
        if one["relation"] not in sides or one["obj1"][0] == one["obj2"][0]:
            continue
        found = [
            Detection(name, (int(512 * x), int(512 * y), int(512 * (x + w)), int(512 * (y + h))))
            for name, (x, y, w, h) in (one["obj1"], one["obj2"])
        ]
        labels, side = [one["obj2"][0], one["obj1"][0]], sides[one["relation"]]  # the relation is the first object's
        opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[side]
        tried += 1
        right += spatial_skill(labels, found, side)
        turned += spatial_skill(labels, found, opposite)
    assert tried > 50 and right / tried > 0.9 and turned / tried < 0.1, (tried, right, turned)


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
    episodes, again = scripted_episodes(environment, "layout"), scripted_episodes(environment, "layout")
    assert without_clock(episodes) == without_clock(again)
    assert len(episodes) == 50 and all(episode.success for episode in episodes)
    repaired = [episode for episode in episodes if len(episode.trajectories) == 2]
    assert 5 <= len(repaired) < 50 and all(episode.trajectories[0].feedback for episode in repaired)


def test_a_thousand_odd_actions_all_get_a_verdict() -> None:
    assert asyncio.run(odd_verdicts(bundled())) == []


def test_feedback_and_scores_by_skill() -> None:
    environment = bundled()
    tasks = {task.payload["checks"][0]["skill"]: task for task in environment.tasks("heldout")}
    count = next(task for task in environment.tasks("heldout") if task.payload["checks"][0]["target"] == "==3")
    label = count.payload["checks"][0]["labels"][0]
    verdict = judged(environment, count, f"{label} [(1, 1, 20, 20)]")
    assert verdict.feedback == f"Count: 1 box shows {label}, not the number wanted."
    assert dict(verdict.detail) == {"read": 1.0, "score": 0.0, "count": 0.0, "count 3": 0.0}
    first, second = tasks["spatial"].payload["checks"][0]["labels"]
    missing = judged(environment, tasks["spatial"], f"a {first} [(1, 1, 20, 20)]")
    assert missing.feedback == f"Spatial: no box shows {second}."
    same = judged(environment, tasks["spatial"], f"a {first} [(1, 1, 20, 20)] a {second} [(1, 1, 20, 20)]")
    assert same.feedback.startswith(f"Spatial: no {second} stands ") and f"{first} is at (1, 1, 20, 20)" in same.feedback
    text = judged(environment, tasks["text"], "a sign [(1, 1, 20, 20)]")
    assert text.feedback.startswith("Text: the caption's text is not written") and "no phrase holds" in text.feedback
    broken = judged(environment, count, "Objects: x (1)\nLayout: x [(1, 1, 20)]")
    assert broken.detail["read"] == 0.0 and broken.fault is not None and broken.fault.bad == "Layout: x [(1, 1, 20)]"


def test_splits_share_no_caption_and_skills_can_be_chosen() -> None:
    environment = bundled()
    captions = {
        split: {task.prompt for task in environment.tasks(split)} for split in ("train", "heldout", "demonstrations")
    }
    assert not captions["train"] & captions["heldout"] and not captions["train"] & captions["demonstrations"]
    chosen = bundled(skills="count,scale").tasks("train")
    assert {task.payload["checks"][0]["skill"] for task in chosen} == {"count", "scale"} and len(chosen) == 60
    with pytest.raises(DataError, match="only 0 different captions"):
        bundled(skills="open").tasks("train")
    with pytest.raises(DataError, match="different captions of demonstrations"):
        environment.tasks("demonstrations", limit=100_000)
    with pytest.raises(ConfigError, match='did you mean "spatial"'):
        bundled(skills="spacial")
    with pytest.raises(ConfigError, match="set both"):
        bundled(gligen={})
    with pytest.raises(DataError, match='no split "dev"'):
        environment.tasks("dev")


# The official schema


def release(folder: Path, skill: str, records: Any, ids: Any = None) -> Path:
    base = folder / "skill_based"
    base.mkdir(exist_ok=True)
    (base / f"{skill}_new.json").write_text(json.dumps({"data": records}))
    if ids is not None:
        (base / f"random_ids_{skill}.json").write_text(json.dumps(ids))
    return folder


def test_the_official_release_is_read(tmp_path: Path) -> None:
    def dogs(number: int) -> dict[str, Any]:
        objects = [{"id": place, "coconame": "dog", "relation": None} for place in range(number)]
        return {"id": f"count_val_{number}", "text": f"{number} dogs", "objects": objects}

    release(tmp_path, "count", [dogs(1), dogs(2), dogs(3)], ["count_val_2", "count_val_3"])
    scale = {"id": "scale_val_1", "text": "a car that is bigger than a dog", "objects": [
        {"id": 0, "coconame": "dog", "relation": None}, {"id": 1, "coconame": "car", "scale": "bigger_0"}]}  # fmt: skip
    release(tmp_path, "scale", [scale])
    environment = open_environment("vpgen", {"data": tmp_path})
    assert [task.id for task in environment.tasks("test")] == ["vpgen-count_val_2", "vpgen-count_val_3", "vpgen-scale_val_1"]
    assert checks_of_record(scale) == [Check(skill="scale", labels=("dog", "car"), target="bigger")]
    with pytest.raises(DataError, match="expected the file"):
        open_environment("vpgen", {"data": tmp_path, "skills": "text"}).tasks("test")
    for bad, sentence in (
        ({"id": "count_val_9", "text": "x"}, 'expected "objects"'),
        ({"id": "spatial_val_9", "text": "x", "objects": [{"coconame": "a"}]}, 'expected "objects"'),
        ({"id": "text_val_9", "text": "no quotes", "objects": []}, 'expected "objects"'),
        ({"id": "count_val_9", "objects": []}, 'a text "text"'),
    ):
        release(tmp_path, "count", [bad], [bad["id"]])
        with pytest.raises(DataError, match=sentence):
            open_environment("vpgen", {"data": tmp_path}).tasks("test")


CAT = {"id": 7, "image_id": 1, "obj1": ["cat", [0.0, 0.4, 0.3, 0.5]], "obj2": ["car", [0.5, 0.1, 0.5, 0.3]],
       "prompt": "a cat to the left of a car", "relation": "left", "type": "template"}  # fmt: skip
FORKS = {"id": 7, "image_id": 2, "num_object": [["fork", 2], ["cup", 1]], "object_list": [["fork", [0.0, 0.0, 0.2, 0.2]],
         ["cup", [0.5, 0.5, 0.2, 0.2]], ["fork", [0.3, 0.0, 0.001, 0.2]]], "prompt": "two forks with one cup",
         "sub-type": "two-categories", "type": "template"}  # fmt: skip


def nsr1k(folder: Path, name: str, part: str, *records: Any) -> Path:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f"{name}.{part}.json").write_text(json.dumps(records))
    return folder


def test_nsr1k_is_read_with_its_relation_turned_round(tmp_path: Path) -> None:
    nsr1k(tmp_path, "spatial", "train", CAT)
    nsr1k(tmp_path, "counting", "train", FORKS)
    nsr1k(tmp_path, "counting", "val", {**FORKS, "id": 8, "prompt": "two forks beside one cup"})
    environment = open_environment("vpgen", {"data": tmp_path})
    forks, cat = environment.tasks("train")
    assert [forks.id, cat.id] == ["vpgen-nsr1k-count-7", "vpgen-nsr1k-spatial-7"]
    assert cat.prompt == 'Caption: "a cat to the left of a car"'
    assert [task.id for task in environment.tasks("heldout")] == ["vpgen-nsr1k-count-8"]
    assert cat.payload["checks"] == [{"skill": "spatial", "labels": ["car", "cat"], "target": "left"}]
    assert [(one["labels"], one["target"]) for one in forks.payload["checks"]] == [(["fork"], "==2"), (["cup"], "==1")]
    own = "cat [(0, 40, 30, 90)] car [(50, 10, 99, 40)]"
    assert judged(environment, cat, own).success
    assert asyncio.run(environment.gold(cat)) == (cat.payload["layout"],) and own in cat.payload["layout"]
    assert not judged(environment, cat, "car [(0, 40, 30, 90)] cat [(50, 10, 99, 40)]").success
    assert judged(environment, cat, "car [(0, 40, 30, 90)] cat [(50, 10, 99, 40)]").feedback.startswith("Spatial: no cat")
    result = asyncio.run(check_golds(environment))
    assert result.ok and (result.splits["train"], result.splits["test"]) == (2, 1), str(result)
    beside = nsr1k(tmp_path, "spatial", "train", {**CAT, "relation": "next to"})
    (task,) = open_environment("vpgen", {"data": beside, "skills": "spatial"}).tasks("train")
    assert task.payload["checks"][0]["target"] == "next" and judged(environment, task, own).success
    missed = judged(environment, task, "cat [(0, 0, 30, 30)] car [(0, 50, 30, 90)]")
    assert missed.feedback.startswith("Spatial: no cat stands beside a car")
    for bad in ({**CAT, "relation": "upon"}, {**CAT, "obj1": "cat"}, {**CAT, "obj1": ["cat", [0, 0, 1]]}, 3):
        nsr1k(tmp_path, "spatial", "train", bad)
        with pytest.raises(DataError, match=r"record 1: expected .*LayoutGPT"):
            open_environment("vpgen", {"data": tmp_path}).tasks("train")
    with pytest.raises(DataError, match="no text"):
        open_environment("vpgen", {"data": tmp_path, "skills": "text"}).tasks("train")


def test_every_gold_of_nsr1ks_slice_wins() -> None:
    if not (SHARED / "nsr1k").is_dir():
        pytest.skip(f"NSR-1K's files are not in {SHARED / 'nsr1k'}")
    environment = open_environment("vpgen", {"data": SHARED / "nsr1k"})
    result = asyncio.run(check_golds(environment))
    assert result.ok and (result.splits["train"], result.splits["test"], result.without_gold) == (385, 200, 0), str(result)
    assert not {task.prompt for task in environment.tasks("train")} & {task.prompt for task in environment.tasks("test")}
    assert asyncio.run(check(environment, num_tasks=4)).ok
    golds = [(task.payload["layout"], asyncio.run(environment.gold(task)) or [""]) for task in environment.tasks("train")]
    own = [layout == gold[0] for layout, gold in golds]
    assert sum(own) / len(own) > 0.9  # the pictures' own boxes


# Pictures


def test_pictures_are_drawn_for_people(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason='drawing needs Pillow: pip install "kintsugi-agents[vision]"')
    environment = bundled(pictures=tmp_path)
    task = environment.tasks("train", limit=1)[0]
    text = write_layout([("a red kite", (10, 10, 60, 50)), ("the word 'früh 🙂'", (20, 60, 90, 90))])
    verdicts = [judged(environment, task, text) for _ in range(2)]
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(task.id) and verdicts[0] == verdicts[1]
    layout = read_layout(text)
    assert isinstance(layout, Layout)
    picture = draw_layout(layout)
    assert picture.size == (512, 512)
    assert picture.getpixel((int(0.6 * 517), 80)) != picture.getpixel((500, 80))  # the frame's right side, and paper


def test_gligen_paints_the_layout(tmp_path: Path) -> None:
    for package in ("diffusers", "torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'GLIGEN needs {package}: pip install "kintsugi-agents[vision]"')
    import numpy as np

    from kintsugi.sandboxes.environments.vpgen_gligen import GligenPainter
    from tests.sandboxes import tiny_vision

    with pytest.raises(ConfigError, match="steps from 1"):
        GligenPainter(steps=0)
    tiny_vision.gligen(tmp_path / "tokenizer").save_pretrained(tmp_path / "gligen")
    options = {"model": str(tmp_path / "gligen"), "device": "cpu", "steps": 2, "grounded": 1.0}
    painter = GligenPainter(**options)

    def painted(text: str) -> Any:
        layout = read_layout(text)
        assert isinstance(layout, Layout)
        return np.asarray(painter.paint("a dog", layout))

    here, again, there = (painted(f"a dog [({box})]") for box in ("0, 0, 50, 50", "0, 0, 50, 50", "50, 50, 99, 99"))
    assert here.shape == (32, 32, 3) and (here == again).all()
    assert (here != there).mean() > 0.01  # the box is heeded
    environment = bundled(pictures=tmp_path / "pictures", gligen=options)
    judged(environment, environment.tasks("train", limit=1)[0], "a drum [(10, 10, 60, 50)]")
    assert sorted(path.name[-11:] for path in (tmp_path / "pictures").iterdir())[0] == "-gligen.png"


# What it says of itself


def test_the_pages_transcript_and_picture_are_what_happens() -> None:
    page = (ROOT / "docs" / "environments" / "vpgen.md").read_text(encoding="utf-8")
    shown = page.partition("````text\n")[2].partition("\n````")[0]
    said = re.findall(r"^(?:actor|reflector):\n((?:  .*\n|\n(?=  ))*)", shown + "\n", re.MULTILINE)
    first, second = ("\n".join(line[2:] for line in text.rstrip("\n").split("\n")) for text in said)
    environment = bundled()
    task_id = shown.partition(":")[0].removeprefix("task ")
    (task,) = [task for task in environment.tasks("heldout") if task.id == task_id]
    assert transcript(environment, task, first, second) == shown
    assert (ROOT / "docs" / "environments" / "vpgen.png").is_file() and "vpgen.png" in page


def test_it_says_what_it_is() -> None:
    said = about("vpgen")
    assert said.bundled and said.licence == "MIT" and said.home.startswith("https://") and len(said.downloads) == 10

"""The language of GQA's programs: what they answer on a scene graph, what is objected to, official steps, nouns."""

from __future__ import annotations

from typing import Any

import pytest

from kintsugi.sandboxes.environments.gqa_official import program_of
from kintsugi.sandboxes.environments.gqa_program import MAX_CALLS, run_program
from kintsugi.sandboxes.environments.gqa_scene import SceneSight
from kintsugi.sandboxes.environments.noun_words import is_kind, names, singular

SCENE = {
    "width": 300,
    "height": 200,
    "weather": "sunny",
    "objects": {
        "1": {"name": "car", "x": 10, "y": 120, "w": 60, "h": 40, "attributes": ["red", "metal"], "relations": [
            {"object": "2", "name": "to the left of"}, {"object": "3", "name": "near"}]},
        "2": {"name": "dogs", "x": 200, "y": 10, "w": 80, "h": 60, "attributes": ["brown", "wagging tail"], "relations": []},
        "3": {"name": "street", "x": 0, "y": 100, "w": 300, "h": 100, "attributes": ["gray"], "relations": []},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ('answer = exists(find("car"))', "yes"),
        ('answer = exists(find("vehicle"))', "yes"),
        ('answer = verify(find("dog"), "brown")', "yes"),
        ('answer = not verify(find("dog"), "brown")', "no"),
        ('answer = query(find("car"), "color")', "red"),
        ('answer = query(find("car"), "material")', "metal"),
        ('answer = query(find("dog"), "activity")', "wagging tail"),
        ('answer = query(find("car"), "hposition")', "left"),
        ('answer = query(find("dog"), "vposition")', "top"),
        ('answer = query(filter(find("anything"), "not red"), "name")', "dogs"),
        ('answer = query(relate("anything", "near", find("street")), "name")', "car"),
        ('answer = query(relate(find("car"), "near", "anything"), "name")', "street"),
        ('answer = query(relate("dog", "to the right of", find("car")), "name")', "dogs"),
        ('answer = choose_relation("car", ["to the right of", "to the left of"], find("dog"))', "left"),
        ('answer = choose(find("car"), ["blue", "red"])', "red"),
        ('answer = choose(scene(), ["rainy", "sunny"])', "sunny"),
        ('answer = query(scene(), "weather")', "sunny"),
        ('answer = query(scene(), "place")', "street"),
        ('answer = same(find("car"), find("dog"), "color")', "no"),
        ('answer = different(find("car"), find("dog"), "color")', "yes"),
        ('answer = "big" if count(find("anything")) >= 3 else "small"', "big"),
        ('if query(find("car"), "color") == "red":\n    answer = "a"\nelse:\n    answer = "b"', "a"),
        ('x = find("anything")\nanswer = query(x[1], "name")', "dogs"),
        ('answer = exists(find("car")) and exists(find("boat"))', "no"),
        ('answer = exists(find("car")) or exists(find("boat"))', "yes"),
    ],
)
def test_programs_answer(source: str, answer: str) -> None:
    outcome = run_program(source, SceneSight(SCENE))
    assert outcome.answer == answer, outcome


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("", "holds no program"),
        ("# 5", "gives no answer"),
        ('find("car")', "gives no answer"),
        ('answer = find("car")', "list of things"),
        ('answer = "red"', "calls no tool"),
        ("import os\nanswer = 1", "There is no Import here"),
        ('answer = __import__("os").system("id")', "There is no tool"),
        ('answer = find("car").name', "There is no Attribute here"),
        ("answer = [x for x in find('car')]", "There is no ListComp here"),
        ("while True:\n    pass", "There is no While here"),
        ('answer = fnd("car")', 'did you mean "find"'),
        ("answer = find", "find is a tool: call it"),
        ("answer = x", "no value yet"),
        ('answer = query(find("boat"), "color")', "nothing to look at"),
        ('answer = query(find("car"), "age")', "No age can be seen of [car]"),
        ('answer = query("car", "color")', "query was called with"),
        ('answer = query(find("car"), kind="color")', "by place"),
        ('answer = choose(find("car"), ["blue", "green"])', 'None of "blue", "green" fits'),
        ('answer = simple_query("What is this?")', "vision models alone"),
        ('answer = find("car")[7]', "has no item 7"),
        ('answer = find("car") == "car"', "cannot be compared"),
        ('answer = "a" if query(find("car"), "color") else "b"', "neither true nor false"),
        ("x = find('car')\n" * (MAX_CALLS + 1), "more than 100 tools"),
        ("answer = " + "not " * 900 + "exists(find('car'))", "nested too deeply"),
    ],
)
def test_programs_are_objected_to(source: str, sentence: str) -> None:
    outcome = run_program(source, SceneSight(SCENE))
    assert outcome.objection is not None and not outcome.answer
    assert sentence in outcome.objection.text


def test_official_steps_become_lines() -> None:
    def step(operation: str, argument: str, *dependencies: int) -> dict[str, Any]:
        return {"operation": operation, "argument": argument, "dependencies": list(dependencies)}

    steps = [
        step("select", "man (7)"), step("filter age", "not(young)", 0), step("relate", "_,in front of,o (9)", 1),
        step("select", "class (-) "), step("verify rel", "dog,near,s (-)", 2), step("same color", "", 2, 3),
        step("and", "", 4, 5),
    ]  # fmt: skip
    assert program_of(steps).split("\n") == [
        'man = find("man")',
        'not_young_man = filter(man, "not young")',
        'thing = relate(not_young_man, "in front of", "anything")',
        'the_class = find("class")',
        'related = exists(relate("dog", "near", thing))',
        'the_same = same(thing, the_class, "color")',
        "answer = related and the_same",
    ]
    with pytest.raises(KeyError):
        program_of([step("juggle", "")])


def test_nouns() -> None:
    assert [singular(word) for word in ("Wine glasses", "buses", "people", "glass", "knives", "jeans", "cookies")] == [
        "wine glass", "bus", "person", "glass", "knife", "jeans", "cookie",
    ]  # fmt: skip
    assert is_kind("trucks", "vehicle") and is_kind("apple", "food") and not is_kind("car", "animal")
    assert names("two big red cars with flags", "car") and not names("a car door", "car") and not names("", "car")
    assert names("four wine glasses", "wine glass") and names("a pair of scissors", "scissors") and not names("of", "car")

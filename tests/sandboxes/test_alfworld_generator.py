"""Authored ALFWorld games, drawn without an engine, and the expert that reads only text. Nothing here needs the extra."""

import random
import re
from collections import Counter

import pytest

from kintsugi.sandboxes.environments import alfworld_rooms as rooms
from kintsugi.sandboxes.environments.alfworld_expert import Expert, answer, wish_of
from kintsugi.sandboxes.environments.alfworld_generator import (
    AuthoredGame,
    draw,
    first_observation,
    problem_text,
    split_of,
)
from kintsugi.sandboxes.environments.alfworld_prompt import brief, listed


def games(number, **options):
    rng = random.Random(7)
    kinds = rooms.TASK_TYPES
    return [draw(rng, kinds[index % 6], **{"receptacles": (5, 8), **options}) for index in range(number)]


def test_tables_fit_together():
    furniture = {kind for kinds in rooms.FURNITURE.values() for kind in kinds}
    assert set().union(*rooms.PLACES.values()) <= furniture
    assert furniture >= rooms.OPENABLE | rooms.LAMP_PLACES
    for able in (rooms.HEATABLE, rooms.COOLABLE, rooms.CLEANABLE, rooms.SLICEABLE, rooms.HOLDING):
        assert able <= set(rooms.PLACES)
    assert set(rooms.HELD_BACK) <= set(rooms.PLACES) and len(set(rooms.HELD_BACK)) == 6
    for things in rooms.THINGS.values():
        assert things


def test_games_can_be_won_as_drawn():
    for game in games(300):
        kinds = [kind for kind, _ in game.receptacles]
        where = [kinds[place] for kind, _, place in game.things if kind == game.thing]
        assert 5 <= len(kinds) <= 8 and where
        assert all(
            kinds[place] in (rooms.LAMP_PLACES if kind == rooms.LAMP else rooms.PLACES[kind])
            for kind, _, place in game.things
        )
        if game.task_type == "look_at_obj_in_light":
            assert game.target == rooms.LAMP and rooms.LAMP in [kind for kind, _, _ in game.things]
            continue
        assert game.target in kinds and game.target in rooms.PLACES[game.thing]
        assert game.target not in where, "solved before it begins"
        assert len(where) >= (2 if game.task_type == "pick_two_obj_and_place" else 1)
        if game.task_type in rooms.APPLIANCE:
            appliance, able = rooms.APPLIANCE[game.task_type]
            assert appliance in kinds and game.thing in able and appliance != game.target


def test_rooms_belong_to_one_split():
    layouts = {}
    for split in ("train", "heldout", "demonstrations"):
        for game in games(200, split=split):
            kinds = [kind for kind, _ in game.receptacles]
            assert split_of(game.room, kinds) == split == split_of(game.room, kinds[::-1])
            layouts.setdefault(split, set()).add((game.room, tuple(sorted(kinds))))
    assert not layouts["train"] & layouts["heldout"]
    assert not layouts["demonstrations"] & (layouts["train"] | layouts["heldout"])
    assert min(map(len, layouts.values())) > 50


def test_held_back_things_do_not_occur():
    seen = Counter(kind for game in games(200, without=rooms.HELD_BACK) for kind, _, _ in game.things)
    assert not set(rooms.HELD_BACK) & set(seen)
    assert set(rooms.HELD_BACK) <= {kind for game in games(200) for kind, _, _ in game.things}


def test_games_are_plain_data_and_follow_the_seed():
    first, second = games(12), games(12)
    assert first == second
    assert [AuthoredGame.from_plain(game.to_plain()) for game in first] == first
    assert all(isinstance(one, list) for one in first[0].to_plain()["receptacles"])


def test_bounds_that_fit_no_room_are_told():
    with pytest.raises(ValueError, match="widen the bounds"):
        draw(random.Random(0), "look_at_obj_in_light", receptacles=(40, 50))


def test_the_problem_declares_all_it_names():
    for game in games(60):
        text = problem_text(game)
        declared = set(re.findall(r"^    (\S+) - ", text, re.MULTILINE))
        init = text[text.index("(:init") : text.index("(:goal")]
        used = {word for fact in re.findall(r"^    \((?!=)(.*)\)$", init, re.MULTILINE) for word in fact.split()[1:]}
        assert used <= declared
        assert {"SinkType", "SinkBasinType", "MicrowaveType", "FridgeType", "KnifeType", "ButterKnifeType"} <= declared
        assert text.count("(") == text.count(")")


def test_wording():
    assert listed([]) == "nothing" and listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b, and c"
    game = games(1)[0]
    told = first_observation(game)
    assert told.startswith("-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly")
    assert told.endswith(f"\n\nYour task is to: {game.sentence}")
    short = brief(told)
    assert short.startswith(f"{game.sentence}\na ") and short.endswith(".") and len(short) < len(told) - 100
    assert brief("nothing of the kind") == "nothing of the kind"


def test_the_expert_understands_every_sentence():
    kinds = {"put": 0, "light": 1, "clean": 2, "heat": 3, "cool": 4, "two": 5}
    for game in games(240):
        wish = wish_of(first_observation(game))
        assert wish is not None and kinds[wish.kind] == rooms.TASK_TYPES.index(game.task_type)
        assert (wish.thing, wish.target) == (game.thing.lower(), game.target.lower())
        assert wish_of(game.sentence) == wish
        for told in (first_observation(game), brief(first_observation(game))):
            assert len(Expert(told).receptacles) == len(game.receptacles)
    assert wish_of("dance in the kitchen") is None


def chat(*texts):
    return [{"role": "user" if index % 2 == 0 else "assistant", "content": text} for index, text in enumerate(texts)]


def test_the_expert_answers_a_chat():
    room = "Looking quickly around you, you see a drawer 1, a fridge 1, a shelf 1, and a sinkbasin 1."
    task = f"{room}\n\nYour task is to: put a clean fork in shelf."
    looked = "You arrive at sinkbasin 1. On the sinkbasin 1, you see a fork 2, and a mug 1."
    assert answer(chat(task)) == "go to sinkbasin 1"
    assert answer(chat(task, "go to sinkbasin 1", looked)) == "take fork 2 from sinkbasin 1"
    taken = [
        task,
        "go to sinkbasin 1",
        looked,
        "take fork 2 from sinkbasin 1",
        "You pick up the fork 2 from the sinkbasin 1.",
    ]
    assert answer(chat(*taken)) == "clean fork 2 with sinkbasin 1"
    shots = chat("Your task is to: look at pen under the desklamp.", "go to desk 1", "OK.", "look")
    assert answer([*shots, *chat(task)]) == "go to sinkbasin 1"
    assert answer(chat("Write a poem.")) == "look" and answer([]) == "look"


def test_the_expert_gives_up_what_does_not_work():
    expert = Expert("Looking quickly around you, you see a desk 1, and a shelf 1.\n\nYour task is to: put a pen in shelf.")
    said = []
    for _ in range(8):
        said.append(expert.next_command())
        expert.told(said[-1], "Nothing happens.")
    assert said[-1] == "look" and len(set(said)) < len(said)

"""The lean engine of ALFWorld beside TextWorld's own: the same to the letter. Skipped without the extra [alfworld]."""

import json
import random
import sys

import pytest

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments import alfworld_engine as engine
from kintsugi.sandboxes.environments.alfworld_expert import Expert
from kintsugi.sandboxes.environments.alfworld_generator import draw, problem_text
from kintsugi.sandboxes.environments.alfworld_rooms import TASK_TYPES
from kintsugi.sandboxes.environments.alfworld_text import load_grammar, packaged_file, parse_grammar
from kintsugi.sandboxes.environments.alfworld_worker import Shipped, Worker, game_file, read_game_file
from tests.sandboxes.alfworld_trials import DATA, needs_data, needs_engine

pytestmark = needs_engine
TRAIN = DATA / "train"


def authored(kind, seed=0, receptacles=(4, 6)):
    return draw(random.Random(f"{kind} {seed}"), kind, receptacles=receptacles)


def source(kind, seed=0):
    return {"authored": authored(kind, seed).to_plain()}


def compared(worker, shipped, game, *, wander, rng):
    """Play both engines on the same commands to the end and one turn beyond; every difference fails."""
    shipped.load(game_file(game))
    play = engine.Play(worker.game(game))
    assert (play.intro, play.admissible_commands()) == (shipped.intro, shipped.admissible_commands())
    expert, turns, over = Expert(play.intro), 0, 0
    while over < 2 and turns < 60:
        if turns < wander:
            command = (
                ["help", "Look", "dance", ""][turns // 4 % 4] if turns % 4 == 3 else rng.choice(play.admissible_commands())
            )
        else:
            command = expert.next_command()
        theirs, ours = shipped.step(command), play.step(command)
        assert ours == theirs, f"after {command!r}"
        assert play.admissible_commands() == shipped.admissible_commands(), f"after {command!r}"
        expert.told(command, ours.observation)
        turns, over = turns + 1, over + ours.done
    assert over, "the expert did not win"
    return turns


def test_authored_games_are_the_same_on_both_engines():
    worker, shipped, rng = Worker(), Shipped(), random.Random(3)
    turns = sum(compared(worker, shipped, source(kind), wander=12, rng=rng) for kind in TASK_TYPES)
    turns += compared(worker, shipped, source(TASK_TYPES[5]), wander=4, rng=rng)  # a second reset of a known game
    assert turns > 120


@needs_data
def test_official_games_are_the_same_on_both_engines():
    worker, shipped, rng = Worker(), Shipped(), random.Random(4)
    games = sorted(TRAIN.glob("*/*/game.tw-pddl"), key=lambda path: path.stat().st_size)
    for kind in ("look_at_obj_in_light", "pick_two_obj_and_place"):
        path = next(path for path in games if path.parents[1].name.startswith(kind))
        compared(worker, shipped, {"path": str(path)}, wander=8, rng=rng)


@needs_data
@pytest.mark.parametrize("kind", TASK_TYPES)
def test_stored_walkthroughs_win(kind):
    path = sorted(TRAIN.glob(f"{kind}-*/*/game.tw-pddl"))[0]
    play = engine.Play(Worker().game({"path": str(path)}))
    turns = [play.step(command) for command in read_game_file(path)["walkthrough"]]
    assert [turn.done for turn in turns] == [False] * (len(turns) - 1) + [True]
    assert turns[-1].reward == 1


def test_worlds_of_one_game_are_apart():
    game = Worker().game(source("pick_and_place_simple"))
    one, other = engine.Play(game), engine.Play(game)
    expert = Expert(one.intro)
    while not one.won:
        command = expert.next_command()
        expert.told(command, one.step(command).observation)
    assert (
        not other.won and other.bits == game.start and engine.Play(game).admissible_commands() == other.admissible_commands()
    )


def test_games_survive_json():
    game = Worker().game(source("pick_heat_then_place_in_recep"))
    again = engine.Game.unpacked(game.packed, load_grammar())
    play, twin, rng = engine.Play(game), engine.Play(again), random.Random(0)
    assert play.intro == twin.intro
    for _ in range(40):
        commands = play.admissible_commands()
        assert commands == twin.admissible_commands()
        command = rng.choice(commands)
        assert play.step(command) == twin.step(command)


def test_a_cache_folder_keeps_games(tmp_path):
    first = Worker(cache=tmp_path).game(source("pick_and_place_simple"))
    files = list(tmp_path.iterdir())
    assert len(files) == 1 and files[0].suffix == ".json"
    second = Worker(cache=tmp_path)
    second._new = None  # type: ignore[assignment] - a miss would fail
    assert second.game(source("pick_and_place_simple")).packed == first.packed
    files[0].write_text("{half")
    assert Worker(cache=tmp_path).game(source("pick_and_place_simple")).packed == first.packed


def test_memory_for_games_is_bounded(monkeypatch):
    monkeypatch.setattr("kintsugi.sandboxes.environments.alfworld_worker.MOST_OPERATORS", 300)
    worker = Worker()
    for seed in range(6):
        worker.game(source("pick_and_place_simple", seed))
    kept = [game.num_operators for game in worker._games.values()]
    assert sum(kept) <= 300 or len(kept) == 1


def test_a_game_is_translated_once(monkeypatch):
    """What falls out of those ready to play comes back from its packed form, the same, as long as that is bounded."""
    monkeypatch.setattr("kintsugi.sandboxes.environments.alfworld_worker.MOST_OPERATORS", 1)
    worker, sources = Worker(), [source(kind) for kind in TASK_TYPES[:2]]
    first = [worker.game(one).packed for one in sources]
    monkeypatch.setattr("kintsugi.sandboxes.environments.alfworld_worker.translated", lambda *text: pytest.fail("once more"))
    assert [worker.game(one).packed for one in sources] == first
    monkeypatch.setattr("kintsugi.sandboxes.environments.alfworld_worker.MOST_PACKED", 1)
    worker._pack("other", first[0])
    assert not worker._packed


def test_the_planner_proves_games_winnable():
    for kind in ("pick_and_place_simple", "pick_cool_then_place_in_recep", "pick_two_obj_and_place"):
        game = authored(kind, receptacles=(4, 5))
        plan = engine.solvable(packaged_file("alfred.pddl"), problem_text(game))
        assert plan and any(step.startswith("putobject") for step in plan)


def test_a_game_without_a_way_to_win_is_refused():
    game = authored("pick_heat_then_place_in_recep")
    text = problem_text(game)
    domain = packaged_file("alfred.pddl")
    shut = "\n".join(line for line in text.split("\n") if "(heatable" not in line)
    with pytest.raises(DataError, match="cannot be won"):
        engine.translate(domain, shut, game.sentence)
    assert engine.solvable(domain, shut) is None


@pytest.mark.parametrize(
    "problem", ["", "(define", "no pddl at all", "(define (problem x) (:domain alfred) (:goal (nonsense)))"]
)
def test_what_is_no_game_is_refused(problem):
    with pytest.raises(DataError, match="expected a PDDL problem"):
        engine.translate(packaged_file("alfred.pddl"), problem, "put a mug in shelf.")


def test_translating_leaves_the_process_as_it_was(capsys):
    from fast_downward.translate import options

    before, settings, stdout = list(sys.argv), dict(vars(options)), sys.stdout
    engine.translate(packaged_file("alfred.pddl"), problem_text(authored("pick_and_place_simple")), "x")
    assert sys.argv == before and sys.stdout is stdout and capsys.readouterr().out == ""
    after = dict(vars(options))
    assert {name: after[name] for name in settings if not name.startswith("__")} == {
        name: value for name, value in settings.items() if not name.startswith("__")
    }


def test_a_game_files_grammar_is_never_evaluated(tmp_path):
    game = authored("pick_and_place_simple")
    trap = tmp_path / "trap"
    grammar = f"\"rhs\": \"Your task is to: {game.sentence}\" {{__import__('pathlib').Path('{trap}').touch()}}"
    file = {"pddl_domain": packaged_file("alfred.pddl"), "pddl_problem": problem_text(game), "grammar": grammar}
    path = tmp_path / "game.tw-pddl"
    path.write_text(json.dumps({**file, "solvable": True}))
    for one in (Worker(), Worker("shipped")):
        answer = one.answer({"op": "replay", "world": "w", "game": {"path": str(path)}, "commands": ["look"]})
        assert "refused" not in answer and not trap.exists()


def test_a_grammar_may_not_compute():
    rules = '{"a": [{"rhs": "{().__class__}"}], "b": [{"rhs": "{x.name + 1}"}], "c": [{"rhs": "{f(x)}"}]}'
    grammar = parse_grammar(f'grammar :: """\n{rules}\n""";\n')
    view = engine.Facts(Worker().game(source("pick_and_place_simple")))
    for rule in "abc":
        with pytest.raises(DataError, match="names, attributes"):
            grammar.rule(rule, view, {("x", "object"): next(iter(view.names))})
    with pytest.raises(DataError, match="condition such as"):
        parse_grammar('grammar :: """\n{"a": [{"rhs": "x", "condition": "open r"}]}\n""";\n')
    with pytest.raises(DataError, match="JSON"):
        parse_grammar('grammar :: """\n{"a": \n""";\n')


def test_names_are_alfworlds():
    names = engine.display_names({"mug_bar_1", "mug_bar_2", "sink_bar_1_bar_sinkbasin", "loc_bar_0", "mugtype"})
    assert names["mug_bar_1"] == "mug 2" and names["mug_bar_2"] == "mug 1"
    assert names["sink_bar_1_bar_sinkbasin"] == "sinkbasin 1" and names["mugtype"] == "mugtype "

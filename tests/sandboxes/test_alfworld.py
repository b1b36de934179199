"""ALFWorld as an environment: tasks, the success rule, worker processes that die."""

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from kintsugi.errors import ConfigError, DataError, MissingExtra
from kintsugi.graphs.worlds import WorldBroke, Worlds
from kintsugi.sandboxes.environments.alfworld import understood
from kintsugi.sandboxes.environments.alfworld_engine import Play
from kintsugi.sandboxes.environments.alfworld_generator import split_of
from kintsugi.sandboxes.environments.alfworld_pool import WorkerDied
from kintsugi.sandboxes.environments.alfworld_rooms import HELD_BACK, TASK_TYPES
from kintsugi.sandboxes.environments.conformance import check, malformed_actions, play
from kintsugi.sandboxes.environments.environment import success_by_kind
from tests.sandboxes.alfworld_trials import needs_engine, opened, other_number

# Tasks: no engine needed ----------------------------------------------------------------------------------------------


def test_tasks_take_turns_of_type_and_follow_the_seed():
    environment = opened()
    tasks = environment.tasks("train", limit=24)
    assert [task.payload["task_type"] for task in tasks] == list(TASK_TYPES) * 4
    assert tasks == environment.tasks("train", limit=24) and tasks[:6] == environment.tasks("train", limit=6)
    assert not {task.id for task in tasks} & {task.id for task in environment.tasks("train", limit=24, seed=1)}
    assert len(environment.tasks("heldout")) == 360 and environment.tasks("heldout", limit=0) == []


def test_rooms_of_the_splits_are_disjoint_and_demonstrations_hold_things_back():
    environment = opened()
    rooms = {}
    for split in ("train", "heldout", "demonstrations"):
        for task in environment.tasks(split, limit=120):
            game = task.payload["authored"]
            kinds = sorted(kind for kind, _ in game["receptacles"])
            assert split_of(game["room"], kinds) == split
            rooms.setdefault(split, set()).add((game["room"], *kinds))
            low, high = (4, 6) if split == "demonstrations" else (5, 8)
            assert low <= len(kinds) <= high
            if split == "demonstrations":
                assert not {kind for kind, _, _ in game["things"]} & set(HELD_BACK)
    assert not rooms["train"] & rooms["heldout"] and not rooms["demonstrations"] & (rooms["train"] | rooms["heldout"])
    # No observation names the kind of a room: held-out receptacles are those of no other split's room of any kind.
    seen = {split: {room[1:] for room in rooms[split]} for split in rooms}
    seen["train"] |= {
        tuple(sorted(kind for kind, _ in task.payload["authored"]["receptacles"]))
        for task in environment.tasks("train", limit=1500, seed=1)
    }
    assert not seen["heldout"] & (seen["train"] | seen["demonstrations"])


def test_options_choose_types_sizes_and_wording():
    tasks = opened(task_types="heat, two", receptacles="6", prompt="brief").tasks("train", limit=4)
    assert [task.payload["task_type"] for task in tasks] == [TASK_TYPES[3], TASK_TYPES[5]] * 2
    for task in tasks:
        assert len(task.payload["authored"]["receptacles"]) == 6
        assert task.prompt.startswith(task.payload["sentence"] + "\n") and len(task.prompt.split("\n")) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_types": "heet"}, 'no task type "heet": did you mean "heat"'),
        ({"task_types": []}, "at least one task type"),
        ({"receptacles": "five"}, 'expected receptacles such as "5-8"'),
        ({"demonstration_receptacles": "6-4"}, "expected demonstration_receptacles"),
        ({"prompt": "short"}, 'expected "official" or "brief" for environment.options.prompt'),
        ({"engine": "fast"}, '"lean" or "shipped"'),
        ({"workers": -1}, "workers of 0 or more"),
        ({"held_back": 7}, "held_back of 0 to 6"),
        ({"turns": 3}, 'no option "turns"'),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        opened(**options)


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match='no split "held": did you mean "heldout"'):
        opened().tasks("held")


def test_without_the_extra_one_sentence_says_so(monkeypatch):
    from kintsugi.sandboxes.environments import alfworld_text

    monkeypatch.setattr(alfworld_text.importlib.util, "find_spec", lambda name: None)
    environment = opened()
    task = environment.tasks("train", limit=1)[0]
    with pytest.raises(MissingExtra, match=r'pip install "kintsugi-agents\[alfworld\]"'):
        asyncio.run(play(environment, task, ["look"]))


@pytest.mark.parametrize(
    ("action", "command"),
    [
        ("> Go to Shelf 1", "go to shelf 1"),
        ("put mug 1 in/on desk 2", "move mug 1 to desk 2"),
        ("Put mug 1 in fridge 1.", "move mug 1 to fridge 1"),
        ("put mug 1 on sidetable 2", "move mug 1 to sidetable 2"),
        ("  move  mug 1 to\ndesk 2 ", "move mug 1 to desk 2"),
        ("take mug 1 from desk 1", "take mug 1 from desk 1"),
        ("", ""),
    ],
)
def test_older_spellings_are_understood(action, command):
    assert understood(action) == command


def test_success_is_summed_up_by_type():
    environment = opened()
    tasks = environment.tasks("train", limit=12)
    outcomes = {task.id: int(index < 6) for index, task in enumerate(tasks[:11])}
    found = success_by_kind(environment, tasks, outcomes)
    assert found == {kind: (1, 2 if kind != TASK_TYPES[5] else 1) for kind in TASK_TYPES}


# Playing --------------------------------------------------------------------------------------------------------------


@needs_engine
@pytest.mark.parametrize("options", [{}, {"workers": 2, "prompt": "brief", "admissible": True}], ids=["here", "workers"])
def test_authored_games_conform(options):
    report = asyncio.run(check(opened(**options), num_tasks=6, perturb=other_number))
    assert report.ok, str(report)


@needs_engine
def test_the_expert_wins_every_authored_game_and_chance_hardly_any():
    environment = opened()
    rng, lucky, worker = random.Random(0), 0, environment.pool._here
    tasks = [*environment.tasks("heldout", limit=36), *environment.tasks("demonstrations", limit=6)]
    for task in tasks:
        gold = asyncio.run(environment.gold(task))
        game = worker.game(environment.game(task))
        expert, chance = Play(game), Play(game)
        assert game.intro == task.prompt
        assert gold and [expert.step(command).done for command in gold] == [False] * (len(gold) - 1) + [True]
        lucky += any(chance.step(rng.choice(chance.admissible_commands())).done for _ in range(environment.max_turns))
    assert lucky <= 3, f"a random policy wins {lucky} of {len(tasks)}"


@needs_engine
def test_the_success_rule_wants_all_of_the_goal():
    """Cold food, one of two things, a lamp that is off: each is all but won, and none is success."""
    environment = opened()
    spoiling = {"heat": "heat ", "cool": "cool ", "clean": "clean ", "light": "take "}

    async def main():
        for short, verb in spoiling.items():
            tasks = opened(task_types=short).tasks("train", limit=3)
            for task in tasks:
                gold = list(await environment.gold(task) or ())
                assert any(command.startswith(verb) for command in gold)
                spoiled = [command for command in gold if not command.startswith(verb)]
                assert all(reply.verdict is None for reply in await play(environment, task, spoiled))
        for task in opened(task_types="two").tasks("train", limit=4):
            gold = list(await environment.gold(task) or ())
            first = next(index for index, command in enumerate(gold) if command.startswith("move "))
            assert all(reply.verdict is None for reply in await play(environment, task, gold[: first + 1]))

    asyncio.run(main())


@needs_engine
def test_thoughts_cost_no_command_and_a_won_game_is_over():
    environment = opened()
    task = environment.tasks("train", limit=1)[0]

    async def main():
        gold = list(await environment.gold(task) or ())
        world = await environment.start(task)
        assert await world.observe() == task.prompt
        for thought in ("think: where?", "> Think : there", "THINK:"):
            reply = await world.act(thought)
            assert (reply.observation, reply.executions) == ("OK.", 0)
        replies = [await world.act(command) for command in gold]
        verdict = replies[-1].verdict
        assert verdict and verdict.success and verdict.reward == 1.0 and verdict.detail == {"turns": float(len(gold))}
        after = await world.act("look")
        assert after.verdict is None and after.observation == "The game is over."
        await world.close()

    asyncio.run(main())


@needs_engine
def test_spelling_is_mended_unless_strict():
    task = opened().tasks("train", limit=1)[0]
    loud = asyncio.run(play(opened(), task, ["> LOOK"]))[0].observation
    strict = [asyncio.run(play(opened(strict=True), task, [command]))[0].observation for command in ("> LOOK", "look")]
    assert loud == strict[1] != "Nothing happens." and strict[0] == "Nothing happens."


@needs_engine
def test_admissible_commands_are_listed_on_demand():
    task = opened().tasks("train", limit=1)[0]
    text = asyncio.run(play(opened(admissible=True), task, ["look"]))[0].observation
    assert "\nYou can: go to " in text and text.endswith(", inventory, and look.")
    assert "You can" not in asyncio.run(play(opened(), task, ["look"]))[0].observation


@needs_engine
def test_the_shipped_engine_plays_the_same_game():
    tasks = opened().tasks("train", limit=2)
    for task in tasks:
        gold = asyncio.run(opened().gold(task))
        shipped = opened(engine="shipped")
        assert asyncio.run(play(shipped, task, gold)) == asyncio.run(play(opened(), task, gold))
        asyncio.run(shipped.close())
        assert shipped.pool.processes() == []


@needs_engine
def test_the_transcript_of_the_docs_is_what_happens():
    page = (Path(__file__).parents[2] / "docs" / "environments" / "alfworld.md").read_text(encoding="utf-8")
    block = page.split("## An attempt")[1].split("```")[1].strip("\n")
    prompt, *turns = block.split("\n\n> ")
    environment = opened()
    task = environment.tasks("heldout", limit=3)[2]
    commands, observations = zip(*(turn.split("\n", 1) for turn in turns), strict=True)
    assert prompt == task.prompt
    replies = asyncio.run(play(environment, task, commands))
    assert [reply.observation for reply in replies] == list(observations)
    assert replies[-1].verdict is not None and replies[-1].verdict.success


# Worker processes -----------------------------------------------------------------------------------------------------


def left_behind(before):
    return sorted(set(os.listdir(tempfile.gettempdir())) - before)


@needs_engine
def test_64_episodes_at_once_leave_nothing_behind():
    before = set(os.listdir(tempfile.gettempdir()))
    alone, environment = opened(), opened(workers=2)
    tasks = environment.tasks("train", limit=16) * 4
    plans = [[*(asyncio.run(alone.gold(task)) or ())] for task in tasks[:16]] * 4

    async def main():
        return await asyncio.gather(*(play(environment, task, plan) for task, plan in zip(tasks, plans, strict=True)))

    first, second = asyncio.run(main()), asyncio.run(main())  # two event loops, one pool
    assert first == second and all(replies[-1].verdict for replies in first)
    pids = environment.pool.processes()
    assert 1 <= len(pids) <= 2
    asyncio.run(environment.close())
    asyncio.run(environment.close())
    assert environment.pool.processes() == [] and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert [name for name in left_behind(before) if "alfworld" in name or "libdownward" in name] == []


@needs_engine
def test_a_killed_worker_is_replaced_and_its_episodes_go_on():
    environment = opened(workers=1)
    tasks = environment.tasks("train", limit=2)

    async def main():
        worlds = Worlds(environment, timeout_s=30)
        plans = [list(await environment.gold(task) or ()) for task in tasks]
        for key, task, plan in zip("ab", tasks, plans, strict=True):
            await worlds.observe(key, task)
            await worlds.act(key, task, [], plan[0])
        os.kill(environment.pool.processes()[0], signal.SIGKILL)
        for key, task, plan in zip("ab", tasks, plans, strict=True):
            for index in range(1, len(plan)):
                reply = await worlds.act(key, task, plan[:index], plan[index])
            assert reply.verdict is not None and reply.verdict.success
            await worlds.leave(key)
        assert environment.pool.deaths == 1 and worlds.crashes <= 1  # it may die under the very next command
        await environment.close()

    asyncio.run(main())


@needs_engine
def test_a_hung_worker_fails_only_the_command_it_hangs_on():
    environment = opened(workers=1, timeout_s=8)
    tasks = environment.tasks("train", limit=2)

    async def main():
        plans = [list(await environment.gold(task) or ()) for task in tasks]
        first, second = [await environment.start(task) for task in tasks]
        await first.act(plans[0][0])
        await second.act(plans[1][0])
        environment.pool._slots[0].timeout_s = 0.3
        os.kill(environment.pool.processes()[0], signal.SIGSTOP)
        with pytest.raises(WorkerDied, match=r"gave no answer: silent for 0\.3 s"):
            await first.act(plans[0][1])
        environment.pool._slots[0].timeout_s = 30
        replies = [await second.act(command) for command in plans[1][1:]]
        assert replies[-1].verdict is not None and environment.pool.deaths == 1
        await first.close()
        await second.close()
        await environment.close()
        await second.close()

    asyncio.run(main())
    assert environment.pool.processes() == []


@needs_engine
def test_worlds_of_a_hung_worker_wait_in_line_and_go_on():
    """The command in front loses its turn; what stood behind it is served by the next worker, and no crash of its own."""
    environment = opened(workers=1, timeout_s=3)
    tasks = environment.tasks("train", limit=6)

    async def main():
        worlds = Worlds(environment, timeout_s=2)
        keyed = [(f"w{number}", task) for number, task in enumerate(tasks)]
        for key, task in keyed:
            await worlds.observe(key, task)
            await worlds.act(key, task, [], "look")
        os.kill(environment.pool.processes()[0], signal.SIGSTOP)
        replies = await asyncio.gather(*(worlds.act(key, task, ["look"], "inventory") for key, task in keyed))
        assert {reply.observation for reply in replies} == {"You are not carrying anything."}
        broke = {key: worlds.broke(key) for key, _ in keyed}
        assert broke.pop("w0") == ("no reply within 2 s",) and not any(broke.values())
        await worlds.close()
        await environment.close()

    asyncio.run(main())


@needs_engine
def test_a_cache_folder_that_cannot_be_written_is_told():
    environment = opened(cache="/dev/null/folder")
    with pytest.raises(DataError, match="cannot keep translated games in /dev/null/folder"):
        asyncio.run(play(environment, environment.tasks("train", limit=1)[0], ["look"]))


@needs_engine
def test_a_worker_that_always_dies_is_on_record(monkeypatch):
    environment = opened(workers=1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    task = environment.tasks("train", limit=1)[0]

    async def main():
        worlds = Worlds(environment, timeout_s=30)
        await worlds.observe("a", task)
        with pytest.raises(WorldBroke, match="WorkerDied"):
            await worlds.act("a", task, [], "look")
        assert worlds.crashes == 2
        await environment.close()

    asyncio.run(main())


@needs_engine
def test_any_text_is_answered_with_something_usable():
    environment = opened()
    task = environment.tasks("train", limit=1)[0]

    async def main():
        world = await environment.start(task)
        for action in malformed_actions("go to shelf 1", 1000):
            reply = await world.act(action)
            assert reply.observation and reply.verdict is None and len(reply.observation) < 2000
            json.dumps(reply.observation, ensure_ascii=False).encode()

    asyncio.run(main())

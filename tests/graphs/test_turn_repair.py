"""Going on from the turn that went wrong: who says which it is, turns done again, worlds that answer otherwise, tokens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.config import validate
from kintsugi.errors import ConfigError
from kintsugi.graphs.drawing import as_text, picture_of
from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.episode_graph import build_episode_graph
from kintsugi.graphs.episode_nodes import repair_request
from kintsugi.graphs.episode_state import start_state
from kintsugi.graphs.episode_tally import tally_of, with_tally
from kintsugi.graphs.play_config import PlayConfig
from kintsugi.graphs.playing import PlaySession
from kintsugi.graphs.turn_repair import check_repair, named_turn, placed
from kintsugi.records import Action, Critique, Observation, Task, Trajectory, Verdict, to_plain
from kintsugi.sandboxes.environments.environment import Reply, open_environment
from tests.graphs.episode_players import TokenPolicy, cast_of, plan_of, played, turn, word_problems

FROM_TURN = {"who": "reflector", "form": "from_turn"}
WAY = ["1", "2", "3", "4", "end"]


class Path5:
    """Five steps to be said in order. `shifts`: how a world answers from its second on, by turn; `tells`: whether it can say
    which turn went wrong."""

    name, max_turns = "path5", 8

    def __init__(self, *, shifts: dict[int, str] | None = None, opening: str = "", breaks: int = 99) -> None:
        self.shifts, self.opening, self.breaks = shifts or {}, opening, breaks
        self.worlds: list[Path5World] = []

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> list[Task]:
        return [Task(id="t", environment=self.name, split=split, prompt="walk")]

    async def start(self, task: Task) -> Path5World:
        self.worlds.append(Path5World(self, len(self.worlds)))
        return self.worlds[-1]

    async def gold(self, task: Task) -> list[str]:
        return WAY

    async def close(self) -> None:
        return None


class Path5World:
    def __init__(self, path: Path5, number: int) -> None:
        self.path, self.number = path, number
        self.done: list[str] = []
        self.said: list[str] = []

    async def observe(self) -> str:
        return self.path.opening if self.path.opening and self.number else "walk"

    async def act(self, action: str) -> Reply:
        self.said.append(action)
        if self.number and len(self.said) > self.path.breaks:
            raise RuntimeError("the path is gone")
        if action == "quit":
            return Reply(observation="gone", verdict=Verdict(success=False, reward=0.0, feedback="you left"))
        if self.number and len(self.said) in self.path.shifts:
            return Reply(observation=self.path.shifts[len(self.said)])
        if action != WAY[len(self.done)]:
            return Reply(observation="no such step")
        self.done.append(action)
        won = Verdict(success=True, reward=1.0) if action == "end" else None
        return Reply(observation=f"step {action} done", verdict=won)

    async def close(self) -> None:
        return None


class TellingPath(Path5):
    def wrong_turn(self, task: Task, turns: Any) -> int | None:
        return next((index for index, (_, said) in enumerate(turns) if said in ("no such step", "gone")), None)


def slipping(at: int, hint: str = "HINT") -> Any:
    """Walks the way with a slip in the turn `at` (from 0), then leaves; after a hint it walks on."""

    def act(messages: Any) -> str:
        done = [message["content"] for message in messages if message["role"] == "assistant"]
        if hint in messages[1]["content"]:
            return WAY[sum(step in WAY for step in done)]
        return WAY[len(done)] if len(done) < at else "slip" if len(done) == at else "quit"

    return act


def lost_and_won(environment: Any, said: str = "HINT", at: int = 2, policy: Any = None, **repair: Any) -> Any:
    """(cast, actor, episode) of a slip in turn `at` and what followed."""
    actor = policy or TokenPolicy(slipping(at))
    cast = cast_of(
        actor, environment, prompts="react", repair={**FROM_TURN, **repair}, repairer=ScriptedPolicy([said] * 9)
    )
    (episode,) = played(cast, plan_of(environment.tasks("train")[0]))
    return cast, actor, episode


def texts(one: Trajectory) -> list[str]:
    return [action.text for action in one.actions]


def config_of(values: dict[str, Any]) -> PlayConfig:
    return validate(PlayConfig, values, "the test")


def critique(one: Trajectory) -> Critique:
    return [message for message in one.messages if isinstance(message, Critique)][-1]


# -- which turn ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("You went astray.\nFirst mistake: 3", 3),
        ("first mistake is turn 2.", 2),
        ("**First mistake:** action 12", 12),
        ("First mistake: `4`\nno:\nFirst mistake: 5", 5),
        ("the 3rd action was the first mistake", None),
        ("First mistake: the third", None),
        ("", None),
    ],
)
def test_a_reflection_names_a_turn(text: str, number: int | None) -> None:
    assert named_turn(text) == number


def test_the_environment_says_it_before_the_reflector() -> None:
    _, _, episode = lost_and_won(TellingPath(), "HINT First mistake: 2")
    lost, won = episode.trajectories
    assert texts(lost) == ["1", "2", "slip", "quit"] and won.success and texts(won) == WAY
    assert (critique(won).kept, critique(won).note) == (2, "turn 3 went wrong, says the environment")


def test_else_the_reflector_says_it() -> None:
    _, _, episode = lost_and_won(Path5(), "HINT\nFirst mistake: 2")
    won = episode.trajectories[1]
    assert won.success and (critique(won).kept, critique(won).note) == (1, "turn 2 went wrong, says the reflector")


@pytest.mark.parametrize("said", ["HINT", "HINT First mistake: 0", "HINT First mistake: 5", "HINT First mistake: 999"])
def test_else_it_is_the_start(said: str) -> None:
    """A turn that there was not is none; nothing is done again, and the record says why."""
    _, _, episode = lost_and_won(Path5(), said)
    won = episode.trajectories[1]
    assert won.success and critique(won).kept == 0 and "from the start" in critique(won).note
    assert episode.path == ("agent", "environment") * 4 + ("reflector",) + ("agent", "environment") * 5
    assert won.cost.executions == 5


def test_a_wrong_first_turn_is_the_start() -> None:
    _, _, episode = lost_and_won(TellingPath(), at=0)
    won = episode.trajectories[1]
    assert won.success and critique(won).kept == 0 and critique(won).note == "turn 1 went wrong, says the environment"


def test_an_environment_that_says_nonsense_is_not_followed() -> None:
    class Babbling(Path5):
        def wrong_turn(self, task: Task, turns: Any) -> int | None:
            return 17

    _, _, episode = lost_and_won(Babbling())
    assert critique(episode.trajectories[1]).kept == 0 and episode.success


def test_the_reflector_is_asked_with_numbers() -> None:
    cast, _, episode = lost_and_won(Path5(), "HINT\nFirst mistake: 3")
    (asked,) = cast.roles["reflector"].policy.requests
    told = asked.messages[-1]["content"]
    assert "1> 1\nstep 1 done\n2> 2\nstep 2 done\n3> slip\nno such step\n4> quit" in told
    assert told.endswith("where N is the number of the first action that was a mistake.")
    # What a reflector is trained on is what it was asked.
    request, _ = repair_request(cast.roles["reflector"].prompt, cast.repair, "walk", episode.trajectories[0])
    assert request.messages == asked.messages


# -- done again ------------------------------------------------------------------------------------------------------------


def test_turns_before_it_are_done_again_and_the_agent_goes_on() -> None:
    environment = TellingPath()
    _, actor, episode = lost_and_won(environment)
    lost, won = episode.trajectories
    pairs = ("agent", "environment")
    assert episode.path == (*pairs * 4, "reflector", "environment", *pairs * 3)
    assert won.parent_id == lost.id and won.stage == "reflect" and won.stop == "success"
    first, said, *rest = won.messages
    assert first == lost.messages[0] and isinstance(said, Critique) and said.text == "HINT"
    assert rest[:4] == list(lost.messages[1:5]), "kept turns stand as they were, tokens included"
    assert [world.said for world in environment.worlds] == [["1", "2", "slip", "quit"], WAY], "each turn once"
    assert won.cost.executions == 5 and won.cost.generated_tokens == sum(len(one) + 1 for one in ("3", "4", "end"))
    # The agent is shown the hint, and the kept turns as its own.
    asked = actor.requests[4]
    assert "HINT" in asked.messages[1]["content"]
    assert [one["content"] for one in asked.messages[2:]] == ["1", "step 1 done", "2", "step 2 done"]


def test_ids_of_kept_turns_are_never_fed_as_the_agents_context() -> None:
    """They were sampled after another prompt: the first new action begins a context, and the others go on from it."""
    _, actor, episode = lost_and_won(TellingPath())
    lost, won = episode.trajectories
    assert [request.prior_ids == () for request in actor.requests] == [True, False, False, False, True, False, False]
    kept, new = won.token_rows()
    assert kept == (actor.fed[1][0] + actor.fed[1][1], kept[1]) and new[0] == actor.fed[-1][0] + actor.fed[-1][1]
    assert b"HINT" in bytes(token for token in new[0] if token < 256)
    assert [action.tokens for action in won.actions[:2]] == [action.tokens for action in lost.actions[:2]]
    assert [action.tokens.restart for action in won.actions] == [False, False, True, False, False]
    logprobs = [value for action in won.actions for value in action.tokens.logprobs]
    assert won.soft_reward == pytest.approx(sum(logprobs) / len(logprobs)), "of the whole attempt, as of any other"


@pytest.mark.parametrize(("shifts", "turn_number"), [({1: "a cat"}, 1), ({2: "a cat"}, 2)])
def test_a_world_that_answers_otherwise_is_begun_anew(shifts: dict[int, str], turn_number: int) -> None:
    environment = TellingPath(shifts=shifts)

    def act(messages: Any) -> str:
        return slipping(2)(messages) if "HINT" not in messages[1]["content"] else [*WAY, "quit", "quit"][turn(messages)]

    cast, actor, episode = lost_and_won(environment, policy=TokenPolicy(act))
    lost, again = episode.trajectories
    said = critique(again)
    assert said.kept == 0 and said.note == f"from the start: turn {turn_number} was answered otherwise than before"
    assert said.text == "HINT" and again.parent_id == lost.id
    assert environment.worlds[1].said == WAY[:turn_number] and environment.worlds[2].said == texts(again)
    assert texts(again)[0] == "1" and not actor.requests[4].prior_ids and len(actor.requests[4].messages) == 2
    assert again.actions[0].tokens.restart is False and cast.worlds.crashes == 0


def test_a_task_that_looks_otherwise_is_begun_anew_as_it_looks() -> None:
    _, actor, episode = lost_and_won(TellingPath(opening="walk in the dark"))
    won = episode.trajectories[1]
    assert won.messages[0] == Observation(text="walk in the dark") and won.success
    assert "walk in the dark" in actor.requests[4].messages[1]["content"]
    assert critique(won).note == "from the start: the task looks otherwise than before"


def test_a_verdict_among_kept_turns_is_otherwise_too() -> None:
    class Impatient(TellingPath):
        async def start(self, task: Task) -> Any:
            world = await super().start(task)
            if world.number == 1:
                world.done = WAY[:4]
            return world

    _, _, episode = lost_and_won(Impatient())
    assert critique(episode.trajectories[1]).kept == 0


def test_a_world_that_breaks_while_turns_are_done_again_is_an_error() -> None:
    cast, actor, episode = lost_and_won(TellingPath(breaks=1))
    broken = episode.trajectories[1]
    assert broken.stop == "error" and "the path is gone" in broken.messages[-1].error and cast.worlds.crashes == 2
    assert len(actor.requests) == 4 and broken.cost.generated_tokens == 0 and not cast.worlds._live


def test_kept_turns_count_as_turns() -> None:
    environment = TellingPath()
    environment.max_turns = 4

    def act(messages: Any) -> str:
        return slipping(2)(messages) if "HINT" not in messages[1]["content"] else "3"

    _, _, episode = lost_and_won(environment, policy=TokenPolicy(act))
    again = episode.trajectories[1]
    assert again.stop == "truncated" and texts(again) == ["1", "2", "3", "3"]


def test_repairs_of_repairs_keep_what_went_well() -> None:
    """Reflexion's memory: each reflection stands before the agent; kept turns are those of the last attempt."""

    def act(messages: Any) -> str:
        hints = messages[1]["content"].count("HINT")
        done = [message["content"] for message in messages if message["role"] == "assistant"]
        right = sum(step in WAY for step in done)
        slips = len(done) - right
        return WAY[right] if right < (1, 3, 5)[hints] else "slip" if not slips else "quit"

    environment = TellingPath()
    actor = TokenPolicy(act)
    _, _, episode = lost_and_won(environment, policy=actor, rounds=3)
    one, two, three = episode.trajectories
    assert [texts(each) for each in (one, two, three)] == [["1", "slip", "quit"], ["1", "2", "3", "slip", "quit"], WAY]
    assert (two.parent_id, three.parent_id) == (one.id, two.id) and three.success
    assert [message.kept for message in three.messages if isinstance(message, Critique)] == [1, 3]
    assert three.actions[0] == one.actions[0] and three.actions[1:3] == two.actions[1:3]
    assert [bool(action.tokens.restart) for action in three.actions] == [False, True, False, True, False]
    assert actor.requests[-1].messages[1]["content"].count("HINT") == 2


def test_a_plan_may_begin_with_it() -> None:
    """As `repair.on = "unsolved"` and a resumed run have it: the lost attempt is of another episode."""
    environment = TellingPath()
    (before,) = played(cast_of(TokenPolicy(slipping(2)), environment, prompts="react"), plan_of(environment.tasks("")[0]))
    lost = before.trajectories[0]
    repair = {**FROM_TURN, "on": "unsolved"}
    cast = cast_of(
        TokenPolicy(slipping(2)), environment, prompts="react", repair=repair, repairer=ScriptedPolicy(["HINT"] * 2)
    )
    plan = plan_of(environment.tasks("")[0], repair_of=lost)
    (episode,) = played(cast, plan)
    (won,) = episode.trajectories
    assert episode.path[:2] == ("reflector", "environment") and won.success and won.parent_id == lost.id
    assert won.actions[:2] == lost.actions[:2] and texts(won) == WAY
    (again,) = played(cast, plan)
    assert again.id == episode.id and again.trajectories[0].messages == won.messages, "the same again"


def test_its_way_is_drawn() -> None:
    """The graph has every way that such an episode goes: none is added to the picture as a stranger."""
    cast, _, episode = lost_and_won(TellingPath())
    picture = picture_of(build_episode_graph(cast))
    drawn = with_tally(picture, tally_of([episode]))
    assert len(drawn.edges) == len(picture.edges) and len(drawn.nodes) == len(picture.nodes)
    ways = {(edge.source, edge.target): edge.visits for edge in drawn.edges}
    assert ways["reflector", "environment"] == 1 and ways["reflector", "agent"] == 0 and ways["agent", "environment"] == 7
    assert "helped 1 of 1" in as_text(drawn) and max(map(len, as_text(drawn).splitlines())) <= 80


def test_every_state_of_it_is_plain() -> None:
    environment = TellingPath()
    cast = cast_of(
        TokenPolicy(slipping(2)), environment, prompts="react", repair=FROM_TURN, repairer=ScriptedPolicy(["HINT"])
    )

    async def states() -> list[Any]:
        graph = build_episode_graph(cast)
        start = start_state(plan_of(environment.tasks("")[0]))
        return [one async for one in graph.astream(start, {"recursion_limit": 99}, stream_mode="values")]

    for state in asyncio.run(states()):
        assert json.loads(json.dumps(state)) == state


# -- real worlds -----------------------------------------------------------------------------------------------------------


def test_a_treasure_hunt_goes_on_from_the_closed_door() -> None:
    environment = open_environment("treasure_hunt")
    task = environment.tasks("train", limit=1, seed=4)[0]
    plan = list(asyncio.run(environment.gold(task)))  # type: ignore[arg-type]

    def act(messages: Any) -> str:
        done = [message["content"] for message in messages if message["role"] == "assistant"]
        if "HINT" in messages[1]["content"] or len(done) < 2:
            return plan[len(done)]
        return "take moon" if len(done) == 2 else "quit"

    cast = cast_of(TokenPolicy(act), environment, prompts="react", repair=FROM_TURN, repairer=ScriptedPolicy(["HINT"]))
    (episode,) = played(cast, plan_of(task))
    lost, won = episode.trajectories
    assert critique(won).kept == 2 and won.success and texts(won) == plan and won.messages[2:6] == lost.messages[1:5]


@pytest.mark.parametrize("words", ["policy", "notes"])
def test_an_alfworld_game_goes_on_from_what_came_to_nothing(words: str) -> None:
    pytest.importorskip("textworld", reason='ALFWorld needs TextWorld: pip install "kintsugi-agents[alfworld]"')
    environment = open_environment("alfworld", {"prompt": "brief"})
    task = environment.tasks("train", limit=1)[0]

    async def main() -> Any:
        return list(await environment.gold(task))  # type: ignore[arg-type]

    plan = asyncio.run(main())

    def act(messages: Any) -> str:
        done = [message["content"] for message in messages if message["role"] == "assistant"]
        return plan[len(done)] if said or len(done) < 2 else "eat the lamp"

    said: list[str] = []

    class Twice(TokenPolicy):
        async def complete(self, request: Any) -> Any:
            if ":1:" in request.key:  # the second attempt of the episode
                said.append("again")
            return await super().complete(request)

    repair = {**FROM_TURN, "words": words}
    cast = cast_of(
        Twice(act), environment, prompts="bare_turns", repair=repair, repairer=ScriptedPolicy(["look"]), max_turns=12
    )
    (episode,) = played(cast, plan_of(task))
    asyncio.run(environment.close())
    lost, won = episode.trajectories
    assert lost.stop == "truncated" and texts(lost)[:3] == [*plan[:2], "eat the lamp"]
    assert critique(won).kept == 2 and critique(won).author == ("notes" if words == "notes" else "reflector")
    assert won.success and texts(won) == plan and won.messages[2:6] == lost.messages[1:5] and not cast.worlds.crashes


# -- refusals, and a person at it ------------------------------------------------------------------------------------------


def test_environments_of_one_turn_are_refused() -> None:
    environment: Any = word_problems()
    with pytest.raises(ConfigError, match="has attempts of one turn: set repair"):
        check_repair(RepairConfig(who="self", form="from_turn"), environment)
    check_repair(RepairConfig(who="none", form="from_turn"), environment)
    check_repair(RepairConfig(who="self", form="again"), environment)
    values = {"environment": {"name": "word_problems"}, "repair": {"who": "self", "form": "from_turn"}}
    with pytest.raises(ConfigError, match="one turn"):
        asyncio.run(PlaySession.begin(config_of(values), environment.tasks("train", limit=1)[0], environment=environment))


def test_a_person_may_change_the_reflection_and_the_turn(tmp_path: Path) -> None:
    policy = ScriptedPolicy(lambda messages, _: "HINT" if "Write the reflection" in messages[-1]["content"] else "quit")
    values = {"environment": {"name": "path5"}, "model": {"kind": "scripted"}, "repair": FROM_TURN}
    environment: Any = TellingPath()

    async def main() -> Any:
        begun = await PlaySession.begin(
            config_of(values), environment.tasks("")[0], folder=tmp_path, policy=policy, environment=environment
        )
        for action in ("1", "2", "3", "quit"):
            await begun.step()
            await begun.say(action)
            await begun.step()
        point = await begun.step()
        assert point.node == "reflector" and point.next == "environment"
        assert isinstance(point.proposal, Critique) and point.proposal.kept == 3
        point = await begun.say("Turn back at once. First mistake: 2")
        assert point.proposal == Critique(
            text="Turn back at once. First mistake: 2", author="human", kept=1, note="turn 2 went wrong, says a person"
        )
        point = await begun.step()
        assert point.node == "environment" and point.next == "agent" and point.turn == 1
        assert [type(one) for one in point.said] == [Action, Observation]
        path = begun.file.path
        await begun.close()

        # Left and come back to: the world is rebuilt from the kept turns.
        later = await PlaySession.resume(path, policy=policy, environment=environment)
        for action in WAY[1:]:
            await later.step()
            await later.say(action)
            point = await later.step()
        assert point.over and point.stops == ("failure", "success")
        episode = later.episode()
        await later.close()
        return episode

    episode = asyncio.run(main())
    lost, won = episode.trajectories
    assert texts(won) == WAY and won.parent_id == lost.id and critique(won).author == "human"


def test_placed_reads_the_attempt_alone() -> None:
    _, _, episode = lost_and_won(TellingPath())
    lost = episode.trajectories[0]
    said = placed(Critique(text="x", author="notes"), TellingPath(), TellingPath().tasks("")[0], lost)  # type: ignore[arg-type]
    assert said.kept == 2 and said.author == "notes"


def test_a_person_names_a_turn_that_there_is() -> None:
    from kintsugi.graphs.play_point import by_person

    cast = cast_of(ScriptedPolicy(["look"] * 3), Path5(), prompts="bare_turns", max_turns=3)
    (lost,) = played(cast, plan_of(Path5().tasks("train")[0]))[0].trajectories
    said = to_plain(Critique(text="I was wrong.", author="reflector", kept=1, note="turn 2 went wrong"))
    state: Any = {"attempts": [to_plain(lost)], "current": {"messages": [said]}}
    new: Any = by_person(state, "No. First mistake: 3")
    named = new["current"]["messages"][-1]
    assert (named["kept"], named["author"]) == (2, "human")
    for wrong in (0, 4, 99):
        with pytest.raises(ConfigError, match=f"a turn from 1 to 3, found {wrong}"):
            by_person(state, f"No. First mistake: {wrong}")

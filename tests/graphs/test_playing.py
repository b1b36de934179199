"""Steered episodes: what is said is recorded as whose it is, going back loses nothing, and a session left is found again."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.config import validate
from kintsugi.errors import ConfigError, PolicyError, RunError
from kintsugi.graphs.play_config import PlayConfig
from kintsugi.graphs.play_file import find_session, list_sessions
from kintsugi.graphs.playing import PlaySession
from kintsugi.ledger import Ledger, export
from kintsugi.records import Action, Critique, Observation, Task, Verdict
from kintsugi.sandboxes.environments.environment import open_environment
from tests.graphs.episode_players import TokenPolicy, cast_of, follows, plan_of, played, word_problems

T = TypeVar("T")
HUNT = open_environment("treasure_hunt")
TASK = HUNT.tasks("train", limit=1)[0]
GOLD = tuple(asyncio.run(HUNT.gold(TASK)) or ())


def config_of(kind: str = "expert", environment: str = "treasure_hunt", **values: Any) -> PlayConfig:
    return validate(PlayConfig, {"environment": {"name": environment}, "model": {"kind": kind}, **values}, "test")


def in_session(folder: Path, steer: Callable[[PlaySession], Awaitable[T]], task: Task = TASK, **options: Any) -> T:
    """What `steer` returns, in a new session that is closed afterwards."""

    async def run() -> T:
        config = options.pop("config", None) or config_of()
        session = await PlaySession.begin(config, task, folder=folder, **options)
        try:
            return await steer(session)
        finally:
            await session.close()

    return asyncio.run(run())


def again(folder: Path, steer: Callable[[PlaySession], Awaitable[T]], name: str = "last", **options: Any) -> T:
    """The same in a session that was left."""

    async def run() -> T:
        session = await PlaySession.resume(find_session(name, folder), **options)
        try:
            return await steer(session)
        finally:
            await session.close()

    return asyncio.run(run())


def said(session: PlaySession) -> list[str]:
    """The actions of the attempt at the present point."""
    point = session.point
    messages = (point.state["current"] or point.state["attempts"][-1])["messages"]
    return [message["text"] for message in messages if message["kind"] == "action"]


# -- going on ------------------------------------------------------------------------------------------------------------


def test_steps_are_nodes_and_the_end_is_an_episode_like_any_other(tmp_path: Path) -> None:
    policy = TokenPolicy(follows(GOLD))

    async def steer(session: PlaySession) -> Any:
        seen = [session.point]
        while not session.point.over:
            seen.append(await session.step())
        with pytest.raises(ConfigError, match="the episode is over"):
            await session.step()
        return seen, session.episode()

    seen, episode = in_session(tmp_path, steer, policy=policy, config=config_of("scripted"))
    assert [point.node for point in seen] == ["", *["agent", "environment"] * len(GOLD)]
    assert [point.parent for point in seen[1:]] == [point.number for point in seen[:-1]]
    assert isinstance(seen[1].said[0], Observation) and isinstance(seen[1].said[1], Action)
    assert isinstance(seen[-1].said[-1], Verdict) and seen[-1].stops == ("success",)
    rolled = played(cast_of(TokenPolicy(follows(GOLD)), HUNT, prompts="react"), plan_of(TASK, seed=0))[0]
    mine, theirs = episode.trajectories[0], rolled.trajectories[0]
    assert mine.messages == theirs.messages, "tokens too stay exact when it is stepped"
    assert episode.path == rolled.path and len(episode.seconds) == len(episode.path) and episode.purpose == "play"


@pytest.mark.parametrize(
    ("pauses", "stops"),
    [
        (("after:agent",), ["agent"] * 5 + ["environment"]),
        (("before:agent",), ["environment"] * 5),
        (("after:environment",), ["environment"] * 5),
        (("every",), ["agent", "environment"] * 5),
        ((), ["environment"]),
    ],
)
def test_pauses_before_and_after_nodes(tmp_path: Path, pauses: tuple[str, ...], stops: list[str]) -> None:
    async def steer(session: PlaySession) -> list[str]:
        session.pause_at(*pauses)
        found, passed = [], []
        while not session.point.over:
            found.append((await session.go(passed.append)).node)
        assert len(passed) == 10
        return found

    assert in_session(tmp_path, steer) == stops
    assert again(tmp_path, lambda session: _value(session.config.pauses)) == pauses


async def _value(value: T) -> T:
    return value


def test_unknown_pauses_name_the_nearest(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> None:
        with pytest.raises(ConfigError, match='did you mean "before:agent"'):
            session.pause_at("befor:agent")

    in_session(tmp_path, steer)


# -- saying something else -----------------------------------------------------------------------------------------------


def test_what_a_person_says_has_no_tokens_and_is_theirs(tmp_path: Path) -> None:
    policy = TokenPolicy(follows(GOLD))

    async def steer(session: PlaySession) -> Any:
        await session.step()
        edited = await session.say("look")
        assert edited.by == "human" and edited.said == (Action(text="look"),) and edited.next == "environment"
        assert session.points[edited.parent or 0].proposal is not None, "the proposal can still be gone back to"
        await session.finish()
        with pytest.raises(ConfigError, match="is over"):
            await session.say("too late")
        return session.episode()

    trajectory = in_session(tmp_path, steer, policy=policy, config=config_of("scripted")).trajectories[0]
    assert trajectory.stage == "human" and trajectory.policy_version == "token"
    assert [action.tokens is None for action in trajectory.actions][:2] == [True, False]
    assert trajectory.actions[0].text == "look" and trajectory.actions[1].tokens is not None
    assert "look" in [message["content"] for message in policy.requests[1].messages]
    assert list(trajectory.token_rows()) == [], "no token row: a person's words were not sampled"


def test_a_person_acts_alone(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> Any:
        assert await session.opening() == TASK.prompt and session.waits
        with pytest.raises(ConfigError, match="your turn"):
            await session.step()
        for action in GOLD:
            await session.say(action)
            await session.go()
        return session.episode()

    episode = in_session(tmp_path, steer, config=config_of("human"))
    assert episode.success and episode.policy_version == "human"
    (trajectory,) = episode.trajectories
    assert trajectory.stage == "human" and tuple(a.text for a in trajectory.actions) == GOLD and not trajectory.saw_gold


def test_the_expert_knows_gold_and_the_record_says_so(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> Any:
        await session.step()
        await session.say("look")  # a detour: the plan stays where it is
        await session.finish()
        return session.episode()

    async def plain(session: PlaySession) -> Any:
        await session.finish()
        return session.episode()

    with_detour, without = in_session(tmp_path, steer), in_session(tmp_path, plain)
    assert [a.text for a in with_detour.trajectories[0].actions] == ["look", *GOLD]
    assert (with_detour.trajectories[0].stage, without.trajectories[0].stage) == ("human", "teacher")
    assert with_detour.trajectories[0].saw_gold and without.trajectories[0].saw_gold and with_detour.id != without.id


def test_an_expert_at_its_plans_end_asks_for_help(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> None:
        await session.step()
        for action in (*GOLD[:-1], "look"):
            await session.say(action)
            await session.step()
            await session.step()
        await session.say("look")  # instead of the last gold action
        await session.step()
        assert said(session)[-1] == "look" and (await session.finish()).stops == ("success",)

    in_session(tmp_path, steer)


def test_reflections_can_be_changed_too(tmp_path: Path) -> None:
    """Re-ReST in turns: the reflector's words are a person's, and the agent acts with them before it."""
    policy = ScriptedPolicy(lambda messages, _: "quit")
    repair = {"who": "reflector", "form": "again", "on": "failures", "rounds": 1}

    async def steer(session: PlaySession) -> Any:
        await session.go()
        point = await session.go()
        assert point.node == "reflector" and isinstance(point.proposal, Critique)
        point = await session.say("Look in the library first.")
        assert point.said == (Critique(text="Look in the library first.", author="human"),)
        await session.finish()
        return session.episode()

    episode = in_session(tmp_path, steer, policy=policy, config=config_of("scripted", repair=repair))
    first, second = episode.trajectories
    assert second.parent_id == first.id and first.episode_id == second.episode_id == episode.id
    assert any(isinstance(message, Critique) and message.author == "human" for message in second.messages)
    assert "Look in the library first." in str(policy.requests[-1].messages)


def test_a_rewrite_is_replaced_whole(tmp_path: Path) -> None:
    """One turn: the refiner's rollback keeps lines, a person's action keeps nothing; "unsolved" is "failures" here."""
    environment = word_problems(events="1")
    task = environment.tasks("train", limit=1)[0]
    gold = asyncio.run(environment.gold(task))[0]
    repair = {"who": "self", "form": "rollback", "on": "unsolved"}

    async def steer(session: PlaySession) -> Any:
        await session.go()
        assert (await session.step()).next == "refiner"
        await session.step()
        await session.say(gold)
        return (await session.finish(), session.episode())

    policy = ScriptedPolicy(lambda messages, _: "a = 1\nprint(a)")
    config = config_of("scripted", "word_problems", repair=repair)
    point, episode = in_session(tmp_path, steer, task, policy=policy, environment=environment, config=config)
    assert point.stops == ("failure", "success") and episode.path == ("agent", "environment", "refiner", "environment")
    repaired = episode.trajectories[1]
    assert repaired.stage == "human" and repaired.actions[0] == Action(text=gold) and repaired.parent_id


def test_another_proposal(tmp_path: Path) -> None:
    seeds = []

    class Dice(TokenPolicy):
        async def complete(self, request: Any) -> Any:
            seeds.append(request.sampling.seed)
            return await super().complete(request)

    async def steer(session: PlaySession) -> Any:
        first = await session.step()
        await session.say("look")
        other = await session.again()
        await session.again()
        return first, other, session.lines

    first, other, lines = in_session(tmp_path, steer, policy=Dice(follows(GOLD)), config=config_of("scripted"))
    assert len(set(seeds)) == 3 and other.parent == first.parent and other.by == "graph"
    assert [line.points for line in lines] == [(0, 1, 2), (0, 3), (0, 4)]

    async def later(session: PlaySession) -> int:
        await session.step()
        await session.again()  # this line goes on with a seed of its own
        await session.step()
        await session.step()
        count = len(session.points)
        for _ in range(2):
            await session.again()
        return len(session.points) - count

    seeds.clear()
    assert in_session(tmp_path / "on", later, policy=Dice(follows(GOLD)), config=config_of("scripted")) == 2
    assert len(set(seeds)) == len(seeds) == 5


def test_the_expert_knows_its_place_whatever_the_history_window(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> Any:
        return (await session.finish()).stops

    assert in_session(tmp_path, steer, config=config_of(episode={"history_turns": 1})) == ("success",)


# -- going back ----------------------------------------------------------------------------------------------------------


def test_a_line_keeps_its_name_when_it_goes_on(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> Any:
        for _ in range(4):
            await session.step()
        first = session.point.number
        await session.branch(2)
        await session.step()
        await session.say("look")
        before = {line.name: line.points for line in session.lines}
        await session.branch(first)
        await session.step()  # the first line's end comes last now
        await session.branch(1)
        await session.say("look")
        return before, {line.name: line.points for line in session.lines}

    before, after = in_session(tmp_path, steer)
    assert after["A"][: len(before["A"])] == before["A"] and after["A"] != before["A"] and after["B"] == before["B"]
    assert before["B"][:3] == (0, 1, 2) and list(after)[:2] == ["A", "B"] and len(after) == 1 + len(before)


def test_going_back_and_on_begins_a_line_and_keeps_the_other(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> Any:
        await session.finish()
        end = session.point
        won = session.episode()
        await session.back(len(GOLD) * 2 - 2)  # after the first answer
        assert session.point.number == 2
        await session.step()
        await session.say("quit")
        await session.finish()
        lost = session.episode()
        lines = session.lines
        assert [line.name for line in lines] == ["A", "B"] and lines[0].end == end.number
        assert session.points[lines[1].points[3]].by == "graph"
        assert (await session.branch(end.number)).stops == ("success",) and session.episode() == won
        return won, lost, [point.state["path"] for point in session.points]

    won, lost, paths = in_session(tmp_path, steer)
    assert won.success and not lost.success and won.id != lost.id
    assert won.trajectories[0].id != lost.trajectories[0].id
    assert lost.trajectories[0].messages[:3] == won.trajectories[0].messages[:3], "the world is where it was at that point"
    assert all(len(path) <= 2 * len(GOLD) for path in paths)


def test_the_world_is_where_the_point_is(tmp_path: Path) -> None:
    """Back into any point and on: the same answers as when it was first there."""

    async def steer(session: PlaySession) -> None:
        await session.finish()
        first = [point.said for point in session.points]
        for number in (4, 0, 6, 2):
            await session.branch(number)
            await session.finish()
        assert [point.said for point in session.points] == first, "the same again is the same point"
        assert len(session.lines) == 1

    in_session(tmp_path, steer)


def test_points_that_are_not_there(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> None:
        with pytest.raises(ConfigError, match="at most 0 points back, found 1"):
            await session.back()
        with pytest.raises(ConfigError, match="from 0 to 0, found 5"):
            await session.branch(5)
        with pytest.raises(ConfigError, match="no proposal here"):
            await session.again()
        with pytest.raises(ConfigError, match="is not over"):
            session.episode()
        await session.step()
        await session.step()
        assert session.point.proposal is None

    in_session(tmp_path, steer)


# -- coming back later ---------------------------------------------------------------------------------------------------


def test_a_session_that_was_left_goes_on(tmp_path: Path) -> None:
    async def begin(session: PlaySession) -> Any:
        for _ in range(5):
            await session.step()
        return session.points, session.id

    async def go_on(session: PlaySession) -> Any:
        before = list(session.points)
        assert session.point.number == 5
        await session.finish()
        return before, session.episode()

    points, id = in_session(tmp_path, begin)
    before, episode = again(tmp_path, go_on, id)
    assert before == points and episode.success and len(episode.path) == len(GOLD) * 2


def test_it_is_found_where_it_stood_also_further_back(tmp_path: Path) -> None:
    async def begin(session: PlaySession) -> None:
        await session.finish()
        await session.branch(3)

    in_session(tmp_path, begin)
    assert again(tmp_path, lambda session: _value((session.point.number, len(session.points)))) == (3, 11)

    async def on_and_away(session: PlaySession) -> None:
        await session.say("look")

    again(tmp_path, on_and_away)
    assert again(tmp_path, lambda session: _value((session.point.number, said(session)[-1]))) == (11, "look")


def test_a_point_that_was_saved_and_not_noted_is_found(tmp_path: Path) -> None:
    """Killed between LangGraph's checkpoint and our note of it."""

    async def begin(session: PlaySession) -> dict[str, Any]:
        await session.step()
        row = dict(session.file.values)
        await session.step()
        return row

    row = in_session(tmp_path, begin)
    path = find_session("last", tmp_path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE kintsugi_play SET value = ?", (json.dumps(row),))
    assert again(tmp_path, lambda session: _value((session.point.number, session.point.node))) == (2, "environment")


def test_a_damaged_session_is_one_sentence_or_goes_on(tmp_path: Path) -> None:
    async def begun(session: PlaySession) -> Path:
        for _ in range(3):
            await session.step()
        return session.file.path

    path = in_session(tmp_path, begun)
    with closing(sqlite3.connect(path)) as connection, connection:
        row = json.loads(connection.execute("SELECT value FROM kintsugi_play").fetchone()[0])
        connection.execute("UPDATE kintsugi_play SET value = ?", (json.dumps({**row, "head": 99}),))

    async def where(session: PlaySession) -> int:
        return session.point.number

    assert again(tmp_path, where) == 3, "a place that is not there is the newest one"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE checkpoints SET checkpoint = ?", (b"\x81\xa1",))
    with pytest.raises(RunError, match=r"no whole session .* restore it"):
        again(tmp_path, where)


def test_a_crash_stays_on_the_line_that_met_it(tmp_path: Path) -> None:
    """Going back leaves it there; leaving and coming back does not lose it."""
    hunt = open_environment("treasure_hunt", {"crash_on": [TASK.id], "crash_at": 1})

    async def steer(session: PlaySession) -> list[Any]:
        await session.step()
        await session.step()  # the world breaks here, and is begun anew
        met = session.point.state["current"]
        assert met is not None and "crashed on purpose" in met.get("crashes", [""])[0]
        await session.back(2)
        await session.say("quit")
        await session.finish()
        return list(session.episode().trajectories[0].crashes)

    assert in_session(tmp_path, steer, environment=hunt) == []


def test_a_session_that_was_moved_away_leaves_no_empty_file(tmp_path: Path) -> None:
    async def moved(session: PlaySession) -> None:
        await session.step()
        session.file.path.rename(tmp_path / "elsewhere")
        with pytest.raises(RunError, match="cannot be read or written"):
            session.file.save(turns=1)

    in_session(tmp_path, moved)
    assert not list(tmp_path.glob("*.sqlite"))


def test_lists_and_names(tmp_path: Path) -> None:
    assert list_sessions(tmp_path) == []
    with pytest.raises(RunError, match="there are no sessions"):
        find_session("last", tmp_path)
    in_session(tmp_path, lambda session: session.finish())
    in_session(tmp_path, lambda session: session.step())
    (tmp_path / "other.sqlite").write_text("no database at all, only text " * 99)
    newest, oldest = list_sessions(tmp_path)
    assert (newest.turns, newest.next, newest.points, newest.stops) == (1, "environment", 2, ())
    assert (oldest.next, oldest.stops, oldest.policy, oldest.task_id) == ("", ("success",), "expert", TASK.id)
    assert find_session(oldest.id, tmp_path) == oldest.path == find_session(str(oldest.path))
    with pytest.raises(RunError, match=r"no session in .* begins with"):
        find_session("zz", tmp_path)
    for name in (tmp_path / "other.sqlite", tmp_path / "none.sqlite"):
        with pytest.raises(RunError, match=r"is no session|found none"):
            asyncio.run(PlaySession.resume(name))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> None:
        with pytest.raises(RunError, match="is open elsewhere"):
            await PlaySession.resume(session.file.path)
        await session.step()

    in_session(tmp_path, steer)
    again(tmp_path, lambda session: session.step())


def test_other_weights_are_told(tmp_path: Path) -> None:
    in_session(tmp_path, lambda session: session.step(), policy=TokenPolicy(follows(GOLD)), config=config_of("scripted"))
    with pytest.warns(UserWarning, match="scripted acts now; the session began with token"):
        again(tmp_path, lambda session: session.step(), policy=ScriptedPolicy(["look"]))


# -- what breaks ---------------------------------------------------------------------------------------------------------


def test_a_policy_that_fails_leaves_the_session_where_it_was(tmp_path: Path) -> None:
    policy = ScriptedPolicy(["look", "quit"], failures={1: PolicyError("nobody answers")})

    async def steer(session: PlaySession) -> Any:
        await session.step()
        await session.step()
        with pytest.raises(PolicyError, match="nobody answers"):
            await session.step()
        assert session.point.number == 2
        return (await session.finish()).stops, len(session.points)

    assert in_session(tmp_path, steer, policy=policy, config=config_of("scripted")) == (("failure",), 5)


def test_an_environment_that_breaks_is_a_verdict(tmp_path: Path) -> None:
    options = {"crash_on": [TASK.id], "crashes": 2, "crash_at": 1}
    environment = open_environment("treasure_hunt", options)
    point = in_session(tmp_path, lambda session: session.finish(), environment=environment)
    assert point.stops == ("error",) and point.over


def test_bad_players_leave_no_file(tmp_path: Path) -> None:
    dull = type("Dull", (), {"name": "dull", "max_turns": 1, "gold": lambda self, task: _value(None)})()
    for config, words in ((config_of("experts"), "did you mean"), (config_of(), "knows no gold actions")):
        with pytest.raises(ConfigError, match=words):
            in_session(tmp_path, lambda session: session.step(), config=config, environment=dull)
    assert list(tmp_path.iterdir()) == []


# -- the record ----------------------------------------------------------------------------------------------------------


def test_committed_for_play_and_never_trained_on_unless_asked(tmp_path: Path) -> None:
    async def steer(session: PlaySession) -> Any:
        with pytest.raises(ConfigError, match="is not over"):
            session.commit(tmp_path / "ledger.sqlite")
        for action in GOLD:
            await session.say(action)
            await session.go()
        first = session.commit(tmp_path / "ledger.sqlite", "run-7")
        assert session.commit(tmp_path / "ledger.sqlite", "run-7") == first
        assert session.info.committed == (first.id,)
        return first

    first = in_session(tmp_path, steer, config=config_of("human"))
    with Ledger.open(tmp_path / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.episodes() == [first] and first.run_id == "run-7" and first.purpose == "play"
        assert ledger.trajectories(purpose="explore") == [] and ledger.integrity() == []
        assert export(ledger, "sft", tmp_path / "rows.jsonl") == 0
        assert export(ledger, "sft", tmp_path / "rows.jsonl", purpose="play") == 1

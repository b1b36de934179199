"""The episode graph: who acts after whom, what each is told, what a broken world or a wrong answer ends as, and that
tokens are recorded exactly as fed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from kintsugi.agents.policies.policy import Sampling
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.errors import ConfigError, ContextTooLong
from kintsugi.graphs.episode_graph import build_episode_graph
from kintsugi.graphs.episode_nodes import Cast, note_taker
from kintsugi.graphs.episode_state import EpisodePlan, finished_episode, start_state
from kintsugi.ledger import Ledger
from kintsugi.records import Action, Critique, Observation, Task, Verdict, to_plain
from kintsugi.sandboxes.environments.environment import open_environment
from tests.graphs.episode_players import TokenPolicy, cast_of, follows, plan_of, played, turn, word_problems

SELF = {"who": "self"}
AGAIN = {"who": "reflector", "form": "again"}


def one_problem() -> tuple[Any, Task, str, str]:
    """(environment, task, right program, wrong program)."""
    environment = word_problems()
    task = environment.tasks("train", limit=1)[0]
    right = task.payload["program"]
    return environment, task, right, "a = 1\nprint(a - 100000)\n"


def one_hunt(**options: Any) -> tuple[Any, Task, list[str]]:
    """(environment, task, winning plan)."""
    environment = open_environment("treasure_hunt", options)
    task = environment.tasks("train", limit=1)[0]
    return environment, task, list(asyncio.run(environment.gold(task)))  # type: ignore[arg-type]


# -- one turn --------------------------------------------------------------------------------------------------------------


def test_right_at_once_is_not_repaired() -> None:
    environment, task, right, _ = one_problem()
    policy = ScriptedPolicy([right], byte_tokens=True)
    (episode,) = played(cast_of(policy, environment, repair=SELF), plan_of(task))
    assert episode.success and episode.path == ("agent", "environment")
    (only,) = episode.trajectories
    assert (only.stage, only.stop, only.hard_reward, only.parent_id) == ("explore", "success", 1.0, None)
    assert [type(message) for message in only.messages] == [Observation, Action, Verdict]
    tokens = only.actions[0].tokens
    assert tokens and tokens.completion_ids == (*right.encode(), 256)
    assert only.soft_reward == pytest.approx(sum(tokens.logprobs) / len(tokens.logprobs))
    assert only.cost.generated_tokens == len(tokens.completion_ids) and only.cost.executions == 1
    assert only.cost.processed_tokens == len(tokens.context_ids)


@pytest.mark.parametrize("sees", ["feedback", "attempt"])
def test_wrong_then_rewritten(sees: str) -> None:
    environment, task, right, wrong = one_problem()
    policy = ScriptedPolicy([wrong, right], byte_tokens=True)
    (episode,) = played(cast_of(policy, environment, repair={**SELF, "sees": sees}), plan_of(task))
    assert episode.path == ("agent", "environment", "refiner", "environment")
    failed, repair = episode.trajectories
    assert (failed.stop, repair.stop, repair.stage, repair.attempt) == ("failure", "success", "refine", 1)
    assert repair.parent_id == failed.id and repair.id != failed.id
    assert repair.messages[0] == failed.messages[0] and repair.actions[0].text == right
    asked = policy.requests[1].messages[-1]["content"]
    assert task.prompt in asked and wrong in asked
    assert failed.feedback and (failed.feedback in asked) == (sees == "feedback")


def test_rollback_keeps_the_lines_before_the_fault() -> None:
    environment, task, right, _ = one_problem()
    bad, fault, completion = environment.scripted_repair(task, random.Random(1))
    policy = ScriptedPolicy([bad, completion], byte_tokens=True)
    repair = {**SELF, "form": "rollback"}
    (episode,) = played(cast_of(policy, environment, prompts="bare", repair=repair), plan_of(task))
    failed, mended = episode.trajectories
    assert failed.fault == fault and fault.kept
    asked = policy.requests[1]
    assert asked.messages[-1]["content"] == f"{task.prompt}<bad>{fault.bad} # {fault.note}<fix>"
    assert asked.prefill == fault.kept
    (action,) = mended.actions
    assert action.text == fault.kept + completion == right and action.prefill == fault.kept and mended.success
    assert action.tokens and bytes(action.tokens.context_ids).decode().endswith(fault.kept)
    assert action.tokens.completion_ids == (*completion.encode(), 256)


def test_a_repair_that_repeats_the_bad_line_is_drawn_again() -> None:
    """At most `redraws` times, each with a seed of its own; its tokens are paid; the last one stands as it is."""
    environment, task, right, _ = one_problem()
    bad, fault, completion = environment.scripted_repair(task, random.Random(1))
    again = f"{fault.bad}\nprint(1)"
    for repeats, redraws, text in ((2, 2, right), (1, 2, right), (3, 2, fault.kept + again), (1, 0, fault.kept + again)):
        policy = ScriptedPolicy([bad, *[again] * repeats, completion], byte_tokens=True)
        repair = {**SELF, "form": "rollback", "redraws": redraws}
        (episode,) = played(cast_of(policy, environment, prompts="bare", repair=repair), plan_of(task))
        (_, mended), asked = episode.trajectories, policy.requests[1:]
        assert mended.text == text and len(asked) == min(repeats, redraws) + 1
        assert len({one.sampling.seed for one in asked}) == len(asked)
        ended = [f"{fault.bad}\n" in one.sampling.stop for one in asked]
        assert ended == [number < redraws for number in range(len(asked))], "only what may be drawn again is ended early"
        tokens = mended.actions[0].tokens
        assert tokens and mended.cost.processed_tokens == len(asked) * len(tokens.context_ids), "every draw is paid"


def test_a_repair_that_comes_back_to_the_bad_line_is_whole() -> None:
    """What was missing stood before the line objected to: that line, further on, does not cut the repair."""
    environment, task, _, _ = one_problem()
    bad, fault, completion = environment.scripted_repair(task, random.Random(1))
    inserted = f"{completion}\n{fault.bad}\nprint(1)"
    policy = ScriptedPolicy([bad, inserted, inserted], byte_tokens=True)
    repair = {**SELF, "form": "rollback", "redraws": 2}
    (episode,) = played(cast_of(policy, environment, prompts="bare", repair=repair), plan_of(task))
    mended, asked = episode.trajectories[1], policy.requests[1:]
    assert mended.text == fault.kept + inserted
    assert len({one.sampling.seed for one in asked}) == 1 and len(asked) == 2, "the same sample, whole"


def test_blind_rollback_goes_on_from_a_line_of_its_own() -> None:
    environment, task, _, _ = one_problem()
    bad = environment.scripted_repair(task, random.Random(1))[0]
    repair = {**SELF, "form": "rollback", "sees": "attempt"}
    cuts = set()
    for sample in range(8):
        policy = ScriptedPolicy([bad, "print(0)"])
        cast = cast_of(policy, environment, prompts="bare", repair=repair)
        (episode,) = played(cast, plan_of(task, sample))
        (action,) = episode.trajectories[1].actions
        assert bad.startswith(action.prefill) and action.text == action.prefill + "print(0)"
        assert policy.requests[1].messages[-1]["content"].endswith(" # wrong<fix>")
        cuts.add(action.prefill)
    assert len(cuts) > 1


def test_all_attempts_are_refined_in_a_row() -> None:
    environment, task, right, wrong = one_problem()
    policy = ScriptedPolicy([right, wrong, right])
    (episode,) = played(cast_of(policy, environment, repair={**SELF, "on": "all", "rounds": 2}), plan_of(task))
    assert [one.stop for one in episode.trajectories] == ["success", "failure", "success"]
    first, second, third = episode.trajectories
    assert (first.parent_id, second.parent_id, third.parent_id) == (None, first.id, second.id)


def test_repairs_end_with_the_first_right_one_or_the_last_round() -> None:
    environment, task, right, wrong = one_problem()
    repair = {**SELF, "rounds": 3}
    (early,) = played(cast_of(ScriptedPolicy([wrong, wrong, right]), environment, repair=repair), plan_of(task))
    assert [one.success for one in early.trajectories] == [False, False, True]
    (never,) = played(cast_of(ScriptedPolicy([wrong] * 4), environment, repair=repair), plan_of(task))
    assert len(never.trajectories) == 4 and not never.success


def test_a_reflector_is_another_policy() -> None:
    environment, task, right, wrong = one_problem()
    actor, reflector = ScriptedPolicy([wrong]), ScriptedPolicy([right])
    cast = cast_of(actor, environment, repair={"who": "reflector"}, repairer=reflector)
    (episode,) = played(cast, plan_of(task))
    assert episode.path == ("agent", "environment", "reflector", "environment")
    assert episode.trajectories[1].stage == "reflect" and episode.success and len(actor.requests) == 1


@pytest.mark.parametrize("on", ["failures", "unsolved"])
def test_a_plan_may_begin_with_a_repair(on: str) -> None:
    environment, task, right, wrong = one_problem()
    (before,) = played(cast_of(ScriptedPolicy([wrong]), environment), plan_of(task))
    failed = before.trajectories[0]
    plan = plan_of(task, repair_of=failed)
    (episode,) = played(cast_of(ScriptedPolicy([right]), environment, repair={**SELF, "on": on}), plan)
    assert episode.path == ("refiner", "environment") and episode.id != before.id
    (repair,) = episode.trajectories
    assert repair.parent_id == failed.id and repair.success and repair.attempt == 0


# -- several turns ---------------------------------------------------------------------------------------------------------


def test_turns_until_the_goal() -> None:
    environment, task, plan = one_hunt()
    policy = TokenPolicy(follows(plan))
    (episode,) = played(cast_of(policy, environment, prompts="react"), plan_of(task))
    assert episode.success and episode.path == ("agent", "environment") * len(plan)
    (won,) = episode.trajectories
    assert [action.text for action in won.actions] == plan and won.messages[0] == Observation(text=task.prompt)
    assert won.cost.processed_tokens == 7 * len(plan)
    assert len({request.sampling.seed for request in policy.requests}) == len(plan)
    assert len({request.key for request in policy.requests}) == len(plan)


def test_malformed_actions_are_answered() -> None:
    environment, task, plan = one_hunt()
    odd = ["", "   ", "dance\nwildly", "go \ud7ff\x00", "take", *plan]
    cast = cast_of(ScriptedPolicy(odd), environment, prompts="react", max_turns=len(odd))
    (episode,) = played(cast, plan_of(task))
    assert episode.success and cast.worlds.crashes == 0
    assert all(isinstance(message, Observation) for message in episode.trajectories[0].messages[:11:2])


def test_out_of_turns_is_truncated_and_repaired() -> None:
    environment, task, plan = one_hunt()

    def act(messages: Any) -> str:
        return plan[turn(messages)] if "ADVICE" in messages[1]["content"] else "look"

    cast = cast_of(
        TokenPolicy(act),
        environment,
        prompts="react",
        repair=AGAIN,
        repairer=ScriptedPolicy(["ADVICE"]),
        max_turns=len(plan),
    )
    (episode,) = played(cast, plan_of(task))
    lost, won = episode.trajectories
    assert lost.stop == "truncated" and len(lost.actions) == len(plan) and "out of turns" in lost.feedback
    assert lost.hard_reward == 0.0 and won.stop == "success"


def test_an_attempt_is_given_up_after_so_many_refusals() -> None:
    environment, task, plan = one_hunt()
    refusal = played(cast_of(ScriptedPolicy(["dance"]), environment, prompts="react", max_turns=1), plan_of(task))[0]
    (said,) = [message.text for message in refusal.trajectories[0].messages[1:] if isinstance(message, Observation)]
    odd = ["dance", "look", "dance", *plan]
    rules = {"prompts": "react", "max_turns": len(odd), "refused": [said]}
    (lost,) = played(cast_of(ScriptedPolicy(odd), environment, **rules, max_refused=2), plan_of(task))[0].trajectories
    assert (len(lost.actions), lost.stop) == (3, "truncated")
    assert lost.feedback == "given up: 2 of 3 actions came to nothing"
    for most in (3, None):
        (episode,) = played(cast_of(ScriptedPolicy(odd), environment, **rules, max_refused=most), plan_of(task))
        assert episode.success, most


def test_an_answer_that_runs_out_of_tokens_is_truncated() -> None:
    """When it fails, and the repairer is told; one that wins all the same has won, and a whole one just failed."""
    environment, task, right, wrong = one_problem()
    told = "ran out of tokens"
    for answer, most, stop in ((wrong, 999, "failure"), (wrong, 5, "truncated"), (right, len(right.encode()), "success")):
        policy = ScriptedPolicy([answer, right], byte_tokens=True)
        cast = cast_of(policy, environment, repair={**SELF, "form": "rewrite"})
        actor = cast.roles["actor"]
        cast.roles["actor"] = dataclasses.replace(actor, sampling=Sampling(max_tokens=most))
        (episode,) = played(cast, plan_of(task))
        first, last = episode.trajectories[0], episode.trajectories[-1]
        assert first.stop == stop and last.stop == "success"
        assert (told in first.feedback) == (told in str(policy.requests[-1].messages)) == (stop == "truncated")


def test_an_attempt_that_outgrows_its_model_is_truncated() -> None:
    """It is lost, and can be repaired; a task that does not fit at all is the user's to mend."""
    environment, task, _ = one_hunt()

    class Short(TokenPolicy):
        async def complete(self, request: Any) -> Any:
            if turn(request.messages) >= limit:
                raise ContextTooLong("The context has 9 tokens, the model takes 1 to 8.")
            return await super().complete(request)

    limit = 2
    (episode,) = played(cast_of(Short(lambda messages: "look"), environment, prompts="react"), plan_of(task))
    (lost,) = episode.trajectories
    assert lost.stop == "truncated" and len(lost.actions) == 2 and lost.feedback.startswith("out of context")
    assert episode.path == ("agent", "environment") * 3 and len(list(lost.token_rows())) == 1
    limit = 0
    with pytest.raises(ContextTooLong):
        played(cast_of(Short(lambda messages: "look"), environment, prompts="react"), plan_of(task))


@pytest.mark.parametrize("form", ["again", "from_turn"])
@pytest.mark.parametrize("whose", ["reflector", "agent"])
def test_what_a_reflection_makes_too_long_is_a_lost_attempt(form: str, whose: str) -> None:
    """A transcript that the reflector cannot hold, a reflection that leaves the agent no room: the wave goes on."""
    environment, task, _ = one_hunt()

    class Short(TokenPolicy):
        async def complete(self, request: Any) -> Any:
            if whose == "reflector" or "ADVICE" in str(request.messages):
                raise ContextTooLong("The context has 9 tokens, the model takes 1 to 8.")
            return await super().complete(request)

    looks = Short(lambda messages: "look") if whose == "agent" else TokenPolicy(lambda messages: "look")
    writes = Short(lambda messages: "") if whose == "reflector" else ScriptedPolicy(["ADVICE. First mistake: 1"])
    repair = {**AGAIN, "form": form}
    cast = cast_of(looks, environment, prompts="react", repair=repair, repairer=writes, max_turns=2)
    (episode,) = played(cast, plan_of(task))
    lost, again = episode.trajectories
    assert lost.stop == again.stop == "truncated" and again.parent_id == lost.id
    assert again.feedback.startswith("out of context") and not again.actions and not episode.success


def test_notes_are_made_from_the_lost_attempt_without_a_model() -> None:
    """`words = "notes"`: the environment writes the reflection; nothing is sampled for it, and the agent acts with it."""
    environment, task, plan = one_hunt()
    with pytest.raises(ConfigError, match="takes no notes"):
        note_taker(environment)
    told: list[Any] = []

    class Noting(type(environment)):
        def notes(self, task: Task, turns: Any) -> str:
            told.append(list(turns))
            return "the lamp is north"

    environment.__class__ = Noting
    policy = ScriptedPolicy(["dance", "quit", *plan], byte_tokens=True)
    cast = cast_of(policy, environment, prompts="react", repair={**SELF, "form": "again", "words": "notes"})
    (episode,) = played(cast, plan_of(task))
    lost, won = episode.trajectories
    assert (lost.success, won.success) == (False, True) and won.stage == "refine"
    (critique,) = [message for message in won.messages if isinstance(message, Critique)]
    assert (critique.text, critique.author) == ("the lamp is north", "notes")
    assert [action for action, _ in told[0]] == ["dance", "quit"] and told[0][0][1]
    assert len(policy.requests) == 2 + len(plan) and "the lamp is north" in policy.requests[2].messages[1]["content"]
    assert won.cost.generated_tokens == sum(len(action.encode()) + 1 for action in plan)


def test_again_reflects_and_acts_from_the_start() -> None:
    environment, task, plan = one_hunt()
    advice = "Follow the doors to the goal."

    def act(messages: Any) -> str:
        return plan[turn(messages)] if advice in messages[1]["content"] else ["look", "quit"][turn(messages)]

    actor, reflector = TokenPolicy(act), ScriptedPolicy([advice])
    (episode,) = played(cast_of(actor, environment, prompts="react", repair=AGAIN, repairer=reflector), plan_of(task))
    lost, won = episode.trajectories
    pairs = ("agent", "environment")
    assert episode.path == (*pairs * 2, "reflector", *pairs * len(plan))
    assert won.parent_id == lost.id and won.stage == "reflect" and won.success
    assert won.messages[:2] == (Observation(text=task.prompt), Critique(text=advice, author="reflector"))
    assert [action.text for action in won.actions] == plan
    asked = reflector.requests[0].messages[-1]["content"]
    assert "> look" in asked and "> quit" in asked and lost.feedback in asked
    # The first attempt's tokens are in no context of the second.
    ids, _ = next(won.token_rows())
    assert ids == actor.fed[-1][0] + actor.fed[-1][1] and b"assistant:quit" not in bytes(i for i in ids if i < 256)


def test_reflections_add_up_over_several_rounds() -> None:
    environment, task, plan = one_hunt()

    def act(messages: Any) -> str:
        told = messages[1]["content"]
        assert ("first thought" in told) or ("second thought" not in told)
        return plan[turn(messages)] if "first thought\nsecond thought" in told else "quit"

    reflector = ScriptedPolicy(["first thought", "second thought"])
    cast = cast_of(TokenPolicy(act), environment, prompts="react", repair={**AGAIN, "rounds": 4}, repairer=reflector)
    (episode,) = played(cast, plan_of(task))
    assert [one.success for one in episode.trajectories] == [False, False, True]
    first, second = (request.messages[-1]["content"] for request in reflector.requests)
    assert "first thought" not in first and "first thought" in second
    assert [m.text for m in episode.trajectories[2].messages if isinstance(m, Critique)] == [
        "first thought",
        "second thought",
    ]


def test_a_memory_may_be_short() -> None:
    """Reflexion keeps its last reflections: the reflector reads those before the last attempt, the agent one more."""
    environment, task, _ = one_hunt()
    actor = TokenPolicy(lambda messages: "quit")
    for most, kept in ((1, [["1"], ["2"], ["3"], ["4"]]), (2, [["1"], ["1", "2"], ["2", "3"], ["3", "4"]])):
        reflector = ScriptedPolicy(["thought 1", "thought 2", "thought 3", "thought 4"])
        repair = {**AGAIN, "rounds": 4, "memory": most}
        cast = cast_of(actor, environment, prompts="react", repair=repair, repairer=reflector)
        (episode,) = played(cast, plan_of(task))
        said = [[m.text[-1] for m in one.messages if isinstance(m, Critique)] for one in episode.trajectories[1:]]
        assert said == kept
        told = [number for number in "1234" if f"thought {number}" in actor.requests[-1].messages[1]["content"]]
        assert told == kept[-1]


def test_a_memory_goes_from_episode_to_episode(tmp_path: Path) -> None:
    """As it is with `repair.on = "unsolved"`: each trial is an episode of its own, and its parent comes from the ledger."""
    environment, task, plan = one_hunt()

    def act(messages: Any) -> str:
        return plan[turn(messages)] if "thought 1\nthought 2" in messages[1]["content"] else "quit"

    reflector = ScriptedPolicy(["thought 1", "thought 2"])
    repair = {**AGAIN, "on": "unsolved"}
    cast = cast_of(TokenPolicy(act), environment, prompts="react", repair=repair, repairer=reflector)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        ledger.add_tasks([task])
        lost: Any = None
        for trial in range(3):
            ledger.commit_episodes(played(cast, plan_of(task, trial, repair_of=lost)))
            (lost,) = ledger.episodes(sample=trial)[0].trajectories
        assert lost.success and [m.text for m in lost.messages if isinstance(m, Critique)] == ["thought 1", "thought 2"]
    assert "thought 1" in reflector.requests[1].messages[-1]["content"]


# -- what breaks -----------------------------------------------------------------------------------------------------------


def test_a_crash_is_replayed_on_a_fresh_world() -> None:
    environment, _, _ = one_hunt(crash_on=("train-0-0",), crash_at=3)
    tasks = environment.tasks("train", limit=2)
    plans = {task.prompt: asyncio.run(environment.gold(task)) for task in tasks}

    def act(messages: Any) -> str:
        return next(plan for prompt, plan in plans.items() if prompt in messages[1]["content"])[turn(messages)]

    cast = cast_of(TokenPolicy(act), environment, prompts="react")
    crashed, sibling = played(cast, *(plan_of(task) for task in tasks))
    assert crashed.success and sibling.success and cast.worlds.crashes == 1
    assert [action.text for action in crashed.trajectories[0].actions] == list(plans[tasks[0].prompt])
    (reason,) = crashed.trajectories[0].crashes
    assert "crashed on purpose" in reason and not sibling.trajectories[0].crashes


def test_a_second_crash_is_an_error_and_never_repaired() -> None:
    environment, _, _ = one_hunt(crash_on=("train-0-0",), crash_at=2, crashes=2)
    tasks = environment.tasks("train", limit=3)
    policy, reflector = ScriptedPolicy(lambda messages, _: ["look", "quit"][turn(messages)]), ScriptedPolicy(["a", "b"])
    cast = cast_of(policy, environment, prompts="react", repair=AGAIN, repairer=reflector)
    broken, *siblings = played(cast, *(plan_of(task) for task in tasks))
    (only,) = broken.trajectories
    assert only.stop == "error" and not broken.success and cast.worlds.crashes == 2
    verdict = only.messages[-1]
    assert isinstance(verdict, Verdict) and "crashed on purpose" in verdict.error
    assert only.crashes == (verdict.error, verdict.error)
    assert [one.stop for sibling in siblings for one in sibling.trajectories] == ["failure"] * 4
    assert len(reflector.requests) == 2


class Stubborn:
    """A treasure hunt whose worlds misbehave: `start` or `observe` or the action number `late` hang or raise."""

    name, max_turns = "treasure_hunt", 12

    def __init__(self, *, where: str, late: int = 0, hangs: bool = False, error: Exception | None = None) -> None:
        self.inner: Any = open_environment("treasure_hunt")
        self.where, self.late, self.hangs, self.error = where, late, hangs, error or RuntimeError("no world today")
        self.closed = 0

    async def break_down(self) -> None:
        if self.hangs:
            await asyncio.sleep(60)
        raise self.error

    async def start(self, task: Task) -> Any:
        if self.where == "start":
            await self.break_down()
        inner, outer = await self.inner.start(task), self

        class World:
            async def observe(self) -> str:
                if outer.where == "observe":
                    await outer.break_down()
                return await inner.observe()

            async def act(self, action: str) -> Any:
                if outer.where == "act" and inner.num_actions == outer.late:
                    await outer.break_down()
                return await inner.act(action)

            async def close(self) -> None:
                outer.closed += 1
                if outer.where == "close":
                    await outer.break_down()

        return World()

    async def gold(self, task: Task) -> Any:
        return await self.inner.gold(task)


@pytest.mark.parametrize("where", ["start", "observe"])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_world_that_never_begins_is_an_error(where: str, hangs: bool) -> None:
    environment = Stubborn(where=where, hangs=hangs)
    task = environment.inner.tasks("train", limit=1)[0]
    policy, reflector = ScriptedPolicy([]), ScriptedPolicy([])
    cast = cast_of(policy, environment, prompts="react", repair=AGAIN, repairer=reflector, timeout_s=0.05)  # type: ignore[arg-type]
    (episode,) = played(cast, plan_of(task))
    (only,) = episode.trajectories
    assert (only.stop, only.actions, episode.path) == ("error", (), ("agent", "environment"))
    assert sum(isinstance(message, Verdict) for message in only.messages) == 1
    verdict = only.messages[-1]
    assert isinstance(verdict, Verdict) and ("no reply within 0.05 s" if hangs else "no world today") in verdict.error
    assert not policy.requests and environment.closed == (2 if where == "observe" else 0)


def test_a_late_turn_has_no_more_time_than_an_early_one() -> None:
    environment = Stubborn(where="act", late=6, hangs=True)
    task = environment.inner.tasks("train", limit=1)[0]
    cast = cast_of(ScriptedPolicy(["look"] * 9), environment, prompts="react", timeout_s=0.2)  # type: ignore[arg-type]
    started = time.monotonic()
    (episode,) = played(cast, plan_of(task))
    # Twice 0.2 s; were the time of all seven turns given to the last one, it would be 2.8 s.
    assert time.monotonic() - started < 1.4
    (only,) = episode.trajectories
    assert only.stop == "error" and "no reply within 0.2 s" in to_plain(only.messages[-1])["error"]


def test_a_world_that_breaks_while_closing_changes_nothing() -> None:
    environment = Stubborn(where="close")
    task = environment.inner.tasks("train", limit=1)[0]
    cast = cast_of(ScriptedPolicy(["quit"]), environment, prompts="react")  # type: ignore[arg-type]
    (episode,) = played(cast, plan_of(task))
    assert episode.trajectories[0].stop == "failure" and cast.worlds.crashes == 1


def test_a_failed_sandbox_is_an_error_after_one_retry() -> None:
    _, _, right, wrong = one_problem()
    for broken, stops, runs in ((1, ["success"], 2), (2, ["error"], 2)):
        environment = word_problems()
        environment._given.broken = broken
        task = environment.tasks("train", limit=1)[0]
        policy = ScriptedPolicy([right, wrong])
        (episode,) = played(cast_of(policy, environment, repair=SELF), plan_of(task))
        assert [one.stop for one in episode.trajectories] == stops and environment._given.runs == runs
        if stops == ["error"]:
            assert to_plain(episode.trajectories[0].messages[-1])["error"] == "sandbox_failed"
            assert len(policy.requests) == 1


# -- tokens ----------------------------------------------------------------------------------------------------------------


def test_what_was_fed_is_what_is_recorded() -> None:
    environment, task, plan = one_hunt()
    policy = TokenPolicy(follows(["think: hm", *plan]))
    (episode,) = played(cast_of(policy, environment, prompts="react"), plan_of(task))
    trajectory = episode.trajectories[0]
    whole: tuple[int, ...] = ()
    for (context, sampled), action in zip(policy.fed, trajectory.actions, strict=True):
        assert action.tokens and not action.tokens.restart
        assert context[: len(whole)] == whole, "the ids fed begin with everything fed and sampled before"
        assert action.tokens.context_ids == context[len(whole) :] and action.tokens.completion_ids == sampled
        whole = context + sampled
    assert [len(request.prior_ids) > 0 for request in policy.requests] == [False] + [True] * len(plan)
    assert policy.requests[-1].prior_messages == len(policy.requests[-1].messages) - 1
    ((ids, mask),) = trajectory.token_rows()
    assert ids == whole
    sampled_ids = [token for token, one in zip(ids, mask, strict=True) if one]
    assert sampled_ids == [token for _, sampled in policy.fed for token in sampled]


def test_a_policy_that_encodes_anew_restarts_the_context() -> None:
    environment, task, plan = one_hunt()
    policy = TokenPolicy(follows(plan), forgets=True)
    (episode,) = played(cast_of(policy, environment, prompts="react"), plan_of(task))
    actions = episode.trajectories[0].actions
    assert [action.tokens and action.tokens.restart for action in actions] == [False] + [True] * (len(plan) - 1)
    rows = list(episode.trajectories[0].token_rows())
    assert [ids for ids, _ in rows] == [context + sampled for context, sampled in policy.fed]


def test_after_a_rewrite_the_actor_begins_its_own_context() -> None:
    """A repairer's action was sampled in the repairer's chat: its ids are never fed to the actor."""
    environment, task, plan = one_hunt()
    actor = TokenPolicy(lambda messages: plan[turn(messages)] if turn(messages) else "quit")
    refiner = TokenPolicy(lambda messages: plan[0])
    cast = cast_of(actor, environment, prompts="react", repair=SELF, repairer=refiner)
    (episode,) = played(cast, plan_of(task))
    mended = episode.trajectories[1]
    assert mended.success and [action.text for action in mended.actions] == plan
    assert [action.tokens and action.tokens.restart for action in mended.actions[:3]] == [False, True, False]
    asked, own = mended.token_rows()
    assert asked[0] == refiner.fed[0][0] + refiner.fed[0][1]
    assert own[0] == actor.fed[-1][0] + actor.fed[-1][1] and own[0][: len(asked[0])] != asked[0]


def test_actions_of_people_have_no_tokens_and_no_reward_of_their_own() -> None:
    environment, task, plan = one_hunt()
    (episode,) = played(cast_of(ScriptedPolicy(plan), environment, prompts="react"), plan_of(task))
    trajectory = episode.trajectories[0]
    assert trajectory.soft_reward is None and list(trajectory.token_rows()) == []
    assert all(action.tokens is None for action in trajectory.actions)


# -- plain state -----------------------------------------------------------------------------------------------------------


async def states_of(cast: Cast, plan: EpisodePlan) -> list[Any]:
    graph = build_episode_graph(cast)
    return [state async for state in graph.astream(start_state(plan), {"recursion_limit": 200}, stream_mode="values")]


def test_every_state_is_plain_json() -> None:
    environment, task, plan = one_hunt()

    def act(messages: Any) -> str:
        return plan[turn(messages)] if "ADVICE" in messages[1]["content"] else "quit"

    cast = cast_of(TokenPolicy(act), environment, prompts="react", repair=AGAIN, repairer=ScriptedPolicy(["ADVICE"]))
    states = asyncio.run(states_of(cast, plan_of(task)))
    assert len(states) == 1 + 2 + 1 + 2 * len(plan)
    for state in states:
        assert json.loads(json.dumps(state)) == state
    again = finished_episode(json.loads(json.dumps(states[-1])))
    assert again == finished_episode(states[-1]) and again.success


def test_paused_edited_resumed_and_branched() -> None:
    environment, task, plan = one_hunt()

    async def main() -> None:
        policy = TokenPolicy(follows([plan[0], "quit"]))
        cast = cast_of(policy, environment, prompts="react")
        graph = build_episode_graph(cast, checkpointer=InMemorySaver(), interrupt_before=["environment"])
        config: Any = {"configurable": {"thread_id": "1"}, "recursion_limit": 200}
        await graph.ainvoke(start_state(plan_of(task)), config)
        for index, wanted in enumerate(plan):
            paused = await graph.aget_state(config)
            assert paused.next == ("environment",)
            current = paused.values["current"]
            if index:  # the person writes another action: it has no tokens
                current = {**current, "messages": [*current["messages"][:-1], to_plain(Action(text=wanted))]}
                await graph.aupdate_state(config, {"current": current}, as_node="agent")
            await graph.ainvoke(None, config)
        done = await graph.aget_state(config)
        assert done.next == ()
        episode = finished_episode(done.values)
        assert episode.success and [action.text for action in episode.trajectories[0].actions] == plan
        assert list(episode.trajectories[0].token_rows()) == []

        # From the state before the third action the worlds are replayed, and another end is reached.
        history = [state async for state in graph.aget_state_history(config)]
        waiting = [state for state in history if state.next == ("environment",)]
        fork = next(state for state in waiting if str(state.values["current"]).count("'action'") == 3)
        current = fork.values["current"]
        current = {**current, "messages": [*current["messages"][:-1], to_plain(Action(text="look"))]}
        branch = await graph.aupdate_state(fork.config, {"current": current}, as_node="agent")
        state = await graph.ainvoke(None, branch)
        seen = [message["text"] for message in state["current"]["messages"] if message["kind"] == "observation"][3]
        room = task.payload["start"]
        for action in plan[:2]:
            room = task.payload["doors"][room][action.removeprefix("go ")] if action.startswith("go") else room
        assert seen.startswith(f"You are in the {room}.")
        assert state["attempts"] == [] and cast.worlds.crashes == 0

    asyncio.run(main())


def test_a_cancelled_turn_is_replayed() -> None:
    """Whoever interrupts an action half done gets a world that did it once when it goes on."""
    environment, task, _ = one_hunt(delay_s=0.05)

    async def main() -> None:
        cast = cast_of(ScriptedPolicy([]), environment, prompts="react")
        for action in ("look", "quit"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await cast.worlds.act("k", task, [], action)
        assert cast.worlds._live == {}
        reply = await cast.worlds.act("k", task, ["look"], "quit")
        assert reply.verdict is not None and cast.worlds.crashes == 0
        assert cast.worlds._live["k"].world.num_actions == 2  # type: ignore[attr-defined]

    asyncio.run(main())

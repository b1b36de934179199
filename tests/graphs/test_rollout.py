"""Rollouts: waves are committed in order, are skipped whole when known, never exceed their size, and end with the error that
was raised; nothing hangs, nothing is checkpointed, and the graph costs little."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from kintsugi.agents.policies.policy import Completion, Request
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.errors import PolicyError, SandboxError
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.rollout import FEW_COLLECTIONS, play_wave, rollout, waves
from kintsugi.records import Episode, Task, Verdict, to_plain
from kintsugi.sandboxes.environments.environment import ProgramEnvironment
from tests.graphs.episode_players import TokenPolicy, cast_of, plan_of


class Echo(ProgramEnvironment):
    """Right when the action is the prompt. `error`: raised by every verdict."""

    name = "echo"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def judge(self, task: Task, action: str) -> Verdict:
        if self.error is not None:
            raise self.error
        return Verdict(success=action == task.prompt, reward=float(action == task.prompt), feedback="?")


class Counting(ScriptedPolicy):
    """Counts the episodes that are live in it, and what was asked before all were in."""

    def __init__(self, answers: Any, **options: Any) -> None:
        super().__init__(answers, **options)
        self.now = self.most = self.forgotten = 0
        self.at_request: list[int] = []
        self.refuses: set[int] = set()
        self.entries = 0

    @contextlib.asynccontextmanager
    async def live(self) -> AsyncIterator[None]:
        number, self.entries = self.entries, self.entries + 1
        if number in self.refuses:
            raise PolicyError("no place left")
        await asyncio.sleep(0.001 * (number % 3))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield
        finally:
            self.now -= 1

    async def complete(self, request: Request) -> list[Completion]:
        self.at_request.append(self.most)
        return await super().complete(request)

    async def forget(self) -> None:
        assert self.now == 0
        self.forgotten += 1


def tasks(number: int) -> list[Task]:
    return [Task(id=f"t{i}", environment="echo", split="train", prompt=f"say {i}") for i in range(number)]


def echo(messages: Any, sample: int) -> str:
    return messages[-1]["content"]


def cast(policy: Any, wave: int = 250, **options: Any) -> Cast:
    return cast_of(policy, Echo(**options), prompts="bare", wave=wave)  # type: ignore[arg-type]


def test_waves() -> None:
    assert [list(wave) for wave in waves(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert list(waves([], 3)) == []


def test_waves_are_bounded_and_committed_in_order() -> None:
    policy = Counting(echo, delay_s=0.001)
    plans = [plan_of(task) for task in tasks(10)]
    committed: list[list[str]] = []
    done: list[str] = []
    players = cast(policy, wave=4)

    def commit(episodes: Iterable[Episode]) -> None:
        assert policy.now == 0
        committed.append([episode.task_id for episode in episodes])

    number = asyncio.run(rollout(plans, players, commit=commit, on_done=lambda episode: done.append(episode.task_id)))
    assert number == 10 and policy.most == 4 and policy.forgotten == 3
    assert committed == [["t0", "t1", "t2", "t3"], ["t4", "t5", "t6", "t7"], ["t8", "t9"]]
    assert sorted(done) == sorted(plan.task.id for plan in plans)
    # Nobody of the first wave asked before all four were in.
    assert policy.at_request[:4] == [4] * 4
    assert players.worlds._live == {}


def test_known_waves_are_skipped_whole() -> None:
    plans = [plan_of(task) for task in tasks(6)]
    ids = [plan.episode_id for plan in plans]
    held = {*ids[:2], ids[3]}
    committed: list[str] = []
    policy = ScriptedPolicy(echo)
    number = asyncio.run(
        rollout(
            plans,
            cast(policy, wave=2),
            commit=lambda episodes: committed.extend(episode.id for episode in episodes),
            known=lambda asked: held & set(asked),
        )
    )
    assert number == 4 and committed == ids[2:] and len(policy.requests) == 4


def test_a_plan_that_stands_twice_is_known_all_the_same() -> None:
    (task,) = tasks(1)
    plan = plan_of(task)
    number = asyncio.run(rollout([plan, plan], cast(ScriptedPolicy([])), commit=len, known=set))
    assert number == 0


def test_the_same_plans_give_the_same_episodes() -> None:
    def all_of(delay_s: float) -> list[Any]:
        policy = ScriptedPolicy(lambda messages, _: messages[-1]["content"][:5], delay_s=delay_s, byte_tokens=True)
        plans = [plan_of(task, sample, seed=sample) for task in tasks(4) for sample in range(2)]
        plain = [to_plain(episode) for episode in asyncio.run(play_wave(plans, cast(policy)))]
        for episode in plain:
            assert len(episode.pop("seconds")) == len(episode["path"])
            for trajectory in episode["trajectories"]:
                trajectory["cost"]["seconds"] = 0
        seeds = {request.key: request.sampling.seed for request in policy.requests}
        assert len(set(seeds.values())) == 2, "the seed is the plan's, not the task's or the time's"
        return [plain, seeds]

    assert all_of(0.0) == all_of(0.003)


# -- errors ----------------------------------------------------------------------------------------------------------------


def gone(players: Cast, number: int, expected: type[BaseException], match: str | None = None) -> BaseException:
    """The exception of a wave, after which no task is left."""

    async def main() -> BaseException:
        before = asyncio.all_tasks()
        with pytest.raises(expected, match=match) as caught:
            async with asyncio.timeout(5):
                await play_wave([plan_of(task) for task in tasks(number)], players)
        assert asyncio.all_tasks() == before, "an episode is left hanging"
        return caught.value

    return asyncio.run(main())


def test_a_failing_policy_raises_its_own_error() -> None:
    cause = ConnectionError("refused")
    error = PolicyError("the model is gone")
    error.__cause__ = cause
    policy = Counting(echo, delay_s=0.001, failures={2: error})
    caught = gone(cast(policy), 5, PolicyError, "the model is gone")
    assert caught is error and caught.__cause__ is cause and policy.now == 0


def test_many_failures_raise_the_first() -> None:
    policy = ScriptedPolicy(echo, failures={number: PolicyError(f"number {number}") for number in range(4)})
    gone(cast(policy), 4, PolicyError, "number 0")


def test_an_episode_that_cannot_begin_leaves_none_waiting() -> None:
    policy = Counting(echo)
    policy.refuses = {1}
    gone(cast(policy), 6, PolicyError, "no place left")
    assert policy.now == 0 and not policy.requests


def test_a_mistake_of_the_user_in_the_environment_is_raised() -> None:
    gone(cast(ScriptedPolicy(echo), error=SandboxError("no Docker here")), 2, SandboxError, "no Docker here")


def test_a_mistake_in_the_program_keeps_its_class() -> None:
    gone(cast(ScriptedPolicy(echo, failures={0: KeyError("x")})), 3, KeyError)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_interrupts_stay_what_they_are(raised: type[BaseException]) -> None:
    def stop(messages: Any, sample: int) -> str:
        raise raised

    with pytest.raises(raised):
        asyncio.run(play_wave([plan_of(task) for task in tasks(3)], cast(ScriptedPolicy(stop))))


def test_cancelling_reaches_every_episode() -> None:
    async def main() -> None:
        policy = Counting(echo, delay_s=30)
        wave = asyncio.create_task(play_wave([plan_of(task) for task in tasks(3)], cast(policy)))
        while len(policy.requests) < 3:
            await asyncio.sleep(0.001)
        wave.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wave
        assert policy.now == 0 and len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_an_environment_that_raises_is_no_error_here() -> None:
    episodes = asyncio.run(
        play_wave([plan_of(task) for task in tasks(3)], cast(ScriptedPolicy(echo), error=ValueError("odd")))
    )
    assert [episode.trajectories[0].stop for episode in episodes] == ["error"] * 3


# -- cost ------------------------------------------------------------------------------------------------------------------


def test_no_graph_checkpoint_is_written_even_inside_another_graph() -> None:
    class Outer(TypedDict):
        done: int

    async def explore(state: Outer) -> dict[str, int]:
        return {"done": len(await play_wave([plan_of(task) for task in tasks(3)], cast(ScriptedPolicy(echo))))}

    saver = InMemorySaver()
    graph: Any = StateGraph(Outer)
    graph.add_node("explore", explore)
    graph.add_edge(START, "explore")
    graph.add_edge("explore", END)
    compiled = graph.compile(checkpointer=saver)
    state = asyncio.run(compiled.ainvoke({"done": 0}, {"configurable": {"thread_id": "1"}}))
    assert state["done"] == 3
    namespaces = {key for thread in saver.storage.values() for key in thread}
    assert namespaces == {""}, "the episodes' graph checkpoints were written too"


def test_hundreds_of_episodes_cost_little() -> None:
    policy = TokenPolicy(lambda messages: messages[-1]["content"])
    plans = [plan_of(task) for task in tasks(400)]
    players = cast(policy)
    asyncio.run(play_wave(plans[:20], players))
    started = time.process_time()
    episodes = asyncio.run(play_wave(plans, players))
    each_ms = 1000 * (time.process_time() - started) / len(plans)
    print(f"{each_ms:.2f} ms of CPU an episode of two nodes")
    assert all(episode.success for episode in episodes)
    assert each_ms < 15, "measured 1.5 to 3 ms"


Thresholds = tuple[int, int, int]
ITS_OWN, OFF, RARER = (700, 10, 10), (0, 10, 10), (50_000, 5, 5)


@pytest.mark.parametrize(("before", "during"), [(ITS_OWN, FEW_COLLECTIONS), (OFF, OFF), (RARER, RARER)])
def test_the_collector_is_slowed_for_a_wave_and_left_as_it_was(before: Thresholds, during: Thresholds) -> None:
    """Also when the wave ends in an error; one that is off, or rarer already, is not touched."""
    seen: list[Thresholds] = []

    def answer(messages: Any, sample: int) -> str:
        seen.append(gc.get_threshold())
        raise PolicyError("gone")

    own = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        with pytest.raises(PolicyError, match="gone"):
            asyncio.run(play_wave([plan_of(task) for task in tasks(1)], cast(ScriptedPolicy(answer))))
        assert (seen, gc.get_threshold()) == ([during], before)
    finally:
        gc.set_threshold(*own)

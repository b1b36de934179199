"""The verifiers bridge where tasks have turns, against the real package: a user's part, and tools."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kintsugi.agents.policies.tool_calls import Tools
from kintsugi.errors import ConfigError
from kintsugi.sandboxes.environments.conformance import check, check_gold, check_perturbed, check_replay, play
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.leftovers import Leftovers
from kintsugi.sandboxes.environments.verifiers_bridge import schemas
from tests.sandboxes.verifiers_tasksets import write_tasksets

if importlib.util.find_spec("verifiers") is None:
    reason = 'the bridge needs verifiers 0.4: pip install "kintsugi-agents[verifiers]"'
    pytest.skip(reason, allow_module_level=True)

Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def tasksets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the tiny tasksets, which workers find."""
    folder = tmp_path_factory.mktemp("tasksets")
    write_tasksets(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def opened(tasksets: Path) -> Iterator[Opener]:
    """Opens a taskset once for all tests of this file (a worker needs seconds for verifiers' imports), and closes it."""
    environments: dict[str, Any] = {}

    def one(env: str, **options: Any) -> Any:
        name = f"{env} {options}"
        if name not in environments:
            environments[name] = open_environment("verifiers", {"env": env, "workers": 1, **options})
        return environments[name]

    yield one
    for environment in environments.values():
        asyncio.run(environment.close())


def replies(environment: Any, task: Any, actions: Sequence[str]) -> list[Any]:
    return asyncio.run(play(environment, task, actions))


def first(environment: Any, split: str = "train") -> Any:
    return environment.tasks(split)[0]


async def first_observation(environment: Any, task: Any) -> str:
    world = await environment.start(task)
    try:
        return await world.observe()
    finally:
        await world.close()


def test_a_users_part_is_played_message_by_message(opened: Opener) -> None:
    guess = opened("tiny_guess", gold="path", timeout_s=15.0)
    task = first(guess)
    number = int(asyncio.run(guess.gold(task))[-1])
    assert task.prompt == f"Task {number}.\nGuess the number.", "prompts that are alike are numbered"
    seen = asyncio.run(first_observation(guess, task))
    assert seen == f"Guess the number.\n\nI thought of a number from 0 to {40 if number < 40 else 99}. Which?"
    actions = ["", "think: the middle", "some", f"Thought: too high\nAction: {number + 1}", str(number)]
    told = replies(guess, task, actions)
    assert [reply.observation for reply in told[:-1]] == [
        "That was empty: write a message.", "OK.", "That is no number.", "Lower.",
    ]  # fmt: skip
    verdict = told[-1].verdict
    assert verdict.success and verdict.reward == 1.0 and verdict.detail == {"guesses": 3.0, "found": 1.0}
    lost = replies(guess, task, [str(number + 1)] * 9)
    assert len(lost) == 7 and not lost[-1].verdict.success, "the user of this environment has patience for six hints"
    assert lost[-1].verdict.feedback == "It ended, and that is not enough: guesses 7, found 0."


def test_fifty_attempts_at_once_are_what_they_are_alone(opened: Opener) -> None:
    guess = opened("tiny_guess", gold="path", timeout_s=15.0)
    tasks = [guess.tasks("train")[place % 10] for place in range(50)]

    async def one(task: Any) -> list[Any]:
        gold = await guess.gold(task)
        return await play(guess, task, ["nothing", *gold])

    async def at_once() -> list[list[Any]]:
        return await asyncio.gather(*map(one, tasks))

    together = asyncio.run(at_once())
    alone = [asyncio.run(one(task)) for task in tasks[:10]]
    assert together == [alone[place % 10] for place in range(50)]
    assert all(attempt[-1].verdict.success for attempt in together)


def test_what_breaks_is_a_verdict_and_other_attempts_go_on(opened: Opener) -> None:
    guess = opened("tiny_guess", gold="path", timeout_s=15.0)
    task = first(guess)
    gold = asyncio.run(guess.gold(task))

    async def around(harm: str) -> tuple[Any, Any]:
        """A harm in the middle of another attempt, and that attempt's end."""
        world = await guess.start(task)
        await world.observe()
        before = await world.act(gold[0])
        broken = (await play(guess, task, [harm]))[-1].verdict
        assert before.observation == "Higher."
        told = [await world.act(action) for action in gold[1:]]
        await world.close()
        return broken, told[-1].verdict

    for harm, words in (
        ("raise", "RuntimeError: the user has left"),
        ("wait", "nothing came back within 15 s"),
        ("die", "the process of verifiers_worker gave no answer: it ended"),
    ):
        broken, other = asyncio.run(around(harm))
        assert words in broken.error and not broken.success, harm
        assert other.success, f"{harm}: the other attempt is played again where its worker died"


def test_out_of_turns_is_a_failure(opened: Opener) -> None:
    shop = opened("tiny_shop", gold="calls", max_turns=5)
    told = replies(shop, first(shop), ["shop_price[pear]"] * 5)
    assert [reply.observation for reply in told[:4]] == ["4"] * 4
    verdict = told[4].verdict
    assert not verdict.success and verdict.reward == 0.25, "its rewards are told all the same"
    assert verdict.feedback == "It ran into the limit max_turns, and that is not enough: turns 5, asked 0.25, right 0."


def test_tools_are_called_by_text_and_natively(opened: Opener) -> None:
    shop = opened("tiny_shop", gold="calls", max_turns=5)
    task = first(shop)
    assert asyncio.run(first_observation(shop, task)).split("\n") == [
        task.prompt, "", "Tools, one call a turn; any other message is an answer, and so is finish[answer]:",
        'shop_multiply[{"a": …, "b": …}]: a times b.', "shop_price[thing]: What one of a thing costs, in coins.",
    ]  # fmt: skip
    answer = asyncio.run(shop.gold(task))[-1]
    native = '{"name": "shop_multiply", "arguments": {"a": 6, "b": 7}}'
    unknown = '<tool_call>{"name": "buy", "arguments": {}}</tool_call>'
    odd = ["shop_price[", 'shop_multiply[{"a": 1}]', unknown, "Action: sell[fig]", "shop_price[kite]"]
    told = [reply.observation for reply in replies(shop, task, odd)]
    assert "with its brackets closed" in told[0] and "'b' is a required property" in told[1]
    assert 'There is no tool "buy"' in told[2] and 'There is no tool "sell"' in told[3]
    assert told[4] == "Error executing tool price: 'kite'"
    assert replies(shop, task, [native])[0].observation == "42"
    played = replies(shop, task, ["Thought: ask first\nAction: shop_price[apple]", answer])
    assert played[-1].verdict.success, "text without a call is the answer" if answer.startswith("finish") else answer
    unasked = replies(shop, task, [answer])[-1].verdict
    assert not unasked.success and unasked.reward == 0.75 and unasked.detail["asked"] == 0.0


def test_a_tasks_own_tools_have_its_state_and_end_with_it(opened: Opener) -> None:
    with Leftovers() as left:
        basket = opened("tiny_basket")
        task = first(basket)
        thing = task.prompt.split()[2].rstrip(",")
        won = replies(basket, task, [f"buy[{thing}]", "I have it."])
        assert won[0].observation == f"1 in the basket, {thing} is wanted", "the server has seen the task"
        assert won[-1].verdict.success
        both = replies(basket, task, [f"buy[{thing}]", "buy[nut]"])
        assert both[-1].verdict.reward == 0.0 and not both[-1].verdict.error, "the task's own @stop has ended it"
        assert len(left.processes()) == 2, "the worker and what forks its servers, but no server of an attempt that is over"
        died = replies(basket, task, ["buy[die]"])[-1].verdict
        assert "ConnectError: All connection attempts failed" in died.error, "verifiers asks a server that is gone six times"

        async def killed() -> Any:
            world = await basket.start(task)
            await world.observe()
            await world.act(f"buy[{thing}]")
            os.kill(basket.processes[0].process.pid, signal.SIGKILL)
            while basket.processes[0].up:
                await asyncio.sleep(0.01)
            reply = await world.act("I have it.")
            await basket.start(task)  # and one that is never closed
            return reply

        assert asyncio.run(killed()).verdict.success, "played again from its start by the next worker"
        asyncio.run(basket.close())
        deadline = time.monotonic() + 5
        while left.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left.processes() and not left.files()
        assert not list(Path("/tmp").glob(f"vf-port-{basket.room.name}*"))


@pytest.mark.parametrize("harm", [666, 777], ids=["dies", "hangs"])
def test_a_shared_tool_server_that_an_agent_ends_is_there_again(opened: Opener, harm: int) -> None:
    sums = opened("shared_sums", timeout_s=8)
    task = first(sums)
    broken = replies(sums, task, [f'calc_add[{{"a": {harm}, "b": 1}}]'])[-1].verdict
    assert broken.error and not broken.success
    after = replies(sums, task, ['calc_add[{"a": 2, "b": 3}]'])
    assert after[-1].verdict is None and after[-1].observation == "5"


def test_native_schemas(tasksets: Path) -> None:
    before = set(Path("/tmp").glob("vf-port-*"))
    tools = Tools(schemas("tiny_shop"))
    assert set(Path("/tmp").glob("vf-port-*")) == before
    assert tools.text("", [("shop_multiply", {"a": 6, "b": 7})]) == 'shop_multiply[{"a": 6, "b": 7}]'
    assert tools.text("", [("shop_price", {"thing": "fig"})]) == "shop_price[fig]"


def test_what_cannot_be_played_is_one_sentence(tasksets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kintsugi.sandboxes.environments.verifiers_worker import Worker

    monkeypatch.syspath_prepend(str(tasksets))
    common: dict[str, Any] = {"config": {}, "most": 9, "gold": "", "max_turns": 9, "patience_s": 9.0, "list_tools": True}
    for env, env_config, words in (
        ("two_players", {}, r"no container, found two_players: it plays several agents \(guesser, helper\)"),
        ("tiny_guess", {"id": "user-sim"}, r"it plays several agents \(assistant, user\)"),
        ("needs_codex", {}, "its agent must run in the program codex"),
        ("needs_docker", {}, "its tools Basket need a runtime of their own"),
        ("needs_image", {}, "task 0 needs a runtime of its own"),
        ("tiny_guess", {"patiense": 3}, "does not open with .*patiense"),
    ):
        with pytest.raises(ConfigError, match=words):
            Worker(env=env, env_config=env_config, room=str(tmp_path), **common).stage()


def test_the_users_part_conforms(opened: Opener) -> None:
    """The last: it closes the environment."""
    guess = opened("tiny_guess", gold="path", timeout_s=15.0)
    report = asyncio.run(check(guess, num_tasks=2, perturb=lambda task, gold: [[*gold[:2], "77"]]))
    assert report.ok, str(report)
    assert not guess.room.exists()


def test_tools_conform(opened: Opener) -> None:
    shop = opened("tiny_shop", gold="calls", max_turns=5)
    tasks = shop.tasks("train", limit=3)

    async def found() -> list[str]:
        spoiled = check_perturbed(shop, tasks, lambda task, gold: [[gold[0], "finish[1]"]])
        return [*await check_gold(shop, tasks), *await spoiled, *await check_replay(shop, tasks)]

    assert asyncio.run(found()) == []

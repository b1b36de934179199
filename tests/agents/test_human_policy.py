"""The person's policy, with typed lines from a list."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

import pytest
from rich.console import Console

from kintsugi.agents.policies.human_policy import HumanPolicy, open_policy
from kintsugi.agents.policies.policy import Policy, Request, Sampling, as_messages
from kintsugi.errors import PolicyError


def typed(*lines: str) -> Callable[[str], str]:
    left = iter(lines)

    def read(_: str) -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    return read


def human(*lines: str, multi_line: bool = True) -> tuple[HumanPolicy, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, width=60)
    return open_policy(multi_line=multi_line, read=typed(*lines), console=console), screen


def test_lines_until_an_empty_one() -> None:
    policy, screen = human("", "a = 1", "print(a)", "", "next")
    assert isinstance(policy, Policy)
    (answer,) = asyncio.run(policy.complete(Request(messages=as_messages(("user", "[red]What[/red] is it?")))))
    assert answer.text == "a = 1\nprint(a)" and answer.token_ids == ()
    assert "[red]What[/red] is it?" in screen.getvalue(), "a task's brackets are not markup"


def test_one_line_each_with_stops_and_prefill() -> None:
    policy, screen = human("go north. then", "go kept south", multi_line=False)
    request = Request(messages=as_messages(("user", "Where to?")), n=2, sampling=Sampling(stop=(".",)), prefill="go ")
    assert [answer.text for answer in asyncio.run(policy.complete(request))] == ["north", "kept south"]
    assert "the answer begins with" in screen.getvalue()


def test_only_new_messages_are_shown() -> None:
    policy, screen = human("a", "b", "c", multi_line=False)
    first = as_messages(("user", "the task"))
    second = (*first, *as_messages(("assistant", "a"), ("user", "the observation")))
    for messages in (first, second, as_messages(("user", "another task"))):
        asyncio.run(policy.complete(Request(messages=messages)))
    shown = screen.getvalue()
    assert shown.count("the task") == 1 and shown.count("the observation") == 1 and "another task" in shown


def test_requests_wait_for_each_other() -> None:
    order: list[str] = []
    screen = io.StringIO()

    def read(_: str) -> str:
        order.append(screen.getvalue().split("task ")[-1][0])
        return "answer"

    policy = open_policy(multi_line=False, read=read, console=Console(file=screen))

    async def both() -> None:
        requests = [Request(messages=as_messages(("user", f"task {number}")), n=2) for number in (1, 2)]
        await asyncio.gather(*map(policy.complete, requests))

    asyncio.run(both())
    assert order in (["1", "1", "2", "2"], ["2", "2", "1", "1"])


def test_end_of_input_stops() -> None:
    policy, _ = human("half an answer")
    with pytest.raises(PolicyError, match="stopped by the person"):
        asyncio.run(policy.complete(Request(messages=as_messages(("user", "?")))))
    with pytest.raises(PolicyError, match="no log-probabilities"):
        asyncio.run(policy.score(Request(messages=()), "x"))
    asyncio.run(policy.close())

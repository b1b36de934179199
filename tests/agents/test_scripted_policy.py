"""The scripted policy: sources of answers, prefill, stops, failures, files; and the conformance suite on it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from kintsugi.agents.policies.conformance import CHECKS
from kintsugi.agents.policies.policy import Completion, Policy, Request, Sampling, as_messages, open_policy
from kintsugi.agents.policies.scripted_policy import END_OF_TURN, ScriptedPolicy
from kintsugi.errors import ConfigError, DataError, PolicyError


def ask(policy: Policy, *said: str, **options: object) -> list[Completion]:
    sampling = options.pop("sampling", Sampling())
    request = Request(messages=as_messages(*(("user", text) for text in said)), sampling=sampling, **options)  # type: ignore[arg-type]
    return asyncio.run(policy.complete(request))


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("byte_tokens", [False, True])
def test_conforms(check, byte_tokens: bool) -> None:
    def answer(messages, sample: int) -> str:
        return f"{messages[-1]['content']} indeed, {sample}"

    check(lambda: ScriptedPolicy(answer, byte_tokens=byte_tokens))


def test_the_suite_catches_broken_policies() -> None:
    class Broken(ScriptedPolicy):
        async def complete(self, request: Request) -> list[Completion]:
            self.requests.append(request)
            count = len(self.requests)
            return [Completion(text=f"{request.prefill}answer ### {count}", token_ids=(1, 2), logprobs=(0.5,))]

    caught = set()
    for check in CHECKS:
        try:
            check(lambda: Broken([]))
        except AssertionError as error:
            assert str(error), check.__name__
            caught.add(check.__name__)
    assert caught == {
        "check_number_of_answers",
        "check_stop_strings",
        "check_greedy_repeats",
        "check_seed_repeats",
        "check_prefill_not_repeated",
    }


def test_the_suite_catches_mixed_up_answers() -> None:
    class Mixed(ScriptedPolicy):
        async def complete(self, request: Request) -> list[Completion]:
            self.last = request
            await asyncio.sleep(0.001)
            return await super().complete(self.last)

    concurrent = next(check for check in CHECKS if check.__name__ == "check_concurrent_calls")
    with pytest.raises(AssertionError, match="another one's answer"):
        concurrent(lambda: Mixed(lambda messages, _: messages[-1]["content"]))


def test_answers_in_order_then_dry() -> None:
    policy = ScriptedPolicy(["one", "two", "three"])
    assert texts(ask(policy, "a", n=2)) == ["one", "two"]
    assert texts(ask(policy, "b")) == ["three"]
    with pytest.raises(PolicyError, match=r'no answer .* for "c"'):
        ask(policy, "c")
    assert [request.messages[0]["content"] for request in policy.requests] == ["a", "b", "c"]


def test_answers_by_prompt() -> None:
    policy = ScriptedPolicy({"task": "always", "turn": ["first", "second"]})
    assert texts(ask(policy, "task", n=2)) == ["always", "always"]
    assert texts(ask(policy, "task", "turn")) == ["first"], "the last user message comes before the task"
    assert texts(ask(policy, "task", "an observation")) == ["always"]
    assert texts(ask(policy, "turn")) == ["second"]
    with pytest.raises(PolicyError, match='"turn"'):
        ask(policy, "turn")
    with pytest.raises(PolicyError, match='"other"'):
        ask(policy, "other")


def test_prefill_and_stops() -> None:
    policy = ScriptedPolicy(["a = 1\nprint(a)\n###\n", "print(b)", "rest"])
    sampling = Sampling(stop=("###", "never"))
    assert texts(ask(policy, "x", prefill="a = 1\n", sampling=sampling)) == ["print(a)\n"]
    assert texts(ask(policy, "x", prefill="b = 1\n")) == ["print(b)"]
    seen = []
    ask(ScriptedPolicy(lambda messages, sample: seen.append((messages[-1], sample)) or "x"), "x", prefill="p", n=2)
    assert seen == [({"role": "assistant", "content": "p"}, 0), ({"role": "assistant", "content": "p"}, 1)]


def test_failures_and_delay() -> None:
    policy = ScriptedPolicy(["one"], failures={0: PolicyError("broken")}, delay_s=0.01)
    with pytest.raises(PolicyError, match="broken"):
        ask(policy, "a")
    assert texts(ask(policy, "a")) == ["one"], "a failing request takes no answer"


def test_byte_tokens() -> None:
    policy = ScriptedPolicy(["héllo", "héllo", "one###"], byte_tokens=True)
    (whole,) = ask(policy, "x")
    assert whole.token_ids == (*"héllo".encode(), END_OF_TURN) and len(whole.logprobs) == 7 and whole.finish == "stop"
    assert bytes(whole.prompt_ids) == b"user:x\n" and whole.processed_tokens == 7
    (cut,) = ask(policy, "x", sampling=Sampling(max_tokens=2))
    assert (cut.text, cut.finish, len(cut.token_ids)) == ("h", "length", 2)
    (stopped,) = ask(policy, "x", sampling=Sampling(stop=("###",)))
    assert stopped.token_ids == tuple(b"one")
    scores = asyncio.run(policy.score(Request(messages=as_messages(("user", "x"))), "héllo"))
    assert scores == whole.logprobs
    with pytest.raises(PolicyError, match="no log-probabilities"):
        asyncio.run(ScriptedPolicy([]).score(Request(messages=()), "x"))


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "script.jsonl"
    lines = [
        {"prompt": "p", "answers": ["a"]},
        {"prompt": "q", "answers": "always"},
        {"prompt": "p", "answers": ["b"]},
    ]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    policy = open_policy("scripted", {"path": path})
    assert policy.name == "scripted:script.jsonl"
    assert texts(ask(policy, "p", n=2)) == ["a", "b"]
    assert texts(ask(policy, "q", n=2)) == ["always", "always"]


@pytest.mark.parametrize("line", ["no json", "[]", '{"prompt": "p"}', '{"prompt": "p", "answers": [1]}', '{"a": 1}'])
def test_a_bad_file_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "script.jsonl"
    path.write_text('{"prompt": "p", "answers": "a"}\n' + line)
    with pytest.raises(DataError, match="line 2: expected"):
        open_policy("scripted", {"path": path})
    with pytest.raises(DataError, match="found none"):
        open_policy("scripted", {"path": tmp_path / "missing.jsonl"})


def test_one_text_is_no_list() -> None:
    with pytest.raises(ConfigError, match="put it in a list"):
        ScriptedPolicy("abc")

"""What every policy must do, as checks that run against any of them unchanged: ours and other packages'.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_policy(check):
        check(lambda: my_package.open_policy(...))

Each check takes a factory that gives a fresh policy, runs its own event loops, closes the policy, and raises
AssertionError with one sentence. The policy's answers may be anything, as long as the one to "Say something." has
three characters or more; checks compare a policy with itself. Abilities that a policy may lack (prefill, score, token
ids) are checked only where it has them: PolicyError says that it has not.

Left out: quality, speed, and whether different seeds differ (a policy may be deterministic).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from kintsugi.agents.policies.policy import Completion, Policy, Request, Sampling, as_messages
from kintsugi.errors import PolicyError

Factory = Callable[[], Policy]

GREEDY = Sampling(temperature=0.0, max_tokens=48)
SAMPLED = Sampling(temperature=1.0, max_tokens=48, seed=20_26)
QUESTION = as_messages(("user", "Say something."))


def check_identity(factory: Factory) -> None:
    """It is a `Policy`, with a name and a version."""
    policy = factory()
    assert isinstance(policy, Policy), f"expected complete, score, close, name and version on {type(policy).__name__}"
    assert policy.name and isinstance(policy.name, str), "expected `name` to be a text that is not empty"
    assert policy.version and isinstance(policy.version, str), "expected `version` to be a text that is not empty"
    asyncio.run(policy.close())


def check_number_of_answers(factory: Factory) -> None:
    """n answers for n = 1 and 3, sampled and greedy, all well formed."""

    async def body(policy: Policy) -> None:
        for sampling in (SAMPLED, GREEDY):
            for n in (1, 3):
                answers = await policy.complete(Request(messages=QUESTION, n=n, sampling=sampling))
                assert len(answers) == n, (
                    f"expected {n} answers at temperature {sampling.temperature}, found {len(answers)}"
                )
                for answer in answers:
                    _well_formed(answer, sampling)

    _with_policy(factory, body)


def check_stop_strings(factory: Factory) -> None:
    """A stop string ends the answer, and is not part of it."""

    async def body(policy: Policy) -> None:
        whole = await _greedy(policy)
        assert len(whole.text) >= 3, (
            f'expected an answer of three characters or more to test with, found "{whole.text}"'
        )
        stop = whole.text[len(whole.text) // 2 :][:2]
        cut = await _greedy(policy, stop=("\x00never\x00", stop))
        assert stop not in cut.text, f"expected the answer to end before the stop string {stop!r}, found {cut.text!r}"
        assert whole.text.startswith(cut.text), f"expected the beginning of {whole.text!r}, found {cut.text!r}"
        assert cut.finish == "stop", f'expected finish "stop" after a stop string, found "{cut.finish}"'
        assert cut.stop in (stop, None), f"expected the stop string {stop!r} (None: cannot tell), found {cut.stop!r}"
        if whole.finish == "stop":
            ended = (await _greedy(policy, stop=("\x00never\x00",))).stop
            assert ended in ("", None), f'expected stop "" at the end of a turn (None: cannot tell), found {ended!r}'
        _well_formed(cut, GREEDY)

    _with_policy(factory, body)


def check_greedy_repeats(factory: Factory) -> None:
    """The same greedy request gives the same answer, whatever the seed."""

    async def body(policy: Policy) -> None:
        first = await _greedy(policy, seed=1)
        again = await _greedy(policy, seed=2)
        assert first.text == again.text, f"expected one greedy answer, found {first.text!r} and then {again.text!r}"
        assert first.token_ids == again.token_ids, "expected the same token ids from two greedy requests"

    _with_policy(factory, body)


def check_seed_repeats(factory: Factory) -> None:
    """The same request with the same seed gives the same answers."""

    async def body(policy: Policy) -> None:
        request = Request(messages=QUESTION, n=3, sampling=SAMPLED, key="seed")
        first = [answer.text for answer in await policy.complete(request)]
        again = [answer.text for answer in await policy.complete(request)]
        assert first == again, f"expected the same answers to the same seed, found {first} and then {again}"

    _with_policy(factory, body)


def check_prefill_not_repeated(factory: Factory) -> None:
    """An answer goes on from its prefill and does not contain it. Skipped where PolicyError says there is none."""

    async def body(policy: Policy) -> None:
        prefill = "Prefill 4711: "
        request = Request(messages=QUESTION, sampling=GREEDY, prefill=prefill)
        try:
            answer = (await policy.complete(request))[0]
        except PolicyError:
            return
        assert not answer.text.startswith(prefill.strip()), f"expected the rest of the answer, found {answer.text!r}"
        _well_formed(answer, GREEDY)

    _with_policy(factory, body)


def check_prompt_ids_grow(factory: Factory) -> None:
    """`prompt_ids` hold the whole context: more of them for a longer chat, the same for the same chat."""

    async def body(policy: Policy) -> None:
        longer = (*QUESTION, *as_messages(("assistant", "Something."), ("user", "Say something else.")))
        first = await _greedy(policy)
        again = await _greedy(policy)
        more = (await policy.complete(Request(messages=longer, sampling=GREEDY)))[0]
        assert first.prompt_ids == again.prompt_ids, "expected the same prompt ids for the same chat"
        if first.prompt_ids:
            found = f"{len(first.prompt_ids)} and then {len(more.prompt_ids)}"
            assert len(more.prompt_ids) > len(first.prompt_ids), (
                f"expected more prompt ids for a longer chat, found {found}"
            )

    _with_policy(factory, body)


def check_concurrent_calls(factory: Factory) -> None:
    """Answers to requests made at once go to whoever asked."""

    async def body(policy: Policy) -> None:
        requests = [
            Request(
                messages=as_messages(("user", f"Say the number {number * 37}.")), sampling=GREEDY, key=f"{number:03d}"
            )
            for number in range(12)
        ]
        alone = [(await policy.complete(request))[0] for request in requests]
        together = [answers[0] for answers in await asyncio.gather(*map(policy.complete, requests))]
        texts = {answer.text for answer in alone}
        for number, (one, other) in enumerate(zip(alone, together, strict=True)):
            assert one.prompt_ids == other.prompt_ids, (
                f"expected request {number} to be fed its own prompt when many run"
            )
            # A batch may round otherwise than a single request: only someone else's text is a mix-up.
            mixed = other.text != one.text and other.text in texts
            assert not mixed, f"expected {one.text!r} for request {number}, found another one's answer {other.text!r}"

    _with_policy(factory, body)


def check_score(factory: Factory) -> None:
    """Scores are log-probabilities, one or more. Skipped where PolicyError says that the policy cannot score."""

    async def body(policy: Policy) -> None:
        try:
            scores = await policy.score(Request(messages=QUESTION, sampling=GREEDY), "Something.")
        except PolicyError:
            return
        assert scores, "expected a score for each token and for the end of the turn, found none"
        _log_probabilities(scores)

    _with_policy(factory, body)


def check_two_loops(factory: Factory) -> None:
    """One policy serves one event loop after another."""
    policy = factory()
    try:
        for _ in range(2):
            answer = asyncio.run(_greedy(policy))
            assert isinstance(answer, Completion), f"expected a Completion, found {type(answer).__name__}"
    finally:
        asyncio.run(policy.close())


def check_close_twice(factory: Factory) -> None:
    """Closing twice is harmless, used or not."""

    async def body(policy: Policy) -> None:
        await _greedy(policy)
        await policy.close()
        await policy.close()

    _with_policy(factory, body)
    asyncio.run(factory().close())


CHECKS: tuple[Callable[[Factory], None], ...] = (
    check_identity,
    check_number_of_answers,
    check_stop_strings,
    check_greedy_repeats,
    check_seed_repeats,
    check_prefill_not_repeated,
    check_prompt_ids_grow,
    check_concurrent_calls,
    check_score,
    check_two_loops,
    check_close_twice,
)


def check_all(factory: Factory) -> None:
    """Every check, one after another."""
    for check in CHECKS:
        check(factory)


def _with_policy(factory: Factory, body: Callable[[Policy], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        policy = factory()
        try:
            await body(policy)
        finally:
            await policy.close()

    asyncio.run(run())


async def _greedy(policy: Policy, stop: tuple[str, ...] = (), seed: int = 0) -> Completion:
    sampling = Sampling(temperature=0.0, max_tokens=GREEDY.max_tokens, stop=stop, seed=seed)
    return (await policy.complete(Request(messages=QUESTION, sampling=sampling)))[0]


def _well_formed(answer: Completion, sampling: Sampling) -> None:
    assert isinstance(answer.text, str), f"expected a text, found {type(answer.text).__name__}"
    assert answer.finish in ("stop", "length"), f'expected finish "stop" or "length", found "{answer.finish}"'
    counted = len(answer.token_ids)
    assert counted <= sampling.max_tokens, f"expected at most {sampling.max_tokens} token ids, found {counted}"
    if answer.token_ids:
        assert answer.prompt_ids, "expected prompt ids beside token ids, found none"
    if answer.token_ids and answer.logprobs:
        found = f"{counted} and {len(answer.logprobs)}"
        assert counted == len(answer.logprobs), f"expected as many log-probabilities as token ids, found {found}"
    _log_probabilities(answer.logprobs)


def _log_probabilities(values: tuple[float, ...]) -> None:
    wrong = [value for value in values if not math.isfinite(value) or value > 1e-4]
    assert not wrong, f"expected log-probabilities (finite, at most 0), found {wrong[:3]}"

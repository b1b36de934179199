"""The endpoint policy against real local servers: conformance, what is sent and read, retries, errors."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from kintsugi.agents.policies import endpoint_policy
from kintsugi.agents.policies.conformance import CHECKS
from kintsugi.agents.policies.policy import Completion, Request, Sampling, as_messages, open_policy
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.errors import ConfigError, ContextTooLong, PolicyError

HELLO = as_messages(("user", "hello"))
KEY = "sk-a-secret-key"
MODELS = {"data": [{"id": "m", "owned_by": "someone"}, {"id": "qwen-small", "owned_by": "someone"}]}


def reply(*texts: str, **further: Any) -> dict[str, Any]:
    choices = [{"message": {"content": text}, "finish_reason": "stop", **further} for text in texts]
    return {"choices": choices, "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}}


def chat(answer: Callable[[dict[str, Any], int], Any], seen: list[dict[str, Any]] | None = None) -> Any:
    """A handler: `answer(body, number)` gives a reply, a status, or (status, text); /models is served beside it."""
    bodies: list[dict[str, Any]] = [] if seen is None else seen

    async def handler(http: web.Request) -> web.Response:
        if http.path.endswith("/models"):
            return web.json_response(MODELS)
        bodies.append({**await http.json(), "key": http.headers.get("Authorization", "")})
        result = answer(bodies[-1], len(bodies) - 1)
        if isinstance(result, tuple):
            return web.Response(status=result[0], text=result[1])
        return web.json_response(result)

    return handler


def ask(url: str, request: Request | None = None, model: str = "m", **options: Any) -> list[Completion]:
    policy = endpoint_policy.open_policy(url, model, **{"backoff_s": 0.01, **options})

    async def run() -> list[Completion]:
        try:
            return await policy.complete(request or Request(messages=HELLO))
        finally:
            await policy.close()

    return asyncio.run(run())


def refused(url: str, **options: Any) -> str:
    """The one sentence or two that asking ends in."""
    with pytest.raises(PolicyError) as caught:
        ask(url, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and KEY not in message, message
    return message


@pytest.mark.parametrize("byte_tokens", [False, True])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(served: Any, check: Any, byte_tokens: bool) -> None:
    script = ScriptedPolicy(lambda messages, n: f"{messages[-1]['content']} yes {n}", byte_tokens=byte_tokens)
    with served(script) as url:
        check(lambda: open_policy("endpoint", {"url": url, "model": "scripted"}))


def test_everything_is_sent_and_read(served: Any) -> None:
    script = ScriptedPolicy(lambda messages, n: f"a = 1\nb = {n}###", byte_tokens=True)
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=40, stop=("###",), seed=2**63 + 5)
    with served(script) as url:
        answers = ask(url, Request(messages=HELLO, n=3, sampling=sampling, prefill="a = 1\n"), model="scripted")
    assert [answer.text for answer in answers] == ["b = 0", "b = 1", "b = 2"]
    assert bytes(answers[2].token_ids) == b"b = 2" and len(answers[2].logprobs) == 5
    assert bytes(answers[0].prompt_ids) == b"user:hello\na = 1\n"
    assert [answer.processed_tokens for answer in answers] == [17, 0, 0]
    (sent,) = script.requests
    assert sent.prefill == "a = 1\n" and sent.n == 3
    assert sent.sampling == Sampling(temperature=0.7, top_p=0.9, max_tokens=40, stop=("###",), seed=5)


def test_greedy_asks_once(served: Any) -> None:
    script = ScriptedPolicy(["one"], byte_tokens=True)
    with served(script) as url:
        answers = ask(url, Request(messages=HELLO, n=3, sampling=Sampling(temperature=0)), model="scripted")
    assert [answer.text for answer in answers] == ["one"] * 3 and script.requests[0].n == 1
    assert answers[0].processed_tokens > 0 and answers[1].processed_tokens == 0


def test_a_plain_server_without_additions(handled: Any) -> None:
    bodies: list[dict[str, Any]] = []
    entry = {"logprobs": {"content": [{"token": "h", "logprob": -0.5}, {"token": "i", "logprob": -0.25}]}}
    with handled(chat(lambda body, _: reply(f"hi {body['seed']}", **entry), bodies)) as url:
        answers = ask(url, Request(messages=HELLO, n=3, sampling=Sampling(seed=10)))
        assert "continues a message" in refused(url, request=Request(messages=HELLO, prefill="x"))
        policy = endpoint_policy.open_policy(url, "m")
        with pytest.raises(PolicyError, match="prompt_logprobs"):
            asyncio.run(policy.score(Request(messages=HELLO), "x"))
        asyncio.run(policy.close())
    assert sorted(answer.text for answer in answers) == ["hi 10", "hi 11", "hi 12"], "it ignores n: asked again"
    assert answers[0].token_ids == () and answers[0].logprobs == (-0.5, -0.25) and answers[0].mean_logprob == -0.375
    assert answers[0].processed_tokens == 5
    assert "return_token_ids" not in bodies[0] and bodies[0]["logprobs"] is True and bodies[0]["key"] == ""


def test_extra_body_and_key(handled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    bodies: list[dict[str, Any]] = []
    extra = {"max_tokens": None, "max_completion_tokens": 5, "top_k": 1}
    with handled(chat(lambda *_: reply("hi"), bodies)) as url:
        ask(url, api_key_env="MY_KEY", extra_body=extra, logprobs=False)
    assert bodies[0]["key"] == f"Bearer {KEY}" and bodies[0]["max_completion_tokens"] == 5 and bodies[0]["top_k"] == 1
    assert "max_tokens" not in bodies[0] and "logprobs" not in bodies[0]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_tried_again(handled: Any, status: int) -> None:
    bodies: list[dict[str, Any]] = []
    with handled(chat(lambda _, number: (status, "busy") if number < 2 else reply("at last"), bodies)) as url:
        assert ask(url)[0].text == "at last" and len(bodies) == 3
        bodies.clear()
        assert f"answered {status}" in refused(url, retries=1) and len(bodies) == 2


def test_a_lost_connection_is_tried_again(handled: Any) -> None:
    tries = 0

    async def handler(http: web.Request) -> web.Response:
        nonlocal tries
        if http.path.endswith("/models"):
            return web.json_response(MODELS)
        tries += 1
        if tries == 1:
            assert http.transport is not None
            http.transport.abort()
        return web.json_response(reply("at last"))

    with handled(handler) as url:
        assert ask(url)[0].text == "at last" and tries == 2


def test_the_servers_wait_is_kept(handled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def no_sleep(seconds: float, *_: Any) -> None:
        waits.append(seconds)  # aiohttp's own sleep(0) too
        await sleep(0)

    async def handler(http: web.Request) -> web.Response:
        if http.path.endswith("/models"):
            return web.json_response(MODELS)
        return web.Response(status=429, headers={"Retry-After": "7"})

    with handled(handler) as url:
        monkeypatch.setattr("kintsugi.agents.policies.endpoint_client.asyncio.sleep", no_sleep)
        with pytest.raises(PolicyError):
            ask(url, retries=2)
    assert [wait for wait in waits if wait] == [7, 7]


@pytest.mark.parametrize(
    "further",
    [
        {"usage": [1]},
        {"logprobs": "no"},
        {"logprobs": {"content": ["x"]}},
        {"logprobs": {"content": [{"logprob": None}]}},
        {"logprobs": {"content": [{}]}},
    ],
)
def test_odd_extras_of_an_answer_are_left_out(handled: Any, further: dict[str, Any]) -> None:
    """The text is what counts; costs and log-probabilities in no known form are as good as none."""
    odd = reply("hi", **{name: value for name, value in further.items() if name != "usage"})
    odd.update({name: value for name, value in further.items() if name == "usage"})
    with handled(chat(lambda *_: odd)) as url:
        (answer,) = ask(url)
    assert (answer.text, answer.logprobs) == ("hi", ())


def test_content_in_parts_is_joined(handled: Any) -> None:
    """As some servers give it; no content at all is an empty answer."""
    parts = [{"type": "text", "text": "a = 1\n"}, {"type": "text", "text": "print(a)"}]
    for content, text in ((parts, "a = 1\nprint(a)"), ([], ""), (None, "")):
        with handled(chat(lambda *_, content=content: {"choices": [{"message": {"content": content}}]})) as url:
            assert [answer.text for answer in ask(url)] == [text]


def test_errors_are_one_sentence(handled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    wrong: dict[str, Any] = {
        "none": (401, json.dumps({"error": {"message": "who are you?"}})),
        "page": (200, "<html>\n<h1>hello</h1>"),
        "list": (200, "[1]"),
        "empty": {"object": "list"},
        "request": (400, json.dumps({"detail": [{"msg": "no such option"}]})),
        "image": {"choices": [{"message": {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}}]},
        "number": {"choices": [{"message": {"content": 7}}]},
        "said": {"choices": [{"message": "hi"}]},
        "deep": (200, "[" * 100_000),
        "uneven": {**reply("hi", token_ids=[1, 2], logprobs={"content": [{"logprob": -1.0}]})},
    }
    expected = {
        "none": '401: "who are you?". Expected an API key in the environment variable OPENAI_API_KEY, found none',
        "page": "expected a JSON object",
        "list": "expected a JSON object",
        "empty": "expected choices in the answer",
        "request": "no such option",
        "image": "expected a text as the content of an answer",
        "number": "found '7'",
        "said": "expected a message with content",
        "deep": "expected a JSON object",
        "uneven": "expected a log-probability for each of 2 tokens",
    }
    for kind, said in expected.items():
        with handled(chat(lambda *_, kind=kind: wrong[kind])) as url:
            message = refused(url)
            assert said in message, (kind, message)


@pytest.mark.parametrize(
    ("words", "way"),
    [
        ("logprobs are not supported with this model", "It names logprobs: model.options.logprobs=false mends it."),
        ("Unknown argument 'seed'.", "It names seed: model.options.extra_body.seed=null leaves it out."),
        ("only one choice: n must be 1", "It names n: model.options.extra_body.n=1 asks for one answer at a time."),
        ("Unrecognized request argument supplied: top_k", "model.options.extra_body.top_k=null leaves it out."),
        ("Unsupported parameter: 'max_tokens' does not go with n > 1", "model.options.extra_body.max_tokens=null"),
        ("extra field return_token_ids", "model.options.additions=false mends it."),
        ("an error of no kind", "Check the options (extra_body changes what is sent)."),
    ],
)
@pytest.mark.parametrize("status", [400, 422])
def test_an_argument_that_the_server_does_not_take_is_named(handled: Any, status: int, words: str, way: str) -> None:
    told = (status, json.dumps({"error": {"message": words, "type": "invalid_request_error"}}))
    with handled(chat(lambda *_: told)) as url:
        message = refused(url, additions=True, extra_body={"top_k": 5})
    assert message.startswith(f'{url} answered {status}: "{words}". ') and way in message, message


def test_the_ways_out_mend_it(handled: Any) -> None:
    """What the error names, set as it says."""

    def answer(body: dict[str, Any], _: int) -> Any:
        bad = [name for name in ("logprobs", "seed") if name in body] + (["n must be 1"] if body.get("n") != 1 else [])
        return (400, f"unsupported: {bad}") if bad else reply("hi")

    with handled(chat(answer)) as url:
        mended = ask(url, Request(messages=HELLO, n=2), logprobs=False, extra_body={"seed": None, "n": 1})
    assert [one.text for one in mended] == ["hi", "hi"]


def test_a_context_that_is_too_long_ends_the_attempt_only(handled: Any) -> None:
    words = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (max_tokens 900)."
    with handled(chat(lambda *_: (400, json.dumps({"message": words})))) as url, pytest.raises(ContextTooLong):
        ask(url)


@pytest.mark.parametrize(
    ("error", "tries", "told"),
    [
        ({"message": "Rate limit reached", "code": 429}, 2, "Lower max_concurrent"),
        ({"message": "slow down", "type": "rate_limit_exceeded", "code": None}, 2, "Lower max_concurrent"),
        ("Too many requests", 2, '"Too many requests", 2 times'),
        ({"message": "no provider", "code": "502"}, 2, '"no provider", 2 times'),
        ({"message": "no such model", "code": "model_not_found"}, 1, "no such model"),
        ({"message": "logprobs not supported", "code": 400}, 1, "model.options.logprobs=false mends it"),
        ({"message": "bad key", "code": 401}, 1, "Expected an API key"),
        ("it broke", 1, '"it broke"'),
        ({"odd": [1]}, 1, "{'odd': [1]}"),
        (True, 1, "true"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_an_error_in_an_answer_of_200(
    handled: Any, monkeypatch: pytest.MonkeyPatch, error: Any, tries: int, told: str, inside: bool
) -> None:
    """Of the answer, or of a choice that broke off: the error that it is, never an answer."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    bodies: list[dict[str, Any]] = []
    broken = {"choices": [{"error": error, "message": {"content": "hal"}}]} if inside else {"error": error}
    with handled(chat(lambda *_: broken, bodies)) as url:
        message = refused(url, retries=1)
    assert told in message and f"{url} answered 200 with an error: " in message and len(bodies) == tries, message
    bodies.clear()
    with handled(chat(lambda _, number: {**reply("at last"), "error": None} if number else broken, bodies)) as url:
        if tries == 2:
            assert ask(url)[0].text == "at last" and len(bodies) == 2


@pytest.mark.parametrize(
    ("models", "additions"),
    [
        ([{"id": "qwen-small", "owned_by": "vllm"}], True),
        ([{"id": "qwen-small"}, {"object": "model"}, {"id": None}, 7, None], False),
        ({"data": [{"object": "model", "owned_by": "vllm"}, {"id": "qwen-small"}]}, True),
        (["qwen-small", "other"], False),
        ({"data": None}, False),
        ({"error": "no list here"}, False),
        (None, False),
        (7, False),
    ],
)
def test_lists_of_models_of_any_shape(handled: Any, models: Any, additions: bool) -> None:
    sent: list[dict[str, Any]] = []

    async def handler(http: web.Request) -> web.Response:
        if http.path.endswith("/models"):
            return web.json_response(models)
        sent.append(await http.json())
        if sent[-1]["model"] != "qwen-small":
            return web.Response(status=404, text="no such model")
        return web.json_response(reply("hi"))

    with handled(handler) as url:
        assert ask(url, model="qwen-small")[0].text == "hi" and ("return_token_ids" in sent[0]) == additions
        message = refused(url, model="qwen-smal")
    assert "None" not in message and ("did you mean" in message) == ("qwen-small" in str(models)), message


def test_a_key_that_may_not_list_the_models(handled: Any) -> None:
    async def handler(http: web.Request) -> web.Response:
        return web.Response(status=403) if http.path.endswith("/models") else web.json_response(reply("hi"))

    with handled(handler) as url:
        assert ask(url)[0].text == "hi"


def test_the_key_is_never_shown(handled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with handled(chat(lambda body, _: (401, f"bad key {body['key']}"))) as url:
        assert "found one that it refuses" in refused(url)
    with handled(chat(lambda body, _: (200, f"<html>{body['key']}"))) as url:
        assert '"<html>Bearer ***"' in refused(url)
    with handled(chat(lambda *_: (403, "no"))) as url:
        message = refused(url.replace("http://", "http://someone:password@").replace("/v1", "/v1?x=secret"))
        assert url in message and "password" not in message and "secret" not in message
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nmore")
    assert "unprintable" in refused("http://127.0.0.1:9/v1")


def test_a_wrong_model_names_the_nearest(handled: Any) -> None:
    with handled(chat(lambda *_: (404, "no such model"))) as url:
        assert 'found "qwen-smal": did you mean "qwen-small"?' in refused(url, model="qwen-smal")
        assert "mostly ends in /v1" in refused(url, model="m")


def test_a_server_that_is_down() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "start it, or check the url" in refused(f"http://127.0.0.1:{port}/v1", retries=1)
    for url in ("localhost:8000", "", "ftp://x"):
        with pytest.raises(ConfigError, match="http://localhost:8000/v1"):
            endpoint_policy.open_policy(url, "m")


def test_a_slow_server(handled: Any) -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.json_response(reply("late"))

    with handled(handler) as url:
        assert "within 0.05 s" in refused(url, timeout_s=0.05)


def test_no_more_at_once_than_allowed(handled: Any) -> None:
    at_once = most = 0

    async def handler(http: web.Request) -> web.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return web.json_response(reply("hi") if http.method == "POST" else MODELS)

    async def many(url: str) -> None:
        policy = endpoint_policy.open_policy(url, "m", max_concurrent=3)
        await asyncio.gather(*(policy.complete(Request(messages=HELLO)) for _ in range(12)))
        await policy.close()

    with handled(handler) as url:
        asyncio.run(many(url))
    assert most == 3


def test_score_through_prompt_logprobs(handled: Any) -> None:
    """A stand-in for vLLM's /tokenize and /completions: tokens are characters, ">" the generation prompt."""
    asked: list[dict[str, Any]] = []

    async def handler(http: web.Request) -> web.Response:
        body = await http.json() if http.method == "POST" else {}
        if http.path == "/tokenize" and "prompt" in body:
            return web.json_response({"tokens": [ord(letter) for letter in body["prompt"]]})
        if http.path == "/tokenize":
            *earlier, last = [message["content"] for message in body["messages"]]
            text = "".join(f"{one}>" for one in earlier) + last
            text += "" if body.get("continue_final_message") else ">" if body["add_generation_prompt"] else "|\n"
            return web.json_response({"tokens": [ord(letter) for letter in text]})
        if http.path == "/v1/completions":
            asked.append(body)
            entries = [{str(token): {"logprob": -place / 10}} for place, token in enumerate(body["prompt"])]
            return web.json_response({"choices": [{"prompt_logprobs": [None, *entries[1:]]}]})
        return web.json_response({"data": [{"id": "m", "owned_by": "vllm"}]})

    async def score(url: str, request: Request) -> tuple[float, ...]:
        policy = endpoint_policy.open_policy(url, "m")
        try:
            return await policy.score(request, "hi")
        finally:
            await policy.close()

    with handled(handler) as url:
        assert asyncio.run(score(url, Request(messages=HELLO))) == (-0.6, -0.7, -0.8)
        assert bytes(asked[0]["prompt"]) == b"hello>hi|"
        assert len(asyncio.run(score(url, Request(messages=HELLO, prefill="say ")))) == 3
        assert bytes(asked[1]["prompt"]) == b"hello>say hi|"

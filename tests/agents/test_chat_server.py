"""The server of the chat protocol, asked by a plain HTTP client: replies, defaults, errors, streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from kintsugi.agents.policies import endpoint_policy
from kintsugi.agents.policies.chat_server import serve
from kintsugi.agents.policies.policy import Request, Sampling, as_messages
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.errors import ContextTooLong, PolicyError

HELLO = [{"role": "user", "content": "hello"}]


async def post(url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, str) else json.dumps(body)
    async with aiohttp.ClientSession() as session, session.post(f"{url}/chat/completions", data=data) as response:
        return response.status, await response.json()


def exchange(policy: ScriptedPolicy, body: Any, **options: Any) -> tuple[int, Any]:
    async def run() -> tuple[int, Any]:
        server = await serve(policy, **options)
        try:
            return await post(server.url, body)
        finally:
            await server.close()
            await server.close()

    return asyncio.run(run())


def test_a_whole_request() -> None:
    policy = ScriptedPolicy(["one", "two"], byte_tokens=True)
    body = {
        "model": "scripted",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
        ],
        "n": 2,
        "stop": "##",
        "seed": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 50,
        "logprobs": True,
        "return_token_ids": True,
        "frequency_penalty": 0,
    }
    status, reply = exchange(policy, body)
    assert status == 200 and reply["object"] == "chat.completion" and reply["model"] == "scripted"
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["one", "two"]
    first = reply["choices"][0]
    assert first["finish_reason"] == "stop" and first["token_ids"] == [111, 110, 101, 256]
    assert [entry["token"] for entry in first["logprobs"]["content"]][-1] == "token_id:256"
    prompt = b"system:be brief\nuser:hello\n"
    assert bytes(reply["prompt_token_ids"]) == prompt
    assert reply["usage"]["prompt_tokens"] == len(prompt) and reply["usage"]["completion_tokens"] == 8
    assert policy.requests == [
        Request(
            messages=({"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}),
            n=2,
            sampling=Sampling(temperature=0.5, top_p=0.9, max_tokens=50, stop=("##",), seed=7),
        )
    ]


def test_defaults_fill_in_what_is_left_out() -> None:
    policy = ScriptedPolicy(["one"])
    defaults = Sampling(temperature=0.1, max_tokens=9, stop=("x",), seed=3)
    status, reply = exchange(policy, {"messages": HELLO, "max_completion_tokens": 5}, sampling=defaults)
    assert status == 200 and reply["choices"][0]["logprobs"] is None and "token_ids" not in reply["choices"][0]
    assert policy.requests[0].sampling == Sampling(temperature=0.1, max_tokens=5, stop=("x",), seed=3)


def test_prefill() -> None:
    policy = ScriptedPolicy(["a = 1\nprint(a)"])
    messages = [*HELLO, {"role": "assistant", "content": "a = 1\n"}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    status, reply = exchange(policy, body)
    assert status == 200 and reply["choices"][0]["message"]["content"] == "print(a)"
    assert policy.requests[0].prefill == "a = 1\n" and len(policy.requests[0].messages) == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("{", 400, "expected a JSON object"),
        ("[]", 400, "valid dictionary"),
        ({}, 400, "messages: Field required"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "expected one of system"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text parts only"),
        ({"messages": HELLO, "n": 0}, 400, "n: "),
        ({"messages": HELLO, "temperature": -1}, 400, "temperature"),
        ({"messages": HELLO, "top_p": 0}, 400, "top_p"),
        ({"messages": HELLO, "max_tokens": "many"}, 400, "max_tokens"),
        ({"messages": HELLO, "tools": [{}]}, 400, "tools are not served"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "expected text"),
        ({"messages": HELLO, "continue_final_message": True}, 400, "add_generation_prompt=false"),
        (
            {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": False},
            400,
            "an assistant message",
        ),
        ({"messages": HELLO, "add_generation_prompt": False}, 400, "begin a new turn"),
        ({"messages": HELLO, "model": "other"}, 404, 'expected the model "scripted", found "other"'),
    ],
)
def test_bad_requests_are_json_errors(body: Any, status: int, said: str) -> None:
    policy = ScriptedPolicy(["never"])
    found, reply = exchange(policy, body)
    assert found == status and said in reply["error"]["message"], reply
    assert reply["error"]["type"] == "invalid_request_error" and not policy.requests


def test_a_failing_policy_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    body = {"messages": HELLO}
    status, reply = exchange(ScriptedPolicy([]), body)
    assert status == 500 and "no answer" in reply["error"]["message"]
    status, reply = exchange(ScriptedPolicy([], failures={0: RuntimeError("secret")}), body)
    assert status == 500 and "RuntimeError" in reply["error"]["message"] and "secret" not in json.dumps(reply)
    assert "a request failed" in caplog.text


def test_an_outgrown_context_is_one_for_the_client_too() -> None:
    """Not a failing server that is asked again: the endpoint's policy ends the attempt with it."""
    outgrown = ContextTooLong("The context has 529 tokens, the model takes 1 to 511.")
    status, reply = exchange(ScriptedPolicy([], failures={0: outgrown}), {"messages": HELLO})
    assert status == 400 and reply["error"]["code"] == "context_length_exceeded"

    async def ask() -> None:
        server = await serve(ScriptedPolicy([], failures={0: outgrown}))
        policy = endpoint_policy.open_policy(server.url, "scripted")
        try:
            await policy.complete(Request(messages=as_messages(("user", "hello"))))
        finally:
            await policy.close()
            await server.close()

    with pytest.raises(ContextTooLong, match="529 tokens"):
        asyncio.run(ask())


def test_stream_models_and_unknown_paths() -> None:
    async def run() -> tuple[str, Any, int]:
        server = await serve(ScriptedPolicy(["one"]), model="my-model")
        body = {"messages": HELLO, "stream": True}
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{server.url}/chat/completions", json=body) as response:
                assert response.content_type == "text/event-stream"
                stream = await response.text()
            async with session.get(f"{server.url}/models") as response:
                models = await response.json()
            async with session.get(f"{server.url}/nothing") as response:
                status = response.status
                assert (await response.json())["error"]["message"] == "Not Found"
        await server.close()
        return stream, models, status

    stream, models, status = asyncio.run(run())
    events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
    assert events[-1] == "[DONE]" and len(events) == 3
    assert json.loads(events[0])["choices"][0]["delta"]["content"] == "one"
    assert json.loads(events[1])["choices"][0]["finish_reason"] == "stop"
    assert [entry["id"] for entry in models["data"]] == ["my-model"] and status == 404


def test_a_taken_port_is_one_sentence() -> None:
    async def run() -> None:
        server = await serve(ScriptedPolicy([]))
        port = int(server.url.split(":")[2].split("/")[0])
        try:
            with pytest.raises(PolicyError, match=r"choose another port"):
                await serve(ScriptedPolicy([]), port=port)
        finally:
            await server.close()

    asyncio.run(run())


def test_requests_enter_the_policy_live() -> None:
    class Counting(ScriptedPolicy):
        entered = 0

        def live(self) -> Counting:
            return self

        async def __aenter__(self) -> None:
            self.entered += 1

        async def __aexit__(self, *_: object) -> None:
            return None

    policy = Counting(["one"])
    exchange(policy, {"messages": HELLO})
    assert policy.entered == 1

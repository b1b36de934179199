"""Native tool calls become text actions and text actions calls again, through both policies and a whole episode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from aiohttp import web
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool

from kintsugi.agents.policies import endpoint_policy, langchain_policy
from kintsugi.agents.policies.policy import ChatMessage, Completion, Request, Sampling, as_messages, open_policy
from kintsugi.agents.policies.tool_calls import Tools, langchain_calls, open_tools, openai_calls
from kintsugi.errors import ConfigError

SEARCH = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {"title": {"type": "string"}}}},
}
BOOK = {
    "type": "function",
    "function": {"name": "book", "parameters": {"properties": {"day": {}, "seats": {}}}},
}
QUIT = {"type": "function", "function": {"name": "quit"}}
TOOLS = Tools([SEARCH, BOOK, QUIT])
EPISODE = as_messages(
    ("system", "be brief"),
    ("user", "Which sea?"),
    ("assistant", "Thought: the river first\nAction: search[Tarn]"),
    ("user", "The Tarn is a river."),
    ("assistant", "think: hm"),
    ("user", "OK."),
    ("assistant", 'book[{"day": 3, "seats": 2}]'),
    ("user", "Booked."),
)


@pytest.mark.parametrize(
    ("content", "name", "arguments", "text"),
    [
        ("", "search", {"title": "The Tarn"}, "search[The Tarn]"),
        ("I need\nit. ", "search", {"title": "Tarn"}, "Thought: I need it.\nAction: search[Tarn]"),
        ("", "search", {"title": "a\n [b]\tc"}, "search[a [b] c]"),
        ("", "book", {"day": 3, "seats": 2}, 'book[{"day": 3, "seats": 2}]'),
        ("", "quit", {}, "quit[]"),
        ("", "search", "{not json", "search[{not json]"),
        ("", "search", {"title": 1984}, "search[1984]"),
        ("", "no_such", {"x": 1}, 'no_such[{"x": 1}]'),
    ],
)
def test_calls_as_text_and_back(content: str, name: str, arguments: Any, text: str) -> None:
    assert TOOLS.text(content, [(name, arguments), ("search", {"title": "a second call"})]) == text
    chat = TOOLS.chat(as_messages(("user", "?"), ("assistant", text), ("user", "said")))
    if name == "no_such":
        assert chat[1:] == [{"role": "assistant", "content": text}, {"role": "user", "content": "said"}]
        return
    (call,) = chat[1]["tool_calls"]
    assert chat[2] == {"role": "tool", "tool_call_id": call["id"], "content": "said"}
    assert TOOLS.text(chat[1]["content"], openai_calls(chat[1])) == text
    assert call["function"]["name"] == name and isinstance(json.loads(call["function"]["arguments"]), dict)


def test_answers_without_a_call_stay() -> None:
    assert TOOLS.text("two\nlines ", []) == "two\nlines "
    for text in ("search [x]", "I think search[x]", "search[x]\nsearch[y]", "book[not json]", "book[[1]]"):
        assert TOOLS.chat(as_messages(("user", "?"), ("assistant", text), ("user", "!")))[1]["content"] == text
    last = as_messages(("user", "?"), ("assistant", "search[x]"))
    assert TOOLS.chat(last)[1] == {"role": "assistant", "content": "search[x]"}, "not answered yet: a prefill, not a call"


def test_a_chat_in_the_protocol() -> None:
    chat = TOOLS.chat(EPISODE)
    assert [message["role"] for message in chat] == [
        "system", "user", "assistant", "tool", "assistant", "user", "assistant", "tool"
    ]  # fmt: skip
    assert chat[2]["content"] == "the river first" and chat[4]["content"] == "think: hm"
    first, second = chat[2]["tool_calls"][0], chat[6]["tool_calls"][0]
    assert first["function"] == {"name": "search", "arguments": '{"title": "Tarn"}'} and first["id"] != second["id"]
    assert json.loads(second["function"]["arguments"]) == {"day": 3, "seats": 2}
    assert (chat[3]["tool_call_id"], chat[7]["tool_call_id"]) == (first["id"], second["id"])


def test_odd_calls_are_read() -> None:
    calls = [
        {"function": {"name": "search", "arguments": {"title": "given as an object"}}},
        {"function": {"name": "search", "arguments": "[1]"}},
        {"function": {"name": "search", "arguments": None}},
        {"function": {"arguments": "{}"}},
        "text",
    ]
    found = openai_calls({"tool_calls": calls})
    assert found == [("search", {"title": "given as an object"}), ("search", "[1]"), ("search", "")]
    assert openai_calls({}) == openai_calls({"tool_calls": None}) == []


@tool
def lookup(text: str) -> str:
    """Find the text on the page."""
    return text


def test_tools_as_an_option() -> None:
    path = "kintsugi.sandboxes.environments.hotpotqa_tools:SCHEMAS"
    named, given = open_tools(path), open_tools([lookup, SEARCH])
    assert named is not None and [one["function"]["name"] for one in named.schemas] == ["search", "lookup", "finish"]
    assert given is not None and given.text("", [("lookup", {"text": "x"})]) == "lookup[x]"
    assert open_tools(None) is None
    for wrong, said in (
        ("no_such_package:X", "cannot be imported"),
        ("kintsugi.sandboxes.environments.hotpotqa_tools:SCHEMA", 'did you mean "SCHEMAS"'),
        ("json", "package.module:NAME"),
        ("json:dumps", "expected a list of schemas"),
        ([{"name": "x"}], "expected schemas such as"),
        ([5], "expected a schema or a LangChain tool, found int"),
    ):
        with pytest.raises(ConfigError, match=said):
            open_tools(wrong)


def ask(policy: Any, messages: tuple[ChatMessage, ...] = EPISODE) -> list[Completion]:
    async def main() -> list[Completion]:
        try:
            return await policy.complete(Request(messages=messages, sampling=Sampling(temperature=0.0)))
        finally:
            await policy.close()

    return asyncio.run(main())


def test_the_endpoint_policy(handled: Callable[..., AbstractContextManager[str]]) -> None:
    seen: list[dict[str, Any]] = []
    call = {"id": "x", "type": "function", "function": {"name": "search", "arguments": '{"title": "Grey Sea"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    choice = {"message": message, "finish_reason": "tool_calls", "token_ids": [5, 6]}

    async def handler(http: web.Request) -> web.Response:
        if http.path.endswith("/models"):
            return web.json_response({"data": [{"id": "m", "owned_by": "vllm"}]})
        seen.append(await http.json())
        return web.json_response({"choices": [choice], "prompt_token_ids": [1, 2, 3]})

    with handled(handler) as url:
        options = {"url": url, "model": "m", "tools": "kintsugi.sandboxes.environments.hotpotqa_tools:SCHEMAS"}
        (answer,) = ask(open_policy("endpoint", options))
        (plain,) = ask(endpoint_policy.open_policy(url, "m"))
    assert (answer.text, answer.finish) == ("search[Grey Sea]", "stop")
    assert (answer.token_ids, answer.prompt_ids) == ((5, 6), (1, 2, 3)), "the ids are those of the call as it was sampled"
    assert [one["function"]["name"] for one in seen[0]["tools"]] == ["search", "lookup", "finish"]
    assert [one["role"] for one in seen[0]["messages"][2:4]] == ["assistant", "tool"]
    assert plain.text == "" and "tools" not in seen[1] and seen[1]["messages"] == list(EPISODE), "nothing changes without"


class Calling(GenericFakeChatModel):
    """A fake model that takes tools and keeps what it was asked."""

    asked: list[Any]
    bound: list[Any]

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        self.bound.append(tools)
        return self

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> Any:
        self.asked.append(messages)
        return await super()._agenerate(messages, stop, run_manager, **options)


def test_the_langchain_policy() -> None:
    good = {"name": "search", "args": {"title": "Grey Sea"}, "id": "a", "type": "tool_call"}
    broken = {"name": "search", "args": "{", "id": "b", "error": "no JSON", "type": "invalid_tool_call"}
    answers = (
        AIMessage(content="sea", tool_calls=[good]),
        AIMessage(content="", invalid_tool_calls=[broken]),
        AIMessage(content="no call"),
    )
    model = Calling(messages=iter(answers), asked=[], bound=[])
    policy = langchain_policy.open_policy(model, tools=[SEARCH, BOOK])
    assert [ask(policy)[0].text for _ in range(3)] == ["Thought: sea\nAction: search[Grey Sea]", "search[{]", "no call"]
    assert model.bound == [[SEARCH, BOOK]]
    said = model.asked[0]
    assert said[2].tool_calls[0]["args"] == {"title": "Tarn"} and said[2].content == "the river first"
    assert isinstance(said[3], ToolMessage) and said[3].tool_call_id == said[2].tool_calls[0]["id"]
    assert langchain_calls(answers[1]) == [("search", "{")]
    with pytest.raises(ConfigError, match="expected a chat model that takes tools, found GenericFakeChatModel"):
        langchain_policy.open_policy(GenericFakeChatModel(messages=iter([])), tools=[SEARCH])

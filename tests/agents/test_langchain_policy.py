"""LangChain both ways: a chat model as a policy, a policy as a chat model, and round trips through both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langgraph.graph import END, START, MessagesState, StateGraph

from kintsugi.agents.policies.conformance import CHECKS
from kintsugi.agents.policies.langchain_policy import LangChainPolicy, open_policy
from kintsugi.agents.policies.policy import Completion, Request, Sampling, as_messages
from kintsugi.agents.policies.policy import open_policy as open_any_policy
from kintsugi.agents.policies.policy_chat_model import PolicyChatModel
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.errors import ConfigError, ContextTooLong, PolicyError

HELLO = as_messages(("system", "be brief"), ("user", "hello"))
CONTINUE = {"continue_final_message": True}


def ask(policy: Any, request: Request | None = None) -> list[Completion]:
    return asyncio.run(policy.complete(request or Request(messages=HELLO)))


def fake(*answers: str | AIMessage) -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter(answers))


def echo(**options: Any) -> ScriptedPolicy:
    return ScriptedPolicy(lambda messages, n: f"{messages[-1]['content']} yes {n}", **options)


@pytest.mark.parametrize("byte_tokens", [False, True])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_round_trip_conforms(check: Any, byte_tokens: bool) -> None:
    check(lambda: open_policy(PolicyChatModel(policy=echo(byte_tokens=byte_tokens)), prefill_options=CONTINUE))


def test_a_round_trip_keeps_everything() -> None:
    script = ScriptedPolicy(lambda messages, n: "a = 1\nb = 2###", byte_tokens=True)
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=30, stop=("###",), seed=4)
    request = Request(messages=HELLO, n=2, sampling=sampling, prefill="a = 1\n")
    options = ("temperature", "top_p", "max_tokens", "seed")
    policy = open_policy(PolicyChatModel(policy=script), prefill_options=CONTINUE, sampling_options=options)
    answers = ask(policy, request)
    direct = ask(ScriptedPolicy(lambda messages, n: "a = 1\nb = 2###", byte_tokens=True), request)
    for answer, expected in zip(answers, direct, strict=True):
        assert (answer.text, answer.token_ids, answer.logprobs) == (
            expected.text,
            expected.token_ids,
            expected.logprobs,
        )
        assert answer.prompt_ids == expected.prompt_ids
    assert sorted(seen.sampling.seed for seen in script.requests) == [4, 5], "n answers are n calls, a seed each"
    first = script.requests[0]
    assert (first.messages, first.prefill, first.sampling.stop) == (request.messages, "a = 1\n", ("###",))
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.max_tokens) == (0.5, 0.9, 30)


def test_a_context_that_is_too_long_ends_the_attempt_only() -> None:
    class Full(GenericFakeChatModel):
        def _generate(self, *_: Any, **__: Any) -> Any:
            raise ValueError("Error code: 400 - maximum context length is 4096 tokens (context_length_exceeded)")

    with pytest.raises(ContextTooLong, match="4096 tokens"):
        ask(open_policy(Full(messages=iter(()))))


def test_a_fake_chat_model() -> None:
    logprobs = {"content": [{"token": "o", "logprob": -0.5}]}
    told = AIMessage(
        content=[{"type": "text", "text": "three ### cut"}],
        response_metadata={"logprobs": logprobs, "finish_reason": "length"},
        usage_metadata={"input_tokens": 5, "output_tokens": 1, "total_tokens": 6},
    )
    policy = open_policy(fake("one", "two", told))
    assert sorted(answer.text for answer in ask(policy, Request(messages=HELLO, n=2))) == ["one", "two"]
    (answer,) = ask(policy, Request(messages=HELLO, sampling=Sampling(stop=("###",))))
    assert (answer.text, answer.finish, answer.logprobs, answer.processed_tokens) == ("three ", "stop", (-0.5,), 5)
    with pytest.raises(PolicyError, match=r"GenericFakeChatModel failed with .*Expected an answer"):
        ask(policy)
    with pytest.raises(PolicyError, match="prefill_options"):
        ask(policy, Request(messages=HELLO, prefill="x"))
    with pytest.raises(PolicyError, match="expected a message of system"):
        ask(policy, Request(messages=as_messages(("robot", "x"))))


def test_messages_and_options_reach_the_model() -> None:
    seen: list[Any] = []

    class Recording(GenericFakeChatModel):
        async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            seen.append((messages, stop, kwargs))
            return await super()._agenerate(messages, stop, run_manager, **kwargs)

    policy = open_policy(Recording(messages=iter(["a", "b"])), prefill_options={"go_on": True})
    ask(policy, Request(messages=HELLO, sampling=Sampling(stop=("x",), max_tokens=9), prefill="pre"))
    messages, stop, options = seen[0]
    kinds = [(type(message), message.content) for message in messages]
    assert kinds == [(SystemMessage, "be brief"), (HumanMessage, "hello"), (AIMessage, "pre")]
    assert stop == ["x"] and options == {"temperature": 1.0, "max_tokens": 9, "go_on": True}
    ask(policy, Request(messages=HELLO, sampling=Sampling(top_p=0.5)))
    assert seen[1][1] is None and seen[1][2] == {"temperature": 1.0, "max_tokens": 256, "top_p": 0.5}


def test_a_class_by_name() -> None:
    name = "langchain_core.language_models.fake_chat_models:FakeListChatModel"
    policy = open_any_policy("langchain", {"model": name, "responses": ["one"], "version": "v3"})
    assert isinstance(policy, LangChainPolicy) and policy.version == "v3"
    assert ask(policy)[0].text == "one"
    assert ask(open_policy(name, arguments={"responses": ["two"]}))[0].text == "two"


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("no_such_package:Model", {}, "cannot be imported"),
        ("langchain_core.language_models.fake_chat_models:GenericFakeChatModl", {}, 'mean "GenericFakeChatModel"'),
        ("langchain_core", {}, "package.module:Class"),
        ("langchain_core.language_models.fake_chat_models:FakeListChatModel", {}, "cannot be made with these"),
        ("pathlib:Path", {}, "expected a LangChain chat model, found PosixPath"),
        (fake("a"), {"extra": 1}, "no further arguments"),
        (fake("a"), {"sampling_options": ["temprature"]}, 'did you mean "temperature"'),
    ],
)
def test_mistakes_are_one_sentence(model: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_policy(model, **options)
    assert "\n" not in str(caught.value)


def test_a_policy_as_a_chat_model() -> None:
    script = echo(byte_tokens=True)
    model = PolicyChatModel(policy=script, sampling=Sampling(temperature=0.3, stop=("never",)))
    answer = model.invoke([("system", "be brief"), ("human", "hello")], max_tokens=7)
    assert answer.content == "hello y" and answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["token_ids"] == list(b"hello y")
    assert answer.response_metadata["logprobs"]["content"][0]["logprob"] < 0
    assert answer.usage_metadata == {"input_tokens": 27, "output_tokens": 7, "total_tokens": 34}
    assert script.requests[0].sampling == Sampling(temperature=0.3, max_tokens=7, stop=("never",))
    assert model.invoke("hello", stop=["ye"]).content == "hello "
    assert model.invoke([HumanMessage("x"), AIMessage("pre")], continue_final_message=True).content == " yes 0"
    assert script.requests[-1].prefill == "pre"
    assert model.invoke([HumanMessage("x"), AIMessage("pre"), HumanMessage("z")]).content == "z yes 0"
    assert [one.text for one in model.generate([[HumanMessage("x")]], n=2).generations[0]] == ["x yes 0", "x yes 1"]
    assert "".join(str(chunk.content) for chunk in model.stream("hello")) == "hello yes 0"


def test_sync_calls_inside_a_running_loop_and_async_ones() -> None:
    model = PolicyChatModel(policy=echo(delay_s=0.001))

    async def body() -> tuple[Any, Any, list[Any]]:
        return model.invoke("a").content, (await model.ainvoke("b")).content, await model.abatch(["c", "d"])

    first, second, both = asyncio.run(body())
    assert (first, second, [one.content for one in both]) == ("a yes 0", "b yes 0", ["c yes 0", "d yes 0"])


def test_chains_graphs_and_callbacks() -> None:
    model = PolicyChatModel(policy=echo())
    seen: list[Any] = []

    class Watch(BaseCallbackHandler):
        def on_llm_end(self, response: Any, **_: Any) -> None:
            seen.append(response)

    chain = ChatPromptTemplate.from_messages([("human", "Q: {question}")]) | model | StrOutputParser()
    assert chain.invoke({"question": "2 + 2?"}, config={"callbacks": [Watch()]}) == "Q: 2 + 2? yes 0"
    assert seen[0].llm_output["model_name"] == "scripted"

    graph = StateGraph(MessagesState)

    def actor(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    graph.add_node("actor", actor)
    graph.add_edge(START, "actor")
    graph.add_edge("actor", END)
    final: Any = graph.compile().invoke({"messages": [HumanMessage("hello")]})
    assert final["messages"][-1].content == "hello yes 0"


def test_what_a_policy_cannot_take() -> None:
    model = PolicyChatModel(policy=echo())
    picture = HumanMessage(content=[{"type": "image_url", "image_url": {"url": "data:"}}])
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ("x", {"temprature": 1}, 'did you mean "temperature"'),
        ([picture], {}, "takes text"),
        ([ToolMessage("x", tool_call_id="1")], {}, "found a tool message"),
        ([HumanMessage("x")], {"continue_final_message": True}, "expects an AIMessage"),
    ]
    for messages, options, said in cases:
        with pytest.raises(ConfigError, match=said):
            model.invoke(messages, **options)
    with pytest.raises(ConfigError, match="takes no tools"):
        model.bind_tools([])
    with pytest.raises(PolicyError, match="no answer"):
        PolicyChatModel(policy=ScriptedPolicy([])).invoke("x")

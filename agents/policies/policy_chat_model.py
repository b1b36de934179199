"""Any policy as a LangChain chat model, for chains (LCEL), LangGraph nodes and whatever else takes a `BaseChatModel`.

    model = PolicyChatModel(policy=policy, sampling=Sampling(max_tokens=128))
    model.invoke("What is 2 + 2?").content
    (prompt | model | StrOutputParser()).invoke({"question": "…"})

Options of a call: temperature, top_p, max_tokens, seed, n (further generations in the result of `generate`), stop,
and continue_final_message=True to go on from a last assistant message (without it an answer begins a new turn). Other
options are refused. Token ids and log-probabilities, when the policy gives them, are in `response_metadata`
("token_ids", "prompt_token_ids", "logprobs" in OpenAI's shape). Left out: tools (`bind_tools` raises), images,
streaming token by token (LangChain streams the answer as one chunk).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import ConfigDict, Field

from kintsugi.agents.policies.policy import ChatMessage, Completion, Request, Sampling
from kintsugi.errors import ConfigError, nearest

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}
_SAMPLING_OPTIONS = ("temperature", "top_p", "max_tokens", "seed")
_OPTIONS = (*_SAMPLING_OPTIONS, "n", "continue_final_message")

T = TypeVar("T")


class PolicyChatModel(BaseChatModel):
    """A chat model that asks `policy`, with `sampling` unless a call says otherwise. It does not close the policy."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    policy: Any
    sampling: Sampling = Field(default_factory=Sampling)

    @property
    def _llm_type(self) -> str:
        return "kintsugi-policy"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"policy": self.policy.name, "version": self.policy.version, **dataclasses.asdict(self.sampling)}

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> NoReturn:
        raise ConfigError(
            "a Kintsugi policy answers in text and takes no tools: describe them in the prompt, and read the action "
            "from the answer as an environment does."
        )

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        completions = await self.policy.complete(request)
        return ChatResult(
            generations=[self._generation(completion) for completion in completions],
            llm_output={"model_name": self.policy.name},
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _run(self._agenerate(messages, stop, None, **kwargs))

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> Request:
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f'unknown option "{name}" for a policy: {nearest(name, _OPTIONS)}')
        given = {name: options[name] for name in _SAMPLING_OPTIONS if options.get(name) is not None}
        if stop:
            given["stop"] = tuple(stop)
        chat = [_to_chat(message) for message in messages]
        prefill = ""
        if options.get("continue_final_message"):
            if not chat or chat[-1]["role"] != "assistant":
                raise ConfigError("continue_final_message expects an AIMessage as the last one, found none.")
            prefill = chat.pop()["content"]
        return Request(
            messages=tuple(chat),
            n=options.get("n") or 1,
            sampling=dataclasses.replace(self.sampling, **given),
            prefill=prefill,
        )

    def _generation(self, completion: Completion) -> ChatGeneration:
        given, sampled = len(completion.prompt_ids), len(completion.token_ids)
        metadata: dict[str, Any] = {
            "model_name": self.policy.name,
            "model_version": self.policy.version,
            "finish_reason": completion.finish,
        }
        if completion.token_ids:
            metadata["token_ids"] = list(completion.token_ids)
            metadata["prompt_token_ids"] = list(completion.prompt_ids)
        if completion.logprobs:
            metadata["logprobs"] = {"content": [{"logprob": logprob} for logprob in completion.logprobs]}
        usage = UsageMetadata(input_tokens=given, output_tokens=sampled, total_tokens=given + sampled)
        message = AIMessage(
            content=completion.text, response_metadata=metadata, usage_metadata=usage if sampled else None
        )
        return ChatGeneration(message=message, generation_info={"finish_reason": completion.finish})


def _to_chat(message: BaseMessage) -> ChatMessage:
    role = _ROLES.get(message.type) or getattr(message, "role", "")
    if role not in _ROLES.values():
        raise ConfigError(f"a policy takes system, human and AI messages, found a {message.type} message.")
    blocks = message.content if isinstance(message.content, list) else []
    if any(isinstance(block, dict) and block.get("type") != "text" for block in blocks):
        raise ConfigError("a policy takes text, found a message with other content: leave images and files out.")
    return ChatMessage(role=role, content=str(message.text))


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result, for code that is not asynchronous: from a thread of its own where a loop runs here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()

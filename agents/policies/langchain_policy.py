"""Any LangChain chat model as a policy.

    open_policy(ChatOpenAI(model="…"))                                        # in Python
    open_policy("langchain_openai:ChatOpenAI", arguments={"model": "…"})      # in a recipe: a class and its arguments

What is passed on with each call is named by `sampling_options`, for models differ in what they accept: temperature,
max_tokens and top_p (only when it is not 1) by default; add "seed" for a model that takes one, without which the same
seed need not give the same answer. n answers are n parallel calls (with "seed": seed, seed + 1, …).

A prefill needs `prefill_options`: a trailing assistant message is sent with these further call options, `{}` for
models that go on from it by themselves, `{"continue_final_message": True}` for `PolicyChatModel`. Without them a
prefill is a PolicyError, since most models would silently begin a new turn.

Token ids and log-probabilities are taken from `response_metadata` ("token_ids", "prompt_token_ids", "logprobs" as
OpenAI's) when they are there. With `tools` (schemas, LangChain tools, or "package.module:NAME" of a list of them) they
are bound to the model, and a tool call becomes a text action such as `search[X]`; see `tool_calls`. Left out: images,
streaming, scores.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kintsugi.agents.policies.policy import TOO_LONG, ChatMessage, Completion, Request
from kintsugi.agents.policies.stop_strings import cut_at_stop
from kintsugi.agents.policies.tool_calls import Tools, langchain_calls, open_tools
from kintsugi.errors import ConfigError, ContextTooLong, PolicyError, nearest

if TYPE_CHECKING:
    from langchain_core.language_models.chat_models import BaseChatModel
    from langchain_core.messages import BaseMessage

SAMPLING_OPTIONS = ("temperature", "top_p", "max_tokens", "seed")
"""All of `Sampling` that can be passed on (stop always is)."""


class LangChainPolicy:
    """Asks a chat model; see the module's words on `sampling_options` and `prefill_options`."""

    def __init__(
        self,
        model: BaseChatModel,
        *,
        sampling_options: Sequence[str] = ("temperature", "top_p", "max_tokens"),
        prefill_options: Mapping[str, Any] | None = None,
        version: str = "",
        tools: Tools | None = None,
    ) -> None:
        for option in sampling_options:
            if option not in SAMPLING_OPTIONS:
                raise ConfigError(f'unknown sampling option "{option}": {nearest(option, SAMPLING_OPTIONS)}')
        label = getattr(model, "model_name", None) or getattr(model, "model", None) or type(model).__name__
        self.name, self.version = f"langchain:{label}", version or str(label)
        self._model, self._sampling_options = model, tuple(sampling_options)
        self._tools, self._asked = tools, model if tools is None else _bound(model, tools)
        self._prefill_options = None if prefill_options is None else dict(prefill_options)

    async def complete(self, request: Request) -> list[Completion]:
        """`request.n` answers. Whatever the model raises becomes a PolicyError of one sentence."""
        messages = [_to_langchain(message) for message in request.messages]
        if self._tools is not None:
            messages = _with_calls(self._tools, request.messages)
        further: dict[str, Any] = {}
        if request.prefill:
            if self._prefill_options is None:
                raise PolicyError(
                    f"a prefill needs a model that goes on from an assistant message, and {self.name} is not known to: "
                    f"pass prefill_options (perhaps empty), or use a prompt without prefill."
                )
            messages.append(_to_langchain(ChatMessage(role="assistant", content=request.prefill)))
            further = self._prefill_options
        calls = (self._one(messages, request, sample, further) for sample in range(request.n))
        return list(await asyncio.gather(*calls))

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        raise PolicyError(f"{self.name} cannot score a given answer: LangChain has no call for it.")

    async def close(self) -> None:
        return None

    async def _one(
        self, messages: list[BaseMessage], request: Request, sample: int, further: Mapping[str, Any]
    ) -> Completion:
        from langchain_core.messages import AIMessage

        options = {**self._options(request, sample), **further}
        try:
            answer = await self._asked.ainvoke(messages, stop=list(request.sampling.stop) or None, **options)
        except PolicyError:
            raise
        except Exception as error:  # a third party's model raises what it likes
            said = " ".join(str(error).split())[:200]
            if TOO_LONG.search(str(error)):
                raise ContextTooLong(f"{self.name}: {said}") from None
            raise PolicyError(
                f"{self.name} failed with {type(error).__name__}: {said or 'no message'}. Expected an answer: check "
                f"the model's key, address and options."
            ) from None
        if not isinstance(answer, AIMessage):
            raise PolicyError(f"expected an AIMessage from {self.name}, found {type(answer).__name__}.")
        return _completion(answer, request, self._tools)

    def _options(self, request: Request, sample: int) -> dict[str, Any]:
        sampling = request.sampling
        values: dict[str, Any] = {
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": (sampling.seed + sample) % 2**63,
        }
        if sampling.top_p != 1.0:  # some models refuse it beside a temperature
            values["top_p"] = sampling.top_p
        return {name: value for name, value in values.items() if name in self._sampling_options}


def open_policy(
    model: BaseChatModel | str,
    *,
    sampling_options: Sequence[str] = ("temperature", "top_p", "max_tokens"),
    prefill_options: Mapping[str, Any] | None = None,
    version: str = "",
    arguments: Mapping[str, Any] | None = None,
    tools: str | Sequence[Any] | None = None,
    **more_arguments: Any,
) -> LangChainPolicy:
    """A policy from a chat model, or from "package.module:Class" and the class's (or function's) own arguments.

    arguments: those that are called as an option here is ("model", "version"); the rest can stand beside the options.
    tools: what the model may call, see `tool_calls`.
    Raises ConfigError when the name leads nowhere or the arguments do not fit.
    """
    from langchain_core.language_models.chat_models import BaseChatModel

    given = {**(arguments or {}), **more_arguments}
    if isinstance(model, str):
        maker = _load(model)
        try:
            made = maker(**given)
        except Exception as error:  # pydantic's, the constructor's own, or a missing key: all are the caller's to mend
            said = " ".join(str(error).split())[:300]
            raise ConfigError(f"{model} cannot be made with these arguments ({type(error).__name__}): {said}") from None
        model = made
    elif given:
        raise ConfigError(f"expected no further arguments beside a chat model, found {', '.join(sorted(given))}.")
    if not isinstance(model, BaseChatModel):
        raise ConfigError(f"expected a LangChain chat model, found {type(model).__name__}: pass a BaseChatModel.")
    return LangChainPolicy(
        model,
        sampling_options=sampling_options,
        prefill_options=prefill_options,
        version=version,
        tools=open_tools(tools),
    )


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigError(f'expected "package.module:Class", found "{path}".')
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f'"{path}" cannot be imported ({error}): install the package, or check the name.') from None
    if not hasattr(loaded, name):
        raise ConfigError(f'"{module}" has no "{name}": {nearest(name, vars(loaded))}')
    return getattr(loaded, name)


def _to_langchain(message: ChatMessage) -> BaseMessage:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    kinds = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
    if message["role"] not in kinds:
        raise PolicyError(f'expected a message of {", ".join(kinds)}, found the role "{message["role"]}".')
    return kinds[message["role"]](content=message["content"])


def _bound(model: BaseChatModel, tools: Tools) -> Any:
    try:
        return model.bind_tools(tools.schemas)
    except NotImplementedError:
        raise ConfigError(
            f"expected a chat model that takes tools, found {type(model).__name__}: leave tools out."
        ) from None


def _with_calls(tools: Tools, messages: Sequence[ChatMessage]) -> list[BaseMessage]:
    from langchain_core.messages import convert_to_messages

    return convert_to_messages(tools.chat(messages))


def _completion(answer: Any, request: Request, tools: Tools | None) -> Completion:
    """The answer's text and whatever else its metadata tells."""
    metadata = answer.response_metadata or {}
    text, stop = cut_at_stop(str(answer.text), request.sampling.stop)
    if tools is not None:
        text = tools.text(text, langchain_calls(answer))
    finish = "length" if metadata.get("finish_reason") in ("length", "max_tokens") else "stop"
    ids = tuple(metadata.get("token_ids") or ())
    content = (metadata.get("logprobs") or {}).get("content") or ()
    logprobs = tuple(float(entry["logprob"]) for entry in content)
    whole = not ids or not logprobs or len(ids) == len(logprobs)
    return Completion(
        text=text,
        finish="stop" if stop else finish,
        stop=stop or None,
        prompt_ids=tuple(metadata.get("prompt_token_ids") or ()) if ids else (),
        token_ids=ids,
        logprobs=logprobs if whole else (),
        processed_tokens=(answer.usage_metadata or {}).get("input_tokens", 0),
    )

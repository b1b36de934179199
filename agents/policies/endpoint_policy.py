"""Any server that speaks the OpenAI chat-completions protocol as a policy: vLLM, SGLang, llama.cpp, hosted APIs.

    policy = open_policy("http://localhost:8000/v1", "my-model")                       # vLLM on this machine
    policy = open_policy("https://api.example.com/v1", "big", api_key_env="BIG_KEY")   # a hosted model

*vLLM's additions.* vLLM also returns token ids, goes on from a prefill, and scores (`kintsugi serve` does the first
two). Whether a server has them is read from the owner that `GET /models` names; `additions=True` or `False` says it
instead. Without them token ids are empty (so nothing can be trained on these answers token by token) and a prefill or
a score is a PolicyError: a server that does not know `continue_final_message` would silently begin a new turn.

*Greedy* (`temperature` 0) asks once and repeats the answer n times, since vLLM refuses n > 1 there. A server that
returns fewer answers than n is asked again for the rest. *Log-probabilities* are what the server gives: vLLM's are at
temperature 1 unless it is told otherwise. Start vLLM with `--generation-config vllm`: else the model's own top-k and
the like apply to what is sampled.

*Tools.* With `tools` (schemas, or "package.module:NAME" of them) the model may answer with a tool call, which becomes a
text action such as `search[X]`; see `tool_calls`. Its token ids stay those of the call as it was sampled.

`prior_ids` are ignored: chats are sent as text and tokenised by the server, whose ids come back in `prompt_ids`. Left
out: streaming, images.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from kintsugi.agents.policies.endpoint_client import CHECK_OPTIONS, TRY_AGAIN, EndpointClient, StatusError
from kintsugi.agents.policies.policy import TOO_LONG, ChatMessage, Completion, Request
from kintsugi.agents.policies.stop_strings import cut_at_stop
from kintsugi.agents.policies.tool_calls import Tools, open_tools, openai_calls
from kintsugi.errors import ContextTooLong, PolicyError, nearest

OWNERS_WITH_ADDITIONS = ("vllm", "kintsugi")
"""`owned_by` of the servers that are known to have vLLM's additions."""

_WAYS_OUT = {
    "logprobs": "logprobs=false mends it",
    "return_token_ids": "additions=false mends it",
    "n": "extra_body.n=1 asks for one answer at a time",
    "tools": "tools=null asks without tools",
}
"""What to set in `model.options` when a server objects to something that is sent; anything else can be left out."""


class EndpointPolicy:
    """A model behind a server. Make it with `open_policy`. Works in one event loop after another."""

    def __init__(
        self,
        client: EndpointClient,
        model: str,
        *,
        logprobs: bool,
        extra_body: Mapping[str, Any],
        additions: bool | None,
        version: str,
        tools: Tools | None = None,
    ) -> None:
        self.name, self.version = f"endpoint:{model}", version or model
        self._client, self._model, self._logprobs = client, model, logprobs
        self._extra_body, self._additions = dict(extra_body), additions
        self._tools = tools

    async def complete(self, request: Request) -> list[Completion]:
        """`request.n` answers. Raises PolicyError, in one sentence, for whatever keeps the server from giving them."""
        additions = await self._has_additions()
        if request.prefill and not additions:
            raise PolicyError(
                f"a prefill needs a server that continues a message (vLLM's continue_final_message), found {self.name} "
                f"without it: pass additions=true if it can, or use a prompt without prefill."
            )
        greedy = request.sampling.temperature <= 0
        wanted = 1 if greedy else request.n
        answers = self._read(await self._post(request, wanted, 0, additions), request)[:wanted]
        if len(answers) < wanted:  # some servers ignore n
            rest = (self._post(request, 1, sample, additions) for sample in range(len(answers), wanted))
            for reply in await asyncio.gather(*rest):
                answers += self._read(reply, request)[:1]
        if len(answers) < wanted:
            raise PolicyError(
                f"expected {wanted} answers from {self._client.shown_url}, found {len(answers)}: lower n."
            )
        if greedy:
            answers += [_without_cost(answers[0])] * (request.n - 1)
        return answers

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        """Log-probability of each token of `completion` and of the end of turn, by vLLM's `prompt_logprobs`.

        The text is tokenised by the server, which may cut it otherwise than it was sampled. Raises PolicyError when the
        server cannot score, or when its chat template rewrites earlier turns so that the answer cannot be found in it.
        """
        if not await self._has_additions():
            raise PolicyError(
                f"scoring needs a server with vLLM's prompt_logprobs, found {self.name} without it: score with a "
                f"transformers policy, or pass additions=true if it can."
            )
        chat = list(request.messages)
        answered = [*chat, ChatMessage(role="assistant", content=request.prefill + completion)]
        opened = [*chat, ChatMessage(role="assistant", content=request.prefill)] if request.prefill else chat
        context, answer, unended, ended = await asyncio.gather(
            self._tokenize({"messages": opened, **_continuing(bool(request.prefill))}),
            self._tokenize({"prompt": completion, "add_special_tokens": False}),
            self._tokenize({"messages": answered, **_continuing(True)}),
            self._tokenize({"messages": answered, "add_generation_prompt": False}),
        )
        if ended[: len(unended)] != unended or len(ended) == len(unended):
            raise PolicyError(
                f"the chat template of {self.name} changes an answer once it has ended, so it cannot be scored: use a "
                f"template that leaves answers alone."
            )
        ids = [*context, *answer, ended[len(unended)]]
        body = {"model": self._model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        choice = _choices(await self._client.post("completions", body), self._client.shown_url)[0]
        entries = choice.get("prompt_logprobs") or []
        try:
            return tuple(float(entries[place][str(ids[place])]["logprob"]) for place in range(len(context), len(ids)))
        except (IndexError, KeyError, TypeError, ValueError):
            raise PolicyError(
                f"expected prompt_logprobs of {len(ids)} tokens from {self._client.shown_url}, found "
                f"{len(entries)}: score with a server that gives them (vLLM)."
            ) from None

    async def close(self) -> None:
        await self._client.close()

    async def _has_additions(self) -> bool:
        if self._additions is None:
            try:
                models = _models(await self._client.get("models"))
            except StatusError as error:
                if error.status in TRY_AGAIN and error.status != 501:
                    raise
                models = []  # some servers have no list, or none for this key
            self._additions = any(one.get("owned_by") in OWNERS_WITH_ADDITIONS for one in models)
        return self._additions

    async def _post(self, request: Request, n: int, first: int, additions: bool) -> dict[str, Any]:
        body = self._body(request, n, first, additions)
        try:
            return await self._client.post("chat/completions", body)
        except StatusError as error:
            if error.status == 404:
                raise await self._not_found(error) from None
            if error.status in (400, 413, 422):
                raise _objection(error, body) from None
            raise

    def _body(self, request: Request, n: int, first: int, additions: bool) -> dict[str, Any]:
        sampling = request.sampling
        messages: list[Any] = list(request.messages) if self._tools is None else self._tools.chat(request.messages)
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "n": n,
            "max_tokens": sampling.max_tokens,
            "temperature": max(0.0, sampling.temperature),
            "top_p": sampling.top_p if sampling.temperature > 0 else 1.0,
            "seed": (sampling.seed + first) % 2**63,  # servers take signed 64-bit integers
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self._logprobs:
            body["logprobs"] = True
        if additions:
            body["return_token_ids"] = True
        if self._tools is not None:
            body["tools"] = self._tools.schemas
        if request.prefill:
            messages.append(ChatMessage(role="assistant", content=request.prefill))
            body.update(_continuing(True))
        body.update(self._extra_body)
        return {key: value for key, value in body.items() if value is not None}

    def _read(self, reply: dict[str, Any], request: Request) -> list[Completion]:
        prompt_ids = tuple(reply.get("prompt_token_ids") or ())
        usage = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        processed = max(0, (usage.get("prompt_tokens") or len(prompt_ids)) - cached)
        completions = []
        for number, choice in enumerate(_choices(reply, self._client.shown_url)):
            ids = tuple(choice.get("token_ids") or ())
            logprobs = _logprobs(choice)
            if ids and logprobs and len(ids) != len(logprobs):
                raise PolicyError(
                    f"expected a log-probability for each of {len(ids)} tokens from {self._client.shown_url}, found "
                    f"{len(logprobs)}: pass logprobs=false, or update the server."
                )
            message = choice.get("message") or {}
            if not isinstance(message, dict):
                shown = self._client.shown_url
                raise PolicyError(f"expected a message with content from {shown}, found {message!r:.60}: mend the server")
            text, _ = cut_at_stop(_text(message.get("content"), self._client.shown_url), request.sampling.stop)
            if self._tools is not None:
                text = self._tools.text(text, openai_calls(message))
            completions.append(
                Completion(
                    text=text,
                    finish="length" if choice.get("finish_reason") == "length" else "stop",
                    stop=_stop_string(choice, request.sampling.stop),
                    prompt_ids=prompt_ids if ids else (),
                    token_ids=ids,
                    logprobs=logprobs,
                    processed_tokens=processed if number == 0 else 0,
                )
            )
        return completions

    async def _not_found(self, error: StatusError) -> PolicyError:
        """A 404 means a wrong model or a wrong base url; the list of models tells which."""
        try:
            models = [str(one["id"]) for one in _models(await self._client.get("models")) if one.get("id")]
        except PolicyError:
            return error
        if not models or self._model in models:
            return error
        where = self._client.shown_url
        return PolicyError(
            f'expected a model that {where} serves, found "{self._model}": {nearest(self._model, models)}'
        )

    async def _tokenize(self, body: Mapping[str, Any]) -> list[int]:
        try:
            reply = await self._client.post("/tokenize", {"model": self._model, **body})
        except StatusError as error:
            raise PolicyError(
                f"scoring needs vLLM's /tokenize, and {self._client.shown_url} answered {error.status} there: score "
                f"with a transformers policy."
            ) from None
        return list(reply.get("tokens") or [])


def open_policy(
    url: str,
    model: str,
    *,
    api_key_env: str = "OPENAI_API_KEY",
    timeout_s: Annotated[float, Field(gt=0)] = 120.0,
    max_concurrent: Annotated[int, Field(ge=1)] = 64,
    retries: Annotated[int, Field(ge=0)] = 3,
    backoff_s: Annotated[float, Field(ge=0)] = 0.5,
    logprobs: bool = True,
    extra_body: Mapping[str, Any] | None = None,
    additions: bool | None = None,
    version: str = "",
    tools: str | Sequence[Any] | None = None,
) -> EndpointPolicy:
    """The policy of `model` at `url` (the base, which mostly ends in /v1). Nothing is asked before the first request.

    api_key_env: environment variable that holds the key; none is sent when it is unset. retries: tries after a 429, a
    5xx or a lost connection; backoff_s: seconds before the first of them, doubled each time. extra_body: laid over
    every chat request; None takes a key out, e.g. {"max_tokens": None, "max_completion_tokens": 512}. additions:
    whether the server has vLLM's additions; None asks it. version: names the weights (default: the model's name).
    tools: what the model may call, see `tool_calls`. Raises ConfigError when `url` is none, or `tools` are none.
    """
    offered = open_tools(tools)
    client = EndpointClient(
        url,
        key_name=api_key_env,
        timeout_s=timeout_s,
        max_concurrent=max_concurrent,
        retries=retries,
        backoff_s=backoff_s,
    )
    return EndpointPolicy(
        client,
        model,
        logprobs=logprobs,
        extra_body=extra_body or {},
        additions=additions,
        version=version,
        tools=offered,
    )


def _continuing(final: bool) -> dict[str, bool]:
    """Whether the last message is to be gone on with, or answered."""
    return {"continue_final_message": final, "add_generation_prompt": not final}


def _choices(reply: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise PolicyError(
            f"expected choices in the answer of {where}, found {', '.join(sorted(reply)) or 'nothing'}: check that it "
            f"speaks the OpenAI protocol."
        )
    return choices


def _text(content: Any, where: str) -> str:
    """A message's text: as it is, none, or in parts, which some servers give."""
    parts = content if isinstance(content, list) else [] if content is None else [content]
    texts: list[Any] = [one.get("text") if isinstance(one, dict) and one.get("type") == "text" else one for one in parts]
    if all(isinstance(text, str) for text in texts):
        return "".join(texts)
    raise PolicyError(
        f"expected a text as the content of an answer of {where}, found {str(content)[:80]!r}: take a model that answers "
        "in text, or check that the server speaks the OpenAI protocol."
    )


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    """Of a choice that gives them in OpenAI's form, finite numbers all; else none."""
    try:
        values = tuple(float(entry["logprob"]) for entry in choice["logprobs"]["content"])
    except (KeyError, TypeError, ValueError):
        return ()
    return values if all(math.isfinite(value) for value in values) else ()


def _models(reply: Any) -> list[dict[str, Any]]:
    """The entries of a list of models, bare or in `data`, of names or of objects; there may be ones without an id."""
    entries = reply.get("data") if isinstance(reply, dict) else reply
    named = [{"id": one} if isinstance(one, str) else one for one in entries] if isinstance(entries, list) else []
    return [one for one in named if isinstance(one, dict)]


def _objection(error: StatusError, sent: Mapping[str, Any]) -> PolicyError:
    """What a server does not take, with the option that mends it where its words name one."""
    if TOO_LONG.search(error.body):
        return ContextTooLong(str(error))
    found = [(match.start(), name) for name in sent if (match := _mention(name, error.body))]
    if not found:
        return error
    name = min(found)[1]  # the first of several is what it objects to
    way = _WAYS_OUT.get(name, f"extra_body.{name}=null leaves it out")
    said = str(error).removesuffix(CHECK_OPTIONS)
    return StatusError(f"{said}It names {name}: model.options.{way}.", error.status, error.body)


def _mention(name: str, words: str) -> re.Match[str] | None:
    """Where words of a server name something that is sent; a letter or a common word only as code is written."""
    if name in ("model", "messages"):
        return None
    plain = r"log.?prob" if name == "logprobs" else rf"\b{name}\b"
    as_code = rf"['`]{name}['`]|\b{name}\b *(=|>|<|:|must |should |is not )"
    return re.search(as_code if name in ("n", "stop", "seed", "tools") else plain, words, re.IGNORECASE)


def _stop_string(choice: Mapping[str, Any], stops: Sequence[str]) -> str | None:
    """The stop string that ended an answer, where the server tells: vLLM's `stop_reason`, null at the end of a turn."""
    if choice.get("finish_reason") != "stop" or not stops:
        return ""
    reason = choice.get("stop_reason", "?")
    return reason if reason in stops else "" if reason is None or isinstance(reason, int) else None


def _without_cost(answer: Completion) -> Completion:
    return Completion(
        text=answer.text,
        finish=answer.finish,
        stop=answer.stop,
        prompt_ids=answer.prompt_ids,
        token_ids=answer.token_ids,
        logprobs=answer.logprobs,
    )

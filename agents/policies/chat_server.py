"""Any policy as a server of the OpenAI chat protocol, for tests and for talking to a trained agent with any chat
client.

    server = await serve(policy, port=8000)
    print(server.url)          # http://127.0.0.1:8000/v1
    await server.close()       # the policy stays open: it is the caller's

Serves POST /v1/chat/completions and GET /v1/models: n, stop, seed, temperature, top_p, max_tokens, logprobs, usage,
and vLLM's return_token_ids, continue_final_message and add_generation_prompt. What is wrong with a request comes back
as a 400 with a JSON error, a model of another name as a 404, a failing policy as a 500. `stream` sends the whole
answer as one chunk. Left out: tools, images, response formats (refused, not ignored), keys, TLS: keep it on this
machine.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kintsugi.agents.policies.policy import ChatMessage, Completion, Policy, Request, Sampling, live
from kintsugi.errors import ContextTooLong, KintsugiError, PolicyError

_log = logging.getLogger(__name__)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class _Part(BaseModel):
    type: str
    text: str = ""


class _Message(BaseModel):
    role: str
    content: str | list[_Part] | None = None

    @field_validator("role")
    @classmethod
    def _known(cls, role: str) -> str:
        if role not in _ROLES:
            raise ValueError(f"expected one of {', '.join(_ROLES)}, found {role}")
        return _ROLES[role]

    @field_validator("content")
    @classmethod
    def _text_only(cls, content: str | list[_Part] | None) -> str:
        parts = content if isinstance(content, list) else []
        if any(part.type != "text" for part in parts):
            raise ValueError("expected text parts only")
        return content if isinstance(content, str) else "".join(part.text for part in parts)


class _ChatRequest(BaseModel):
    """What a client may ask for. Names not listed here change nothing in a text chat and are ignored."""

    model_config = ConfigDict(extra="ignore")

    messages: list[_Message] = Field(min_length=1)
    model: str | None = None
    n: int = Field(1, ge=1, le=1024)
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    logprobs: bool | None = False
    stream: bool | None = False
    return_token_ids: bool | None = False
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None

    def problem(self) -> tuple[str, str] | None:
        """(name, why) of the first thing that cannot be served."""
        continued = self.messages[-1].role == "assistant" and self.continue_final_message
        if self.continue_final_message and self.add_generation_prompt:
            return "continue_final_message", "expected add_generation_prompt=false beside continue_final_message"
        if self.continue_final_message and not continued:
            return "continue_final_message", "expected an assistant message to go on from as the last one"
        if not self.continue_final_message and not self.add_generation_prompt:
            return "add_generation_prompt", "expected true: answers begin a new turn unless continue_final_message"
        if self.tools:
            return "tools", "tools are not served here: expected none"
        if (self.response_format or {}).get("type", "text") != "text":
            return "response_format", "expected text"
        return None

    def request(self, defaults: Sampling) -> Request:
        """The policy's request; `defaults` fills in what the client left out."""
        messages = tuple(ChatMessage(role=one.role, content=str(one.content or "")) for one in self.messages)
        prefill = ""
        if self.continue_final_message:
            prefill, messages = messages[-1]["content"], messages[:-1]
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        sampling = Sampling(
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            max_tokens=self.max_completion_tokens or self.max_tokens or defaults.max_tokens,
            stop=stop or defaults.stop,
            seed=defaults.seed if self.seed is None else self.seed,
        )
        return Request(messages=messages, n=self.n, sampling=sampling, prefill=prefill)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server. url: the base that clients take, ending in /v1."""

    url: str
    model: str
    _runner: web.AppRunner

    async def close(self) -> None:
        """Stop serving; calling it twice is harmless."""
        await self._runner.cleanup()


async def serve(
    policy: Policy,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    model: str = "",
    sampling: Sampling | None = None,
) -> Server:
    """Serve `policy` in the running event loop until `Server.close`.

    port: 0 takes a free one. model: the name it is served under (default: the policy's). sampling: what holds where a
    client says nothing. Raises PolicyError when the address is taken.
    """
    handlers = _Handlers(policy, model or policy.name, sampling or Sampling())
    app = web.Application(middlewares=[_errors_as_json], client_max_size=16 * 2**20)
    app.router.add_get("/v1/models", handlers.models)
    app.router.add_post("/v1/chat/completions", handlers.chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise PolicyError(f"cannot serve at {host}:{port} ({error.strerror}): choose another port.") from None
    bound = runner.addresses[0][1]
    shown = f"[{host}]" if ":" in host else host
    return Server(url=f"http://{shown}:{bound}/v1", model=handlers.model, _runner=runner)


class _Handlers:
    def __init__(self, policy: Policy, model: str, defaults: Sampling) -> None:
        self.policy, self.model, self.defaults = policy, model, defaults

    async def models(self, _: web.Request) -> web.Response:
        entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "kintsugi"}
        return web.json_response({"object": "list", "data": [entry]})

    async def chat(self, http: web.Request) -> web.StreamResponse:
        try:
            asked = _ChatRequest.model_validate(json.loads(await http.read()))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            return _error(400, f"{name}: {first['msg']}", name)
        except ValueError as error:
            return _error(400, f"expected a JSON object, found something else ({error})")
        if asked.model not in (None, self.model):
            return _error(404, f'expected the model "{self.model}", found "{asked.model}"', "model", "model_not_found")
        if problem := asked.problem():
            return _error(400, f"{problem[0]}: {problem[1]}", problem[0])
        request = asked.request(self.defaults)
        async with live(self.policy):  # a batching policy waits for all requests that are open, and for no others
            completions = await self.policy.complete(request)
        if asked.stream:
            return await self._stream(http, completions)
        return web.json_response(self._reply(asked, completions))

    def _reply(self, asked: _ChatRequest, completions: list[Completion]) -> dict[str, Any]:
        given, sampled = len(completions[0].prompt_ids), sum(len(one.token_ids) for one in completions)
        cached = max(0, given - completions[0].processed_tokens)
        reply: dict[str, Any] = {
            **self._head("chat.completion"),
            "choices": [_choice(index, one, asked) for index, one in enumerate(completions)],
            "usage": {
                "prompt_tokens": given,
                "completion_tokens": sampled,
                "total_tokens": given + sampled,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }
        if asked.return_token_ids:
            reply["prompt_token_ids"] = list(completions[0].prompt_ids)
        return reply

    async def _stream(self, http: web.Request, completions: list[Completion]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(http)
        head = self._head("chat.completion.chunk")
        for index, one in enumerate(completions):
            for delta, finish in (({"role": "assistant", "content": one.text}, None), ({}, one.finish)):
                choice = {"index": index, "delta": delta, "finish_reason": finish}
                await response.write(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.policy.version,
        }


def _choice(index: int, completion: Completion, asked: _ChatRequest) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "message": {"role": "assistant", "content": completion.text},
        "finish_reason": completion.finish,
        **({} if completion.stop is None else {"stop_reason": completion.stop or None}),
        "logprobs": None,
    }
    if asked.logprobs and completion.logprobs:
        # A policy gives ids, not the text of each token: they are shown as by vLLM's return_tokens_as_token_ids.
        ids = completion.token_ids or ("?",) * len(completion.logprobs)
        choice["logprobs"] = {
            "content": [
                {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
                for token, logprob in zip(ids, completion.logprobs, strict=True)
            ]
        }
    if asked.return_token_ids:
        choice["token_ids"] = list(completion.token_ids)
    return choice


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, error.reason)
    except ContextTooLong as error:  # in the words and with the code that clients know it by
        return _error(400, f"context length exceeded: {error}", "messages", "context_length_exceeded")
    except KintsugiError as error:
        return _error(500, str(error), kind="policy_error")
    except Exception as error:  # the boundary of the server: a client gets an answer, the log gets the traceback
        _log.exception("a request failed")
        return _error(500, f"the policy failed ({type(error).__name__})", kind="internal_error")


def _error(
    status: int, message: str, param: str | None = None, code: str | None = None, kind: str = ""
) -> web.Response:
    error = {"message": message, "type": kind or "invalid_request_error", "param": param, "code": code}
    return web.json_response({"error": error}, status=status)

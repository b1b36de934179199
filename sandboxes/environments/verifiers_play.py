"""verifiers' rollouts, played message by message: who asks for the model's next message waits for the agent's action.

    stage = Stage(env, tasks, patience_s=60, list_tools=True)     # env: a verifiers environment whose agent is `ChatHarness`
    play = await stage.play(3)                                    # one rollout of a task
    await play.begin()                                            # {"observation": what the model is asked first}
    await play.act("Action: price[apple]")                        # {"observation": …}, {"ended": scores} or {"broke": why}

The rollout is verifiers' own: `Env.run_episode`, with its limits, stops, hooks and rewards. Its client asks an endpoint as
it would ask a model's; the one here hands the request to the attempt and answers with what the agent writes. Left out: see
`verifiers_bridge`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import math
import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from kintsugi.sandboxes.environments.gymnasium_text import storable
from kintsugi.sandboxes.environments.mcp_actions import find_call, signature, usage
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.verifiers_servers import ForkedServer

LONGEST_MESSAGE: Final = 100_000
LONGEST_REFUSAL: Final = 3_000
ACTION: Final = re.compile(r"^\s{0,9}action\s?\d{0,3}\s?:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_THOUGHT: Final = re.compile(r"^\s{0,9}(?:thought|think)\s?\d{0,3}\s?:\s?", re.IGNORECASE)
_CALL: Final = re.compile(r"\s{0,9}([A-Za-z_][\w-]{0,99})\s?\[.*\]\s{0,9}")
_LIMITS: Final = ("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "agent_timeout")
_MODEL: Final = "kintsugi"
_TOOLS: Final = "Tools, one call a turn; any other message is an answer, and so is finish[answer]:"
_GOODBYE_S: Final = 15.0


class Stage:
    """Where the rollouts of one environment are played. env: verifiers'; tasks: its; patience_s: longest wait for what
    follows a message. list_tools: the first observation names the tools."""

    def __init__(self, env: Any, tasks: Sequence[Any], patience_s: float, list_tools: bool) -> None:
        self.env, self.tasks, self.patience_s, self.list_tools = env, tasks, patience_s, list_tools
        self.rollouts: dict[str, Play] = {}
        self.model: Any = None
        self._stack = AsyncExitStack()
        self._served: list[ForkedServer] = []
        self._ended = False

    async def open(self) -> None:
        """Start the endpoint and what the environment serves to all its rollouts; nothing when that is there. Of the latter,
        what has died is started anew: an agent's call may have ended it."""
        if self.model is not None:
            if self._ended or any(server.returncode is not None for server in self._served):
                await self._serve()
            return
        vf, web = importlib.import_module("verifiers.v1"), importlib.import_module("aiohttp.web")
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._asked)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        await self._serve()
        self.model = vf.ModelContext(_MODEL, vf.EvalClientConfig(base_url=url, api_key_var="KINTSUGI_NO_KEY"))

    async def _serve(self) -> None:
        before, self._stack = self._stack, AsyncExitStack()
        with contextlib.suppress(Exception):  # what is left of dead servers is foreign code's
            await asyncio.wait_for(before.aclose(), _GOODBYE_S)
        known = len(ForkedServer.started)
        await self._stack.enter_async_context(self.env.serving())
        self._served, self._ended = ForkedServer.started[known:], False

    def end_served(self) -> None:
        """Kill the servers that all rollouts share; the next rollout starts them anew."""
        for server in self._served:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGKILL)
        self._ended = bool(self._served)

    async def play(self, index: int) -> Play:
        """A rollout of that task, not begun."""
        await self.open()
        return Play(self, self.tasks[index])

    async def _asked(self, request: Any) -> Any:
        """A model's request: it waits until the agent has written."""
        web = importlib.import_module("aiohttp.web")
        body = await request.json()
        name = importlib.import_module("verifiers.v1.clients.client").SESSION_ID_HEADER
        play = self.rollouts.get(request.headers.get(name, ""))
        if play is None:
            return web.json_response({"error": {"message": "this rollout is over"}}, status=404)
        message = await play.asked(body)
        head = {"id": f"reply{play.number}", "created": 0, "model": _MODEL}
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
        calls = [{"index": place, **call} for place, call in enumerate(message.get("tool_calls", ()))]
        delta = {**message, **({"tool_calls": calls} if calls else {})}
        chunks = [{"index": 0, "delta": delta, "finish_reason": None}, {"index": 0, "delta": {}, "finish_reason": reason}]
        told = [json.dumps({**head, "object": "chat.completion.chunk", "choices": [chunk]}) for chunk in chunks]
        return web.Response(text="".join(f"data: {one}\n\n" for one in [*told, "[DONE]"]), content_type="text/event-stream")


class Play:
    """One rollout. number: the agent's actions so far, malformed ones included. tools: those that the model is offered, in
    the form of the chat-completions protocol."""

    def __init__(self, stage: Stage, task: Any) -> None:
        self.stage, self.task, self.number = stage, task, 0
        self.tools: list[dict[str, Any]] = []
        self._questions: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = asyncio.Queue()
        self._waiting: asyncio.Future[dict[str, Any]] | None = None
        self._said: list[Any] = []
        self._names: list[str] = []
        self._episode: asyncio.Task[Any] | None = None

    async def begin(self) -> dict[str, Any]:
        """Start the rollout; what the model is asked first."""
        run = self.stage.env.run_episode(self.task, self.stage.model, on_trace=self._minted)
        self._episode = asyncio.ensure_future(run)
        return await self._next()

    async def act(self, text: str) -> dict[str, Any]:
        """Make `text` the model's message; what it is asked next, or how the rollout ended."""
        self.number += 1
        if self._waiting is None:
            return await self._next()
        message = message_of(text, self.tools, self.number)
        if isinstance(message, str):
            return {"observation": storable(message[:LONGEST_REFUSAL]), "malformed": True}
        waiting, self._waiting = self._waiting, None
        if not waiting.done():
            waiting.set_result(message)
        return await self._next()

    async def asked(self, body: dict[str, Any]) -> dict[str, Any]:
        """The agent's message, once it is written."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait((body, answer))
        return await answer

    async def close(self) -> None:
        """End the rollout, and what it started."""
        if self._episode is not None and not self._episode.done():
            self._episode.cancel()
            await asyncio.wait({self._episode}, timeout=_GOODBYE_S)
        for name in self._names:
            self.stage.rollouts.pop(name, None)

    def _minted(self, trace: Any) -> None:
        self._names.append(trace.id)
        self.stage.rollouts[trace.id] = self

    async def _next(self) -> dict[str, Any]:
        """The next request for a message, or the end."""
        assert self._episode is not None
        question = asyncio.ensure_future(self._questions.get())
        try:
            await asyncio.wait({question, self._episode}, timeout=self.stage.patience_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not question.done():
                question.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await question
        if self._episode.done():
            await self.close()
            return _ended(self._episode)
        if question.done() and not question.cancelled():
            body, self._waiting = question.result()
            return {"observation": storable(self._shown(body))}
        self.stage.end_served()  # whatever hangs there would keep later rollouts waiting too
        await self.close()
        return {"broke": f"nothing came back within {self.stage.patience_s:g} s"}

    def _shown(self, body: Mapping[str, Any]) -> str:
        """What is new in a request: all of it in a new conversation, else what stands behind the agent's last message."""
        self.tools = list(body.get("tools") or ())
        messages = [message for message in body["messages"] if isinstance(message, dict)]
        plain = [(message.get("role"), _text(message)) for message in messages]
        known = len(self._said)
        begun = known and plain[:known] == self._said and len(plain) > known and plain[known][0] == "assistant"
        new = plain[known + 1 :] if begun else plain
        self._said = plain
        parts = [f"You said: {text}" if role == "assistant" else text for role, text in new if text.strip()]
        if not begun and self.tools and self.stage.list_tools:
            parts.append("\n".join([_TOOLS, *map(_tool_line, self.tools)]))
        return "\n\n".join(parts) or "(no output)"


def message_of(text: str, tools: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any] | str:
    """The model's message that an action is, or what is wrong with it. number: the action's, for a call's id."""
    if not text.strip():
        return "That was empty: write a message."
    if len(text) > LONGEST_MESSAGE:
        return f"A message of {len(text)} characters is too long."
    found = ACTION.search(text)
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    step = find_call(text, schemas) if schemas else None
    if step is not None and step.kind == "unknown":
        return step.argument
    if step is not None and step.kind == "call":
        thought = _THOUGHT.sub("", text[: found.start()] if found else "").strip()
        function = {"name": step.name, "arguments": json.dumps(dict(step.arguments), ensure_ascii=False)}
        call = {"id": f"call{number:05d}", "type": "function", "function": function}
        return {"role": "assistant", "content": thought, "tool_calls": [call]}
    said = step.argument if step is not None else found[1].strip() if found else ""
    if schemas and step is None and (unknown := _CALL.fullmatch(said or text)):
        return f'There is no tool "{readable(unknown[1], 40)}". {usage(schemas)}'
    return {"role": "assistant", "content": said or text}


def scored(trace: Any) -> dict[str, Any]:
    """`{"ended": …}` with the weighted sum of a finished trace's rewards, each of them and each metric, and the limit that
    ended it, "" for none; or `{"broke": why}`."""
    rewards = {name: reward.value for name, reward in trace.rewards.items() if reward is not None}
    missing = [name for name, reward in trace.rewards.items() if reward is None]
    if missing or not rewards:
        return {"broke": f"not scored: {', '.join(missing) or 'the task has no rewards'}"}
    detail = {name: float(value) for name, value in (*trace.metrics.items(), *rewards.items()) if value is not None}
    odd = [name for name, value in {**detail, "reward": float(trace.reward)}.items() if not math.isfinite(value)]
    if odd:
        return {"broke": f"expected numbers, found others as {', '.join(odd)}"}
    limit = trace.stop_condition if trace.stop_condition in _LIMITS else ""
    return {"ended": {"reward": float(trace.reward), "detail": detail, "limit": limit}}


def one_line(said: object) -> str:
    """What went wrong, on one line that can be stored."""
    told = f"{type(said).__name__}: {said}" if isinstance(said, BaseException) else str(said)
    return readable(" ".join(told.split()), 250)


def _ended(episode: asyncio.Task[Any]) -> dict[str, Any]:
    if episode.cancelled():
        return {"broke": "the rollout was cancelled"}
    error = episode.exception()
    if error is not None:
        return {"broke": one_line(error)}
    done = episode.result()
    errors = [*done.errors, *(error for trace in done.traces for error in trace.errors)]
    if not done.ok:
        return {"broke": one_line(f"{errors[-1].type}: {errors[-1].message}" if errors else "the rollout failed")}
    if len(done.traces) != 1:
        return {"broke": f"it ran its agent {len(done.traces)} times, expected once"}
    return scored(done.traces[0])


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        return "\n".join(str(part.get("text", "")) if part.get("type") == "text" else "(a picture)" for part in parts)
    calls = message.get("tool_calls") or ()
    return " ".join([str(content or ""), *(str(call["function"]["name"]) for call in calls)]).strip()


def _tool_line(tool: Mapping[str, Any]) -> str:
    function = tool["function"]
    words = str(function.get("description") or "").strip().splitlines() or ["no description"]
    return f"{signature(function['name'], function.get('parameters') or {})}: {readable(words[0].strip(), 160)}"

"""The tools of any MCP server: an agent calls them, one a turn, until it gives an answer.

    environment = open_environment(command="python my_server.py", tasks="questions.jsonl")
    environment = open_environment(url="http://localhost:8000/mcp", tasks="questions/", share=True)

It needs the extra `[mcp]`. **Tasks** are your own: a file of JSON lines, or a folder of `train.jsonl`, `heldout.jsonl`,
`demonstrations.jsonl`. A line has `question` and, as far as it applies, `answer`, `id`, `split` (of a file's line: train
unless said), `calls` (actions that lead to the answer, for golds) and `judge` (see below).

**Actions**: `tool[argument]`, `tool[{"a": 1, "b": 2}]`, native calls as JSON, `finish[answer]`, `think: …`; see
`mcp_actions`. The prompt is the question and, unless `list_tools=False`, the tools. For a model that is offered tools by
its own protocol give `schemas(command=…)` to the policy's option `tools`.

**Success**: `match` compares what `finish` said with `answer`: "exact" (HotpotQA's normalisation), "number" (within 1e-4),
"contains", "regex", or "module:function" of (task's record, answer said) → bool or a score in [0, 1], won at 1. With
`judge="tool"` that tool, which the agent cannot see, is called at the end with the record's `judge` arguments on the
attempt's own server and decides: `{"success": …}`, or a text true or false.

Each attempt has a server program of its own, started at its first call, so that tools may change things; `share=True` is
one for all, for tools that keep nothing. At most `servers` run at once (sessions, at a url): an attempt that needs another
waits until one has ended, for as long as the others go on: it gives up when none of them did anything for `wait_s`. A
server that dies or hangs ends the attempt with an error on its verdict. Left out: see `mcp_session`; checking that a
program's tools are harmless: they run with your rights, not in the sandbox.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, missing_extra, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.background_loop import BackgroundLoop
from kintsugi.sandboxes.environments.environment import Reply
from kintsugi.sandboxes.environments.mcp_actions import parse_call, signature
from kintsugi.sandboxes.environments.mcp_session import Result, Server, ServerBroke, Session
from kintsugi.sandboxes.environments.mcp_tasks import Judge, open_judge, read_tasks
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.turn_clock import in_line

ABOUT = About(
    kind="bridge: several turns, the tools of any MCP server (options command or url, and tasks)",
    metric="the answer matches (option match), or a tool of the server judges (option judge)",
    data="your own: question, answer, calls a line",
    extra="mcp",
)

LONGEST_REFUSAL: Final = 3_000
_STARTS: Final = max(2, os.cpu_count() or 2)
"""Servers that start at once: each imports a library or two, and more would only make every one of them late."""


def open_environment(
    tasks: str | Path,
    command: str | Sequence[str] = (),
    url: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    headers: Mapping[str, str] | None = None,
    match: str = "exact",
    judge: str = "",
    share: bool = False,
    list_tools: bool = True,
    hide: Sequence[str] = (),
    max_turns: int = 10,
    timeout_s: float = 30.0,
    servers: int = 16,
    start_s: float = 120.0,
    wait_s: float = 600.0,
) -> McpBridge:
    """The environment of the server that `command` starts, or that answers at `url`.

    tasks: see the module. env: variables of the program beside PATH and HOME; cwd: its folder. headers: for `url`. match,
    judge, share, list_tools: see the module. hide: tools the agent may not call. max_turns: most actions an attempt may
    take. timeout_s: longest wait for a tool; start_s: for a server that starts. servers, wait_s: see the module. Raises
    MissingExtra, ConfigError, and DataError for a server that is down."""
    if importlib.util.find_spec("mcp") is None:
        raise missing_extra("the environment mcp", "mcp")
    if max_turns < 1 or servers < 1 or min(timeout_s, start_s, wait_s) <= 0:
        raise ConfigError("mcp: expected max_turns and servers of 1 or more, and timeout_s, start_s and wait_s above 0")
    server = _server(command, url, env, cwd, headers)
    records, judged = read_tasks(Path(tasks).expanduser()), open_judge(match)
    loop = BackgroundLoop("mcp")
    try:
        tools = {tool.name: tool for tool in _listed(loop, server, start_s)}
    except BaseException:
        loop.close()
        raise
    if judge and judge not in tools:
        loop.close()
        raise ConfigError(f'mcp.judge: the server has no tool "{judge}": {nearest(judge, tools)}')
    offered = {name: tool for name, tool in tools.items() if name not in {judge, "finish", *hide}}
    return McpBridge(
        server, loop, records=records, tools=offered, judged=judged, judge_tool=judge, share=share, list_tools=list_tools,
        max_turns=max_turns, timeout_s=timeout_s, servers=servers, start_s=start_s, wait_s=wait_s,
    )  # fmt: skip


def schemas(
    command: str | Sequence[str] = (), url: str = "", hide: Sequence[str] = (), timeout_s: float = 120.0, **server: Any
) -> list[dict[str, Any]]:
    """The server's tools and `finish` in the form of the chat-completions protocol, for a policy's option `tools`.

    server: env, cwd, headers. Raises as `open_environment`."""
    if importlib.util.find_spec("mcp") is None:
        raise missing_extra("the environment mcp", "mcp")
    where = _server(command, url, server.get("env"), server.get("cwd"), server.get("headers"))
    loop = BackgroundLoop("mcp")
    try:
        tools = [tool for tool in _listed(loop, where, timeout_s) if tool.name not in {"finish", *hide}]
    finally:
        loop.close()
    told = [(tool.name, tool.description or "", dict(tool.input_schema)) for tool in tools]
    answer = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    told.append(("finish", "Give the final answer; this ends the attempt.", answer))
    return [
        {"type": "function", "function": {"name": name, "description": words, "parameters": parameters}}
        for name, words, parameters in told
    ]


class McpBridge:
    """The environment. A payload is the record without its question."""

    name = "mcp"

    def __init__(
        self, server: Server, loop: BackgroundLoop, *, records: Mapping[str, Sequence[Mapping[str, Any]]],
        tools: Mapping[str, Any], judged: Judge, judge_tool: str, share: bool, list_tools: bool, max_turns: int,
        timeout_s: float, servers: int, start_s: float, wait_s: float,
    ) -> None:  # fmt: skip
        self.server, self.loop, self.records = server, loop, records
        self.tools = {name: dict(tool.input_schema) for name, tool in tools.items()}
        self.about = {name: tool.description or "" for name, tool in tools.items()}
        self.judged, self.judge_tool, self.share, self.list_tools = judged, judge_tool, share, list_tools
        self.max_turns, self.timeout_s, self.start_s = max_turns, timeout_s, start_s
        self.servers, self.wait_s = servers, wait_s
        self._open: set[Session] = set()
        self._shared: Session | None = None
        self._queue()

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The records of `split` in the file's order, at most `limit`. Raises DataError for an unknown split."""
        if split not in self.records:
            raise DataError(f'the tasks of mcp have no split "{split}": {nearest(split, self.records)}')
        chosen = self.records[split][:limit]
        return [self._task(record, split, number) for number, record in enumerate(chosen)]

    async def start(self, task: Task) -> McpWorld:
        return McpWorld(self, task)

    async def gold(self, task: Task) -> Sequence[str] | None:
        """The record's `calls`, and `finish` with its answer; None where there is none that wins."""
        answer, calls = task.payload.get("answer"), [str(call) for call in task.payload.get("calls") or ()]
        if (answer is None and not self.judge_tool) or (self.judge_tool and not calls) or self.judged.is_pattern:
            return None
        return (*calls, f"finish[{' '.join(str('done' if answer is None else answer).split())}]")

    async def close(self) -> None:
        if self._open:
            await self.loop.run(self._close_all())
        self.loop.close()
        self._queue()

    async def session(self) -> Session:
        """A session that is open (on the bridge's own loop). Raises ServerBroke."""
        if not self.share:
            return await self._opened()
        async with self._one_at_a_time:
            if self._shared is not None and not self._shared.alive:
                dead, self._shared = self._shared, None
                await self.leave(dead)
            if self._shared is None:
                self._shared = await self._opened()
            return self._shared

    async def leave(self, session: Session) -> None:
        """Close an attempt's own session, whose place the next may have; a shared one stays."""
        if session is self._shared or session not in self._open:
            return
        try:
            await session.close()
        finally:
            self._gone(session)

    def _queue(self) -> None:
        """What attempts wait at. It belongs to one event loop, and the bridge's begins anew after `close`."""
        self._one_at_a_time, self._starts = asyncio.Lock(), asyncio.Semaphore(_STARTS)
        self._places = asyncio.Semaphore(self.servers)
        self.moved()

    async def _opened(self) -> Session:
        await self._place()
        session = Session(self.server, self.timeout_s, self.start_s)
        self._open.add(session)
        try:
            with in_line():
                await self._starts.acquire()
            try:
                await session.open()
            finally:
                self._starts.release()
        except BaseException:
            self._gone(session)
            raise
        return session

    async def _place(self) -> None:
        """Until there is a place for a server. Raises ServerBroke."""
        while True:
            try:
                async with asyncio.timeout(self.wait_s):
                    with in_line():
                        await self._places.acquire()
                    return
            except TimeoutError:
                if time.monotonic() - self._moved < self.wait_s:
                    continue
                why = f"no place for another server: {self.servers} run, and did nothing for {self.wait_s:g} s"
                raise ServerBroke(f"{why}; close attempts, or give servers more") from None

    def moved(self) -> None:
        """Something went on: who waits for a place does not wait in vain."""
        self._moved = time.monotonic()

    def _gone(self, session: Session) -> None:
        if session in self._open:
            self._open.discard(session)
            self._places.release()
            self.moved()

    async def _close_all(self) -> None:
        self._shared = None
        await asyncio.gather(*(self.leave(session) for session in list(self._open)))

    def _task(self, record: Mapping[str, Any], split: str, number: int) -> Task:
        payload = {name: value for name, value in record.items() if name not in ("question", "split", "id")}
        prompt = str(record["question"]).strip()
        if self.list_tools:
            lines = [f"{signature(name, schema)}: {_first_line(self.about[name])}" for name, schema in self.tools.items()]
            lines.append("finish[answer]: Give the final answer; this ends the attempt.")
            prompt = "\n".join([prompt, "", "Tools, one call a turn:", *lines])
        name = str(record.get("id", f"{split}-{number}"))
        return Task(id=name, environment=self.name, split=split, prompt=prompt, payload=payload)


class McpWorld:
    """One attempt. verdict: once it is over."""

    def __init__(self, bridge: McpBridge, task: Task) -> None:
        self.bridge, self.task = bridge, task
        self.called: list[str] = []
        self.errors = 0
        self.verdict: Verdict | None = None
        self._session: Session | None = None

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        if self.verdict is not None:
            return Reply(observation="The attempt is over.", executions=0)
        step = parse_call(action.encode(errors="replace").decode(), self.bridge.tools)
        if step.kind == "think":
            return Reply(observation="OK.", executions=0)
        if step.kind == "unknown":
            return Reply(observation=step.argument[:LONGEST_REFUSAL], executions=0)
        try:
            if step.kind == "finish":
                self.verdict = await self._judge(step.argument)
                return Reply(verdict=self.verdict)
            result = await self.bridge.loop.run(self._call(step.name, step.arguments))
        except ServerBroke as broke:
            why = f"the MCP server {readable(str(self.bridge.server), 80)} broke: {broke}"
            self.verdict = Verdict(success=False, reward=0.0, feedback=f"The environment broke: {why}", error=why)
            return Reply(verdict=self.verdict)
        self.called.append(step.name)
        self.errors += result.error
        text = result.text.strip() or "(no output)"
        return Reply(observation=f"Error: {text}" if result.error and not text.lower().startswith("error") else text)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await self.bridge.loop.run(self.bridge.leave(session))

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> Result:
        if self._session is None or (self.bridge.share and not self._session.alive):
            self._session = await self.bridge.session()
        self.bridge.moved()
        return await self._session.call(name, arguments)

    async def _judge(self, answer: str) -> Verdict:
        bridge, payload = self.bridge, self.task.payload
        if bridge.judge_tool:
            result = await bridge.loop.run(self._call(bridge.judge_tool, payload.get("judge") or {}))
            if result.error:
                raise ServerBroke(f"the judging tool {bridge.judge_tool} failed: {result.text[:200]}")
            score = float(_says_success(result))
        else:
            score = bridge.judged.score({"question": self.task.prompt, **payload}, answer)
        success = score >= 1.0
        if success:
            return Verdict(success=True, reward=1.0, feedback="Right.", detail={"score": score})
        shown = "The task was not done." if bridge.judge_tool else f'"{readable(answer, 80)}" is not the answer.'
        used = ", ".join(dict.fromkeys(self.called)) or "none"
        feedback = f"{shown} Tools called: {used}."
        feedback += f" {self.errors} calls failed." if self.errors else ""
        return Verdict(success=False, reward=0.0, feedback=feedback, detail={"score": score})


def _server(
    command: str | Sequence[str], url: str, env: Mapping[str, str] | None, cwd: str | None, headers: Mapping[str, str] | None
) -> Server:
    words = tuple(shlex.split(command)) if isinstance(command, str) else tuple(command)
    if bool(words) == bool(url):
        raise ConfigError("mcp: expected one of command (the program that is the server) and url, found both or none")
    return Server(command=words, env=dict(env or {}), cwd=cwd, url=url, headers=dict(headers or {}))


def _listed(loop: BackgroundLoop, server: Server, start_s: float) -> list[Any]:
    """The server's tools, from a session opened for it alone. Raises DataError."""

    async def ask() -> list[Any]:
        session = Session(server, start_s, start_s)
        await session.open()
        await session.close()
        return session.tools

    mend = (
        "start it, or mend the url" if server.url else "mend the command: it must speak MCP on its standard input and output"
    )
    try:
        return loop.run_blocking(ask(), start_s + 15)
    except (ServerBroke, TimeoutError) as broke:
        raise DataError(f'mcp: expected an MCP server at "{server}", found none ({broke}); {mend}') from None


def _says_success(result: Result) -> bool:
    value = result.value
    if isinstance(value, Mapping):
        value = value.get("success", value.get("result"))
    return value if isinstance(value, bool) else result.text.strip().lower() in ("true", "yes", "1")


def _first_line(text: str) -> str:
    return readable(next((line.strip() for line in text.splitlines() if line.strip()), "no description"), 160)

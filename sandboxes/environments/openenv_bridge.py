"""Any OpenEnv server, spoken to over its WebSocket sessions.

    environment = open_environment(url="http://localhost:8000")
    environment = open_environment(command="uvicorn my_env.server.app:app --port {port}")      # started here, and ended

It needs no package: the protocol (`/schema` and `/ws` with reset and step) is spoken as OpenEnv 0.10 has it. A task is a
seed: its prompt is what `reset(seed=…)` shows. Splits share no prompt: `seeded_tasks`.

**Actions**: where an action of the server has one field of text or one number to fill in (or the option `field` names it),
the agent's text is that field; else, and whenever it looks so, it is the action as a JSON object. After `Action:` on a line
of its own the rest of that line counts. `think: …` is answered "OK.". What the server's schema refuses, and what its
environment raises, is told to the agent and costs a turn.

**Success**: with `success_return`, the attempt ended with at least that sum of rewards; without, with a last reward above 0.
Each attempt has a session of its own; a server that is full is waited for. A server that ends the session, dies or hangs
ends the attempt with an error on its verdict. Left out: servers that ignore their seed, tools over MCP (give the server's
MCP address to the environment `mcp`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.background_loop import BackgroundLoop
from kintsugi.sandboxes.environments.environment import Reply
from kintsugi.sandboxes.environments.gymnasium_text import LONGEST_ACTION, shown
from kintsugi.sandboxes.environments.openenv_session import (
    Refused,
    ServerBroke,
    ServerFull,
    ServerProcess,
    Session,
    action_schema,
)
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.seeded_tasks import SeededTasks

_ACTION: Final = re.compile(r"^\s{0,9}action\s?\d{0,3}\s?:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_THINK: Final = re.compile(r"\s*think\s?:", re.IGNORECASE)
_AT_ONCE: Final = 8

ABOUT = About(
    kind="bridge: several turns, any OpenEnv server (option url or command)",
    metric="the return reaches success_return, or the last reward is above 0",
    data="none: a task is a seed",
)


def open_environment(
    url: str = "",
    command: str = "",
    field: str = "",
    reset: Mapping[str, Any] | None = None,
    instructions: str = "",
    success_return: float | None = None,
    max_turns: int = 30,
    num_tasks: int = 50,
    timeout_s: float = 30.0,
    start_s: float = 120.0,
) -> OpenEnvBridge:
    """The environment of the server at `url`, or of the one that `command` starts ("{port}" in it becomes a free port).

    field: the field of an action that the agent's text fills. reset: further fields of each reset. instructions: stand
    before each prompt. success_return: see the module. max_turns: most actions an attempt may take. num_tasks: how many
    `tasks` gives without a limit. timeout_s: longest wait for one action, and for a place on a full server. start_s: for a
    server that is started. Raises ConfigError, and DataError for a server that is down."""
    if bool(url) == bool(command):
        raise ConfigError("openenv: expected one of url and command, found both or none")
    if max_turns < 1 or num_tasks < 1 or timeout_s <= 0:
        raise ConfigError("openenv: expected max_turns and num_tasks of 1 or more and timeout_s above 0")
    process = ServerProcess(command, start_s) if command else None
    address = process.url if process is not None else url.rstrip("/")
    loop = BackgroundLoop("openenv")
    try:
        if process is not None:
            process.wait()
        schema = loop.run_blocking(action_schema(address, timeout_s), timeout_s + 5)
        form = ActionForm(schema, field)
    except BaseException as error:
        loop.close()
        if process is not None:
            process.close()
        if isinstance(error, ServerBroke | TimeoutError):
            raise DataError(f"openenv: expected an OpenEnv server at {address}, found none ({error}); start it") from None
        raise
    return OpenEnvBridge(
        address, process, loop, form, reset=dict(reset or {}), instructions=instructions, success_return=success_return,
        max_turns=max_turns, num_tasks=num_tasks, timeout_s=timeout_s,
    )  # fmt: skip


class ActionForm:
    """How the agent's text becomes an action of the server. field: the one that plain text fills, "" for none; help: the
    sentence about it. Raises ConfigError for a field that is not there."""

    def __init__(self, schema: Mapping[str, Any], field: str) -> None:
        properties: Mapping[str, Any] = schema.get("properties") or {}
        self.fields = {name: about for name, about in properties.items() if name != "metadata"}
        if field and field not in self.fields:
            raise ConfigError(f'openenv.field: an action has no field "{field}": it has {", ".join(self.fields) or "none"}')
        free = {name: about for name, about in self.fields.items() if "const" not in about}
        needed = [name for name in schema.get("required") or () if name in free] or list(free)
        one = needed[0] if len(needed) == 1 and free[needed[0]].get("type") in ("string", "integer", "number") else ""
        self.field = field or one
        self.kind = str(self.fields[self.field].get("type", "string")) if self.field else ""
        self.help = self._help()

    def read(self, text: str) -> dict[str, Any] | str:
        """The action, or what is wrong with the text."""
        if len(text) > LONGEST_ACTION:
            return f"An action of {len(text)} characters is too long. {self.help}".strip()
        found = _ACTION.search(text)
        text = found[1].strip() if found else text
        if not text.strip():
            return f"That was empty. {self.help or 'Write an action.'}".strip()
        plain = _object(text)
        if plain is not None and (not self.field or set(plain) & set(self.fields)):
            return plain
        if not self.field:
            return f'"{readable(text.strip(), 60)}" is no JSON object. {self.help}'
        if self.kind in ("integer", "number"):
            try:
                number = float(text.strip())
                return {self.field: int(number) if number.is_integer() else number}
            except (ValueError, OverflowError):
                return f'"{readable(text.strip(), 60)}" is no number. {self.help}'
        return {self.field: text}

    def _help(self) -> str:
        if not self.field:
            return f"Actions: a JSON object with {', '.join(map(_described, self.fields, self.fields.values()))}."
        choices = self.fields[self.field].get("enum")
        if choices:
            return f"Actions: {', '.join(map(str, choices))}."
        return f"Actions: a number, the {self.field}." if self.kind in ("integer", "number") else ""


class OpenEnvBridge:
    """The environment. A payload holds `seed`."""

    name = "openenv"

    def __init__(
        self, url: str, process: ServerProcess | None, loop: BackgroundLoop, form: ActionForm, *, reset: Mapping[str, Any],
        instructions: str, success_return: float | None, max_turns: int, num_tasks: int, timeout_s: float,
    ) -> None:  # fmt: skip
        self.url, self.process, self.loop, self.form, self.reset = url, process, loop, form, reset
        self.success_return, self.max_turns, self.num_tasks = success_return, max_turns, num_tasks
        self.timeout_s = timeout_s
        self.seeded = SeededTasks(self.name, self._first, instructions, form.help)
        self._open: set[Session] = set()
        self._waiting: collections.deque[asyncio.Event] = collections.deque()

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Tasks of `split`, others for another seed; see `SeededTasks`. Raises DataError also for a server that is down."""
        wanted = self.num_tasks if limit is None else limit
        return self.seeded.tasks(split, wanted=wanted, seed=seed)

    async def start(self, task: Task) -> OpenEnvWorld:
        return OpenEnvWorld(self, task)

    async def gold(self, task: Task) -> Sequence[str] | None:
        return None

    async def close(self) -> None:
        if self._open:
            await self.loop.run(self._close_all())
        self.loop.close()
        if self.process is not None:
            self.process.close()

    async def session(self, seed: int) -> tuple[Session, str]:
        """A session that was reset under `seed`, and its first observation (on the bridge's own loop).

        A full server is waited for, until `timeout_s` has passed. Raises ServerBroke."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            session = Session(self.url, self.timeout_s)
            self._open.add(session)
            try:
                return session, text_of(await session.ask("reset", {**self.reset, "seed": seed}))
            except ServerFull:
                await self.leave(session)
                if time.monotonic() > deadline:
                    raise
                await self._room()
            except Refused as refused:
                await self.leave(session)
                raise ServerBroke(f"it refused a reset: {refused}") from None
            except BaseException:
                await self.leave(session)
                raise

    async def leave(self, session: Session) -> None:
        """Close a session; one that waits for a place on the server may try again."""
        self._open.discard(session)
        held = session.held
        await session.close()
        if held and self._waiting:
            self._waiting.popleft().set()

    async def _room(self) -> None:
        """Until a session of ours has ended, or a second has passed: others may use the server too."""
        mine = asyncio.Event()
        self._waiting.append(mine)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(mine.wait(), 1.0)
        with contextlib.suppress(ValueError):
            self._waiting.remove(mine)

    async def _close_all(self) -> None:
        for session in list(self._open):
            await self.leave(session)

    def _first(self, seeds: Sequence[int]) -> list[str]:
        async def one(seed: int, places: asyncio.Semaphore) -> str:
            async with places:
                session, first = await self.session(seed)
                await self.leave(session)
                return first

        async def every() -> list[str]:
            places = asyncio.Semaphore(_AT_ONCE)
            return list(await asyncio.gather(*(one(seed, places) for seed in seeds)))

        try:
            return self.loop.run_blocking(every(), self.timeout_s * (1 + len(seeds)))
        except (ServerBroke, TimeoutError) as broke:
            raise DataError(
                f"openenv: the server at {self.url} gave no first observation ({broke}); start it anew"
            ) from None


class OpenEnvWorld:
    """One attempt. verdict: once it is over."""

    def __init__(self, bridge: OpenEnvBridge, task: Task) -> None:
        self.bridge, self.task = bridge, task
        self.total, self.num_actions = 0.0, 0
        self.verdict: Verdict | None = None
        self._session: Session | None = None

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        if self.verdict is not None:
            return Reply(observation="The episode is over.", executions=0)
        if _THINK.match(action):
            return Reply(observation="OK.", executions=0)
        asked = self.bridge.form.read(action.encode(errors="replace").decode())
        if isinstance(asked, str):
            return Reply(observation=asked, executions=0)
        try:
            answer = await self.bridge.loop.run(self._step(asked))
            last = reward_of(answer)
        except Refused as refused:
            return Reply(observation=f"{refused} {self.bridge.form.help}".strip())
        except ServerBroke as broke:
            why = f"the OpenEnv server at {self.bridge.url} broke: {broke}"
            self.verdict = Verdict(success=False, reward=0.0, feedback=f"The environment broke: {why}", error=why)
            return Reply(verdict=self.verdict)
        self.num_actions += 1
        self.total += last
        observation = text_of(answer)
        if not answer.get("done"):
            return Reply(observation=observation or "(nothing to see)")
        wanted = self.bridge.success_return
        success = last > 0 if wanted is None else self.total >= wanted
        feedback = f"It ended after {self.num_actions} actions with a return of {self.total:g}."
        feedback += " Task done." if success else f" The task was not done. It ended so: {observation[:500]}"
        detail = {"return": self.total}
        self.verdict = Verdict(success=success, reward=float(success), feedback=feedback, detail=detail)
        return Reply(observation=observation, verdict=self.verdict)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await self.bridge.loop.run(self.bridge.leave(session))

    async def _step(self, action: Mapping[str, Any]) -> dict[str, Any]:
        if self._session is None:
            self._session, _ = await self.bridge.session(self.task.payload["seed"])
        return await self._session.ask("step", action)


def reward_of(answer: Mapping[str, Any]) -> float:
    """What a server's answer gives, 0 where it gives none. Raises ServerBroke for what is no number."""
    given = answer.get("reward")
    try:
        reward = float(given or 0.0)
    except (TypeError, ValueError, OverflowError):
        reward = math.nan
    if not math.isfinite(reward):
        raise ServerBroke(f"expected a number as the reward, found {readable(repr(given), 60)}")
    return reward


def text_of(answer: Mapping[str, Any]) -> str:
    """What a server's answer shows: its one field, or `field: value` lines."""
    observation = answer.get("observation")
    if not isinstance(observation, Mapping):
        return shown(observation)
    fields = {name: value for name, value in observation.items() if name != "metadata" and value not in (None, "", [], {})}
    return shown(next(iter(fields.values())) if len(fields) == 1 else fields)


def _described(name: str, about: Mapping[str, Any]) -> str:
    if "const" in about:
        return f'"{name}": {json.dumps(about["const"])}'
    return f'"{name}" ({about.get("type", "any")})'


def _object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None

"""The agent's program in a verifiers rollout: the chat loop of verifiers' own `null` harness, run in the worker.

    harness = {"id": register()}              # for an `AgentConfig`

verifiers runs that loop (`verifiers.v1.harnesses.utils`: ask the model, call its tools, until a message without a call) as a
script of its own with `uv`, which downloads what it needs. Its contract lets a harness run in the process that plays, as
long as every message comes from the rollout's endpoint: this one does, with the same loop, so that nothing is downloaded
and an attempt costs no process. Left out: what the `bash` harness adds (a shell, an editor, compaction).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any, Final

HARNESS: Final = "kintsugi_chat"
"""Harnesses are found by the name of a module at the top."""

vf: Any = importlib.import_module("verifiers.v1")

__all__ = ["ChatHarness"]


class ChatHarness(vf.Harness[vf.HarnessConfig]):
    """The harness; its flags are those of verifiers' `null`."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    SUPPORTS_TOOL_INTERCEPTION = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
        tool_interception_url: str | None = None,
    ) -> Any:
        """Talk until a message without a call. What goes wrong is an exit code and last words, as of a program."""
        code, words = 0, ""
        try:
            await self._chat(str(ctx.model), endpoint, secret, mcp_urls, data, tool_interception_url or "")
        except SystemExit as ended:  # the loop's own way to tell of a connection that broke
            code, words = int(ended.code or 1), "no connection to the rollout"
        except Exception as error:
            code, words = 1, _cause(error)
        return vf.ProgramResult(exit_code=code, stdout="", stderr=words)

    async def _chat(self, model: str, endpoint: str, secret: str, urls: dict[str, str], data: Any, gate_url: str) -> None:
        loop, tools_of = _part("core"), _part("mcp")
        wire = importlib.import_module("verifiers.v1.dialects.chat").message_to_wire
        client = _client().with_options(base_url=endpoint, api_key=secret)
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        asked = [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else prompt or []
        messages += [wire(message) for message in asked]
        args = argparse.Namespace(
            api_key=secret, tool_interception_url=gate_url, bash=False, edit=False, search=False, serper_key=""
        )
        async with AsyncExitStack() as stack:
            servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in urls.items()}
            tools, dispatch, opened = await tools_of.connect_mcp({"mcpServers": servers}, stack, set())
            gate = None
            if gate_url:
                gate = await stack.enter_async_context(importlib.import_module("httpx").AsyncClient(timeout=None))
            compactor = _part("compaction").Compactor(client, model, tools, False, None)
            await loop.run_chat_loop(args, compactor, messages, dispatch, opened, gate)


def register() -> str:
    """Let verifiers find this harness; the id to give."""
    sys.modules[HARNESS] = sys.modules[__name__]
    return HARNESS


_PARTS: dict[str, ModuleType] = {}
_CLIENTS: list[Any] = []


def _part(name: str) -> Any:
    """One of the three files of the loop, which verifiers joins to one script: here they are told each other's names."""
    if not _PARTS:
        folder = "verifiers.v1.harnesses.utils"
        parts = {one: importlib.import_module(f"{folder}.{one}") for one in ("mcp", "compaction", "core")}
        told = {key: value for part in parts.values() for key, value in vars(part).items() if not key.startswith("__")}
        for part in parts.values():
            vars(part).update({key: value for key, value in told.items() if key not in vars(part)})
        _PARTS.update(parts)
    return _PARTS[name]


def _cause(error: BaseException) -> str:
    """The error itself, out of the groups that connections wrap theirs in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def _client() -> Any:
    """One for all rollouts: making one reads the system's certificates. Nothing is asked twice, for nothing lies between."""
    if not _CLIENTS:
        openai = importlib.import_module("openai")
        _CLIENTS.append(openai.AsyncOpenAI(base_url="http://127.0.0.1", api_key="none", timeout=None, max_retries=0))
    return _CLIENTS[0]

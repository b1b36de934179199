"""Native tool calls as text actions, for the endpoint and LangChain policies: `search(title="X")` ↔ `search[X]`.

    tools = open_tools("kintsugi.sandboxes.environments.hotpotqa_tools:SCHEMAS")
    tools.text("I need the author.", [("search", {"title": "X"})])    "Thought: I need the author.\\nAction: search[X]"
    tools.chat(messages)                                              the chat as the protocol wants it, calls as calls

A policy's answer is plain text (`Completion.text`), and so is what a world is given, a ledger keeps and a row trains. With
`tools`, a policy sends the schemas along and writes the model's call as text: the tool's name and its only argument
between brackets, on one line; several arguments as JSON, `book[{"day": 3, "seats": 2}]`; words beside the call as a
`Thought:` before it. On the next request, an earlier answer of that form that was replied to becomes a call and its
result again, so that the model sees its own protocol. Of several calls in one answer the first is made: a world answers
one action a turn. An answer without a call is handed on as it is.

Zero-shot prompts fit best (`tools_qa`): a few-shot example's last action would be taken for a call that the next example
answers. Every role of a policy with tools is offered them, a reflector too. Left out: images, streaming, `tool_choice`
(pass it in `extra_body` or `arguments`).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kintsugi.agents.policies.policy import ChatMessage
from kintsugi.errors import ConfigError, nearest

Call = tuple[str, Any]
"""A tool's name and its arguments: a mapping, or the model's own text where that was no JSON object."""

_FORM = '{"type": "function", "function": {"name": …, "parameters": {…}}}'


class Tools:
    """The tools offered to a model. schemas: in the form of the chat-completions protocol."""

    def __init__(self, schemas: Sequence[Mapping[str, Any]]) -> None:
        self.schemas = [dict(schema) for schema in schemas]
        self._arguments: dict[str, list[str]] = {}
        for schema in self.schemas:
            function = schema.get("function")
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise ConfigError(f"tools: expected schemas such as {_FORM}, found {str(schema)[:80]}")
            parameters = function.get("parameters") or {}
            self._arguments[function["name"]] = list(parameters.get("properties") or {})
        names = "|".join(re.escape(name) for name in sorted(self._arguments, key=len, reverse=True))
        self._written = re.compile(rf"(?:Thought: (?P<thought>[^\n]*)\nAction: )?(?P<name>{names})\[(?P<argument>[^\n]*)\]")

    def text(self, content: str, calls: Sequence[Call]) -> str:
        """An answer as text: the first of `calls`, with `content` as its thought; `content` alone without one."""
        if not calls:
            return content
        name, arguments = calls[0]
        written = f"{name}[{_argument(arguments, self._arguments.get(name, ()))}]"
        thought = _one_line(content)
        return f"Thought: {thought}\nAction: {written}" if thought else written

    def chat(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        """`messages` in the protocol's form: answers that are calls as calls, what followed them as their results."""
        chat: list[dict[str, Any]] = []
        answered = ""
        for place, message in enumerate(messages):
            if answered:
                chat.append({"role": "tool", "tool_call_id": answered, "content": message["content"]})
                answered = ""
                continue
            said: dict[str, Any] = dict(message)
            replied = place + 1 < len(messages) and messages[place + 1]["role"] == "user"
            call = self._call(message["content"]) if message["role"] == "assistant" and replied else None
            if call is not None:
                thought, name, arguments = call
                answered = f"call{place:05d}"  # nine letters and digits: some models' templates insist
                function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
                said = {
                    "role": "assistant",
                    "content": thought,
                    "tool_calls": [{"id": answered, "type": "function", "function": function}],
                }
            chat.append(said)
        return chat

    def _call(self, text: str) -> tuple[str, str, dict[str, Any]] | None:
        """(thought, name, arguments) of an answer that `text` could have written."""
        found = self._written.fullmatch(text) if self._arguments else None
        if found is None:
            return None
        names, argument = self._arguments[found["name"]], found["argument"]
        if len(names) == 1:
            arguments: Any = {names[0]: argument}
        else:
            arguments = _json(argument) if argument else {}
        return (found["thought"] or "", found["name"], arguments) if isinstance(arguments, dict) else None


def open_tools(tools: str | Sequence[Any] | None) -> Tools | None:
    """The tools of an option: schemas, LangChain tools, "package.module:NAME" of a list of either, or None.

    Raises ConfigError when there is nothing of that name or form."""
    if tools is None:
        return None
    found = _load(tools) if isinstance(tools, str) else tools
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ConfigError(f"tools: expected a list of schemas such as {_FORM}, found {type(found).__name__}")
    return Tools([one if isinstance(one, Mapping) else _schema(one) for one in found])


def openai_calls(message: Mapping[str, Any]) -> list[Call]:
    """The calls in a chat-completions message."""
    calls: list[Call] = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            raw = function.get("arguments")
            read = _json(raw) if isinstance(raw, str) else raw
            calls.append((function["name"], read if isinstance(read, Mapping) else raw or ""))
    return calls


def langchain_calls(answer: Any) -> list[Call]:
    """The calls of a LangChain AIMessage, those that LangChain could not read included."""
    calls: list[Call] = [(call["name"], call["args"]) for call in answer.tool_calls]
    return calls + [(call["name"] or "", call["args"] or "") for call in answer.invalid_tool_calls]


def _argument(arguments: Any, names: Sequence[str]) -> str:
    """The bare value of a tool's only argument (a number as JSON has it, what else was given left out), else all as JSON."""
    if isinstance(arguments, Mapping) and len(names) == 1 and isinstance(only := arguments.get(names[0]), str | int | float):
        return _one_line(only if isinstance(only, str) else json.dumps(only))
    if isinstance(arguments, Mapping) and len(arguments) == 1 and isinstance(only := next(iter(arguments.values())), str):
        return _one_line(only)
    if isinstance(arguments, Mapping):
        return json.dumps(dict(arguments), ensure_ascii=False) if arguments else ""
    return _one_line(str(arguments))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _schema(tool: Any) -> Mapping[str, Any]:
    from langchain_core.utils.function_calling import convert_to_openai_tool

    try:
        return convert_to_openai_tool(tool)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:120]
        raise ConfigError(f"tools: expected a schema or a LangChain tool, found {type(tool).__name__} ({said})") from None


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigError(f'tools: expected "package.module:NAME", found "{path}"')
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f'tools: "{path}" cannot be imported ({error}): check the name') from None
    if not hasattr(loaded, name):
        raise ConfigError(f'tools: "{module}" has no "{name}": {nearest(name, vars(loaded))}')
    return getattr(loaded, name)

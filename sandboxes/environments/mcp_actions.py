"""From what an agent writes to one call of a tool, for tools that are known by their JSON schemas.

    tools = {"add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}
    parse_call('Thought: add them\\nAction: add[{"a": 2, "b": 3}]', tools)     Step("call", "add", {"a": 2, "b": 3})
    parse_call("finish[5]", tools)                                             Step("finish", argument="5")

Accepted, as for HotpotQA: `name[…]` on a line of its own or after `Action:`, and one native call as JSON,
`{"name": …, "arguments": {…}}` (`native_call`). Between the brackets stands a JSON object; a tool with
one argument also takes its bare value, and one that needs none takes nothing. `finish[answer]` ends the attempt and
`think: …` is a thought. Arguments that do not fit the tool's schema and anything else are `Step("unknown", argument=why)`:
nothing is raised. Left out: several calls in one message (the first counts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from kintsugi.sandboxes.environments.native_call import NativeCall, native_call, read_json
from kintsugi.sandboxes.environments.printed_number import readable

LONGEST_ACTION: Final = 20_000
_START: Final = r"(?:^\s{0,9}|\baction\s?\d{0,3}\s?:\s{0,9})"
_THOUGHT: Final = re.compile(r"\s*(?:think|thought)\s?\d{0,3}\s?:", re.IGNORECASE)

Schemas = Mapping[str, Mapping[str, Any]]
"""Tool name → JSON schema of its arguments."""


@dataclass(frozen=True)
class Step:
    """What to do. name, arguments: of a call. argument: the answer, the thought, or what is wrong with the text."""

    kind: Literal["call", "finish", "think", "unknown"]
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    argument: str = ""


def parse_call(text: str, tools: Schemas) -> Step:
    """The one step that `text` asks for; see the module."""
    asked = find_call(text, tools)
    if asked is not None:
        return asked
    if thought := _THOUGHT.match(text):
        return Step("think", argument=text[thought.end() :].strip())
    shown, usable = readable(text.strip(), 60), usage(tools)
    return Step("unknown", argument=f'I do not understand "{shown}". {usable}' if shown else f"That was empty. {usable}")


def find_call(text: str, tools: Schemas) -> Step | None:
    """The call or the answer that `text` holds (unknown: one that went wrong), None where it holds none."""
    usable = usage(tools)
    if len(text) > LONGEST_ACTION:
        return Step("unknown", argument=f"An action of {len(text)} characters is too long. {usable}")
    names = "|".join(re.escape(name) for name in sorted([*tools, "finish"], key=len, reverse=True))
    whole = re.compile(rf"{_START}({names})\s?\[(.*)\]", re.IGNORECASE)
    opened = re.compile(rf"{_START}({names})(?![\w-])", re.IGNORECASE)
    call = native_call(text)
    if call is not None and not any(whole.search(line) for line in text[: call.start].splitlines()):
        native = _native(call, tools, usable)
        if native is not None:
            return native
    for line in text.splitlines():
        if found := whole.search(line):
            return _bracketed(_known(found[1], tools), found[2].strip(), tools, usable)
        if found := opened.search(line):
            said = f"Write {_known(found[1], tools)}[…] with its brackets closed, on one line. {usable}"
            return Step("unknown", argument=said)
    return None


def usage(tools: Schemas) -> str:
    """What can be written."""
    return f"You can: {', '.join([*map(signature, tools, tools.values()), 'finish[answer]', 'think: text'])}."


def signature(name: str, schema: Mapping[str, Any]) -> str:
    """How a tool is called, in one word: `search[title]`, `add[{"a": …, "b": …}]`."""
    properties = list(schema.get("properties") or {})
    if len(properties) < 2:
        return f"{name}[{''.join(properties)}]"
    return f"{name}[{{{', '.join(json.dumps(one) + ': …' for one in properties)}}}]"


def _known(name: str, tools: Schemas) -> str:
    """The tool's own spelling of `name`."""
    return next((one for one in (*tools, "finish") if one.casefold() == name.casefold()), name)


def _bracketed(name: str, inside: str, tools: Schemas, usable: str) -> Step:
    if name == "finish":
        return _finish(inside, usable)
    properties: Mapping[str, Any] = tools[name].get("properties") or {}
    read = read_json(inside)
    if isinstance(read, dict) and not (len(properties) == 1 and set(read) != set(properties)):
        return _call(name, read, tools, usable)
    if len(properties) == 1:
        (only, said), value = next(iter(properties.items())), inside
        if isinstance(said, Mapping) and said.get("type") == "string":
            return _call(name, {only: value}, tools, usable) if inside else _call(name, {}, tools, usable)
        return _call(name, {only: read if read is not None else value} if inside else {}, tools, usable)
    if not inside:
        return _call(name, {}, tools, usable)
    return Step("unknown", argument=f"{name} takes a JSON object between its brackets: {signature(name, tools[name])}.")


def _native(found: NativeCall, tools: Schemas, usable: str) -> Step | None:
    """The step of a native call, None when that is none."""
    call = found.value
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        wanted = '{"name": …, "arguments": {…}}'
        return Step("unknown", argument=f"A tool call looks like {wanted}. {usable}") if found.marked else None
    name = _known(call["name"].strip(), tools)
    given = call.get("arguments", call.get("parameters", {}))
    if isinstance(given, str):
        given = read_json(given) if given.lstrip().startswith("{") else {"answer": given} if name == "finish" else None
    if not isinstance(given, dict):
        return Step("unknown", argument=f"The arguments of a tool call are a JSON object. {usable}")
    if name == "finish":
        return _finish(str(next(iter(given.values()), "")), usable)
    if name not in tools:
        return Step("unknown", argument=f'There is no tool "{readable(name, 40)}". {usable}')
    return _call(name, given, tools, usable)


def _finish(answer: str, usable: str) -> Step:
    answer = " ".join(answer.split())
    return Step("finish", argument=answer) if answer else Step("unknown", argument=f"finish[] needs an answer. {usable}")


def _call(name: str, arguments: Mapping[str, Any], tools: Schemas, usable: str) -> Step:
    objection = _objection(arguments, tools[name])
    if objection:
        return Step("unknown", argument=f"{name} was not called: {objection}. It is {signature(name, tools[name])}.")
    return Step("call", name=name, arguments=arguments)


def _objection(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What is wrong with the arguments, "" when they fit (or when the schema cannot be read: the server then decides)."""
    import jsonschema
    from jsonschema import validators

    try:
        validator = validators.validator_for(schema)(schema)
        found = next(iter(validator.iter_errors(dict(arguments))), None)
    except (jsonschema.SchemaError, RecursionError, TypeError, ValueError, AttributeError, re.error):
        return ""
    except Exception as error:  # a reference that cannot be resolved has an error class of its own in every release
        return "" if "referenc" in type(error).__module__ else f"{type(error).__name__}"
    if found is None:
        return ""
    where = ".".join(str(part) for part in found.absolute_path)
    return readable(f"{where}: {found.message}" if where else found.message, 200)

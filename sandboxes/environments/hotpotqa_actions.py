"""From what an agent writes to one action of the question answerer: search, lookup, finish or think.

    parse_action("Thought: who wrote it?\nAction: search[The Amber Gate]")   Step("search", "The Amber Gate")
    parse_action("think: the author was born in Avonmere")                   Step("think", "the author …")

Accepted forms, in any letter case: `search[…]` on a line of its own, after `Action:` or `Action 2:`, with thoughts before
it; and one native tool call as JSON, `{"name": "search", "arguments": {"title": "…"}}` (`native_call`). The first action of
a text counts and what follows it is passed over: an agent that goes on to invent its observations gains nothing. The
argument ends at the `]` that closes its bracket (the last one of the line where none does); Markdown's `**` and backticks
may stand around. A text of thoughts alone is a thought, as is `think[…]`.
Anything else is a `Step("unknown", why)`: nothing is ever raised. Left out: several actions in one message.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final, Literal

from kintsugi.sandboxes.environments.native_call import NativeCall, native_call, read_json

Kind = Literal["search", "lookup", "finish", "think", "unknown"]

ARGUMENTS: Final = {"search": "title", "lookup": "text", "finish": "answer"}
"""The tools and the name of each one's only argument."""

HELP: Final = "You can: search[title], lookup[text], finish[answer], think: text."
LONGEST_ACTION: Final = 20_000

_BEGIN: Final = r"(?:^[\s*_`>]{0,9}|\baction\s?\d{0,3}\s?:[\s*_`]{0,9})"
_ACTION: Final = re.compile(rf"{_BEGIN}(search|lookup|finish|think)\s?\[(.*\])", re.IGNORECASE)
_OPEN: Final = re.compile(
    rf"{_BEGIN}(search|lookup|finish)\s?\[|\baction\s?\d{{0,3}}\s?:[\s*_`]{{0,9}}(search|lookup|finish)\b",
    re.IGNORECASE,
)
_THOUGHT: Final = re.compile(r"\s*(?:think|thought)\s?\d{0,3}\s?:", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """What to do. argument: the tool's argument, the thought, or for "unknown" what is wrong with the text."""

    kind: Kind
    argument: str


def parse_action(text: str) -> Step:
    """The one step that `text` asks for; see the module."""
    if len(text) > LONGEST_ACTION:
        return Step("unknown", f"An action of {len(text)} characters is too long. {HELP}")
    call = native_call(text)
    if call is not None and not any(_ACTION.search(line) for line in text[: call.start].splitlines()):
        called = _tool_call(call)
        if called is not None:
            return called
    for line in text.splitlines():
        if found := _ACTION.search(line):
            return _step(found[1].lower(), _bracketed(found[2]))
        if opened := _OPEN.search(line):
            tool = (opened[1] or opened[2]).lower()
            return Step("unknown", f"Write {tool}[…] with its brackets closed, on one line. {HELP}")
    if thought := _THOUGHT.match(text):
        return Step("think", text[thought.end() :].strip())
    if not text.strip():
        return Step("unknown", f"That was empty. {HELP}")
    return Step("unknown", HELP)


def action_text(name: str, argument: str) -> str:
    """The text form of a tool call: `search[The Amber Gate]`, on one line."""
    return f"{name}[{' '.join(argument.split())}]"


def _bracketed(rest: str) -> str:
    """What stands before the `]` that closes a bracket opened just before `rest`; where more close than open, before the
    last one."""
    if rest.count("]") > rest.count("[") + 1:
        return rest[: rest.rindex("]")]
    depth = 1
    for index, char in enumerate(rest):
        depth += (char == "[") - (char == "]")
        if depth == 0:
            return rest[:index]
    return rest[: rest.rindex("]")]


def _step(name: str, argument: str) -> Step:
    argument = " ".join(argument.split())
    if name == "think":
        return Step("think", argument)
    if not argument:
        return Step("unknown", f"{name}[] needs its {ARGUMENTS[name]} between the brackets. {HELP}")
    return Step(name, argument)  # type: ignore[arg-type]


def _tool_call(found: NativeCall) -> Step | None:
    """The step of a native call, None when that is none."""
    call = found.value
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        wanted = '{"name": "search", "arguments": {"title": "…"}}'
        return Step("unknown", f"A tool call looks like {wanted}. {HELP}") if found.marked else None
    name = call["name"].strip().lower()
    if name not in ARGUMENTS:
        return Step("unknown", f"There is no such tool. {HELP}")
    given = call.get("arguments", call.get("parameters"))
    if isinstance(given, str):
        given = read_json(given) if given.lstrip().startswith("{") else {ARGUMENTS[name]: given}
    values = [value for value in given.values() if isinstance(value, str)] if isinstance(given, dict) else []
    value = given.get(ARGUMENTS[name], values[0] if len(values) == 1 else None) if isinstance(given, dict) else None
    if not isinstance(value, str | int | float):
        return Step("unknown", f'{name} takes one text, "{ARGUMENTS[name]}". {HELP}')
    return _step(name, value if isinstance(value, str) else json.dumps(value))

"""A native tool call as models write it in text: JSON between `<tool_call>` tags, in a Markdown fence, or bare.

    native_call('<tool_call>{"name": "search", "arguments": {"title": "Tarn"}}</tool_call>').value    {"name": …}
    native_call("Thought: hm")                                                                         None
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

_TAGGED: Final = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_FENCED: Final = re.compile(r"^```[A-Za-z_]{0,12}[ \t]*\n(.*?)```", re.DOTALL | re.MULTILINE)
_BEGINS: Final = re.compile(r"^\s*[\[{](?=\s*[\"{\[}])", re.MULTILINE)


@dataclass(frozen=True)
class NativeCall:
    """value: what its JSON says, of several calls the first; None for what cannot be read between tags. marked: by tags.
    start: where it begins in the text."""

    value: Any
    marked: bool
    start: int


def native_call(text: str) -> NativeCall | None:
    """The call in the text, None when there is none. Thoughts may stand on the lines before. Never raises."""
    tagged = _TAGGED.search(text)
    fenced = None if tagged else _FENCED.search(text)
    found = tagged or fenced
    inner, start = (found[1], found.start()) if found else (text, 0)
    begins = _BEGINS.search(inner)
    if begins is not None:
        try:
            value, _ = json.JSONDecoder().raw_decode(inner, begins.end() - 1)
            first = value[0] if isinstance(value, list) and value else value
            return NativeCall(first, bool(tagged), start if found else begins.start())
        except (ValueError, RecursionError):
            pass
    return NativeCall(None, True, start) if tagged else None


def read_json(text: str) -> Any:
    """The value, None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

"""A native tool call as models write it in text: JSON between `<tool_call>` tags, in a Markdown fence, or bare.

    native_call('<tool_call>{"name": "search", "arguments": {"title": "Tarn"}}</tool_call>')    ({"name": …}, True)
    native_call("Thought: hm")                                                                   None
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_TAGGED: Final = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_FENCED: Final = re.compile(r"\s*```[a-z_]{0,12}\s*\n(.*?)```", re.DOTALL)


def native_call(text: str) -> tuple[Any, bool] | None:
    """(the JSON value, whether tags mark it as a call), None when the text holds none. Of several calls the first; a value
    that cannot be read is None. Never raises."""
    tagged = _TAGGED.search(text)
    fenced = None if tagged else _FENCED.match(text)
    inner = tagged[1] if tagged else fenced[1] if fenced else text
    if not tagged and not inner.lstrip().startswith(("{", "[{")):
        return None
    value = read_json(inner)
    return (value[0] if isinstance(value, list) and value else value), bool(tagged)


def read_json(text: str) -> Any:
    """The value, None for what is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

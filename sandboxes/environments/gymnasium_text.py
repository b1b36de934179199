"""Texts to a Gymnasium space's actions, and observations to texts.

    actions = Actions(env, names=[])
    actions.help                      'Actions: left, down, right, up.'
    actions.read("Action: left")      0; what fits no action raises Malformed, whose text says what would

By space: *Discrete* is a number or a name (the option `actions`, or the environment's own enumeration `actions`); *Text* and
spaces that Gymnasium does not know are the text itself; *MultiBinary*, *MultiDiscrete*, *Box*, *Tuple* and *Dict* are JSON.
After `Action:` on a line of its own the rest of that line counts; else the whole text does.

Observations: texts as they are; a Dict one `key: value` a line; numbers and arrays as JSON; a terminal drawing without its
colours, what it highlights in brackets. Nothing here imports Gymnasium: spaces are known by their class's name.
"""

from __future__ import annotations

import copy
import enum
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from kintsugi.errors import ConfigError
from kintsugi.sandboxes.environments.printed_number import readable

LONGEST_ACTION: Final = 20_000
LONGEST_OBSERVATION: Final = 4_000

_ACTION: Final = re.compile(r"^\s{0,9}action\s?\d{0,3}\s?:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_HIGHLIGHT: Final = re.compile(r"\x1b\[4\dm(.*?)\x1b\[0m", re.DOTALL)
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_JSON: Final = {"MultiBinary", "MultiDiscrete", "Box", "Tuple", "Dict"}


class Malformed(ValueError):
    """What the agent wrote is no action; the text says what one looks like."""


class Actions:
    """The actions of an environment. names: of a Discrete space's actions, in order; [] for its own names or numbers."""

    def __init__(self, env: Any, names: list[str]) -> None:
        self.space = env.action_space
        if unread := _unread(self.space):
            raise ConfigError(f"gymnasium: actions of a space {unread} cannot be written as text: wrap the environment")
        self.kind = type(self.space).__name__
        self.names = [name.strip().lower() for name in names] or self._own_names(env)
        self.help = self._help()

    def read(self, text: str) -> Any:
        """The action that `text` asks for. Raises Malformed."""
        if len(text) > LONGEST_ACTION:
            raise Malformed(f"An action of {len(text)} characters is too long. {self.help}".strip())
        found = _ACTION.search(text)
        text = found[1].strip() if found else text
        if self.kind == "Discrete":
            return self._discrete(text.strip())
        if self.kind in _JSON:
            return self._structured(text)
        return self._text(text)

    def _own_names(self, env: Any) -> list[str]:
        own = getattr(env.unwrapped, "actions", None)
        if self.kind == "Discrete" and isinstance(own, type) and issubclass(own, enum.IntEnum) and len(own) == self.space.n:
            return [one.name.lower() for one in sorted(own)]
        return []

    def _help(self) -> str:
        if self.names:
            return f"Actions: {', '.join(self.names)}."
        if self.kind == "Discrete":
            first = int(self.space.start)
            return f"Actions: a whole number from {first} to {first + int(self.space.n) - 1}."
        if self.kind in _JSON:
            return f"Actions: JSON, for example {_json(self._example())}."
        return ""

    def _example(self) -> Any:
        """An action, the same in every run: prompts hold it. The environment's own space goes on as it was."""
        space = copy.deepcopy(self.space)
        space.seed(0)
        return space.sample()

    def _discrete(self, text: str) -> int:
        word = text.lower().rstrip(".")
        if word in self.names:
            return int(self.space.start) + self.names.index(word)
        if re.fullmatch(r"-?[0-9]{1,9}", word) and self.space.contains(int(word)):
            return int(word)
        raise Malformed(self._refusal(text))

    def _structured(self, text: str) -> Any:
        try:
            action = _filled(self.space, json.loads(text))
            fits = self.space.contains(action)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, AttributeError):
            fits, action = False, None
        if not fits:
            raise Malformed(self._refusal(text))
        return action

    def _text(self, text: str) -> str:
        if not text.strip():
            raise Malformed("That was empty: write an action.")
        if self.kind == "Text" and not self.space.contains(text):
            least, most = self.space.min_length, self.space.max_length
            if not least <= len(text) <= most:
                raise Malformed(f"An action has {least} to {most} characters, that had {len(text)}.")
            allowed = set(self.space.character_set)
            odd = readable("".join(sorted({char for char in text if char not in allowed})), 40)
            raise Malformed(f'An action may not hold these characters: "{odd}".')
        return text

    def _refusal(self, text: str) -> str:
        said = readable(text.strip(), 60)
        return f'"{said}" is no action. {self.help}' if said else f"That was empty. {self.help}"


def shown(observation: Any) -> str:
    """An observation as text of at most `LONGEST_OBSERVATION` characters that can be stored."""
    text = _plain_text(observation)
    text = storable(_COLOUR.sub("", _HIGHLIGHT.sub(r"[\1]", text))).strip("\n")
    return text if len(text) <= LONGEST_OBSERVATION else text[:LONGEST_OBSERVATION] + "…"


def storable(text: str) -> str:
    """`text` with `?` for what a database cannot hold: lone surrogates and NUL."""
    return text.encode(errors="replace").decode().replace("\0", "?")


def _plain_text(observation: Any) -> str:
    if isinstance(observation, str):
        return observation
    if isinstance(observation, Mapping):
        return "\n".join(f"{key}: {_plain_text(value)}" for key, value in observation.items())
    return _json(observation)


def _json(value: Any) -> str:
    return json.dumps(_listed(value), ensure_ascii=False)


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _listed(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_listed(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and their scalars
        listed = value.tolist()
        return [_listed(item) for item in listed] if isinstance(listed, list) else _listed(listed)
    if isinstance(value, float):
        return round(value, 6)
    return value if isinstance(value, str | int | bool | None) else str(value)


def _unread(space: Any) -> str:
    """The kind of Gymnasium's own spaces in this one whose elements no text of an agent can say, "" for none."""
    kind = type(space).__name__
    if kind in ("Sequence", "Graph", "OneOf"):
        return kind
    parts = space.spaces if kind in ("Tuple", "Dict") else ()
    return next((found for part in (parts.values() if kind == "Dict" else parts) if (found := _unread(part))), "")


def _filled(space: Any, plain: Any) -> Any:
    """Plain JSON as an element of `space`, whose shapes and types it takes; raises for what cannot be one."""
    kind = type(space).__name__
    if kind == "Dict":
        return {key: _filled(part, plain[key]) for key, part in space.spaces.items()}
    if kind == "Tuple":
        if len(plain) != len(space.spaces):
            raise ValueError("another length")
        return tuple(_filled(part, one) for part, one in zip(space.spaces, plain, strict=True))
    if kind in ("Box", "MultiBinary", "MultiDiscrete"):
        import numpy as np

        raw = np.asarray(plain)
        if raw.dtype.kind not in "biuf" or (kind != "Box" and raw.dtype.kind == "f"):
            raise ValueError("no numbers")
        with np.errstate(invalid="ignore"):  # it is looked at below
            cast = raw.astype(space.dtype)
        if cast.dtype.kind != "f" and not np.array_equal(cast, raw):
            raise ValueError("numbers that the space rounds or wraps")
        return cast
    return plain

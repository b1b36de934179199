"""Configuration that refuses what it does not know: the base class of every config, TOML files, `key=value` overrides.

A config class stands beside what it configures and derives from `StrictConfig`; a recipe nests them. `load_toml` reads a
file, `with_overrides` applies what the command line gave, `validate` turns both into the class or into one sentence that
names the key, what was expected and the nearest known name. Nothing here knows any particular recipe.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from kintsugi.errors import ConfigError, nearest


class StrictConfig(BaseModel):
    """A frozen config whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)


C = TypeVar("C", bound=StrictConfig)


def load_toml(path: Path) -> dict[str, Any]:
    """The file's tables. A missing or malformed file is a ConfigError that names the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"expected a TOML file at {path}, found none: check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`values` with each `a.b=value` set; values are read as TOML, and as plain text where that fails.

    >>> with_overrides({"explore": {"k": 5}}, ["explore.k=8", "name=mine"])
    {'explore': {'k': 8}, 'name': 'mine'}
    """
    result = _copy(values)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f'expected key=value, found "{override}": write for example explore.k=8')
        *tables, last = key.strip().split(".")
        target = result
        for table in tables:
            target = target.setdefault(table, {})
            if not isinstance(target, dict):
                raise ConfigError(f'"{key}" cannot be set: "{table}" is a value, not a table')
        target[last] = _value(text)
    return result


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the tables of `over` laid upon it, key by key."""
    result = _copy(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def validate(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """`values` as `cls`, or a ConfigError whose one sentence names the first thing that is wrong; `where` says whose."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "extra_forbidden":
            known = _known_keys(cls, [str(part) for part in first["loc"][:-1]])
            raise ConfigError(f'{where}: unknown key "{key}": {nearest(str(first["loc"][-1]), known)}{more}') from None
        if first["type"] == "missing":
            raise ConfigError(f'{where}: expected a value for "{key}", found none: add it{more}') from None
        found = str(first.get("input"))[:60]
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise ConfigError(f'{where}: "{key}" expects {message}, found {found}{more}') from None


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None if text.strip() in ("none", "null") else text


def _known_keys(cls: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = cls
    for part in path:
        field = current.model_fields.get(part) if isinstance(current, type) else None
        if field is None:
            return []
        options = [field.annotation, *get_args(field.annotation)]
        current = next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if current is None:
            return []
    return list(current.model_fields)

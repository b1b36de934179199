"""Configuration that refuses what it does not know: the base class of every config, TOML files, `key=value` overrides.

A config class stands beside what it configures and derives from `StrictConfig`; a recipe nests them. `load_toml` reads a
file, `with_overrides` applies what the command line gave, `validate` turns both into the class or into one sentence that
names the key, what was expected and the nearest known name; `check_arguments` does so for options that go to a function.
Nothing here knows any particular recipe.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError, model_validator

from kintsugi.errors import ConfigError, nearest


class StrictConfig(BaseModel):
    """A frozen config whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        """true is no 1: pydantic would take it for one."""
        for name, value in values.items() if isinstance(values, dict) else ():
            kinds = _kinds(cls.model_fields[name].annotation) if name in cls.model_fields else set()
            if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
                raise ValueError(f"a number for {name}, not {str(value).lower()}")
        return values


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation, those inside unions and Annotated too."""
    found = {annotation} if isinstance(annotation, Hashable) else set()
    return found.union(*map(_kinds, get_args(annotation)))


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

    `null` is no value at all (TOML has no word for it); `none` is a word like others (repair.who=none).

    >>> with_overrides({"explore": {"k": 5}}, ["explore.k=8", "name=mine"])
    {'explore': {'k': 8}, 'name': 'mine'}
    """
    result = _copy(values)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f'expected key=value, found "{override}": write for example explore.k=8')
        *tables, last = parts = [part.strip() for part in key.split(".")]
        if not all(parts):
            raise ConfigError(f'expected names between the dots, found "{key}": write for example explore.k=8')
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
        # A misspelt key is often missing too: name what was written before what was not.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "extra_forbidden":
            known = _known_keys(cls, [str(part) for part in first["loc"][:-1]])
            raise ConfigError(f'{where}: unknown key "{key}": {nearest(str(first["loc"][-1]), known)}{more}') from None
        if first["type"] == "missing":
            raise ConfigError(f'{where}: expected a value for "{key}", found none: add it{more}') from None
        whose = f'"{key}" expects' if key else "expected"
        found = "" if isinstance(first["input"], Mapping | BaseModel) else f", found {str(first['input'])[:60]}"
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if first["type"] in ("model_type", "dict_type"):
            message = "a table"
        raise ConfigError(f"{where}: {whose} {message}{found}{more}") from None


def check_arguments(opens: Callable[..., Any], options: Mapping[str, Any], whose: str, table: str) -> None:
    """Raise ConfigError for options that `opens` has not, lacks, or annotates as something else.

    whose: names what is opened ("the environment gsm8k"); table: where its options are set ("environment.options").
    Annotations that cannot be read or checked take anything.
    """
    parameters = inspect.signature(opens).parameters
    known = [name for name, one in parameters.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    for name in options:
        if name not in known and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            raise ConfigError(f'{whose} has no option "{name}": {nearest(name, known)}')
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            raise ConfigError(f'{whose} needs the option "{name}": set {table}.{name}')
    try:
        hints = inspect.get_annotations(opens, eval_str=True) if inspect.isfunction(opens) else {}
    except Exception:  # names that are only there for a type checker, or anything else in somebody's own code
        hints = {}
    for name in known:
        if name in options and name in hints and (expected := _misfit(hints[name], options[name])):
            found = f"{options[name]!r:.60}" if options[name] is not None else "null"
            raise ConfigError(f"{whose}: expected {expected} for {table}.{name}, found {found}")


def _misfit(hint: Any, value: Any) -> str:
    """What `hint` expects instead of `value`; "" where it fits. A list is as good as a tuple, as in TOML."""
    try:
        fits = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False))
        fits.validate_python(os.fspath(value) if hint is str and isinstance(value, os.PathLike) else value)
    except ValidationError as error:
        wrong = error
        if isinstance(value, list | dict):
            try:
                fits.validate_json(json.dumps(value))
                return ""
            except ValidationError as again:
                wrong = again
            except (TypeError, ValueError):  # objects in it
                pass
        said = [one["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for one in wrong.errors()]
        tables = (re.sub("an? (valid mapping|valid dictionary|object)$", "a table", one) for one in said)
        return " or ".join(dict.fromkeys(tables)).replace("'", '"')
    except (PydanticUserError, TypeError):  # nothing that can be checked
        return ""
    return ""


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return None if text.strip() == "null" else text


def _known_keys(cls: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of the model at `path`; a part that is no field (an index, a mapping's key) stays where it is."""
    models = [cls]
    for part in path:
        hints = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if hints:
            models = [model for hint in hints for model in _models(hint)]
    return [name for model in models for name in model.model_fields]


def _models(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for inner in get_args(hint) for model in _models(inner)]

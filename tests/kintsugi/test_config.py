"""Configs refuse what they do not know, at every depth, in one sentence that names the key and the nearest known one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from kintsugi.config import StrictConfig, check_arguments, load_toml, merged, validate, with_overrides
from kintsugi.errors import ConfigError
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig


class Leaf(StrictConfig):
    steps: int = Field(default=3, ge=1)
    rate: float = 0.1


class Branch(StrictConfig):
    leaf: Leaf = Leaf()
    perhaps: Leaf | None = None
    many: tuple[Leaf, ...] = ()
    named: dict[str, Leaf] = Field(default_factory=dict)
    width: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Branch:
        if self.width == 13:
            raise ValueError("a width other than 13: it brings bad luck")
        return self


class Root(StrictConfig):
    name: str
    branch: Branch = Branch()
    kind: str = "tree"

    @model_validator(mode="after")
    def _fits(self) -> Root:
        if self.kind == "bush":
            raise ValueError("a tree")
        return self


def message(values: dict[str, Any], cls: type[StrictConfig] = Root) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(cls, values, "recipe oak")
    assert caught.value.__cause__ is None and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({"nme": "x"}, "nme", "name"),
        ({"name": "x", "brunch": {}}, "brunch", "branch"),
        ({"name": "x", "branch": {"laef": {}}}, "branch.laef", "leaf"),
        ({"name": "x", "branch": {"leaf": {"stepz": 1}}}, "branch.leaf.stepz", "steps"),
        ({"name": "x", "branch": {"perhaps": {"ratte": 1}}}, "branch.perhaps.ratte", "rate"),
        ({"name": "x", "branch": {"many": [{}, {"step": 1}]}}, "branch.many.1.step", "steps"),
        ({"name": "x", "branch": {"named": {"big": {"rat": 1}}}}, "branch.named.big.rat", "rate"),
    ],
)
def test_unknown_keys_name_the_nearest_at_every_depth(values: dict[str, Any], key: str, near: str) -> None:
    said = message(values)
    assert said.startswith(f'recipe oak: unknown key "{key}": did you mean "{near}"?')


def test_far_keys_list_what_is_known() -> None:
    assert 'unknown key "branch.leaf.qqq": known: rate, steps' in message({"name": "x", "branch": {"leaf": {"qqq": 1}}})


def test_wrong_values_say_what_is_expected() -> None:
    assert message({}) == 'recipe oak: expected a value for "name", found none: add it'
    said = message({"name": "x", "branch": {"leaf": {"steps": "many"}}})
    assert said.startswith('recipe oak: "branch.leaf.steps" expects a valid integer') and said.endswith("found many")
    assert 'branch.leaf.steps" expects greater than or equal to 1, found 0' in message(
        {"name": "x", "branch": {"leaf": {"steps": 0}}}
    )
    assert message({"name": "x", "branch": 5}) == 'recipe oak: "branch" expects a table, found 5'
    assert message({"name": "x", "branch": {"named": 5}}) == 'recipe oak: "branch.named" expects a table, found 5'
    assert '" expects a valid string, found 3 (and 1 more)' in message({"name": 3, "branch": {"width": "w"}})


def test_rules_of_a_whole_table_do_not_print_the_table() -> None:
    assert message({"name": "x", "kind": "bush"}) == "recipe oak: expected a tree"
    said = message({"name": "x", "branch": {"width": 13}})
    assert said == 'recipe oak: "branch" expects a width other than 13: it brings bad luck'
    assert 'expects sees = "feedback" with form = "again"' in message(
        {"repair": {"who": "self", "form": "again", "sees": "attempt"}}, Repairs
    )


class Repairs(StrictConfig):
    repair: RepairConfig


def test_overrides() -> None:
    base = {"name": "x", "branch": {"leaf": {"steps": 1}}}
    given = ["branch.leaf.steps=8", "branch.leaf.rate = 1e-3", "name=my oak", "branch.perhaps.steps=2", "branch.width=null"]
    found = with_overrides(base, given)
    assert found == {
        "name": "my oak",
        "branch": {"leaf": {"steps": 8, "rate": 1e-3}, "perhaps": {"steps": 2}, "width": None},
    }
    assert base == {"name": "x", "branch": {"leaf": {"steps": 1}}}, "the given values were changed"
    assert validate(Root, found, "it").branch.perhaps == Leaf(steps=2)
    assert with_overrides({}, ["repair.who=none"]) == {"repair": {"who": "none"}}
    assert with_overrides({}, ["a=true", "b=[1, 2]", "c='5'", "d=", "e=a=b", "f=1-3", "g={x = 1}"]) == {
        "a": True,
        "b": [1, 2],
        "c": "5",
        "d": "",
        "e": "a=b",
        "f": "1-3",
        "g": {"x": 1},
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("explore", 'expected key=value, found "explore"'),
        ("=3", "expected key=value"),
        ("a..b=3", "expected names between the dots"),
        (".a=3", "expected names between the dots"),
        ("name.first=3", '"name" is a value, not a table'),
    ],
)
def test_malformed_overrides(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        with_overrides({"name": "x"}, [override])


def opens(
    path: str,
    *,
    num: Annotated[int, Field(ge=1)] | None = None,
    wait_s: float = 1.0,
    parts: tuple[int, ...] = (),
    words: str | Sequence[str] = (),
    form: Literal["a", "b"] = "a",
    plain: bool = False,
    body: Mapping[str, Any] | None = None,
    anything: Any = None,
) -> None: ...


def unreadable(path: str, model: OnlyForTypeCheckers = None) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def test_arguments_that_fit() -> None:
    whole = {"num": 3, "wait_s": 2, "parts": [1, 2], "words": ["x"], "form": "b", "plain": True, "body": {"a": None}}
    check_arguments(opens, {"path": "p", **whole, "anything": object()}, "it", "it.options")
    check_arguments(opens, {"path": Path("p"), "num": None, "words": "x", "body": None}, "it", "it.options")
    check_arguments(unreadable, {"path": 3, "model": 4}, "it", "it.options")
    check_arguments(lambda **_: None, {"x": 3}, "it", "it.options")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, 'it needs the option "path": set it.options.path'),
        ({"path": "p", "nmu": 3}, 'it has no option "nmu": did you mean "num"?'),
        ({"path": 3}, "it: expected a valid string for it.options.path, found 3"),
        ({"path": "p", "num": "many"}, "expected a valid integer for it.options.num, found 'many'"),
        ({"path": "p", "num": True}, "expected a valid integer for it.options.num, found True"),
        ({"path": "p", "num": 0}, "expected greater than or equal to 1 for it.options.num, found 0"),
        ({"path": "p", "wait_s": None}, "expected a valid number for it.options.wait_s, found null"),
        ({"path": "p", "wait_s": float("nan")}, "expected a finite number for it.options.wait_s, found nan"),
        ({"path": "p", "parts": ["x"]}, "expected a valid integer for it.options.parts, found ['x']"),
        ({"path": "p", "form": "c"}, 'expected "a" or "b" for it.options.form, found'),
        ({"path": "p", "plain": 1}, "expected a valid boolean for it.options.plain, found 1"),
        ({"path": "p", "body": [1]}, "expected a table for it.options.body, found [1]"),
    ],
)
def test_arguments_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_arguments(opens, options, "it", "it.options")
    assert said in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_merged_lays_tables_upon_tables() -> None:
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": 3, "c": {"d": 4}}
    assert merged(base, {"a": {"y": {"w": 5}}, "b": {"e": 6}, "c": 7}) == {
        "a": {"x": 1, "y": {"z": 2, "w": 5}},
        "b": {"e": 6},
        "c": 7,
    }
    assert base["a"] == {"x": 1, "y": {"z": 2}}


def test_toml_errors_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found none: check the path"):
        load_toml(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load_toml(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"bad.toml is not valid TOML: .*line 2"):
        load_toml(bad)
    bad.write_bytes(b"a = '\xff'\n")
    with pytest.raises(ConfigError, match=r"not valid TOML"):
        load_toml(bad)
    bad.write_text("a = 1\n[b]\nc = [1, 2]\n")
    assert load_toml(bad) == {"a": 1, "b": {"c": [1, 2]}}


def test_configs_are_frozen_and_their_defaults_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        EpisodeConfig().wave = 3  # type: ignore[misc]
    for wrong in ({"wave": 0}, {"max_turns": 0}, {"turn_timeout_s": 0}):
        assert "expects greater than" in message(wrong, EpisodeConfig)

    class Wrong(StrictConfig):
        steps: int = Field(default=0, ge=1)

    assert "expects greater than" in message({}, Wrong)


def test_when_the_episode_itself_repairs() -> None:
    assert RepairConfig(who="self").in_episode and RepairConfig(who="reflector", on="all").in_episode
    assert not RepairConfig().in_episode
    assert not RepairConfig(who="self", on="unsolved").in_episode
    assert not RepairConfig(who="self", rounds=0).in_episode

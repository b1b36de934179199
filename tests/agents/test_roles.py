"""Roles and prompt files: what is filled in, what is refused, and that every bundled prompt loads."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

from kintsugi.agents import roles as described
from kintsugi.agents.policies.policy import Sampling, as_messages
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.agents.roles import Role, load_prompt, prompt_sets
from kintsugi.errors import ConfigError

ALL = {"task": "T?", "attempt": "A!", "feedback": "F.", "memory": "M."}


def write(folder: Path, text: str, name: str = "mine/actor") -> Path:
    path = folder / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def test_bundled_sets() -> None:
    sets = prompt_sets()
    assert set(sets) >= {"bare", "program", "react"}
    for name, roles in sets.items():
        assert set(roles) >= {"actor", "refiner", "reflector"}, name
        for role in roles:
            prompt = load_prompt(name, role)
            assert prompt.description and prompt.name == f"{name}/{role}"
            messages = prompt.messages(**ALL)
            assert messages[-1]["role"] == "user" and "T?" in messages[-1]["content"]
            assert "$" not in "".join(message["content"] for message in prompt.without_shots().messages(**ALL))
            empty = prompt.messages(task="T?", attempt="", feedback="", memory="")
            assert empty[-1]["content"] == empty[-1]["content"].strip()


def test_bare_is_the_task_and_for_repairs_the_objection() -> None:
    task = "  Ann has $5 and {brackets} $task ${memory} \n\n\n100% \\ ok\n"
    for role, asked in (("actor", task), ("refiner", f"{task}<bad>f<fix>"), ("reflector", f"{task}<bad>f<fix>")):
        messages = load_prompt("bare", role).messages(task=task, attempt="a", feedback="f", memory="m")
        assert messages == as_messages(("user", asked))


def test_filled_in_text_is_not_a_template() -> None:
    nasty = "$attempt ${feedback} $$ {0} %s $5"
    content = load_prompt("program", "reflector").messages(**{**ALL, "task": nasty})[-1]["content"]
    assert nasty in content and content.count("A!") == 1


def test_paragraphs_without_content_are_left_out() -> None:
    refiner = load_prompt("program", "refiner")
    with_feedback = refiner.messages(**ALL)[-1]["content"]
    without = refiner.messages(**{**ALL, "feedback": ""})[-1]["content"]
    assert "What happened when it ran:\nF." in with_feedback
    assert "What happened" not in without and "\n\n\n" not in without
    assert load_prompt("react", "actor").messages(**{**ALL, "memory": ""})[-1]["content"] == "T?"
    assert load_prompt("react", "actor").messages(**ALL)[-1]["content"].endswith("M.\n\nT?")


def test_shots_alternate_and_their_programs_are_right() -> None:
    prompt = load_prompt("program", "actor")
    messages = prompt.messages(task="T?", attempt="", feedback="", memory="")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert [message["role"] for message in prompt.without_shots().messages(**ALL)] == ["system", "user"]
    results = []
    for message in messages:
        if message["role"] == "assistant":
            code = re.fullmatch(r"```python\n(.*)\n```", message["content"], re.DOTALL)
            assert code is not None
            lines = ast.parse(code[1]).body
            names: dict[str, object] = {}
            for line in lines[:-1]:
                exec(compile(ast.Module([line], []), "shot", "exec"), {}, names)
            assert isinstance(lines[-1], ast.Expr) and ast.unparse(lines[-1]).startswith("print(")
            results.append(names[ast.unparse(lines[-1])[6:-1]])
    assert results == [47, 5, 15]


def test_prefill() -> None:
    fault = ("a = 1\n", "b = $5", "5 not in question")
    assert load_prompt("bare", "refiner").prefill(*fault) == "a = 1\n"
    assert load_prompt("program", "refiner").prefill(*fault) == "a = 1\n"


def test_the_example_in_the_docstring_is_a_prompt_file(tmp_path: Path) -> None:
    text = (described.__doc__ or "").partition("<role>.toml`::\n")[2].partition("\nA paragraph")[0]
    write(tmp_path, textwrap.dedent(text), "mine/refiner")
    prompt = load_prompt("mine", "refiner", folder=tmp_path)
    assert prompt.system and len(prompt.shots) == 1 and prompt.prefill_form == "$kept"


def test_a_folder_of_ones_own_comes_first(tmp_path: Path) -> None:
    write(tmp_path, 'user = "Mine: $task. It costs $$5."\n[[shots]]\ntask = "s"\nanswer = "t"', "program/actor")
    prompt = load_prompt("program", "actor", folder=tmp_path)
    assert prompt.messages(task="x") == as_messages(
        ("user", "Mine: s. It costs $5."), ("assistant", "t"), ("user", "Mine: x. It costs $5.")
    )
    assert load_prompt("program", "refiner", folder=tmp_path).description
    assert "judge" in prompt_sets(tmp_path)["program"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('user = "$tsk"', r'\$tsk: did you mean "task"'),
        ('user = "$task costs $5"', r"\$\$ for a dollar sign"),
        ('user = "$task"\nsytem = "x"', 'unknown key "sytem": did you mean "system"'),
        ('system = "x"', 'a value for "user"'),
        ('user = "$task"\nprefill = "$task"', r'"prefill" expects known placeholders \(\$task'),
        ('user = "$task"\n[[shots]]\ntask = "x"', "a task and an answer"),
        ('user = "$task"\n[[shots]]\ntask = "x"\nanser = "y"', 'did you mean "answer"'),
        ("user = ", "not valid TOML"),
        ("user = 5", '"user" expects'),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_prompt("mine", "actor", folder=tmp_path)
    assert "actor.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_sets_and_roles_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match='unknown prompt set "programm": did you mean "program"'):
        load_prompt("programm", "actor")
    with pytest.raises(ConfigError, match='no role "reflecter": did you mean "reflector"'):
        load_prompt("program", "reflecter")


def test_fields_that_are_missing_or_unknown() -> None:
    policy = ScriptedPolicy([])
    role = Role(name="refiner", policy=policy, prompt=load_prompt("program", "refiner"), sampling=Sampling())
    assert role.messages(**ALL) == role.prompt.messages(**ALL)
    with pytest.raises(ConfigError, match="needs the field attempt"):
        role.messages(task="x")
    with pytest.raises(ConfigError, match='"atempt": did you mean "attempt"'):
        role.messages(**ALL, atempt="x")

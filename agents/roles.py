"""Who acts in an episode: a role is a policy with a prompt.

    prompt = load_prompt("program", "actor")
    role = Role(name="actor", policy=policy, prompt=prompt, sampling=Sampling(max_tokens=300))
    messages = role.messages(task="Ann has 3 pens …", attempt="", feedback="", memory="")

A prompt is a TOML file `prompts/<set>/<role>.toml`::

    description = "What it is for."
    system = "Optional system message."
    user = "The message, with $task, $attempt, $feedback and $memory."
    prefill = "$kept"   # how a refiner's answer begins, from $kept, $bad and $note of a fault; this is the default

    [[shots]]                  # optional examples, each a user message and the assistant's answer
    task = "…"
    answer = "…"

A paragraph (between empty lines) whose placeholders are all empty is left out, so one prompt serves with and without
feedback. What is filled in is never read for placeholders again: a `$` or a brace in a task stays what it is. A
literal `$` in a prompt is written `$$`.

Sets: `bare` (the task and nothing else: a small model trained here), `program` (instructions for language models that
answer with Python), `math` (the same with exact answers), `logic` (logic programs), `code` (functions and their tests),
`react` (actions in turn). A folder of your own, `load_prompt(set, role, folder=…)`, comes before
the bundled one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from pydantic import field_validator

from kintsugi.agents.policies.policy import ChatMessage, Policy, Sampling
from kintsugi.config import StrictConfig, load_toml, validate
from kintsugi.errors import ConfigError, nearest

FIELDS = ("task", "attempt", "feedback", "memory")
"""What a prompt may name: the task's prompt, the attempt to repair or grade, what the environment said of it, and
reflections on earlier attempts."""

PREFILL_FIELDS = ("kept", "bad", "note")
"""What a `prefill` may name: the parts of `records.Fault`."""

BUNDLED = Path(__file__).parent / "prompts"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt file. name: "program/actor"; the other fields are the file's, `prefill_form` its `prefill`."""

    name: str
    user: str
    system: str = ""
    shots: tuple[Mapping[str, str], ...] = field(default=())
    description: str = ""
    prefill_form: str = "$kept"

    def messages(self, **fields: str) -> tuple[ChatMessage, ...]:
        """The chat: system message, shots, and the user message with `fields` filled in.

        Raises ConfigError for a field that the prompt needs and was not given, and for one that no prompt has.
        """
        for name in fields:
            if name not in FIELDS:
                raise ConfigError(f'no prompt has a field "{name}": {nearest(name, FIELDS)}')
        for name in _placeholders(self.system) + _placeholders(self.user):
            if name not in fields:
                raise ConfigError(f"the prompt {self.name} needs the field {name}, and it was not given.")
        chat = [ChatMessage(role="system", content=_fill(self.system, fields))] if self.system else []
        for shot in self.shots:
            chat.append(ChatMessage(role="user", content=_fill(self.user, shot)))
            chat.append(ChatMessage(role="assistant", content=shot["answer"]))
        return (*chat, ChatMessage(role="user", content=_fill(self.user, fields)))

    def prefill(self, kept: str, bad: str, note: str) -> str:
        """How an answer begins that goes on from the `kept` part of an attempt (see `records.Fault`)."""
        return Template(self.prefill_form).substitute(kept=kept, bad=bad, note=note)

    def without_shots(self) -> Prompt:
        """The zero-shot version."""
        return dataclasses.replace(self, shots=())


@dataclass(frozen=True, kw_only=True)
class Role:
    """A policy in a part. name: actor, refiner, reflector or judge."""

    name: str
    policy: Policy
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)

    def messages(self, **fields: str) -> tuple[ChatMessage, ...]:
        """The prompt's chat with `fields` filled in; see `Prompt.messages`."""
        return self.prompt.messages(**fields)


def load_prompt(set: str, role: str, folder: Path | str | None = None) -> Prompt:
    """The prompt of `role` in `set`: from `folder` when it has one, else the bundled one.

    Raises ConfigError when neither has it, naming the nearest, or when the file is not as the module describes.
    """
    roots = [Path(folder), BUNDLED] if folder is not None else [BUNDLED]
    for root in roots:
        path = root / set / f"{role}.toml"
        if path.is_file():
            return _read(path, f"{set}/{role}")
    known = prompt_sets(folder)
    if set not in known:
        raise ConfigError(f'unknown prompt set "{set}": {nearest(set, known)}')
    raise ConfigError(f'the prompt set "{set}" has no role "{role}": {nearest(role, known[set])}')


def prompt_sets(folder: Path | str | None = None) -> dict[str, tuple[str, ...]]:
    """The roles of each prompt set, bundled or in `folder`."""
    roots = [BUNDLED] if folder is None else [BUNDLED, Path(folder)]
    roles: dict[str, list[str]] = {}
    for root in roots:
        for path in sorted(root.glob("*/*.toml")):
            roles.setdefault(path.parent.name, []).append(path.stem)
    return {name: tuple(sorted({*stems})) for name, stems in roles.items()}


class _PromptFile(StrictConfig):
    """The file's keys, each checked for placeholders that nothing fills."""

    user: str
    system: str = ""
    shots: tuple[dict[str, str], ...] = ()
    description: str = ""
    prefill: str = "$kept"

    @field_validator("user", "system")
    @classmethod
    def _known_fields(cls, text: str) -> str:
        return _checked(text, FIELDS)

    @field_validator("prefill")
    @classmethod
    def _known_prefill_fields(cls, text: str) -> str:
        return _checked(text, PREFILL_FIELDS)

    @field_validator("shots")
    @classmethod
    def _known_shot_keys(cls, shots: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
        for shot in shots:
            for name in shot:
                if name not in (*FIELDS, "answer"):
                    raise ValueError(f'known keys ("{name}": {nearest(name, (*FIELDS, "answer"))})')
            if "answer" not in shot or "task" not in shot:
                raise ValueError("a task and an answer in each")
        return shots


def _read(path: Path, name: str) -> Prompt:
    found = validate(_PromptFile, load_toml(path), str(path))
    shots = tuple({**dict.fromkeys(FIELDS, ""), **shot} for shot in found.shots)
    return Prompt(
        name=name,
        user=found.user,
        system=found.system,
        shots=shots,
        description=found.description,
        prefill_form=found.prefill,
    )


def _placeholders(text: str) -> list[str]:
    return Template(text).get_identifiers()


def _checked(text: str, known: Iterable[str]) -> str:
    """`text` when all its placeholders are known; else ValueError in words that follow "expects"."""
    if not Template(text).is_valid():
        raise ValueError("placeholders such as $task, and $$ for a dollar sign")
    for name in _placeholders(text):
        if name not in known:
            raise ValueError(f"known placeholders (${name}: {nearest(name, known)})")
    return text


def _fill(text: str, fields: Mapping[str, str]) -> str:
    """`text` with its placeholders filled in, without the paragraphs that have only empty ones."""
    paragraphs = [
        paragraph
        for paragraph in text.split("\n\n")
        if not _placeholders(paragraph) or any(fields[name] for name in _placeholders(paragraph))
    ]
    return Template("\n\n".join(paragraphs)).substitute(fields)

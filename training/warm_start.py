"""The start of a small model: made from scratch, then shown a few scripted demonstrations, and never another human answer.

`warm_start(recipe, seed, shelf)` returns the folder of the finished model; it is kept on a shelf under a hash of all that
it depends on, so that every method of a comparison starts from the very same weights of a seed. The demonstrations are
the environment's own `gold` of its "demonstrations" split, and (for repairs) its `scripted_repair`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.agents.policies.policy import ChatMessage
from kintsugi.errors import ConfigError, LearningError
from kintsugi.graphs.episode_nodes import rollback_request
from kintsugi.records import DatasetRow, Task, content_hash
from kintsugi.sandboxes.environments.environment import Environment, is_file_name
from kintsugi.training.casting import Troupe
from kintsugi.training.recipe import Recipe

WORD_PIECE = re.compile(r" ?[!-/:-~]+")
VOCABULARY_TASKS = 2000
"""How many training questions (without answers) the tokenizer of a small model is made from, besides the demonstrations."""

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "agents/chat_tokens.py",
    "graphs/episode_nodes.py",
    "training/batches.py",
    "training/learn.py",
    "training/muon.py",
    "training/sft.py",
    "training/small_model.py",
    "training/warm_start.py",
)
"""What a warm start comes from, besides the environment and its prompts."""

OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Tasks of the demonstrations split with their scripted actions."""

    tasks: Sequence[Task]
    actions: Sequence[str]


async def demonstrations(environment: Environment, num: int, seed: int) -> Demonstrations:
    """`num` scripted single-turn demonstrations. An environment that has none is a ConfigError."""
    tasks = environment.tasks("demonstrations", limit=num, seed=seed)
    actions = []
    for task in tasks:
        gold = await environment.gold(task)
        if not gold:
            raise ConfigError(f"{environment.name} has no scripted solution for {task.id}: it cannot warm-start a model")
        actions.append(gold[0])
    if not actions:
        raise ConfigError(f'{environment.name} has no "demonstrations" split: give model.path instead of a warm start')
    return Demonstrations(tasks=tasks, actions=actions)


def demonstration_rows(
    recipe: Recipe, troupe: Troupe, chat: ChatTokens, shown: Demonstrations, *, noise_seed: str | None = None
) -> list[DatasetRow]:
    """x → y rows of the demonstrations, in the actor's plain prompt; with a `noise_seed`, some with garbled words."""
    prompt, settings = troupe.prompt("actor"), recipe.warm_start
    assert settings is not None
    garble = Garbler(chat, settings.word_noise) if noise_seed is not None and settings.word_noise else None
    rows = []
    for task, action in zip(shown.tasks, shown.actions, strict=True):
        messages = prompt.messages(task=task.prompt, attempt="", feedback="", memory="")
        ids, mask = chat.row((*messages, ChatMessage(role="assistant", content=action)))
        rng = random.Random(f"{noise_seed}:{task.id}")
        if garble is not None and rng.random() < settings.noise_share:
            start = mask.index(1)
            context = garble(ids[:start], rng)
            ids, mask = (*context, *ids[start:]), (*(0,) * len(context), *mask[start:])
        rows.append(DatasetRow(kind="demonstration", task_id=task.id, trajectory_id="", ids=ids, mask=mask))
    return rows


class Garbler:
    """Noise for questions, on token ids: in half of the sentences each word piece becomes another one with probability
    `noise`, and is dropped or followed by one with a seventh of it. Numbers, sentence ends and special tokens stay.

    On pieces and not on words, because a word that was never demonstrated is a row of pieces that never stood together.
    """

    def __init__(self, chat: ChatTokens, noise: float) -> None:
        tokenizer = chat.tokenizer
        texts = {number: tokenizer.decode([number]) for number in range(len(tokenizer))}
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self.noise = noise
        self.ends = {number for number, text in texts.items() if text.strip() in (".", "?", "!")}
        self.pieces = [
            number
            for number, text in texts.items()
            if number not in special | self.ends and WORD_PIECE.fullmatch(text)
        ]
        self._known = set(self.pieces)

    def __call__(self, ids: Sequence[int], rng: random.Random) -> tuple[int, ...]:
        found: list[int] = []
        garbling = rng.random() < 0.5
        for number in ids:
            if number not in self._known or not garbling:
                found.append(number)
                garbling = rng.random() < 0.5 if number in self.ends else garbling
                continue
            draw = rng.random()
            if draw < self.noise / 7:
                continue
            found.append(rng.choice(self.pieces) if draw < self.noise else number)
            if rng.random() < self.noise / 7:
                found.append(rng.choice(self.pieces))
        return tuple(found)


def repair_demonstration_rows(
    recipe: Recipe, troupe: Troupe, chat: ChatTokens, shown: Demonstrations, num: int, seed: int
) -> list[DatasetRow]:
    """x, y⁻ → y rows from the environment's scripted mistakes."""
    script = getattr(troupe.environment, "scripted_repair", None)
    if num == 0:
        return []
    if script is None:
        raise ConfigError(f"{troupe.environment.name} has no scripted repairs: set warm_start.repair_share=0")
    prompt = troupe.prompt("refiner")
    rows = []
    for index in range(num):
        task = shown.tasks[index % len(shown.tasks)]
        rng = random.Random(f"{seed}:{index}")
        attempt, fault, mended = script(task, rng)
        if recipe.warm_start is not None and rng.random() < recipe.warm_start.blind_share:
            fault = dataclasses.replace(fault, note="wrong")
        context = chat.context(rollback_request(prompt, task.prompt, attempt, fault))
        answer = chat.completion_ids(mended)
        mask = (0,) * len(context) + (1,) * len(answer)
        rows.append(
            DatasetRow(kind="demonstration", task_id=task.id, trajectory_id="", ids=(*context, *answer), mask=mask)
        )
    return rows


def warm_start_key(recipe: Recipe, seed: int) -> str:
    """A hash of all that the warm start depends on, the code that makes it included."""
    assert recipe.warm_start is not None
    parts = [recipe.environment, recipe.model.small, recipe.model.prompts, recipe.warm_start]
    settings = [part.model_dump() if not isinstance(part, str) else part for part in parts]
    return content_hash([*settings, seed, code_hash(recipe.environment.name, recipe.model.prompts)])


def code_hash(environment: str, prompts: str, root: Path = ROOT) -> str:
    """A hash of the package's version and of the source files that a warm start comes from (weights made by another
    generator are never reused), one's own environment file too. An environment of another package is known by its name
    and options alone."""
    # The files beside word_problems.py are called word_problem_generator.py and word_problem_faults.py.
    own = [] if is_file_name(environment) else [f"sandboxes/environments/{environment.removesuffix('s')}*.py"]
    patterns = [*SOURCES, *own, f"agents/prompts/{prompts}/*.toml"]
    files = sorted({path for pattern in patterns for path in root.glob(pattern)})
    if is_file_name(environment):
        files.append(Path(environment))
    try:
        release = version("kintsugi-agents")
    except PackageNotFoundError:  # a checkout on the path, not installed
        release = ""
    return content_hash([release, [(path.name, path.read_text(encoding="utf-8")) for path in files]])


async def warm_start(recipe: Recipe, troupe: Troupe, seed: int, shelf: Path, on_step: OnStep | None = None) -> Path:
    """The folder of the warm-started model for this recipe and seed, made now unless it is on the shelf already."""
    settings = recipe.warm_start
    assert settings is not None
    folder = shelf / warm_start_key(recipe, seed)
    if (folder / "learn.json").exists():
        return folder
    from kintsugi.training.learn import learn
    from kintsugi.training.small_model import make_small_model

    shelf.mkdir(parents=True, exist_ok=True)
    shown = await demonstrations(troupe.environment, settings.demonstrations, seed)
    # The vocabulary has the words of the training questions, as a pretrained model's would; no answer is among them.
    asked = troupe.environment.tasks(recipe.environment.train_split, limit=VOCABULARY_TASKS, seed=seed)
    texts = [task.prompt for task in (*asked, *shown.tasks)] + list(shown.actions)
    raw = make_small_model(texts, shelf / f"{folder.name}-raw", recipe.model.small, seed)
    chat = load_chat(raw)
    clean = sorted(demonstration_rows(recipe, troupe, chat, shown), key=lambda row: len(row.ids))
    num_repairs = round(len(clean) * settings.repair_share / (1 - settings.repair_share))
    repairs = repair_demonstration_rows(recipe, troupe, chat, shown, num_repairs, seed)
    phases = [
        (clean[: max(1, round(phase.shortest * len(clean)))], {"steps": phase.steps, "schedule": "constant"})
        for phase in settings.first
    ]
    # New noise in every epoch: what is garbled twice in the same way is learned by heart.
    epoch = sum(len(row.ids) for row in clean)
    epochs = -(-(settings.learn.steps or 0) * settings.learn.batch_tokens // epoch) if settings.word_noise else 1
    noisy = [
        row
        for number in range(max(1, epochs))
        for row in demonstration_rows(recipe, troupe, chat, shown, noise_seed=f"{seed}:{number}")
    ]
    phases.append((noisy + repairs * max(1, epochs), {}))
    at = raw
    for number, (rows, changes) in enumerate(phases):
        last = number == len(phases) - 1
        made = await asyncio.to_thread(
            learn,
            rows,
            model=at,
            out=folder if last else shelf / f"{folder.name}-{number}",
            config=settings.learn.model_copy(update=changes),
            seed=seed + number,
            on_step=on_step,
            threads=recipe.threads,
        )
        at = made.path
    return folder


def load_chat(folder: Path | str) -> ChatTokens:
    """Chat ↔ tokens of the tokenizer in `folder` (or of a hub name)."""
    from transformers import AutoTokenizer

    return ChatTokens(AutoTokenizer.from_pretrained(str(folder)))


def check_band(recipe: Recipe, success_rate: float) -> None:
    """LearningError when held-out success after the warm start is outside the recipe's band."""
    settings = recipe.warm_start
    if settings is None or settings.low <= success_rate <= settings.high:
        return
    raise LearningError(
        f"the warm start solves {success_rate:.1%} of the held-out tasks, expected {settings.low:.0%} to "
        f"{settings.high:.0%}: below, self-training is slow; above, there is little to see. Change warm_start.learn.steps "
        "or warm_start.demonstrations, or set warm_start.low and warm_start.high"
    )


def describe(folder: Path) -> dict[str, Any]:
    """What the warm start's training said of itself (steps, loss, rows)."""
    return json.loads((folder / "learn.json").read_text(encoding="utf-8"))

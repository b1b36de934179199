"""The start of a small model: made from scratch, then shown a few scripted demonstrations, and never another human answer.

`warm_start(recipe, seed, shelf)` returns the folder of the finished model; it is kept on a shelf under a hash of all that
it depends on, so that every method of a comparison starts from the very same weights of a seed. The demonstrations are
the environment's own `gold` of its "demonstrations" split, and (for repairs) its `scripted_repair`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.agents.policies.policy import ChatMessage
from kintsugi.agents.roles import Prompt
from kintsugi.errors import ConfigError, LearningError
from kintsugi.graphs.episode_nodes import rollback_request
from kintsugi.records import DatasetRow, Task, content_hash
from kintsugi.sandboxes.environments.environment import Environment, is_file_name
from kintsugi.training.batches import OBSERVED
from kintsugi.training.casting import Troupe
from kintsugi.training.recipe import Recipe, WarmStartConfig

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
    """Tasks of the demonstrations split, and each one's scripted episode: (action, the answer to it) of every turn. The
    answer to the last action, and so to the only one of a single-turn task, is left out ("")."""

    tasks: Sequence[Task]
    episodes: Sequence[Sequence[tuple[str, str]]]


def check_demonstrations(environment: Environment, settings: WarmStartConfig) -> None:
    """ConfigError when the environment has not what the warm start is to show."""
    if not environment.tasks("demonstrations", limit=1):
        raise ConfigError(f'{environment.name} has no "demonstrations" split: give model.path instead of a warm start')
    script = "scripted_repair" if environment.max_turns == 1 else "scripted_retry"
    if settings.repair_share and not hasattr(environment, script):
        raise ConfigError(f"{environment.name} has no scripted repairs: set warm_start.repair_share=0")


async def demonstrations(troupe: Troupe, num: int, seed: int) -> Demonstrations:
    """`num` scripted demonstrations, made once for a troupe. A task without a scripted solution is a ConfigError."""
    if (num, seed) not in troupe.shown:
        environment = troupe.environment
        tasks = environment.tasks("demonstrations", limit=num, seed=seed)
        episodes = [await _scripted_episode(environment, task) for task in tasks]
        troupe.shown[num, seed] = Demonstrations(tasks=tasks, episodes=episodes)
    return troupe.shown[num, seed]


async def _scripted_episode(environment: Environment, task: Task) -> list[tuple[str, str]]:
    gold = await environment.gold(task)
    if not gold:
        raise ConfigError(f"{environment.name} has no scripted solution for {task.id}: it cannot warm-start a model")
    if environment.max_turns == 1:
        return [(gold[0], "")]
    world = await environment.start(task)
    try:
        await world.observe()
        answers = [(await world.act(action)).observation for action in gold[:-1]]
    finally:
        await world.close()
    return list(zip(gold, [*answers, ""], strict=True))


def demonstration_rows(
    recipe: Recipe, troupe: Troupe, chat: ChatTokens, shown: Demonstrations, *, noise_seed: str | None = None
) -> list[DatasetRow]:
    """One row an episode, in the actor's plain prompt; with a `noise_seed`, some with garbled words before the first action.
    Where the warm start learns from what the environment says too, that has the mask 2."""
    prompt, settings = troupe.prompt("actor"), recipe.warm_start
    assert settings is not None
    garble = Garbler(chat, settings.word_noise) if noise_seed is not None and settings.word_noise else None
    rows = []
    for task, turns in zip(shown.tasks, shown.episodes, strict=True):
        ids, mask = _episode_ids(chat, prompt, task, turns)
        rng = random.Random(f"{noise_seed}:{task.id}")
        if garble is not None and rng.random() < settings.noise_share:
            start = mask.index(1)
            context = garble(ids[:start], rng)
            ids, mask = (*context, *ids[start:]), (*(0,) * len(context), *mask[start:])
        if settings.learn.observation_loss:
            mask = tuple(value or OBSERVED for value in mask)
        rows.append(DatasetRow(kind="demonstration", task_id=task.id, trajectory_id="", ids=ids, mask=mask))
    return rows


def _episode_ids(
    chat: ChatTokens, prompt: Prompt, task: Task, turns: Sequence[tuple[str, str]], memory: str = ""
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ids, mask) of a scripted episode after the actor's prompt."""
    messages = list(prompt.messages(task=task.prompt, attempt="", feedback="", memory=memory))
    for action, answer in turns:
        messages.append(ChatMessage(role="assistant", content=action))
        messages.append(ChatMessage(role="user", content=answer))
    return chat.row(messages[:-1])


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


async def second_try_rows(
    recipe: Recipe, troupe: Troupe, chat: ChatTokens, shown: Demonstrations, num: int, seed: int
) -> list[DatasetRow]:
    """`num` rows of what follows a failure: scripted repairs, or, over many turns, scripted episodes after notes."""
    if num == 0 or troupe.environment.max_turns == 1:
        return repair_demonstration_rows(recipe, troupe, chat, shown, num, seed)
    script = getattr(troupe.environment, "scripted_retry", None)
    if script is None:
        raise ConfigError(f"{troupe.environment.name} has no scripted second tries: set warm_start.repair_share=0")
    prompt, rows = troupe.prompt("actor"), []
    for index in range(num):
        task = shown.tasks[index % len(shown.tasks)]
        found = await script(task, random.Random(f"{seed}:{index}"))
        if found is not None:
            notes, turns = found
            ids, mask = _episode_ids(chat, prompt, task, turns, notes)
            rows.append(DatasetRow(kind="demonstration", task_id=task.id, trajectory_id="", ids=ids, mask=mask))
    return rows


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
    """The folder of the warm-started model for this recipe and seed, made now unless it is on the shelf already. Of runs
    that want the same one at the same time, one makes it and the others wait."""
    folder = shelf / warm_start_key(recipe, seed)
    shelf.mkdir(parents=True, exist_ok=True)
    async with _alone(folder.with_suffix(".lock")):
        if not (folder / "learn.json").exists():
            await _make(recipe, troupe, seed, folder, on_step)
    return folder


@asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Holds the lock file `path`, once whoever holds it is done or dead."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.2)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave it to forked children that have the file too


async def _make(recipe: Recipe, troupe: Troupe, seed: int, folder: Path, on_step: OnStep | None) -> None:
    settings, shelf = recipe.warm_start, folder.parent
    assert settings is not None
    from kintsugi.training.learn import learn
    from kintsugi.training.small_model import make_small_model

    shown = await demonstrations(troupe, settings.demonstrations, seed)
    # The vocabulary has the words of the training questions, as a pretrained model's would; no answer is among them.
    asked = troupe.environment.tasks(recipe.environment.train_split, limit=VOCABULARY_TASKS, seed=seed)
    texts = [task.prompt for task in (*asked, *shown.tasks)]
    texts += [said for turns in shown.episodes for turn in turns for said in turn]
    raw = make_small_model(texts, shelf / f"{folder.name}-raw", recipe.model.small, seed)
    chat = load_chat(raw)
    clean = sorted(demonstration_rows(recipe, troupe, chat, shown), key=lambda row: len(row.ids))
    num_repairs = round(len(clean) * settings.repair_share / (1 - settings.repair_share))
    repairs = await second_try_rows(recipe, troupe, chat, shown, num_repairs, seed)
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

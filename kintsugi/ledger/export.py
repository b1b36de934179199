"""The ledger as JSONL files that TRL (and anything else) reads: `export(ledger, "sft", "rows.jsonl")`.

- `sft`: `{"messages": […]}`, one right attempt a row;
- `dpo`: `{"prompt": […], "chosen": […], "rejected": […]}`, a failed attempt and a right one of the same task: its own
  repair where there is one;
- `repairs`: `{"prompt": [task, failed attempt, feedback], "completion": [right attempt], "prefill": "…"}`; the completion
  begins with the prefill, which was given and not sampled;
- `trajectories`: every record whole, as `records.to_plain` gives it.

Chats are those of the agent: observations are the user's, actions the assistant's, critiques are left out (a row must
not need what the agent will not see). A ledger knows no prompts: `Chats` says what was asked in the environment's words
alone, `kintsugi.training.exports` in those of the run's roles. The first three kinds leave out exact duplicates within a
task, attempts whose maker saw a gold answer, and whatever was not explored for training (evaluations must not leak). Each
row names its trajectories. Files appear whole or not at all. Left out: tokens in the first three; a run trains from its
datasets, which keep every token as sampled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from kintsugi.errors import ConfigError, LedgerError, nearest
from kintsugi.ledger.filters import Wanted
from kintsugi.ledger.ledger import Ledger
from kintsugi.records import Action, Observation, Trajectory, to_plain

Chat = list[dict[str, str]]
Line = dict[str, Any]
Filters = dict[str, Any]

_PAGE = 1000


class Chats:
    """How rows ask: in the environment's words alone. Derive from it to ask as a policy was asked."""

    def opening(self, said: str) -> Chat:
        """The chat that the agent's first action answers, when `said` is what the environment began with."""
        return [{"role": "user", "content": said}]

    def repair(self, failed: Trajectory, right: Trajectory) -> tuple[Chat, Chat, str]:
        """(prompt, completion, prefill) of the repair `right` of `failed`; nothing to learn without a completion."""
        (asked, attempt), (_, answer) = _chat(failed, self, to_the_end=True), _chat(right, self)
        feedback = {"role": "user", "content": failed.feedback or "This attempt failed."}
        return _joined([*asked, *attempt, feedback]), answer, ""


def export(
    ledger: Ledger, kind: str, path: str | Path, *, saw_gold: bool = False, chats: Chats | None = None, **filters: Wanted
) -> int:
    """Write one kind of rows to `path` and return how many.

    saw_gold: keep attempts whose maker saw a gold answer. chats: how rows ask; None in the environment's words alone.
    filters: as `Ledger.trajectories`; they choose the right attempts of `sft` and `repairs`, both sides of `dpo`, and all
    of `trajectories`. Unknown kinds raise ConfigError, unwritable files LedgerError.
    """
    if kind not in EXPORT_KINDS:
        raise ConfigError(f'unknown export kind "{kind}": {nearest(kind, EXPORT_KINDS)}')
    if kind != "trajectories":
        filters = {"purpose": "explore", **filters}
    lines = EXPORT_KINDS[kind](ledger, saw_gold, chats or Chats(), filters)
    return _write_whole(Path(path), lines)


def _write_whole(path: Path, lines: Iterator[Line]) -> int:
    if path.is_dir():
        raise LedgerError(f"expected the name of a file to write, found the folder {path}: name a file in it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    number = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
                number += 1
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise LedgerError(
            f"{path} cannot be written ({error.strerror or error}): choose another place or free some space; "
            "what stood there before is untouched"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return number


def _sft(ledger: Ledger, saw_gold: bool, chats: Chats, filters: Filters) -> Iterator[Line]:
    for task_id, attempts in _by_task(ledger, saw_gold, filters):
        for attempt in _distinct(part for part in attempts if part.success):
            prompt, answer = _chat(attempt, chats)
            yield {"messages": prompt + answer, "task_id": task_id, "trajectory_id": attempt.id}


def _dpo(ledger: Ledger, saw_gold: bool, chats: Chats, filters: Filters) -> Iterator[Line]:
    for task_id, attempts in _by_task(ledger, saw_gold, filters):
        right = _distinct(part for part in attempts if part.success)
        repairs = {part.parent_id: part for part in right if part.parent_id}
        wrong = _distinct(part for part in attempts if part.stop in ("failure", "truncated"))
        for index, rejected in enumerate(wrong if right else ()):
            chosen = repairs.get(rejected.id, right[index % len(right)])
            (prompt, good), (same_prompt, bad) = _chat(chosen, chats), _chat(rejected, chats)
            if prompt == same_prompt and good and bad:
                yield {
                    "prompt": prompt,
                    "chosen": good,
                    "rejected": bad,
                    "task_id": task_id,
                    "trajectory_id": chosen.id,
                    "rejected_trajectory_id": rejected.id,
                }


def _repairs(ledger: Ledger, saw_gold: bool, chats: Chats, filters: Filters) -> Iterator[Line]:
    for task_id, attempts in _by_task(ledger, saw_gold, filters):
        known = {part.id: part for part in attempts}
        seen = set()
        for attempt in attempts:
            if not attempt.success or not attempt.parent_id:
                continue
            parent = known.get(attempt.parent_id) or ledger.trajectory(attempt.parent_id)
            texts = (parent.text, attempt.text)
            if parent.success or not parent.actions or not attempt.actions or texts in seen:
                continue
            prompt, completion, prefill = chats.repair(parent, attempt)
            if not completion:
                continue
            seen.add(texts)
            yield {
                "prompt": prompt,
                "completion": completion,
                "prefill": prefill,
                "task_id": task_id,
                "trajectory_id": attempt.id,
                "rejected_trajectory_id": parent.id,
            }


def _trajectories(ledger: Ledger, saw_gold: bool, chats: Chats, filters: Filters) -> Iterator[Line]:
    offset = 0
    while page := ledger.trajectories(limit=_PAGE, offset=offset, **filters):
        offset += _PAGE
        yield from (to_plain(part) for part in page)


EXPORT_KINDS: dict[str, Callable[[Ledger, bool, Chats, Filters], Iterator[Line]]] = {
    "sft": _sft,
    "dpo": _dpo,
    "repairs": _repairs,
    "trajectories": _trajectories,
}


def _by_task(ledger: Ledger, saw_gold: bool, filters: Filters) -> Iterator[tuple[str, list[Trajectory]]]:
    """Attempts grouped by task over all rounds, in the ledger's order."""
    kept = [part for part in ledger.trajectories(**filters) if saw_gold or not part.saw_gold]

    def key(part: Trajectory) -> tuple[str, str]:
        return (part.environment, part.task_id)

    for (_, task_id), attempts in groupby(sorted(kept, key=key), key=key):
        yield task_id, list(attempts)


def _distinct(attempts: Iterator[Trajectory]) -> list[Trajectory]:
    """The first of each text."""
    first: dict[str, Trajectory] = {}
    for attempt in attempts:
        if attempt.actions:
            first.setdefault(attempt.text, attempt)
    return list(first.values())


def _chat(attempt: Trajectory, chats: Chats, *, to_the_end: bool = False) -> tuple[Chat, Chat]:
    """(what stands before the first action, the rest) as chat messages; the rest ends with the last action, unless
    `to_the_end`: nothing is learned from what follows it, but a repair may read it."""
    chat = [
        {"role": "assistant" if isinstance(message, Action) else "user", "content": message.text}
        for message in attempt.messages
        if isinstance(message, Action | Observation)
    ]
    acts = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
    said = "\n".join(message["content"] for message in chat[: acts[0] if acts else len(chat)])
    if not acts:
        return chats.opening(said), []
    return chats.opening(said), _joined(chat[acts[0] :] if to_the_end else chat[acts[0] : acts[-1] + 1])


def _joined(chat: Chat) -> Chat:
    """Neighbours of one role as one message: chat templates want the roles to take turns."""
    joined: Chat = []
    for role, run in groupby(chat, key=lambda message: message["role"]):
        joined.append({"role": role, "content": "\n".join(message["content"] for message in run)})
    return joined

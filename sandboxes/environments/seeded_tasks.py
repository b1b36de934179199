"""Tasks of worlds that are drawn by a seed: the prompt is the first observation, and the splits share no prompt.

    seeded = SeededTasks("gymnasium", first=lambda seeds: [reset(seed) for seed in seeds], instructions="", help="")
    seeded.tasks("train", wanted=20, seed=0)

Which split a seed belongs to follows from its prompt's hash: train 50 %, heldout 30 %, demonstrations 20 %. Where fewer than
eight first observations are found among 32 seeds (what differs is hidden), games are numbered in the prompt by their seed,
and so the number decides. A payload holds `seed`. Worlds that do not begin alike twice under one seed are refused: nothing
could be replayed. Left out: what happens after the first observation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from kintsugi.errors import DataError, nearest
from kintsugi.records import Task

SPLITS: Final = {"train": range(0, 50), "heldout": range(50, 80), "demonstrations": range(80, 100)}
_SAMPLED: Final = 32
_FEWEST: Final = 8
_PATIENCE: Final = 40
_APART: Final = 1_000_000
_REMEMBERED: Final = 5_000


class SeededTasks:
    """first: the first observations under these seeds. instructions, help: what stands before and behind them."""

    def __init__(self, name: str, first: Callable[[Sequence[int]], list[str]], instructions: str, help: str) -> None:
        self.name, self.first, self.instructions, self.help = name, first, instructions, help
        self._numbered: bool | None = None
        self._seen: dict[int, str] = {}

    def tasks(self, split: str, *, wanted: int, seed: int) -> list[Task]:
        """Tasks of `split`, others for another seed; fewer than `wanted` when 40 seeds a task were not enough.

        Raises DataError for an unknown split, and for worlds that do not follow their seed."""
        if split not in SPLITS:
            raise DataError(f'{self.name} has no split "{split}": {nearest(split, SPLITS)}')
        if self._numbered is None:
            self._numbered = self._looked()
        tasks: list[Task] = []
        for place in range(_PATIENCE if wanted else 0):
            start = seed * _APART + place * wanted
            seeds = range(start, start + wanted)
            for world_seed, first in zip(seeds, self._firsts(seeds), strict=True):
                prompt = self._prompt(world_seed, first)
                if len(tasks) < wanted and hundredth(prompt) in SPLITS[split]:
                    name, payload = f"{split}-{world_seed}", {"seed": world_seed}
                    tasks.append(Task(id=name, environment=self.name, split=split, prompt=prompt, payload=payload))
            if len(tasks) >= wanted:
                break
        return tasks

    def _firsts(self, seeds: Sequence[int]) -> list[str]:
        """First observations, those seen before from memory: the splits go through the same seeds."""
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        new = [seed for seed in seeds if seed not in self._seen]
        self._seen.update(zip(new, self.first(new) if new else (), strict=True))
        return [self._seen[seed] for seed in seeds]

    def _looked(self) -> bool:
        """Whether games must be numbered."""
        found = self.first([*range(_SAMPLED), 1])
        if found[-1] != found[1]:
            raise DataError(
                f"{self.name}: expected the same first observation twice under one seed, found two; mend its reset: worlds "
                "are rebuilt by their seed"
            )
        return len(set(found)) < _FEWEST

    def _prompt(self, seed: int, first: str) -> str:
        number = f"Game {seed}." if self._numbered else ""
        return "\n".join(part for part in (self.instructions, number, first, self.help) if part.strip())


def hundredth(prompt: str) -> int:
    """A number from 0 to 99 that follows from the prompt: which split it belongs to."""
    return hashlib.sha256(prompt.encode()).digest()[0] * 100 // 256

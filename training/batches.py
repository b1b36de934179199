"""Which rows go into which forward pass, and how they become tensors.

`plan_batches` is pure: lengths, config and seed in, row numbers out. `pack_rows` and `pad_rows` turn the rows of one
forward pass into what `training/sft.py` feeds the model. Rows keep the token ids and loss mask they were sampled with:
nothing is tokenised, cut or joined. Left out: bucketing by length (packing needs none), several devices.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kintsugi.records import DatasetRow
from kintsugi.training.learn_config import LearnConfig

IGNORED = -100
"""The label of a token without loss, as everywhere in PyTorch."""

ANSWER, OBSERVED = 1, 2
"""Values of a row's mask: a token that was answered, and one that the environment said in a demonstration."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass. rows: row numbers. step_tokens, step_rows: loss tokens (by weight) and rows of the whole optimizer
    step that it belongs to, by which every loss is divided: accumulation then changes nothing but memory."""

    rows: tuple[int, ...]
    step_tokens: float
    step_rows: int


def plan_batches(rows: Sequence[DatasetRow], config: LearnConfig, seed: int) -> list[Batch]:
    """The forward passes of a whole training, in order; every `config.gradient_accumulation` make an optimizer step.

    Epochs are shuffled by `seed` one by one, and a batch never reaches over the end of an epoch. With `config.steps` there
    are exactly steps × gradient_accumulation batches.
    """
    accumulate = config.gradient_accumulation
    wanted = None if config.steps is None else config.steps * accumulate
    groups: list[tuple[int, ...]] = []
    epoch = 0
    while len(groups) < wanted if wanted is not None else epoch < config.epochs:
        groups += _epoch(rows, config, random.Random(f"{seed}/{epoch}"))
        epoch += 1
    groups = groups[:wanted]
    batches = []
    for start in range(0, len(groups), accumulate):
        step = groups[start : start + accumulate]
        numbers = [number for group in step for number in group]
        tokens = math.fsum(loss_weight(rows[number].mask, config.observation_loss) for number in numbers)
        batches += [Batch(rows=group, step_tokens=tokens, step_rows=len(numbers)) for group in step]
    return batches


def _epoch(rows: Sequence[DatasetRow], config: LearnConfig, rng: random.Random) -> Iterator[tuple[int, ...]]:
    order = list(range(len(rows)))
    rng.shuffle(order)
    group: list[int] = []
    tokens = 0
    for number in order:
        length = num_fed_tokens(rows[number], config)
        full = len(group) == config.batch_size if config.batch_size else tokens + length > config.batch_tokens
        if group and full:
            yield tuple(group)
            group, tokens = [], 0
        group.append(number)
        tokens += length
    if group:
        yield tuple(group)


def num_fed_tokens(row: DatasetRow, config: LearnConfig) -> int:
    """Tokens that the row costs in a forward pass under the config's loss."""
    rejected = config.loss in ("contrastive", "dpo") and is_paired(row)
    return len(row.ids) + (len(row.rejected_ids) if rejected else 0)


def is_paired(row: DatasetRow) -> bool:
    """Whether the row has a rejected side with something to compare in it."""
    return num_loss_tokens(row.rejected_mask) > 0


def num_loss_tokens(mask: Sequence[int]) -> int:
    """Tokens that a loss can fall on: the first token of a row has nothing before it to be predicted from."""
    return sum(value == ANSWER for value in mask[1:])


def loss_weight(mask: Sequence[int], observation_loss: float) -> float:
    """The same by weight, with what the environment said in a demonstration (mask 2) at `observation_loss`."""
    observed = sum(value == OBSERVED for value in mask[1:]) if observation_loss else 0
    return num_loss_tokens(mask) + observation_loss * observed


def pack_rows(rows: Sequence[DatasetRow], *, rejected: bool, observation_loss: float = 0.0) -> dict[str, Any]:
    """The rows one behind the other, and after them (`rejected`) the rejected side of those that have one.

    input_ids, labels, position_ids, segment: [1, T]; labels are IGNORED without loss, positions begin at 0 in every
    segment, segment numbers them from 0 to num_segments - 1. row_lengths: list of the segments' lengths. weights:
    [rows]. answers: [pairs], the row that each rejected segment belongs to. With an observation_loss above 0 there are
    token_weights too, [1, T].
    """
    import torch

    segments, answers = _segments(rows, rejected)
    lengths = [len(ids) for ids, _ in segments]
    weighted = {}
    if observation_loss:
        masks = torch.tensor([value for _, mask in segments for value in mask])[None]
        weighted["token_weights"] = _token_weights(masks, observation_loss)
    return {
        **weighted,
        "input_ids": torch.tensor([token for ids, _ in segments for token in ids])[None],
        "labels": torch.tensor([label for ids, mask in segments for label in _labels(ids, mask, observation_loss)])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "segment": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None],
        "num_segments": len(lengths),
        "row_lengths": lengths,
        "weights": torch.tensor([row.weight for row in rows]),
        "answers": torch.tensor(answers, dtype=torch.long),
    }


def pad_rows(
    rows: Sequence[DatasetRow], *, rejected: bool, pad_id: int, observation_loss: float = 0.0
) -> dict[str, Any]:
    """The same as `pack_rows`, one segment a line, padded at the right: tensors [segments, longest] and an
    attention_mask instead of positions and lengths."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    segments, answers = _segments(rows, rejected)
    ids = [torch.tensor(ids) for ids, _ in segments]
    labels = [torch.tensor(_labels(ids, mask, observation_loss)) for ids, mask in segments]
    weighted = {}
    if observation_loss:
        masks = pad_sequence([torch.tensor(mask) for _, mask in segments], batch_first=True)
        weighted["token_weights"] = _token_weights(masks, observation_loss)
    padded = pad_sequence(ids, batch_first=True, padding_value=pad_id)
    return {
        **weighted,
        "input_ids": padded,
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "attention_mask": pad_sequence([torch.ones_like(line) for line in ids], batch_first=True),
        "segment": torch.arange(len(segments))[:, None].expand_as(padded),
        "num_segments": len(segments),
        "weights": torch.tensor([row.weight for row in rows]),
        "answers": torch.tensor(answers, dtype=torch.long),
    }


def _segments(rows: Sequence[DatasetRow], rejected: bool) -> tuple[list[tuple[Sequence[int], Sequence[int]]], list[int]]:
    segments: list[tuple[Sequence[int], Sequence[int]]] = [(row.ids, row.mask) for row in rows]
    answers = [number for number, row in enumerate(rows) if rejected and is_paired(row)]
    segments += [(rows[number].rejected_ids, rows[number].rejected_mask) for number in answers]
    return segments, answers


def _labels(ids: Sequence[int], mask: Sequence[int], observation_loss: float) -> list[int]:
    learned = (ANSWER, OBSERVED) if observation_loss else (ANSWER,)
    return [IGNORED, *(token if kind in learned else IGNORED for token, kind in zip(ids[1:], mask[1:], strict=True))]


def _token_weights(masks: Any, observation_loss: float) -> Any:
    return (masks == ANSWER).float() + observation_loss * (masks == OBSERVED).float()

"""Direct preference optimisation on pairs of whole trajectories (Rafailov et al. 2023, arXiv 2305.18290; as Re-ReST's
extension: chosen = a verified attempt, rejected = the failed one of the same task).

`DpoTrainer` is TRL's with two changes. **The mask**: TRL counts everything after the prompt as the policy's own, so that in
a trajectory of several turns the environment's observations enter the log-ratios (440 tokens instead of 96 on a
three-turn one); here the masks of the rows decide, token by token. **The reference**: its log-probabilities are computed
once, in memory, before the first step; no second model, no cache files.

The loss of a step is the mean over its pairs. Row weights other than 1 are refused, since TRL has no place for them.
Left out: packing (TRL's loss wants one row a line), truncation.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.dpo_trainer import DPOTrainer

from kintsugi.errors import LearningError
from kintsugi.records import DatasetRow
from kintsugi.training.batches import Batch
from kintsugi.training.sft import PlannedRows


class DpoTrainer(PlannedRows, DPOTrainer):
    """TRL's DPOTrainer on rows with exact masks. Every row must have a rejected side."""

    def __init__(self, rows: Any, plan: Any, config: Any, **trainer: Any) -> None:
        if any(row.weight != 1.0 for row in rows):
            raise LearningError(
                'expected rows of weight 1 for loss = "dpo", found others: leave the weights of the targets at 1 '
                'or take loss = "contrastive".'
            )
        self._reference: dict[int, tuple[float, float]] = {}
        super().__init__(rows, plan, config, **trainer)

    def collate(self, batch: Batch) -> dict[str, Any]:
        made: dict[str, Any] = collate_pairs([self.rows[number] for number in batch.rows], self.pad_id)
        if self._reference:
            chosen, rejected = zip(*(self._reference[number] for number in batch.rows), strict=True)
            made["ref_chosen_logps"], made["ref_rejected_logps"] = torch.tensor(chosen), torch.tensor(rejected)
        return made

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        reference = {}
        for batch in self.plan:
            new = tuple(number for number in batch.rows if number not in reference)
            if not new:
                continue
            inputs = self._prepare_inputs(self.collate(Batch(rows=new, step_tokens=0, step_rows=0)))
            chosen, rejected = self.compute_ref_log_probs(self.model, inputs)
            reference.update(zip(new, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))
        self._reference = reference
        return dataset


def collate_pairs(rows: list[DatasetRow], pad_id: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask, completion_mask: [2 × rows, longest], first the chosen sides, then the rejected.

    A row's first token is never in the mask: nothing stands before it.
    """
    sides = [(row.ids, row.mask) for row in rows] + [(row.rejected_ids, row.rejected_mask) for row in rows]
    ids = [torch.tensor(side) for side, _ in sides]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(side) for side in ids], batch_first=True),
        "completion_mask": pad_sequence([torch.tensor([0, *mask[1:]]) for _, mask in sides], batch_first=True),
    }

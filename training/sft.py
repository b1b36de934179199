"""Supervised fine-tuning on rows as sampled: L = Σ_rows w_r Σ_t −log p(t | before) / Σ_rows T_r.

The sum runs over the loss-masked tokens of the rows of one optimizer step, T_r is how many row r has, w_r its weight; with
all weights 1 it is the mean negative log-likelihood a token. `SftTrainer` is TRL's, fed with planned batches
(`PlannedRows`) and with this loss; `contrastive.py` adds a term to it. What is used of TRL and transformers: the optimizer,
its schedule, mixed precision, checkpointing, the fused head on GPUs.

Left out: TRL's metrics, logging, checkpoints and dataset preparation: they cost time a step and rewrite rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from kintsugi.errors import LearningError
from kintsugi.records import DatasetRow
from kintsugi.training.batches import IGNORED, Batch, pack_rows, pad_rows
from kintsugi.training.learn_config import LearnConfig

OnStep = Callable[[int, int, float], None]
"""Called after every optimizer step with its number from 1, how many there will be, and its loss."""


class PlannedRows:
    """Mix-in before a TRL trainer: batches come from a plan over rows in memory, losses are kept, nothing is printed.

    The trainer gets a dataset of row numbers only, since TRL insists on one. `collate` turns a planned batch into inputs.
    """

    rows: Sequence[DatasetRow]
    config: LearnConfig
    pad_id: int

    def __init__(self, rows: Sequence[DatasetRow], plan: Sequence[Batch], config: LearnConfig, **trainer: Any) -> None:
        self.rows, self.plan, self.config = rows, plan, config
        self.pad_id = _pad_id(trainer["processing_class"])
        self.losses: list[float] = []
        self._parts: list[torch.Tensor] = []
        numbers = Dataset.from_dict({"row": list(range(len(rows)))})
        super().__init__(train_dataset=numbers, data_collator=self.collate, **trainer)  # type: ignore[call-arg]
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]

    def collate(self, batch: Batch) -> dict[str, Any]:
        raise NotImplementedError

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.plan, batch_size=None, shuffle=False, collate_fn=self.collate)  # type: ignore[arg-type]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.config.optimizer == "adamw":
            return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        from kintsugi.training.muon import MuonAdamW

        settings = self.config
        self.optimizer = MuonAdamW(
            self.model,  # type: ignore[attr-defined]
            lr=settings.lr,
            muon_lr=settings.muon_lr or settings.lr,
            weight_decay=settings.weight_decay,
        )
        return self.optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        part = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._parts.append(part)
        return part

    def finish_step(self) -> float:
        """The loss of the optimizer step just taken, which is also put on `losses`."""
        loss = float(torch.stack(self._parts).sum())
        self._parts.clear()
        if not math.isfinite(loss):
            raise LearningError(
                f"expected a finite loss, found {loss} at optimizer step {len(self.losses) + 1}: lower learn.lr "
                "or raise learn.warmup_ratio."
            )
        self.losses.append(loss)
        return loss


class StepReport(TrainerCallback):
    """Collects the loss of every optimizer step and passes it on."""

    def __init__(self, trainer: PlannedRows, on_step: OnStep | None) -> None:
        self.trainer, self.on_step = trainer, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = self.trainer.finish_step()
        if self.on_step is not None:
            self.on_step(state.global_step, state.max_steps, loss)


class SftTrainer(PlannedRows, SFTTrainer):
    """TRL's SFTTrainer with planned, packed batches and weighted rows."""

    # Losses are divided by the whole step's counts, so that gradient accumulation must not divide them again.
    loss_is_scaled_for_ga = True
    with_rejected = False

    def collate(self, batch: Batch) -> dict[str, Any]:
        rows = [self.rows[number] for number in batch.rows]
        made = (
            pack_rows(rows, rejected=self.with_rejected, observation_loss=self.config.observation_loss)
            if self.config.packing
            else pad_rows(
                rows,
                rejected=self.with_rejected,
                pad_id=self.pad_id,
                observation_loss=self.config.observation_loss,
            )
        )
        return {**made, "step_tokens": batch.step_tokens, "step_rows": batch.step_rows}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        sums, counts = row_logprobs(model, inputs)
        return self.rows_loss(sums, counts, inputs)

    def rows_loss(self, sums: torch.Tensor, counts: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """The loss from each segment's summed log-probability and number of loss tokens, both [segments]."""
        num_rows = len(inputs["weights"])
        return -(inputs["weights"] * sums[:num_rows]).sum() / inputs["step_tokens"]


def row_logprobs(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probability of each segment's loss tokens, in nats, and how many they are (both by weight where there
    are token_weights): two [segments] tensors.

    `sums / counts` is the length-normalised log-probability, the same number that a policy calls its self-reward.
    """
    labels, segment = inputs["labels"][:, 1:], inputs["segment"][:, 1:]
    kept = labels != IGNORED
    logprobs = _token_logprobs(model, inputs, labels, kept)
    where = segment[kept]
    num_segments = inputs["num_segments"]
    if "token_weights" in inputs:
        weights = inputs["token_weights"][:, 1:][kept].to(logprobs.dtype)
        zeros = logprobs.new_zeros(num_segments)
        return zeros.index_add(0, where, weights * logprobs), zeros.index_add(0, where, weights)
    sums = logprobs.new_zeros(num_segments).index_add(0, where, logprobs)
    return sums, torch.bincount(where, minlength=num_segments).to(sums.dtype)


def _token_logprobs(model: Any, inputs: dict[str, Any], labels: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    names = ("input_ids", "attention_mask", "position_ids", "row_lengths")
    fed = {name: inputs[name] for name in names if name in inputs}
    if "row_lengths" in inputs and labels.device.type == "cpu":
        # Only the positions that predict a loss token meet the output head: a fifth faster than TRL's fused head there.
        logits = model(**fed, use_cache=False, logits_to_keep=kept[0].nonzero()[:, 0]).logits[0]
        return -cross_entropy(logits.float(), labels[kept], reduction="none")
    # On a GPU the fused head never holds the logits of a large vocabulary.
    return model(**fed, labels=inputs["labels"], fused_lm_head=True).log_probs[kept]


def _pad_id(tokenizer: Any) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

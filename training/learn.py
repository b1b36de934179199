"""`learn`: rows and a model in, a trained model folder out.

    result = learn(rows, model="runs/x/policy-0", out=Path("runs/x/policy-1"), config=LearnConfig(steps=200), seed=0)

The algorithms are one file each (`sft.py`, `l1_l2.py`, `contrastive.py`, `dpo.py`), all on TRL's trainers; this module
checks the rows, plans the batches, runs the trainer and writes the folder: weights or adapter, tokenizer, and
`learn.json`, which says what it was made from. Asked again for the same thing, it returns the folder that is there.

The same rows, seed and machine give the same losses and weights. Nothing is printed, and nothing is written but `out`.
Left out: training on several devices, resuming in the middle (a training that was killed begins again).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kintsugi.errors import LearningError, missing_extra
from kintsugi.records import DatasetRow, content_hash
from kintsugi.training.batches import Batch, is_paired, num_fed_tokens, num_loss_tokens, plan_batches
from kintsugi.training.learn_config import LearnConfig
from kintsugi.training.model_folder import (
    ORIGIN,
    RECORD,
    adapter_base,
    fingerprint,
    is_adapter,
    load_trainable,
    quiet,
    replacing,
    runs_bf16,
    save_trained,
)


@dataclass(frozen=True, kw_only=True)
class LearnResult:
    """What a training did.

    path: the folder. losses: one an optimizer step (`steps` of them). tokens: fed to the model over all steps, rejected
    rows included. seconds: wall time, loading and saving included. adapter: `path` holds only a LoRA adapter.
    dropped: rows left out, by why: "too_long" (beyond max_length), "no_loss" (nothing to learn in them), "unpaired"
    (no rejected side, for dpo). reused: the folder was there already and nothing was trained.
    """

    path: Path
    steps: int
    losses: tuple[float, ...]
    tokens: int
    seconds: float
    adapter: bool
    dropped: Mapping[str, int] = field(default_factory=dict)
    reused: bool = False

    @property
    def loss(self) -> float:
        """Mean of the last tenth of the steps (what `records.Checkpoint.loss` holds)."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def learn(
    rows: Sequence[DatasetRow],
    *,
    model: Path | str,
    out: Path,
    config: LearnConfig,
    seed: int,
    base: str | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    threads: int | None = None,
) -> LearnResult:
    """Train `model` (a folder or hub name; an adapter folder is continued) on `rows` and write it to `out`.

    base: where an adapter's base lies, when it is not where the adapter says, and the name a new adapter gives it.
    on_step: called after every optimizer step with (step from 1, how many, loss). threads: CPU threads of torch.
    Raises LearningError when no row is left to learn, a row is malformed or the loss is not finite; PolicyError and
    ConfigError for a model that cannot be loaded so. A complete `out` of the same rows, config, seed and parent is
    returned as it is; any other is replaced once the new one is whole.
    """
    _check_rows(rows)
    origin = _origin(rows, model, config, seed, base)
    done = _finished(out, origin)
    if done is not None:
        return done
    started = time.perf_counter()
    try:
        import torch
        import trl  # noqa: F401
    except ImportError as error:
        raise missing_extra("training", "train") from error
    if threads:
        torch.set_num_threads(threads)  # OpenMP keeps the number per thread, so it is set where the training runs
    with replacing(out) as partial, quiet():
        result = _train(rows, model, partial, config, seed, base, on_step)
        seconds = time.perf_counter() - started
        (partial / RECORD).write_text(json.dumps({**origin, **result, "seconds": seconds}), encoding="utf-8")
    return _result(out, {**result, "seconds": seconds}, reused=False)


def _train(
    rows: Sequence[DatasetRow],
    model: Path | str,
    folder: Path,
    config: LearnConfig,
    seed: int,
    base: str | None,
    on_step: Callable[[int, int, float], None] | None,
) -> dict[str, Any]:
    from transformers import set_seed

    from kintsugi.training.sft import StepReport

    set_seed(seed)
    weights, tokenizer = load_trainable(model, config, base)
    kept, dropped = _usable(rows, config, weights.config)
    plan = plan_batches(kept, config, seed)
    dtype = _dtype_on_disk(base or adapter_base(model) if is_adapter(model) else str(model))
    trainer = _trainer(config.loss)(
        kept, plan, config, model=weights, processing_class=tokenizer, args=_arguments(config, plan, folder, seed)
    )
    trainer.add_callback(StepReport(trainer, on_step))
    trainer.train()
    adapter = config.lora is not None
    save_trained(weights, tokenizer, folder, None if adapter else dtype)
    return {
        "steps": len(trainer.losses),
        "losses": trainer.losses,
        "tokens": sum(num_fed_tokens(kept[number], config) for batch in plan for number in batch.rows),
        "adapter": adapter,
        "dropped": dropped,
    }


def _trainer(loss: str) -> Any:
    if loss == "dpo":
        from kintsugi.training.dpo import DpoTrainer

        return DpoTrainer
    if loss == "contrastive":
        from kintsugi.training.contrastive import ContrastiveTrainer

        return ContrastiveTrainer
    if loss == "l1_l2":
        from kintsugi.training.l1_l2 import L1L2Trainer

        return L1L2Trainer
    from kintsugi.training.sft import SftTrainer

    return SftTrainer


def _arguments(config: LearnConfig, plan: Sequence[Batch], folder: Path, seed: int) -> Any:
    import torch
    from trl import DPOConfig, SFTConfig

    gpu = torch.cuda.is_available()
    constant = "constant_with_warmup" if config.warmup_ratio else "constant"
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": -(-len(plan) // config.gradient_accumulation),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.lr,
        "lr_scheduler_type": constant if config.schedule == "constant" else config.schedule,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch_fused",
        "use_cpu": not gpu,
        "bf16": runs_bf16(config),
        "gradient_checkpointing": gpu and config.gradient_checkpointing,
        "seed": seed,
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "max_length": None,
    }
    if config.loss == "dpo":
        sft = config.dpo.sft_weight
        return DPOConfig(
            **shared,
            beta=config.dpo.beta,
            loss_type=[*config.dpo.loss_types, *(["sft"] if sft else [])],
            loss_weights=[1.0] * len(config.dpo.loss_types) + ([sft] if sft else []),
            precompute_ref_log_probs=True,
        )
    return SFTConfig(**shared, packing=False, dataset_kwargs={"skip_prepare_dataset": True})


def _check_rows(rows: Sequence[DatasetRow]) -> None:
    if not rows:
        raise LearningError("expected rows to learn, found none: select more, or explore more tasks.")
    for row in rows:
        if len(row.ids) != len(row.mask) or len(row.rejected_ids) != len(row.rejected_mask):
            raise LearningError(
                f"expected a mask as long as the token ids in the row of {row.task_id} ({row.trajectory_id}), found "
                f"{len(row.mask)} for {len(row.ids)} and {len(row.rejected_mask)} for {len(row.rejected_ids)}."
            )


def _usable(rows: Sequence[DatasetRow], config: LearnConfig, model: Any) -> tuple[list[DatasetRow], dict[str, int]]:
    """The rows that can be learned from, and how many were left out, by why."""
    longest = min(config.max_length, getattr(model, "max_position_embeddings", None) or config.max_length)
    dropped = {"too_long": 0, "no_loss": 0, "unpaired": 0}
    kept = []
    for row in rows:
        if max(len(row.ids), len(row.rejected_ids) if config.loss in ("contrastive", "dpo") else 0) > longest:
            dropped["too_long"] += 1
        elif num_loss_tokens(row.mask) == 0:
            dropped["no_loss"] += 1
        elif config.loss == "dpo" and not is_paired(row):
            dropped["unpaired"] += 1
        else:
            kept.append(row)
    if not kept:
        raise LearningError(
            f"expected rows to learn, found none usable ({dropped_text(dropped)}; rows may have {longest} tokens): select "
            "more, raise learn.max_length, or give dpo rows with a rejected side."
        )
    top = max(max(*row.ids, *row.rejected_ids) for row in kept)
    if top >= model.vocab_size:
        raise LearningError(
            f"expected token ids below {model.vocab_size}, the model's vocabulary, found {top}: these rows were sampled "
            "with another tokenizer."
        )
    return kept, dropped


def dropped_text(dropped: Mapping[str, int]) -> str:
    """ "3 too_long, 1 no_loss" of `LearnResult.dropped`; empty when nothing was left out."""
    return ", ".join(f"{number} {why}" for why, number in dropped.items() if number)


def _origin(
    rows: Sequence[DatasetRow], model: Path | str, config: LearnConfig, seed: int, base: str | None
) -> dict[str, Any]:
    return {
        "dataset_hash": content_hash(tuple(rows)),
        "config_hash": content_hash(config.model_dump(mode="json")),
        "seed": seed,
        "parent": str(model),
        "parent_fingerprint": fingerprint(model),
        "base": base or (adapter_base(model) if is_adapter(model) else str(model)),
    }


def _finished(out: Path, origin: Mapping[str, Any]) -> LearnResult | None:
    """The result that lies in `out`, if it was made from the same things; where they lie may have changed."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if any(record.get(name) != origin[name] for name in ORIGIN):
        return None
    return _result(out, record, reused=True)


def _result(out: Path, record: Mapping[str, Any], *, reused: bool) -> LearnResult:
    return LearnResult(
        path=out,
        steps=record["steps"],
        losses=tuple(record["losses"]),
        tokens=record["tokens"],
        seconds=record["seconds"],
        adapter=record["adapter"],
        dropped=record["dropped"],
        reused=reused,
    )


def _dtype_on_disk(source: str) -> Any:
    """The type that the weights were stored in: what was trained in float32 goes back to the size it came in."""
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(source), "dtype", None)

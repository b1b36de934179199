"""The knobs of one `learn` call: which loss, how long, how much at once, and what of the model is trained.

`LearnConfig` is the `[learn]` table of a recipe and what `kintsugi.training.learn.learn` takes. It says nothing about
which rows are learned (selection does) nor from which weights (the round loop passes a folder).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kintsugi.config import StrictConfig

Loss = Literal["sft", "l1_l2", "contrastive", "dpo"]


class LoraSettings(StrictConfig):
    """A LoRA adapter (Hu et al. 2021, arXiv 2106.09685). The defaults are Re-ReST's on HotpotQA.

    targets: "all-linear" (every linear layer but the output head), or names of layers.
    """

    r: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class ContrastiveSettings(StrictConfig):
    """The negative term (formula in `training/contrastive.py`). Log-probabilities are means a token, in nats.

    margin: by how much the chosen row should be likelier than the rejected one. weight: λ of the term. floor: a rejected
    row less likely than this is not pushed further down, so that the model does not learn to be merely unlikely.
    """

    margin: float = Field(default=0.5, ge=0)
    weight: float = Field(default=0.1, ge=0)
    floor: float = Field(default=-3.0, lt=0)


class DpoSettings(StrictConfig):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290). beta: inverse temperature of the implicit reward. sft_weight: weight
    of an added −log p(chosen) term, mean a token. loss_types: names that TRL's DPOConfig knows, each with weight 1."""

    beta: float = Field(default=0.1, gt=0)
    sft_weight: float = Field(default=0.0, ge=0)
    loss_types: tuple[str, ...] = Field(default=("sigmoid",), min_length=1)


class LearnConfig(StrictConfig):
    """How one policy is trained on one dataset.

    loss: "sft" (−log p of the masked tokens), "l1_l2" (the same on explore and repair rows joined, each with its weight),
        "contrastive" (with a margin to the rejected row), "dpo" (rows with a rejected side alone).
    optimizer: "adamw", or "muon" (Muon for the matrices inside the blocks, AdamW for the rest: `training/muon.py`; good for
        models made from scratch). lr: peak learning rate of AdamW. muon_lr: of Muon, in the same scale; None takes lr.
    schedule: the rate's course after warm-up. warmup_ratio: of the steps.
    steps: optimizer steps, exactly: rows come in shuffled epochs, as many as it takes. None: `epochs` passes.
    batch_tokens: most tokens of a forward pass, rejected rows counted (a longer row goes alone). batch_size: rows of a
        forward pass instead of that, when set. gradient_accumulation: forward passes of an optimizer step.
    observation_loss: weight of a token that the environment said in a demonstration, beside 1 of an answered one. For a
        warm start alone, whose model must learn the names of things first; rows of the policy's own never have it.
    max_length: longer rows are dropped and counted, never cut. It is lowered to what the model has positions for.
    packing: rows stand one behind the other without padding, each seeing only itself ("dpo" always pads). Turn it off for
        models that are no plain attention stack (state-space or linear-attention layers).
    bf16: "auto" is on where the GPU has it; on a CPU it and gradient_checkpointing are always off: they cost 8× there.
    lora: train an adapter; None trains all weights.
    """

    loss: Loss = "sft"
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=2e-5, gt=0)
    muon_lr: float | None = Field(default=None, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    steps: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=1, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    observation_loss: float = Field(default=0.0, ge=0)
    max_length: int = Field(default=2048, ge=2)
    packing: bool = True
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    bf16: Literal["auto"] | bool = "auto"
    gradient_checkpointing: bool = False
    lora: LoraSettings | None = None
    contrastive: ContrastiveSettings = ContrastiveSettings()
    dpo: DpoSettings = DpoSettings()

"""Muon for the matrices inside the blocks, AdamW for embeddings, the head, norms and biases, as one optimizer.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") orthogonalises each matrix's momentum;
with the update scaled to AdamW's root mean square (Liu et al. 2025, arXiv 2502.16982) both sides share one learning rate
schedule. Chosen by `learn.optimizer = "muon"`, for models made from scratch; both halves are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """One optimizer over all trainable parameters of a causal language model.

    lr: of AdamW. muon_lr: of Muon, in AdamW's scale. Learning-rate schedulers see the parameter groups of both.
    """

    def __init__(self, model: Any, *, lr: float, muon_lr: float, weight_decay: float = 0.0) -> None:
        inside, outside = split_parameters(model)
        self.parts: list[Optimizer] = []
        if inside:
            self.parts.append(
                Muon(inside, lr=muon_lr, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if outside:
            self.parts.append(AdamW(outside, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay))
        super().__init__([*inside, *outside], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def split_parameters(model: Any) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """(matrices of the blocks, all other trainable parameters) in the model's order."""
    ends: Iterable[Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(parameter) for module in ends if module is not None for parameter in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inside = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in tables]
    chosen = {id(parameter) for parameter in inside}
    return inside, [parameter for parameter in trained if id(parameter) not in chosen]

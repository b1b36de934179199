"""A contrastive loss without a reference model: cross-entropy on what worked, and a margin to what did not.

For a row with chosen tokens y⁺ and rejected tokens y⁻ after the same prompt x let

    r(y) = (1 / T_y) Σ_t log p(y_t | x, y_<t)

be the length-normalised log-probability: exactly the self-reward by which ENVISIONS (arXiv 2406.11736) ranks attempts.
That paper calls its training contrastive and free of reinforcement learning, but its published loss only ever raises
chosen text. Its self-reward is only useful for ranking when right attempts score above wrong ones, so ask for that:

    L = CE + λ · (1/N) Σ_rows max(0, m − (r(y⁺) − max(r(y⁻), c)))

with CE the weighted loss of `sft.py` (`select.soft_temperature` weighs a task's right rows by their self-rewards), N the
rows of the step, and no second term for rows without a rejected side (they count in N). Where it comes from and why it
stops where it does:
- Ranking with a hinge on sequence log-probabilities plus cross-entropy is SLiC-HF's calibration loss (arXiv 2305.10425);
  a margin on *length-normalised* ones without a reference is SimPO's (arXiv 2405.14734). Normalised, a long wrong answer
  is not pushed harder than a short one. DPO (arXiv 2305.18290) instead needs a reference and pairs for every row.
- ∂/∂r(y⁻) = λ/N while the margin is violated, else 0: pairs that are already apart are left alone, so that the model is
  not rewarded for driving both down together.
- The floor c (−3 nats a token) ends the push: below it the gradient on y⁻ is 0. Unlikelihood training (arXiv 1908.04319)
  shows why one wants that: the gradient of −log p grows as p falls, and what a wrong answer shares with a right one, most
  of its tokens, goes down with it. Above the floor, CE on y⁺ holds the shared tokens up.

Rows are packed like any others: chosen first, then the rejected sides, in one forward pass.
"""

from __future__ import annotations

from typing import Any

import torch

from kintsugi.training.learn_config import ContrastiveSettings
from kintsugi.training.sft import SftTrainer


class ContrastiveTrainer(SftTrainer):
    """`SftTrainer` with the hinge on rows that have a rejected side."""

    with_rejected = True

    def rows_loss(self, sums: torch.Tensor, counts: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super().rows_loss(sums, counts, inputs)
        hinges = hinge_sum(sums / counts, inputs["answers"], self.config.contrastive)
        return loss + self.config.contrastive.weight * hinges / inputs["step_rows"]


def hinge_sum(rewards: torch.Tensor, answers: torch.Tensor, settings: ContrastiveSettings) -> torch.Tensor:
    """Σ max(0, m − (r(y⁺) − max(r(y⁻), c))), a scalar.

    rewards: [rows + pairs], r of the rows and then of the rejected sides. answers: [pairs], the row of each of those.
    """
    chosen, rejected = rewards[answers], rewards[len(rewards) - len(answers) :]
    gap = chosen - rejected.clamp(min=settings.floor)
    return (settings.margin - gap).clamp(min=0).sum()

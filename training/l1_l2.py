"""ENVISIONS' objective, L = L1 + L2: learn what worked, and learn to mend what did not.

L1 = −Σ log p(y⁺ | x) over explore rows, L2 = −Σ log p(y⁺ | x, y⁻) over repair rows (arXiv 2406.11736, section 3; its
published code joins the rows without a coefficient). Both are negative log-likelihoods of masked tokens, so the sum needs
no loss of its own: it is `SftTrainer` on the two kinds of rows joined, and the balance between them is each row's
`DatasetRow.weight` (the recipe's `targets.repair_weight`). With all weights 1 it *is* "sft" on the joined rows, to the
last bit; the name stays so that a recipe can say which method it means.
"""

from __future__ import annotations

from kintsugi.training.sft import SftTrainer


class L1L2Trainer(SftTrainer):
    """`SftTrainer` under the name of the method."""

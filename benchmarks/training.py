"""Tokens a CPU-second of `learn()` against a bare PyTorch loop on the same rows: what TRL and the house cost.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--steps 100] [--repeats 3]

The bare loop feeds the same planned packs to the same model with the same attention and optimizer, and does nothing else.
Both are timed by CPU time between two steps of the same process, in turn, and the best of the repeats counts; what a call
of `learn()` costs around its steps (loading, TRL's start, saving; the first import is apart) is given in seconds. Rows
are random: 80 to 220 tokens, 45 % of them with loss.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from kintsugi.records import DatasetRow
from kintsugi.training.batches import IGNORED, num_loss_tokens, pack_rows, plan_batches
from kintsugi.training.learn import learn
from kintsugi.training.learn_config import LearnConfig
from kintsugi.training.model_folder import load_weights, quiet
from kintsugi.training.small_model import make_small_model

SKIPPED = 5
"""First steps not counted: memory and kernels warm up."""


def random_rows(num: int, vocabulary: int) -> list[DatasetRow]:
    rng = random.Random(0)
    rows = []
    for number in range(num):
        length = rng.randint(80, 220)
        ids = tuple(rng.randrange(10, vocabulary) for _ in range(length))
        mask = tuple(int(at > 0.55 * length) for at in range(length))
        rows.append(DatasetRow(kind="explore", task_id=str(number), trajectory_id=str(number), ids=ids, mask=mask))
    return rows


def time_learn(rows: list[DatasetRow], model: Path, config: LearnConfig) -> tuple[float, float]:
    """CPU-seconds a step, and CPU-seconds of the whole call beyond its steps."""
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        out = Path(folder) / "out"
        learn(rows, model=model, out=out, config=config, seed=0, on_step=lambda *_: marks.append(time.process_time()))
        ended = time.process_time()
    step = (marks[-1] - marks[SKIPPED]) / (len(marks) - 1 - SKIPPED)
    return step, ended - began - step * len(marks)


def time_bare(rows: list[DatasetRow], model: Path, config: LearnConfig) -> float:
    """CPU-seconds a step of the plainest loop."""
    import torch

    with quiet():
        network = load_weights(str(model), packing=True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, fused=True)
    marks = []
    for batch in plan_batches(rows, config, 0):
        made = pack_rows([rows[number] for number in batch.rows], rejected=False)
        labels = made["labels"][0, 1:]
        kept = (labels != IGNORED).nonzero()[:, 0]
        logits = network(
            input_ids=made["input_ids"],
            position_ids=made["position_ids"],
            row_lengths=made["row_lengths"],
            logits_to_keep=kept,
            use_cache=False,
        ).logits[0]
        torch.nn.functional.cross_entropy(logits, labels[kept]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.process_time())
    return (marks[-1] - marks[SKIPPED]) / (len(marks) - 1 - SKIPPED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=768)
    asked = parser.parse_args()
    import trl.trainer.sft_trainer  # noqa: F401  (its import is not what is measured)

    config = LearnConfig(lr=1e-3, steps=asked.steps, batch_tokens=asked.batch_tokens)
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"{a} pens and {b} more: the sum of {a} and {b} is {a + b}" for a in range(60) for b in range(9)]
        texts += [Path(__file__).read_text(encoding="utf-8")]
        model = make_small_model(texts, Path(folder) / "model")
        vocabulary = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        rows = random_rows(400, vocabulary)
        plan = plan_batches(rows, config, 0)
        tokens = sum(len(rows[number].ids) for batch in plan for number in batch.rows) / len(plan)
        timed = [(*time_learn(rows, model, config), time_bare(rows, model, config)) for _ in range(asked.repeats)]
    learned, around, bare = (min(column) for column in zip(*timed, strict=True))
    share = sum(num_loss_tokens(row.mask) for row in rows) / sum(len(row.ids) for row in rows)
    print(f"{vocabulary} tokens of vocabulary, {tokens:.0f} tokens a step, {share:.0%} with loss, {asked.steps} steps")
    print(f"bare loop   {tokens / bare:8.0f} tokens a CPU-second  {1000 * bare:6.1f} ms a step")
    print(f"learn()     {tokens / learned:8.0f} tokens a CPU-second  {1000 * learned:6.1f} ms a step")
    print(f"ratio       {learned / bare:8.3f}   around the steps: {around:.2f} CPU-seconds a call")


if __name__ == "__main__":
    main()

"""Tokens per CPU-second: our batch decoder beside `model.generate` in one static batch, in the same run.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/decoding.py [--batch 64 256] [--repeats 3] [--json out.json]

One random Llama (0.41M parameters, vocabulary 485), prompts of 100-180 tokens, at most 60 new ones, temperature 1.
Three kinds of batch: "even" (every row samples 60), "ragged" (rows end after 5-60; tokens after a row's end do not
count), "samples" (four samples a prompt, ragged ends). Both sides run one thread and take turns; the median counts.
Prompts are processed inside the timed part; what is not measured: tokenising, gathering, the prefix cache across
batches (it is on, but every batch has new prompts).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from kintsugi.agents.policies.batch_decoder import BatchDecoder, Row
from kintsugi.agents.policies.policy import Sampling

VOCABULARY, LONGEST = 485, 60


def build_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=288,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    return LlamaForCausalLM(config).eval()


def make_rows(kind: str, batch: int, rng: random.Random) -> list[Row]:
    """`batch` rows of one kind, with fresh prompts."""
    samples = 4 if kind == "samples" else 1
    rows = []
    for i in range(batch // samples):
        context = tuple(rng.randrange(VOCABULARY) for _ in range(rng.randrange(100, 181)))
        for sample in range(samples):
            limit = LONGEST if kind == "even" else rng.randrange(5, LONGEST + 1)
            rows.append(Row(context=context, sampling=Sampling(max_tokens=limit, seed=i), sample=sample))
    return rows


def run_generate(model: Any, rows: list[Row]) -> None:
    """One static batch, padded on the left, until the longest row is done."""
    width = max(len(row.context) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, row in enumerate(rows):
        ids[line, width - len(row.context) :] = torch.tensor(row.context)
        mask[line, width - len(row.context) :] = 1
    most = max(row.sampling.max_tokens for row in rows)
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=most,
            min_new_tokens=most,
            pad_token_id=0,
            eos_token_id=VOCABULARY - 1,
        )


def cpu_seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(batches: list[int], repeats: int) -> list[dict[str, Any]]:
    """One result a kind and batch size: useful tokens per CPU-second of both sides, and their ratio."""
    model = build_model()
    decoder = BatchDecoder(model, end_ids=(), decode_text=lambda ids: "", cache_tokens=50_000)
    rng = random.Random(0)
    results = []
    for kind in ("even", "ragged", "samples"):
        for batch in batches:
            ours, theirs = [], []
            for _ in range(repeats + 1):  # the first is warm-up
                rows = make_rows(kind, batch, rng)
                tokens = sum(row.sampling.max_tokens for row in rows)
                theirs.append(tokens / cpu_seconds(lambda rows=rows: run_generate(model, rows)))
                ours.append(tokens / cpu_seconds(lambda rows=rows: decoder.decode(rows)))
            us, them = statistics.median(ours[1:]), statistics.median(theirs[1:])
            results.append({"kind": kind, "batch": batch, "ours": us, "generate": them, "ratio": us / them})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    results = compare(options.batch, options.repeats)
    print(f"{'batch of':10s} {'rows':>5s} {'ours':>8s} {'generate':>9s} {'ratio':>6s}   (tokens per CPU-second)")
    for row in results:
        print(f"{row['kind']:10s} {row['batch']:5d} {row['ours']:8.0f} {row['generate']:9.0f} {row['ratio']:6.2f}")
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

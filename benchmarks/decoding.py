"""Tokens per CPU-second: our batch decoder beside `model.generate` in one static batch, in the same run.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/decoding.py [--batch 64 256] [--repeats 3] [--json out.json]
    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/decoding.py --turns 30 [--episodes 64] [--json out.json]

One random Llama (0.41M parameters, vocabulary 485), prompts of 100-180 tokens, at most 60 new ones, temperature 1.
Three kinds of batch: "even" (every row samples 60), "ragged" (rows end after 5-60; tokens after a row's end do not
count), "samples" (four samples a prompt, ragged ends). Both sides run one thread and take turns; the median counts.
Prompts are processed inside the timed part; what is not measured: tokenising, gathering, the prefix cache across
batches (it is on, but every batch has new prompts).

With --turns, the cache between turns: episodes as ALFWorld's, all at once, through the whole transformers policy (chat
template, tokenising, gathering, batches), with the prefix cache and then with none. A prompt of about 40 to 160 tokens,
then half of --turns to all of them, each an action of at most 5 to 10 tokens and an observation of about 5 to 60. The
model is a random Llama of 0.38M parameters; both sides have the same seeds, and must sample the same tokens. Printed for
each: turns a CPU-second; a turn's context tokens, those of them that are new, and those that the model processed; forward
passes a batch over prompts; rows of a forward pass that samples. Not measured: environments.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from kintsugi.agents.policies.batch_decoder import BatchDecoder, Row
from kintsugi.agents.policies.policy import Request, Sampling, as_messages, live
from kintsugi.agents.policies.transformers_policy import TransformersPolicy, open_policy
from kintsugi.training.small_model import SmallModelConfig, make_small_model

VOCABULARY, LONGEST = 485, 60
VERBS = "you go to the open take put clean heat cool look in on an see it nothing happens"
ROOM_WORDS = [
    *VERBS.split(),
    *(f"{thing} {number}" for thing in ("drawer", "cabinet", "shelf", "mug", "desk", "fridge") for number in range(1, 6)),
]
TOKENS_A_WORD = 1.8


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


@dataclass(kw_only=True)
class Played:
    """Sums over one side's episodes. prompt_passes, sample_passes: forward passes; sample_rows: rows of the latter."""

    cpu_s: float = 0.0
    turns: int = 0
    context: int = 0
    new: int = 0
    processed: int = 0
    batches: int = 0
    prompt_passes: int = 0
    sample_passes: int = 0
    sample_rows: int = 0
    drawn: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def row(self) -> dict[str, float]:
        return {
            "turns_per_cpu_s": self.turns / self.cpu_s,
            "context": self.context / self.turns,
            "new": self.new / self.turns,
            "processed": self.processed / self.turns,
            "prompt_passes": self.prompt_passes / self.batches,
            "sample_rows": self.sample_rows / self.sample_passes,
        }


def room_text(rng: random.Random, least: int, most: int) -> str:
    """About so many tokens."""
    return " ".join(rng.choices(ROOM_WORDS, k=round(max(1, rng.randint(least, most) / TOKENS_A_WORD))))


async def play(policy: TransformersPolicy, number: int, most_turns: int, played: Played) -> None:
    """One episode."""
    rng = random.Random(number)
    messages, prior, covered = as_messages(("user", room_text(rng, 40, 160))), (), 0
    async with live(policy):
        for turn in range(rng.randint(most_turns // 2, most_turns)):
            sampling = Sampling(max_tokens=rng.randint(5, 10), seed=1000 * number + turn)
            key = f"{number:04d}:{turn:04d}"
            request = Request(messages=messages, sampling=sampling, prior_ids=prior, prior_messages=covered, key=key)
            answer = (await policy.complete(request))[0]
            played.turns += 1
            played.context += len(answer.prompt_ids)
            played.new += len(answer.prompt_ids) - len(prior)
            played.processed += answer.processed_tokens
            played.drawn[key] = answer.token_ids
            messages = (*messages, *as_messages(("assistant", answer.text)))
            prior, covered = answer.prompt_ids + answer.token_ids, len(messages)
            messages = (*messages, *as_messages(("user", room_text(rng, 5, 60))))


async def play_side(policy: TransformersPolicy, episodes: int, turns: int) -> Played:
    played = Played()
    decoder = policy._decoder

    def count(module: Any, args: Any, options: dict[str, Any]) -> None:
        rows, columns = options["input_ids"].shape
        if columns > 1:
            played.prompt_passes += 1
        else:
            played.sample_passes, played.sample_rows = played.sample_passes + 1, played.sample_rows + rows

    def decode(*args: Any, **options: Any) -> None:
        played.batches += 1
        whole(*args, **options)

    whole, decoder.decode = decoder.decode, decode
    decoder.model.register_forward_pre_hook(count, with_kwargs=True)
    began = time.process_time()
    await asyncio.gather(*(play(policy, number, turns, played) for number in range(episodes)))
    played.cpu_s = time.process_time() - began
    await policy.close()
    return played


def compare_turns(episodes: int, turns: int) -> list[dict[str, Any]]:
    """One result a side: with the prefix cache, and with none."""
    rng = random.Random(0)
    texts = [room_text(rng, 60, 60) for _ in range(100)]
    sides: dict[str, Played] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = make_small_model(texts, Path(folder) / "model", SmallModelConfig(max_positions=8192))
        for name, tokens in (("kept", 200_000), ("none", 0)):
            policy = open_policy(str(path), threads=1, prefix_cache_tokens=tokens)
            sides[name] = asyncio.run(play_side(policy, episodes, turns))
    kept, none = sides["kept"].drawn, sides["none"].drawn
    alike = sum(none[key] == tokens for key, tokens in kept.items()) / len(kept)
    return [{"cache": name, **played.row(), "answers_alike": alike} for name, played in sides.items()]


def print_turns(results: list[dict[str, Any]]) -> None:
    heads = ("turns/CPU-s", "context", "new", "processed", "passes over prompts", "rows sampling")
    print(f"{'cache':5s} " + " ".join(f"{head:>{max(9, len(head))}s}" for head in heads))
    for row in results:
        values = list(row.values())[1:7]
        print(f"{row['cache']:5s} " + " ".join(f"{v:{max(9, len(h))}.1f}" for v, h in zip(values, heads, strict=True)))
    ratio = results[0]["turns_per_cpu_s"] / results[1]["turns_per_cpu_s"]
    print(f"{ratio:.1f} times the turns; {results[0]['answers_alike']:.2%} of the answers alike, token by token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--turns", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    if options.turns:
        results = compare_turns(options.episodes, options.turns)
        print_turns(results)
    else:
        results = compare(options.batch, options.repeats)
        print(f"{'batch of':10s} {'rows':>5s} {'ours':>8s} {'generate':>9s} {'ratio':>6s}   (tokens per CPU-second)")
        for row in results:
            print(f"{row['kind']:10s} {row['batch']:5d} {row['ours']:8.0f} {row['generate']:9.0f} {row['ratio']:6.2f}")
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

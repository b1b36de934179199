"""Tiny random models of several architectures for tests of the decoder, and what plain forward passes of them say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from kintsugi.agents.policies.batch_decoder import BatchDecoder, Row

VOCABULARY = 61
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
COMMON: dict[str, Any] = {**SIZES, "vocab_size": VOCABULARY, "initializer_range": 0.4, "max_position_embeddings": 512}
GROUPED: dict[str, Any] = {**COMMON, "num_key_value_heads": 2}
OTHERS: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.4}

PLAIN = ("llama", "qwen2", "qwen3", "neox", "gpt2")
"""Their caches are plain keys and values: kept between turns."""
NATIVE = ("mistral", "gemma3", "bloom")
"""Sliding windows, biases by position: decoded with their own caches. Mamba (slow here) goes wrong even so: with none."""


def model(kind: str) -> Any:
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(_config(kind)).eval()


def _config(kind: str) -> Any:
    match kind:
        case "llama":
            return transformers.LlamaConfig(**GROUPED)
        case "qwen2":
            return transformers.Qwen2Config(**GROUPED)
        case "qwen3":
            return transformers.Qwen3Config(**GROUPED, head_dim=8)
        case "neox":
            return transformers.GPTNeoXConfig(**{**COMMON, "rotary_pct": 0.5})
        case "gpt2":
            return transformers.GPT2Config(**OTHERS, n_embd=32, n_layer=2, n_head=4, n_positions=512)
        case "mistral":
            return transformers.MistralConfig(**GROUPED, sliding_window=8)
        case "gemma3":
            layers = ["sliding_attention", "full_attention"]
            return transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=8, layer_types=layers)
        case "bloom":
            return transformers.BloomConfig(**OTHERS, hidden_size=32, n_layer=2, n_head=4)
        case "mamba":
            return transformers.MambaConfig(**OTHERS, hidden_size=32, num_hidden_layers=2, state_size=4)
    raise ValueError(kind)


def decoder(made: Any, cache: int = 0, ends: tuple[int, ...] = (0,), **options: Any) -> BatchDecoder:
    return BatchDecoder(made, end_ids=ends, decode_text=_spell, cache_tokens=cache, **options)


def _spell(ids: Sequence[int]) -> str:
    return "".join(chr(65 + i) for i in ids)


def ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, VOCABULARY) for _ in range(count))


def assert_plain(made: Any, rows: Sequence[Row]) -> None:
    """Each row's log-probs are within 1e-4 of one forward pass over its context and tokens."""
    for row in rows:
        with torch.no_grad():
            logits = made(input_ids=torch.tensor([[*row.context, *row.tokens]])).logits[0]
        steps = torch.log_softmax(logits.float(), -1)[len(row.context) - 1 : -1]
        plain = steps.gather(1, torch.tensor(row.tokens)[:, None])[:, 0]
        assert (torch.tensor(row.logprobs) - plain).abs().max() < 1e-4

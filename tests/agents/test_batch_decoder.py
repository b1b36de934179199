"""The decoder against plain forward passes, for several architectures, with and without its prefix cache."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kintsugi.agents.policies.batch_decoder import BatchDecoder, Row  # noqa: E402
from kintsugi.agents.policies.policy import Sampling  # noqa: E402
from kintsugi.errors import PolicyError  # noqa: E402

VOCABULARY = 61
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def model(kind: str) -> Any:
    torch.manual_seed(3)
    common: dict[str, Any] = {
        **SIZES,
        "vocab_size": VOCABULARY,
        "initializer_range": 0.4,
        "max_position_embeddings": 512,
    }
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: transformers.LlamaConfig(**common, num_key_value_heads=2),
        "qwen2": lambda: transformers.Qwen2Config(**common, num_key_value_heads=2),
        "neox": lambda: transformers.GPTNeoXConfig(**common, rotary_pct=0.5),
        "gpt2": lambda: transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, initializer_range=0.4, n_positions=512
        ),
        "mistral": lambda: transformers.MistralConfig(**common, num_key_value_heads=2, sliding_window=8),
        "bloom": lambda: transformers.BloomConfig(
            hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCABULARY, initializer_range=0.4
        ),
    }
    return transformers.AutoModelForCausalLM.from_config(configs[kind]()).eval()


def decoder(made: Any, cache: int = 0, ends: tuple[int, ...] = (0,)) -> BatchDecoder:
    def spell(ids: Any) -> str:
        return "".join(chr(65 + i) for i in ids)

    return BatchDecoder(made, end_ids=ends, decode_text=spell, cache_tokens=cache)


def ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(1, VOCABULARY) for _ in range(count))


def plain_logprobs(made: Any, context: tuple[int, ...], tokens: list[int]) -> Any:
    with torch.no_grad():
        logits = made(input_ids=torch.tensor([[*context, *tokens]])).logits[0]
    steps = torch.log_softmax(logits.float(), -1)[len(context) - 1 : -1]
    return steps.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def assert_plain(made: Any, rows: list[Row]) -> None:
    for row in rows:
        found = torch.tensor(row.logprobs)
        assert (found - plain_logprobs(made, row.context, row.tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen2", "neox", "gpt2", "mistral", "bloom"])
@pytest.mark.parametrize("cache", [0, 4000])
def test_ragged_batches_equal_plain_forward(kind: str, cache: int) -> None:
    """Several rounds over prompts that share prefixes: log-probs within 1e-4 of one forward pass per sequence."""
    made = model(kind)
    used = decoder(made, cache)
    assert used.plain == (kind not in ("mistral", "bloom"))
    rng = random.Random(1)
    known = [ids(rng, 40)]
    for round_number in range(4):
        rows = []
        for i in range(12):
            start = rng.choice(known)
            context = (*start[: rng.randrange(len(start) + 1)], *ids(rng, rng.randrange(1, 25)))
            for sample in range(rng.choice([1, 1, 3])):
                limit = rng.randrange(1, 80 if i % 4 == 0 else 12)
                sampling = Sampling(max_tokens=limit, seed=round_number * 100 + i, temperature=rng.choice([0, 1, 0.7]))
                rows.append(Row(context=context, sampling=sampling, sample=sample))
        used.decode(rows)
        assert_plain(made, rows)
        assert all(row.finish for row in rows)
        known += [(*row.context, *row.tokens) for row in rows]
        total = sum(len(context) for context in {row.context for row in rows})
        run = sum(row.processed for row in rows)
        if used.plain:
            assert run <= total if cache == 0 or round_number == 0 else run < 0.8 * total
    pairs = [(row.context, tuple(row.tokens)) for row in rows]
    for row, scored in zip(rows, used.score(pairs), strict=True):
        assert torch.tensor(scored).sub(torch.tensor(row.logprobs)).abs().max() < 1e-4


def test_next_turn_and_repair_process_only_new_tokens() -> None:
    """A next turn runs its last sampled token and what is new; a repair only what follows the kept part."""
    made = model("llama")
    used = decoder(made, 1000, ends=())
    question = ids(random.Random(5), 50)
    first = Row(context=question, sampling=Sampling(max_tokens=20))
    used.decode([first])
    assert first.processed == 50
    turn = Row(context=(*question, *first.tokens, 7, 8, 9), sampling=Sampling(max_tokens=5))
    repair = Row(
        context=(*question, *first.tokens[:11], (first.tokens[11] + 1) % 60, 4), sampling=Sampling(max_tokens=5)
    )
    used.decode([turn, repair])
    assert (turn.processed, repair.processed) == (4, 2)
    assert_plain(made, [first, turn, repair])
    used.clear()
    again = Row(context=question, sampling=Sampling(max_tokens=2))
    used.decode([again])
    assert again.processed == 50


def test_a_small_prefix_cache_drops_what_is_oldest_and_stays_right() -> None:
    made = model("llama")
    used = decoder(made, 96)
    rng = random.Random(9)
    prompts = [ids(rng, 30) for _ in range(6)]
    for i in range(20):
        rows = [Row(context=prompts[(i + j) % 6], sampling=Sampling(max_tokens=9, seed=i)) for j in range(3)]
        used.decode(rows)
        assert_plain(made, rows)


def test_samples_do_not_depend_on_neighbours_and_share_one_prefill() -> None:
    made = model("llama")
    rng = random.Random(2)
    context = ids(rng, 30)
    sampling = Sampling(max_tokens=25, seed=11, top_p=0.9)
    alone = [Row(context=context, sampling=sampling, sample=i) for i in range(4)]
    decoder(made).decode(alone)
    crowd = [Row(context=ids(rng, rng.randrange(1, 60)), sampling=Sampling(max_tokens=40, seed=i)) for i in range(20)]
    among = [Row(context=context, sampling=sampling, sample=i) for i in range(4)]
    decoder(made).decode([*crowd[:10], *among, *crowd[10:]])
    assert [row.tokens for row in among] == [row.tokens for row in alone]
    assert [row.processed for row in among] == [30, 0, 0, 0]
    assert len({tuple(row.tokens) for row in among}) == 4, "samples of one request must differ"


def test_sampling_follows_the_model() -> None:
    """First tokens of many samples: frequencies as the distribution says, tempered, cut at top_p, or greedy."""
    made = model("llama")
    used = decoder(made)
    context = ids(random.Random(4), 10)
    with torch.no_grad():
        logits = made(input_ids=torch.tensor([context])).logits[0, -1]
    for temperature, top_p in ((1.0, 1.0), (2.0, 1.0), (1.0, 0.6)):
        sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=1, seed=77)
        rows = [Row(context=context, sampling=sampling, sample=i) for i in range(4000)]
        used.decode(rows)
        expected = torch.softmax(logits / temperature, -1)
        order = expected.argsort(descending=True)
        before = expected[order].cumsum(0) - expected[order]
        expected[order[before >= top_p]] = 0
        expected /= expected.sum()
        counts = torch.bincount(torch.tensor([row.tokens[0] for row in rows]), minlength=VOCABULARY) / len(rows)
        assert counts[expected == 0].sum() == 0
        assert (counts - expected).abs().max() < 0.03
        assert abs(rows[0].logprobs[0] - torch.log_softmax(logits, -1)[rows[0].tokens[0]]) < 1e-4
    greedy = Row(context=context, sampling=Sampling(temperature=0, max_tokens=1))
    used.decode([greedy])
    assert greedy.tokens == [int(logits.argmax())]


def test_answers_end_at_end_tokens_stop_strings_and_length() -> None:
    made = model("llama")
    context = ids(random.Random(6), 10)
    free = Row(context=context, sampling=Sampling(max_tokens=30, seed=1))
    decoder(made, ends=()).decode([free])
    text = "".join(chr(65 + i) for i in free.tokens)
    assert (free.finish, free.text) == ("length", text)
    stop = text[12:14]
    stopped = Row(context=context, sampling=Sampling(max_tokens=30, seed=1, stop=("never", stop)))
    decoder(made, ends=()).decode([stopped])
    cut = text.index(stop)
    assert (stopped.finish, stopped.text, stopped.tokens) == ("stop", text[:cut], free.tokens[: cut + 2])
    ended = Row(context=context, sampling=Sampling(max_tokens=30, seed=1))
    decoder(made, ends=(free.tokens[8], 0)).decode([ended])
    first = free.tokens.index(free.tokens[8])
    assert (ended.finish, ended.text, ended.tokens) == ("stop", text[:first], free.tokens[: first + 1])


def test_broken_weights_and_stopping() -> None:
    made = model("llama")
    used = decoder(made, ends=())
    endless = Row(context=(1, 2), sampling=Sampling(max_tokens=400))
    calls = iter([False, False, False, True])
    used.decode([endless], stop=lambda: next(calls))
    assert len(endless.tokens) == 3 and endless.finish is None
    with torch.no_grad():
        made.lm_head.weight[3] = float("nan")
    with pytest.raises(PolicyError, match="not finite"):
        used.decode([Row(context=(1, 2), sampling=Sampling(max_tokens=4))])

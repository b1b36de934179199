"""Many episodes of many turns at once: plain forward passes agree, only new tokens run, one batch, bounded memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kintsugi.agents.policies.batch_decoder import BatchDecoder, Row  # noqa: E402
from kintsugi.agents.policies.policy import Sampling  # noqa: E402
from tests.agents.tiny_models import NATIVE, PLAIN, assert_plain, decoder, ids, model  # noqa: E402

Check = Callable[[list[Row], list[int]], None]


def play(used: BatchDecoder, *, episodes: int, turns: int, check: Check, share: int = 0) -> list[Row]:
    """Episodes with prompts of 5 to 60 tokens (the first `share` alike) that act by 5 to 10 and see 5 to 60 tokens a turn.

    Some end early, and others begin in their place. `check(rows, seen)` hears of each turn: `seen` is how many first
    tokens of each row were fed or sampled the turn before.
    """
    rng = random.Random(7)
    begun = ids(rng, share)
    contexts = [(*begun, *ids(rng, rng.randint(5, 60))) for _ in range(episodes)]
    seen = [0] * episodes
    rows: list[Row] = []
    for turn in range(turns):
        rows = [
            Row(context=context, sampling=Sampling(max_tokens=rng.randint(5, 10), seed=100 * turn + i))
            for i, context in enumerate(contexts)
        ]
        used.decode(rows)
        check(rows, seen)
        for i, row in enumerate(rows):
            over = rng.random() < 0.1
            contexts[i] = (*begun, *ids(rng, 30)) if over else (*row.context, *row.tokens, *ids(rng, rng.randint(5, 60)))
            seen[i] = len(begun) if over else len(row.context) + len(row.tokens) - 1
    return rows


@pytest.mark.parametrize("kind", [*PLAIN, *NATIVE, "mamba"])
def test_ragged_episodes_equal_plain_forward(kind: str) -> None:
    """Caches of different lengths in one batch: log-probs within 1e-4 of one forward pass an episode and turn."""
    made = model(kind)
    used = decoder(made, 20_000)

    def check(rows: list[Row], seen: list[int]) -> None:
        assert_plain(made, rows)
        for row, known in zip(rows, seen, strict=True):
            assert row.processed == len(row.context) - (known if kind in PLAIN else 0)

    last = play(used, episodes=7, turns=6, check=check)
    pairs = [(row.context, tuple(row.tokens)) for row in last]
    for row, scored in zip(last, used.score(pairs), strict=True):
        assert torch.tensor(scored).sub(torch.tensor(row.logprobs)).abs().max() < 1e-4


def test_a_kept_cache_changes_no_token() -> None:
    """The same episodes with a cache, with one that is too small, and without: the same tokens."""
    made, drawn = model("llama"), dict[int, list[list[int]]]()
    for size in (20_000, 600, 0):
        tokens = drawn[size] = []

        def check(rows: list[Row], seen: list[int], tokens: list[list[int]] = tokens) -> None:
            tokens += [row.tokens for row in rows]

        play(decoder(made, size), episodes=12, turns=8, check=check)
    assert drawn[20_000] == drawn[600] == drawn[0]


def test_a_turn_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with 40 to 400 known tokens sample in the same forward passes; prompts run in a few, with little padding."""
    made = model("llama")
    used = decoder(made, 50_000, ends=())
    passes: list[tuple[int, int]] = []
    made.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )

    def check(rows: list[Row], seen: list[int]) -> None:
        steps = [count for count, columns in passes if columns == 1]
        assert len(steps) == max(len(row.tokens) for row in rows) - 1
        assert steps[0] == len(rows) and steps == sorted(steps, reverse=True)
        prompts = [count * columns for count, columns in passes if columns > 1]
        assert len(prompts) <= 8
        new = sum(len(row.context) - known for row, known in zip(rows, seen, strict=True))
        assert sum(prompts) <= 1.35 * new
        passes.clear()

    play(used, episodes=48, turns=9, check=check)


def test_memory_stays_within_both_bounds() -> None:
    """Tokens and bytes: whichever is less holds, whatever the episodes ask for."""
    made = model("llama")
    per_token = sum(shape.bytes_per_token for shape in decoder(made).shapes)
    for tokens, size, bound in ((700, 1 << 30, 700), (10**6, 500 * per_token, 500)):
        used = decoder(made, tokens, cache_bytes=size)

        def check(rows: list[Row], seen: list[int], used: Any = used, bound: int = bound) -> None:
            assert_plain(made, rows)
            stored = sum(store.numel() * store.element_size() for pair in used.cache.arenas for store in pair)
            assert stored <= bound * per_token
            assert sum(len(node.tokens) for node in used.cache._recent) <= bound

        play(used, episodes=8, turns=6, check=check)
        assert used.cache._recent, "a bounded cache still holds something"


def test_more_episodes_than_fit_still_reuse_what_fits() -> None:
    """In two batches one after the other, each would drop what the other needs next; `expect` keeps a part of both."""
    made, rng = model("llama"), random.Random(1)
    used = decoder(made, 600)
    contexts = [ids(rng, 60) for _ in range(16)]
    saved = []
    for _ in range(4):
        rows = [Row(context=context, sampling=Sampling(max_tokens=4)) for context in contexts]
        used.expect(row.context for row in rows)
        for part in (rows[:8], rows[8:]):
            used.decode(part)
        assert_plain(made, rows)
        saved.append(sum(len(row.context) - row.processed for row in rows))
        contexts = [(*row.context, *row.tokens, 5) for row in rows]
    assert saved[0] < 16 and min(saved[1:]) > 500, f"tokens not run again: {saved}"

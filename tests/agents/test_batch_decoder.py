"""The decoder against plain forward passes, for several architectures, with and without its prefix cache."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kintsugi.agents.policies.batch_decoder import Row  # noqa: E402
from kintsugi.agents.policies.policy import Sampling  # noqa: E402
from kintsugi.agents.policies.slab import NoCache  # noqa: E402
from kintsugi.errors import PolicyError  # noqa: E402
from tests.agents.tiny_models import PLAIN, VOCABULARY, assert_plain, decoder, ids, model  # noqa: E402


@pytest.mark.parametrize("kind", ["llama", "qwen2", "neox", "gpt2", "mistral", "bloom"])
@pytest.mark.parametrize("cache", [0, 4000])
def test_ragged_batches_equal_plain_forward(kind: str, cache: int) -> None:
    """Several rounds over prompts that share prefixes: log-probs within 1e-4 of one forward pass per sequence."""
    made = model(kind)
    used = decoder(made, cache)
    assert used.plain == (kind in PLAIN)
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


def test_caches_that_go_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes no positions errs in ragged batches, with our cache and with its own: it gets none."""
    made = model("gpt2")
    forward = made.forward

    def deaf(*args: Any, position_ids: Any = None, **options: Any) -> Any:
        return forward(*args, **options)

    rows = [Row(context=ids(random.Random(i), 5 + 9 * i), sampling=Sampling(max_tokens=6, seed=i)) for i in range(4)]
    monkeypatch.setattr(made, "forward", deaf)
    used = decoder(made, 1000)
    assert not used.plain and used.native is NoCache and not used.cache.blocks
    used.decode(rows)
    assert_plain(made, rows)
    for row, scored in zip(rows, used.score([(row.context, tuple(row.tokens)) for row in rows]), strict=True):
        assert scored == pytest.approx(row.logprobs, abs=1e-4)


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

"""The prefix cache alone: what it finds, that turns store nothing twice, what it drops first, and its bounds."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from kintsugi.agents.policies.prefix_cache import BLOCK, LayerShape, PrefixCache  # noqa: E402

SHAPE = LayerShape(heads=1, key_size=2, value_size=1, dtype=torch.float32)


def make(tokens: int) -> PrefixCache:
    return PrefixCache([SHAPE, SHAPE], tokens=tokens, device="cpu")


def keep(cache: PrefixCache, ids: tuple[int, ...]) -> int:
    """Insert `ids` with values that tell (position, id); how many tokens were written."""
    position, slots = cache.insert(ids)
    if slots:
        at = torch.tensor([[[position + i, ids[position + i]]] for i in range(len(slots))], dtype=torch.float32)
        for layer in range(2):
            cache.write(layer, torch.tensor(slots), at, at[..., :1])
    return len(slots)


def known(cache: PrefixCache, ids: tuple[int, ...]) -> int:
    """How many first tokens of `ids` are found; what is stored for them is checked."""
    slots = cache.match(ids)
    if slots:
        keys, values = torch.full((2, 1, len(slots) + 3, 2), -1.0), torch.full((2, 1, len(slots) + 3, 1), -1.0)
        cache.read(1, [torch.tensor([], dtype=torch.long), torch.tensor(slots)], [0, 3], (keys, values))
        assert keys[1, 0, 3:].tolist() == [[i, ids[i]] for i in range(len(slots))]
        assert values[1, 0, 3:, 0].tolist() == list(range(len(slots)))
        assert (keys[0] == -1).all() and (keys[1, 0, :3] == -1).all(), "nothing else is written"
    return len(slots)


def held(cache: PrefixCache) -> int:
    return len(cache._recent)


def test_turns_fill_the_last_block_and_store_nothing_twice() -> None:
    """An episode that grows by a few tokens a turn takes no more blocks than its tokens need."""
    cache, rng = make(4000), random.Random(0)
    episode: tuple[int, ...] = ()
    for _ in range(40):
        new = tuple(rng.randrange(50) for _ in range(rng.randint(1, 30)))
        assert known(cache, (*episode, *new)) == len(episode)
        episode += new
        assert keep(cache, episode) == len(new)
        assert held(cache) == -(-len(episode) // BLOCK)
    assert keep(cache, episode[:-3]) == 0 and keep(cache, episode) == 0
    assert held(cache) == -(-len(episode) // BLOCK), "a part of what is known needs no block"


def test_branches_share_what_they_have_in_common() -> None:
    cache = make(4000)
    base = tuple(range(40))
    keep(cache, base)
    branches = [(*base[:cut], *range(100 * cut, 100 * cut + 20)) for cut in (5, 16, 33, 39)]
    for branch, cut in zip(branches, (5, 16, 33, 39), strict=True):
        assert known(cache, branch) == cut
        keep(cache, branch)
    assert all(known(cache, one) == len(one) for one in (base, *branches))


def test_finished_episodes_go_first_and_live_ones_stay() -> None:
    """Each round matches what is live: room for new tokens comes from what no round has asked for the longest."""
    cache = make(20 * BLOCK)
    first, second, live = (tuple(range(100 * n, 100 * n + 5 * BLOCK)) for n in (1, 2, 3))
    for episode in (first, second, live):
        cache.new_batch()
        keep(cache, episode)
    grown = live
    for turn in range(10):
        cache.new_batch()
        assert known(cache, grown) == len(grown)
        grown += tuple(range(1000 + turn * BLOCK, 1000 + (turn + 1) * BLOCK))
        assert keep(cache, grown) == BLOCK
    assert known(cache, first) == 0 and known(cache, second) == 5 * BLOCK
    assert held(cache) == 20


def test_what_a_batch_uses_is_not_dropped_for_it() -> None:
    cache = make(4 * BLOCK)
    old, new = tuple(range(3 * BLOCK)), tuple(range(500, 500 + 3 * BLOCK))
    keep(cache, old)
    cache.new_batch()
    cache.match(old)
    assert keep(cache, new) == BLOCK, "one block is free; the rest of the cache is in use"
    assert known(cache, old) == 3 * BLOCK and known(cache, new) == BLOCK
    cache.new_batch()
    assert keep(cache, new) == 2 * BLOCK and known(cache, old) < 3 * BLOCK


@pytest.mark.parametrize("tokens", [0, 15, 100, 1000])
def test_never_more_than_its_bound_whatever_comes(tokens: int) -> None:
    """Random episodes grow, branch and come back: right answers, memory within the bound, blocks neither lost nor shared."""
    cache, rng = make(tokens), random.Random(tokens)
    episodes: list[tuple[int, ...]] = [()]
    for _ in range(300):
        cache.new_batch()
        for _ in range(rng.randint(1, 4)):
            base = rng.choice(episodes)
            cut = rng.choice([len(base), rng.randint(0, len(base))])
            episode = (*base[:cut], *(rng.randrange(4) for _ in range(rng.randint(1, 40))))
            known(cache, episode)
            if cache.blocks:
                keep(cache, episode)
                known(cache, episode)
            episodes = [*episodes[-9:], episode]
        blocks = [node.block for node in cache._recent]
        assert sorted([*blocks, *cache._free]) == list(range(tokens // BLOCK))
        stored = sum(store.numel() * store.element_size() for pair in cache.arenas for store in pair)
        assert stored <= tokens * sum(shape.bytes_per_token for shape in cache.shapes)
    cache.clear()
    assert not cache.arenas and known(cache, episodes[-1]) == 0

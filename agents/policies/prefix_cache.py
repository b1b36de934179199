"""Keys and values of token sequences seen before, found again by longest common prefix.

A radix tree whose nodes hold blocks of up to 16 tokens; each block owns 16 slots of one arena per layer. Sequences that
begin alike share blocks, so k samples of one prompt store it once. Least recently used blocks are dropped first.

    cache = PrefixCache(shapes, tokens=100_000, device="cpu")
    slots = cache.match(ids)                       # arena slots of the longest known prefix, at any split point
    position, slots = cache.insert(ids)            # where the unknown rest begins, and the slots to write it to

Left out: anything but plain per-token keys and values (sliding windows, recurrent states).
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Shape of one layer's cache: heads and sizes of a key and of a value, and their dtype."""

    heads: int
    key_size: int
    value_size: int
    dtype: Any

    @property
    def bytes_per_token(self) -> int:
        return self.heads * (self.key_size + self.value_size) * self.dtype.itemsize


@dataclass(eq=False)
class _Node:
    tokens: tuple[int, ...]
    parent: _Node | None
    block: int
    stamp: int = 0
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)
    order: list[tuple[int, ...]] = field(default_factory=list)
    """Keys of `children`, sorted: the child with the longest common prefix is a neighbour of the searched tokens."""


class PrefixCache:
    """The tree and its arena. Not thread-safe: only the model's thread uses it.

    shapes: one per layer. tokens: most tokens kept; 0 keeps none.
    """

    def __init__(self, shapes: Sequence[LayerShape], *, tokens: int, device: Any) -> None:
        self.shapes, self.blocks, self.device = shapes, max(0, tokens) // BLOCK, device
        self.clear()

    def clear(self) -> None:
        """Forget every sequence and free the arena."""
        self.arenas: list[tuple[Any, Any]] = []
        self._root = _Node(tokens=(), parent=None, block=-1)
        self._recent: OrderedDict[_Node, None] = OrderedDict()
        self._free = list(range(self.blocks - 1, -1, -1))
        self._stamp = 0

    def new_batch(self) -> None:
        """What is matched or inserted from here on is not dropped before the next call."""
        self._stamp += 1

    def match(self, ids: Sequence[int]) -> list[int]:
        """Arena slots of the longest known prefix of `ids`, one a token."""
        node, at, slots, path = self._root, 0, [], []
        while at < len(ids):
            rest = tuple(ids[at : at + BLOCK])
            child = node.children.get(rest)
            if child is None:
                child, same = _closest(node, rest)
            else:
                same = len(rest)
            if child is None or not same:
                break
            path.append(child)
            slots += range(child.block * BLOCK, child.block * BLOCK + same)
            at += same
            if same < BLOCK:
                break
            node = child
        self._touch(path)
        return slots

    def insert(self, ids: Sequence[int]) -> tuple[int, list[int]]:
        """Make room for `ids`: (position of the first token to write, slots for the tokens from there on).

        Fewer slots than tokens come back when the cache is full of what this batch uses.
        """
        node, at, path = self._root, 0, []
        while at < len(ids) and (child := node.children.get(tuple(ids[at : at + BLOCK]))) is not None:
            path.append(child)
            node, at = child, at + len(child.tokens)
        start, slots = at, []
        rest = tuple(ids[at : at + BLOCK])
        child, same = _closest(node, rest)
        if child is not None and same in (len(rest), len(child.tokens)):
            # It holds all of the rest, or it is an unfinished block that the rest goes on from: an episode's next turn.
            path.append(child)
            if same < len(rest):
                _rename(child, rest)
            slots += range(child.block * BLOCK + same, child.block * BLOCK + len(rest))
            node, start, at = child, at + same, at + len(rest)
        self._touch(path)
        while at < len(ids):
            block = self._take()
            if block is None:
                break
            tokens = tuple(ids[at : at + BLOCK])
            child = _Node(tokens=tokens, parent=node, block=block)
            node.children[tokens] = child
            bisect.insort(node.order, tokens)
            path.append(child)
            slots += range(block * BLOCK, block * BLOCK + len(tokens))
            node, at = child, at + len(tokens)
        self._touch(path)
        return start, slots

    def read(self, layer: int, slots: Sequence[Any], starts: Sequence[int], into: tuple[Any, Any]) -> None:
        """Copy keys and values at `slots[r]` to row r of `into` (rows, heads, columns, size each) from column starts[r]."""
        import torch

        where = ()
        if torch.device(self.device).type != "cpu":
            rows = [torch.full((len(found),), row) for row, found in enumerate(slots)]
            columns = [torch.arange(start, start + len(found)) for start, found in zip(starts, slots, strict=True)]
            where = tuple(torch.cat(part).to(self.device) for part in (rows, columns))
        for arena, store in zip(self.arenas[layer], into, strict=True):
            if where:
                store[where[0], :, where[1]] = arena[torch.cat(list(slots))]
                continue
            flat = arena.view(len(arena), -1)
            # Row by row: what was gathered is still near when it is turned round. All at once takes four times as long.
            for row, (start, found) in enumerate(zip(starts, slots, strict=True)):
                near = flat.index_select(0, found).view(-1, *arena.shape[1:])
                store[row, :, start : start + len(found)] = near.transpose(0, 1)

    def write(self, layer: int, slots: Any, keys: Any, values: Any) -> None:
        """Put keys and values (tokens, heads, size) into `slots`."""
        import torch

        if not self.arenas:
            size = self.blocks * BLOCK
            for shape in self.shapes:
                keep = {"dtype": shape.dtype, "device": self.device}
                self.arenas.append(
                    (
                        torch.zeros(size, shape.heads, shape.key_size, **keep),
                        torch.zeros(size, shape.heads, shape.value_size, **keep),
                    )
                )
        self.arenas[layer][0][slots] = keys
        self.arenas[layer][1][slots] = values

    def _touch(self, path: Sequence[_Node]) -> None:
        # Leaves first, so that a parent is always more recent than its children: the oldest node is always a leaf.
        for node in reversed(path):
            node.stamp = self._stamp
            self._recent[node] = None
            self._recent.move_to_end(node)

    def _take(self) -> int | None:
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._recent), None)
        if oldest is None or oldest.stamp == self._stamp:
            return None
        del self._recent[oldest]
        assert not oldest.children
        _rename(oldest, ())
        return oldest.block


def _rename(node: _Node, tokens: tuple[int, ...]) -> None:
    """Give a block new tokens in its parent's list of children; none takes it out."""
    parent = node.parent
    assert parent is not None
    del parent.children[node.tokens]
    parent.order.pop(bisect.bisect_left(parent.order, node.tokens))
    if tokens:
        node.tokens = tokens
        parent.children[tokens] = node
        bisect.insort(parent.order, tokens)


def _closest(node: _Node, tokens: tuple[int, ...]) -> tuple[_Node | None, int]:
    """The child that shares most first tokens with `tokens`, and how many."""
    at = bisect.bisect_left(node.order, tokens)
    best, most = None, 0
    for key in node.order[max(0, at - 1) : at + 1]:
        pairs = enumerate(zip(key, tokens, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(key), len(tokens)))
        if same > most:
            best, most = node.children[key], same
    return best, most

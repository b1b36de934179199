"""Keys and values of one batch, and the forward passes that fill them.

A `Slab` is one preallocated store for plain caches: all rows end at the same column, each begins where its length says,
so rows have no gaps and new tokens of all rows go into one column. Rows can be filled from a `PrefixCache`, copied,
moved and forgotten. `NativeCache` has `prefill` and `step` for every other architecture and leaves the cache to it;
`NoCache` has them for what even then goes wrong.

    slab = Slab(model, shapes, rows=2, columns=100, keeps=True)
    for rows, column, logits in slab.prefill(sequences, known, cache, keep=1, most=8192): ...
    logits = slab.step(tokens)                                 # one token a row → (rows, vocabulary)

Left out: sampling, and who the rows belong to (`batch_decoder.py`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from kintsugi.agents.policies.prefix_cache import LayerShape, PrefixCache

GROW = 64
"""Columns by which a full slab grows."""
Part = tuple[slice, int, torch.Tensor]
"""Rows, the column of the first logits, and the logits (rows, columns, vocabulary)."""


class Stores:
    """Memory for slabs, finite from the start: masked columns are multiplied by zero, which makes NaN of NaN.

    On a CPU what one slab gives back the next one takes: fresh pages for every batch cost as much as its steps.
    """

    def __init__(self, device: Any) -> None:
        self.device = torch.device(device)
        self._free: list[torch.Tensor] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        size = math.prod(shape)
        fits = [flat for flat in self._free if flat.dtype == dtype and len(flat) >= size]
        if not fits:
            if self._free:
                self._free.pop(0)  # batches have outgrown it
            fits = [torch.zeros(size if self.device.type != "cpu" else size + size // 4, dtype=dtype, device=self.device)]
        else:
            self._free = [flat for flat in self._free if flat is not fits[0]]
        return fits[0][:size].view(shape)

    def give(self, tensor: torch.Tensor) -> None:
        """Nobody uses what `take` gave any longer."""
        if self.device.type == "cpu":
            self._free.append(tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0))

    def clear(self) -> None:
        self._free.clear()


class _Layer(DynamicLayer):
    """One layer's keys and values (rows, heads, columns, size); writes where its slab stands."""

    def __init__(self, slab: Slab, shape: LayerShape, rows: int, columns: int) -> None:
        super().__init__()
        self.slab, self.shape, self.is_initialized = slab, shape, True
        self.k, self.v = self.new(rows, columns)

    def new(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        take, shape = self.slab.stores.take, self.shape
        return (
            take((rows, shape.heads, columns, shape.key_size), shape.dtype),
            take((rows, shape.heads, columns, shape.value_size), shape.dtype),
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slab = self.slab
        end = slab.at + key_states.shape[2]
        for store, new in ((self.k, key_states), (self.v, value_states)):
            target = store[slab.rows, :, slab.at : end]
            # Padding must not write: a cached prefix may already stand in its columns.
            target.copy_(new if slab.fresh is None else torch.where(slab.fresh, new, target))
        return self.k[slab.rows, :, slab.first : end], self.v[slab.rows, :, slab.first : end]

    def get_seq_length(self) -> int:
        return self.slab.at - self.slab.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class Slab:
    """See the module's text.

    rows, columns: size at the start. keeps: whether the model's forward takes `logits_to_keep`. stores: where its memory
    comes from, and goes to with `release`.
    """

    def __init__(
        self,
        model: Any,
        shapes: Sequence[LayerShape],
        *,
        rows: int,
        columns: int,
        keeps: bool,
        stores: Stores | None = None,
    ) -> None:
        self.model, self.keeps, self.columns = model, keeps, columns
        self.device = next(model.parameters()).device
        self.stores = stores or Stores(self.device)
        self.low = torch.finfo(shapes[0].dtype).min
        self.dtype = shapes[0].dtype
        self.rows, self.first, self.at = slice(0, rows), 0, 0
        self.fresh: torch.Tensor | None = None
        self.layers = [_Layer(self, shape, rows, columns) for shape in shapes]
        self.cache = Cache(layers=[*self.layers])
        self.starts = np.zeros(rows, dtype=np.int64)

    def prefill(
        self,
        sequences: Sequence[Sequence[int]],
        known: Sequence[Sequence[int]],
        cache: PrefixCache,
        *,
        keep: int,
        most: int,
        most_rows: int = 1 << 30,
    ) -> Iterator[Part]:
        """Run the part of each sequence that `known` (arena slots of its prefix) does not cover.

        Sequences come sorted by the number of such tokens. Yields the logits of the last `keep` columns, rows by rows
        and in order; a row shorter than `keep` has meaningless ones first.
        """
        lengths = np.array([len(ids) for ids in sequences])
        new = np.array([len(ids) - len(slots) for ids, slots in zip(sequences, known, strict=True)])
        total = int(lengths.max())
        self.starts = total - lengths
        for rows in _groups(new, most, most_rows):
            self._fill(rows, known[rows], cache)
            width = int(new[rows.stop - 1])
            ids, begin = np.zeros((rows.stop - rows.start, width), dtype=np.int64), total - width
            for line, row in enumerate(range(rows.start, rows.stop)):
                ids[line, width - new[row] :] = sequences[row][lengths[row] - new[row] :]
            chunk = max(1, most // (rows.stop - rows.start))
            for left in range(begin, total, chunk):
                right = min(total, left + chunk)
                wanted = right - max(left, total - keep)
                logits = self._run_columns(rows, ids[:, left - begin : right - begin], left, new[rows], total, wanted)
                if wanted > 0:
                    yield rows, right - wanted, logits[:, -wanted:]
        self.rows, self.at, self.fresh = slice(0, len(lengths)), total, None
        self._build_mask()

    def expand(self, copies: torch.Tensor) -> None:
        """Fill the rows behind those that were run: the first becomes a copy of row `copies[0]`, and so on."""
        begin = len(self.starts)
        end = begin + len(copies)
        self.starts = np.concatenate([self.starts, self.starts[copies.cpu().numpy()]])
        first = int(self.starts.min())
        for layer in self.layers:
            for store in (layer.k, layer.v):
                store[begin:end, :, first : self.at] = store[copies, :, first : self.at]
        self.rows = slice(0, end)
        self._build_mask()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run one more token a row: logits (rows, vocabulary)."""
        if self.at >= self.columns:
            self._widen()
            self._build_mask()
        positions = self.at - self.offsets
        mask = self.mask[..., self.first : self.at + 1]
        logits = self._forward(tokens[:, None], positions[:, None], mask, 1)
        self.at += 1
        return logits[:, -1]

    def move(self, holes: Sequence[int], movers: Sequence[int], live: int) -> None:
        """Put rows `movers` in the place of rows `holes`; only the first `live` rows go on."""
        if holes:
            to, of = (torch.tensor(part, device=self.device) for part in (holes, movers))
            for layer in self.layers:
                for store in (layer.k, layer.v):
                    store[to, :, self.first : self.at] = store[of, :, self.first : self.at]
            self.starts[list(holes)] = self.starts[list(movers)]
        self.starts = self.starts[:live]
        self.rows = slice(0, live)
        self._build_mask()

    def remember(self, cache: PrefixCache, sequences: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Keep each (row, its ids as far as they were run) in the prefix cache."""
        rows: list[int] = []
        columns: list[int] = []
        slots: list[int] = []
        for row, ids in sequences:
            position, found = cache.insert(ids)
            start = int(self.starts[row]) + position
            rows += [row] * len(found)
            columns += range(start, start + len(found))
            slots += found
        if not slots:
            return
        at_rows, at_columns, at_slots = (torch.tensor(part, device=self.device) for part in (rows, columns, slots))
        for number, layer in enumerate(self.layers):
            cache.write(number, at_slots, layer.k[at_rows, :, at_columns], layer.v[at_rows, :, at_columns])

    def release(self) -> None:
        """Give the memory back; the slab is of no use any more."""
        for layer in self.layers:
            for store in (layer.k, layer.v):
                self.stores.give(store)

    def _fill(self, rows: slice, known: Sequence[Sequence[int]], cache: PrefixCache) -> None:
        """Copy the known prefixes of `rows` from the arena to where they belong."""
        if not any(known):
            return
        starts = self.starts[rows].tolist()
        index = [torch.tensor(slots, dtype=torch.long, device=self.device) for slots in known]
        for number, layer in enumerate(self.layers):
            cache.read(number, index, starts, (layer.k[rows], layer.v[rows]))

    def _run_columns(
        self, rows: slice, ids: np.ndarray, left: int, new: np.ndarray, total: int, wanted: int
    ) -> torch.Tensor:
        """One forward pass of `rows` over the columns of `ids`, which begin at `left`."""
        right = left + ids.shape[1]
        column = np.arange(left, right)
        starts = self.starts[rows][:, None]
        self.rows, self.at, self.first = rows, left, int(starts.min())
        seen = np.arange(self.first, right)
        allowed = (seen >= starts[:, :, None]) & (seen <= column[:, None])
        fresh = column >= (total - new)[:, None]
        self.fresh = None if fresh.all() else torch.from_numpy(fresh[:, None, :, None]).to(self.device)
        mask = self._additive(torch.from_numpy(allowed[:, None]).to(self.device))
        positions = torch.from_numpy(np.maximum(column - starts, 0)).to(self.device)
        return self._forward(torch.from_numpy(ids).to(self.device), positions, mask, max(wanted, 1))

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, keep: int) -> torch.Tensor:
        limit = {"logits_to_keep": keep} if self.keeps else {}
        return self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **limit,
        ).logits

    def _widen(self) -> None:
        """Copy the live rows to a store with `GROW` more columns."""
        self.columns += GROW
        for layer in self.layers:
            old = layer.k, layer.v
            layer.k, layer.v = layer.new(self.rows.stop, self.columns)
            for store, source in zip((layer.k, layer.v), old, strict=True):
                store[:, :, self.first : self.at] = source[: self.rows.stop, :, self.first : self.at]
                self.stores.give(source)

    def _build_mask(self) -> None:
        self.first = int(self.starts.min())
        self.offsets = torch.from_numpy(self.starts).to(self.device)
        seen = torch.arange(self.columns, device=self.device) >= self.offsets[:, None]
        self.mask = self._additive(seen[:, None, None])

    def _additive(self, allowed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill_(~allowed, self.low)


class NativeCache:
    """The model's own cache, for architectures that keep more than plain keys and values; rows never leave it."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.positions = "position_ids" in inspect.signature(model.forward).parameters
        self.state: dict[str, Any] = {}

    def prefill(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run all sequences, padded on the left: logits of every column."""
        total = max(map(len, sequences))
        ids = torch.zeros(len(sequences), total, dtype=torch.long)
        self.mask = torch.zeros_like(ids).to(self.device)
        for line, sequence in enumerate(sequences):
            ids[line, total - len(sequence) :] = torch.tensor(sequence)
            self.mask[line, total - len(sequence) :] = 1
        return self._forward(ids.to(self.device))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        return self._forward(tokens[:, None])[:, -1]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        extra = {"position_ids": positions} if self.positions else {}
        out = self.model(input_ids=ids, attention_mask=self.mask, use_cache=True, **extra, **self.state)
        self.state = {name: out[name] for name in ("past_key_values", "cache_params") if out.get(name) is not None}
        return out.logits


class NoCache(NativeCache):
    """Runs every sequence whole for each token, padded on the right, where nothing causal looks: slow, and always right."""

    def prefill(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        self.sequences = [list(sequence) for sequence in sequences]
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        total = int(lengths.max())
        ids = torch.zeros(len(sequences), total, dtype=torch.long)
        for line, sequence in enumerate(sequences):
            ids[line, : len(sequence)] = torch.tensor(sequence)
        columns = (torch.arange(total) - (total - lengths)[:, None]).clamp(min=0).to(self.device)
        logits = self.model(input_ids=ids.to(self.device), use_cache=False).logits
        return logits.gather(1, columns[..., None].expand_as(logits))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        added = tokens.tolist()
        return self.prefill([[*sequence, token] for sequence, token in zip(self.sequences, added, strict=True)])[:, -1]


def _groups(new: np.ndarray, most: int, most_rows: int) -> Iterator[slice]:
    """Consecutive rows with about as many new tokens each, so that little padding is run. `new` is ascending."""
    begin = 0
    for row in range(1, len(new) + 1):
        if (
            row == len(new)
            or new[row] > 1.25 * new[begin] + 8
            or new[row] * (row - begin + 1) > most
            or row - begin >= most_rows
        ):
            yield slice(begin, row)
            begin = row

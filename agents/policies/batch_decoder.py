"""Decodes and scores batches of token sequences with one Hugging Face causal LM, on the thread that calls it.

Sequences of a batch end at the same column of one preallocated key-value store (a "slab"), so a row is a stretch
without gaps whose first column is all the attention mask needs to know. Prompts that are alike are run once; what the
prefix cache knows is copied in, not run again; rows that are done are moved out of the way.

    decoder = BatchDecoder(model, end_ids=(2,), decode_text=tokenizer.decode, cache_tokens=100_000)
    row = Row(context=(1, 5, 9), sampling=Sampling(max_tokens=20))
    decoder.decode([row])                                      # fills row.tokens, row.logprobs, row.finish, …

Each row draws its own random numbers (Philox, keyed by seed and sample), so what it samples does not depend on its
neighbours, up to float rounding. Models whose cache is not plain keys and values, or that fail a self-check at the
start, are decoded with their own cache instead: no reuse of prefixes, no sharing of prompts (`decoder.plain` is False);
those whose own cache fails it too, with none.
Left out: beam search, tensor parallelism, speculative decoding.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kintsugi.agents.policies.policy import Sampling
from kintsugi.agents.policies.prefix_cache import LayerShape, PrefixCache
from kintsugi.agents.policies.slab import GROW, NativeCache, NoCache, Slab, Stores
from kintsugi.agents.policies.stop_strings import cut_at_stop
from kintsugi.errors import PolicyError

PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Most tokens of one forward pass over prompts: on a CPU, what stays in its caches."""
SCORE_LOGITS = 1 << 27
"""Most logits of one forward pass that scores."""
COMPACT = 8
"""Rows that are done leave the batch once they are one in so many: moving them costs about three of their steps."""
_UNFIT = (TypeError, ValueError, AttributeError, IndexError, RuntimeError)
"""What architectures raise that do not take our masks, positions or cache."""

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Row:
    """One sample to draw, and what came of it.

    context: ids to feed. sample: which sample of its request. tokens: ids sampled. logprobs: theirs, at temperature 1.
    text: without end of turn and stop string. finish: "stop" or "length"; None while unfinished. stop: the stop string
    that ended it, if any. processed: context tokens really run. dropped: set from outside when nobody waits for it any more.
    """

    context: tuple[int, ...]
    sampling: Sampling
    sample: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    stop: str = ""
    processed: int = 0
    dropped: bool = False


class BatchDecoder:
    """See the module's text. Not thread-safe: one thread at a time.

    end_ids: tokens that end an answer. decode_text: ids → text, special tokens written out. vocabulary: number of ids.
    cache_tokens: most tokens in the prefix cache; cache_bytes: most memory for it.
    """

    def __init__(
        self,
        model: Any,
        *,
        end_ids: Sequence[int],
        decode_text: Callable[[Sequence[int]], str],
        cache_tokens: int = 0,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.model, self.end_ids, self.decode_text = model, frozenset(end_ids), decode_text
        self.device = next(model.parameters()).device
        self.most = PREFILL_TOKENS.get(self.device.type, 8192)
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self._triggers: dict[tuple[str, ...], frozenset[int]] = {}
        self._expected: dict[tuple[int, ...], None] = {}
        self.shapes = self._cache_shapes()
        per_token = sum(shape.bytes_per_token for shape in self.shapes)
        tokens = min(cache_tokens, cache_bytes // per_token) if per_token else 0
        self.cache, self.stores = PrefixCache(self.shapes, tokens=0, device=self.device), Stores(self.device)
        self.plain = bool(self.shapes) and self._agrees_with_plain_forward(self._filled_slab)
        if self.plain:
            self.cache = PrefixCache(self.shapes, tokens=tokens, device=self.device)
        self.native = NativeCache
        if not self.plain and not self._agrees_with_plain_forward(self._filled_native, slack=10):
            self.native = NoCache
            logger.warning(
                "%s errs on ragged batches with its own cache: every token runs its whole context again, slowly.",
                type(model).__name__,
            )

    def clear(self) -> None:
        """Forget all cached keys and values (the weights have changed), and free their memory."""
        self.cache.clear()
        self.stores.clear()

    def expect(self, contexts: Iterable[tuple[int, ...]]) -> None:
        """Say what the next calls feed, all together: neither what is known of it nor what they add is dropped for it.

        So of more episodes than fit, some keep their beginnings; by age alone each would lose its own to the next.
        """
        self._expected = dict.fromkeys(contexts)  # in order: it decides what is dropped first
        self.cache.new_batch()
        for ids in self._expected:
            self.cache.match(ids[:-1])

    @torch.inference_mode()
    def decode(
        self,
        rows: Sequence[Row],
        *,
        done: Callable[[Row], None] = lambda row: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Sample every row to its end; `done` is called for each as soon as it is. Returns early once `stop()`."""
        try:
            self._decode(rows, done, stop)
        except BaseException:
            # Blocks may have been promised to sequences whose keys and values were never written.
            self.clear()
            raise

    def _decode(self, rows: Sequence[Row], done: Callable[[Row], None], stop: Callable[[], bool]) -> None:
        cache, logits, order = self._start(rows)
        lanes = _Lanes(order, self.device)
        step = 0
        while lanes.live and not stop():
            tokens, logprobs = lanes.sample(logits, step)
            step += 1
            for row, token, logprob in zip(lanes.rows, tokens.tolist(), logprobs.tolist(), strict=True):
                if row.finish is None:
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    if self._ends(row, token):
                        lanes.live -= 1
                        if not row.dropped:
                            done(row)
            if not lanes.live:
                break
            if isinstance(cache, Slab) and (len(lanes.rows) - lanes.live) * COMPACT >= len(lanes.rows):
                tokens = self._compact(cache, lanes, tokens)
            logits = cache.step(tokens)
        if isinstance(cache, Slab):
            self._remember(cache, lanes.rows, range(len(lanes.rows)))
            cache.release()

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, ...]]:
        """Natural log-probability of each id of each (context, completion)'s completion, in one pass over the batch."""
        self._open(context for context, _ in pairs)
        sequences = [(*context, *completion)[:-1] for context, completion in pairs]
        known = [self.cache.match(context[:-1]) for context, _ in pairs]
        order = sorted(range(len(pairs)), key=lambda i: len(sequences[i]) - len(known[i]))
        keep, total = max(len(completion) for _, completion in pairs), max(map(len, sequences))
        ordered, slab = [sequences[i] for i in order], None
        if self.plain:
            slab = self._slab(len(order), total)
            slots = [known[i] for i in order]
            most_rows = max(1, SCORE_LOGITS // (self.vocabulary * keep))
            parts = slab.prefill(ordered, slots, self.cache, keep=keep, most=self.most, most_rows=most_rows)
        else:
            parts = [(slice(0, len(order)), 0, self.native(self.model).prefill(ordered))]
        found: list[list[float]] = [[] for _ in pairs]
        for rows, column, logits in parts:
            logprobs = torch.log_softmax(logits.float(), -1)
            for line, i in enumerate(order[rows]):
                # Rows end together: logits at column c predict completion[c - (total - its length)].
                completion = pairs[i][1]
                shift = column - (total - len(completion))
                begin, end = max(0, shift), min(len(completion), shift + logits.shape[1])
                if begin < end:
                    ids = torch.tensor(completion[begin:end], device=self.device)
                    columns = torch.arange(begin - shift, end - shift, device=self.device)
                    found[i] += logprobs[line, columns, ids].tolist()
        if slab is not None:
            slab.release()
        return [tuple(values) for values in found]

    def _start(self, rows: Sequence[Row]) -> tuple[Slab | NativeCache, torch.Tensor, list[Row]]:
        """Run the prompts: (cache holding them, logits of each row's next token, rows in the cache's order)."""
        if not self.plain:
            cache = self.native(self.model)
            for row in rows:
                row.processed = len(row.context)
            return cache, self._finite(cache.prefill([row.context for row in rows])[:, -1]), list(rows)
        members: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            members.setdefault(row.context, []).append(row)
        self._open(members)
        known = {ids: self.cache.match(ids[:-1]) for ids in members}
        prompts = sorted(members, key=lambda ids: len(ids) - len(known[ids]))
        copies = [row for ids in prompts for row in members[ids][1:]]
        for ids in prompts:
            members[ids][0].processed = len(ids) - len(known[ids])
        room = max(row.sampling.max_tokens for row in rows)
        slab = self._slab(len(rows), max(map(len, prompts)) + min(room, GROW))
        slots = [known[ids] for ids in prompts]
        parts = list(slab.prefill(prompts, slots, self.cache, keep=1, most=self.most))
        logits = self._finite(torch.cat([part[:, -1] for _, _, part in parts]))
        if copies:
            index = torch.tensor([i for i, ids in enumerate(prompts) for _ in members[ids][1:]], device=self.device)
            slab.expand(index)
            logits = torch.cat([logits, logits[index]])
        return slab, logits, [*(members[ids][0] for ids in prompts), *copies]

    def _slab(self, rows: int, columns: int) -> Slab:
        return Slab(self.model, self.shapes, rows=rows, columns=columns, keeps=self.keeps, stores=self.stores)

    def _open(self, contexts: Iterable[tuple[int, ...]]) -> None:
        contexts = list(contexts)
        if any(ids not in self._expected for ids in contexts):
            self.expect(contexts)

    @staticmethod
    def _finite(logits: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(logits).all():
            raise PolicyError("The model gives logits that are not finite: broken weights, or too small a dtype.")
        return logits

    def _ends(self, row: Row, token: int) -> bool:
        """Whether `token` was the row's last one; then its text and finish are set."""
        sampling = row.sampling
        if row.dropped:
            row.finish = "length"
        elif token in self.end_ids:
            row.text, row.finish = self.decode_text(row.tokens[:-1]), "stop"
        elif sampling.stop and token in self._stop_triggers(sampling.stop) and self._stopped(row):
            row.finish = "stop"
        elif len(row.tokens) >= sampling.max_tokens:
            row.text, row.finish = self.decode_text(row.tokens), "length"
        return row.finish is not None

    def _stopped(self, row: Row) -> bool:
        # A token is at least one byte, so the last few tokens hold every stop string that may just have been completed.
        stops = row.sampling.stop
        window = max(len(stop.encode()) for stop in stops) + 4
        tail = self.decode_text(row.tokens[-window:])
        if not any(stop in tail for stop in stops):
            return False
        row.text, row.stop = cut_at_stop(self.decode_text(row.tokens), stops)
        return bool(row.stop)

    def _stop_triggers(self, stops: tuple[str, ...]) -> frozenset[int]:
        """Tokens that may complete a stop string: only after these is text decoded."""
        found = self._triggers.get(stops)
        if found is None:
            ends = {stop[-1] for stop in stops if stop}
            every = any(not end.isascii() or end == " " for end in ends)  # a token alone may not show these
            texts = ((i, "" if every else self.decode_text([i])) for i in range(self.vocabulary))
            found = frozenset(i for i, text in texts if every or any(end in text for end in ends))
            self._triggers[stops] = found
        return found

    def _compact(self, slab: Slab, lanes: _Lanes, tokens: torch.Tensor) -> torch.Tensor:
        """Move live rows into the places of rows that are done; those go to the prefix cache."""
        rows, live = lanes.rows, lanes.live
        done = [i for i, row in enumerate(rows) if row.finish is not None]
        self._remember(slab, rows, done)
        holes = [i for i in done if i < live]
        movers = [i for i in range(live, len(rows)) if rows[i].finish is None]
        slab.move(holes, movers, live)
        return lanes.move(holes, movers, tokens)

    def _remember(self, slab: Slab, rows: Sequence[Row], which: Sequence[int]) -> None:
        if self.cache.blocks:
            slab.remember(self.cache, [(i, (*rows[i].context, *rows[i].tokens[:-1])) for i in which])

    def _cache_shapes(self) -> list[LayerShape]:
        """Each layer's shape, or [] when the model's cache is not plain keys and values."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        try:
            cache = DynamicCache(config=self.model.config)
            with torch.inference_mode():
                self.model(input_ids=self._probe(3), past_key_values=cache, use_cache=True)
        except _UNFIT:
            return []
        layers: list[Any] = list(cache.layers)
        if not layers or any(type(layer) is not DynamicLayer or not layer.is_initialized for layer in layers):
            return []
        return [
            LayerShape(
                heads=layer.keys.shape[1],
                key_size=layer.keys.shape[3],
                value_size=layer.values.shape[3],
                dtype=layer.keys.dtype,
            )
            for layer in layers
        ]

    @torch.inference_mode()
    def _agrees_with_plain_forward(
        self, fill: Callable[[list[list[int]]], Slab | NativeCache], slack: float = 1.0
    ) -> bool:
        """Self-check: one more token after a ragged batch that `fill` ran gives what plain forward passes give.

        ALiBi models fail it in a slab, Mamba (transformers 5.23) fails it with its own cache.
        """
        long, short = self._probe(12)[0], self._probe(7)[0]
        plain = torch.cat([self.model(input_ids=ids[None]).logits[:, -1] for ids in (short, long)]).float()
        try:
            ours = fill([ids[:-1].tolist() for ids in (short, long)]).step(torch.stack([short[-1], long[-1]])).float()
        except _UNFIT:
            return False
        loose = slack * (1e-3 if next(self.model.parameters()).dtype == torch.float32 else 5e-2)
        return bool((ours - plain).abs().max() <= loose * (1 + plain.abs().max()))

    def _filled_slab(self, sequences: list[list[int]]) -> Slab:
        slab = self._slab(2, max(map(len, sequences)) + 1)
        list(slab.prefill(sequences, [[], []], self.cache, keep=1, most=self.most))
        return slab

    def _filled_native(self, sequences: list[list[int]]) -> NativeCache:
        cache = NativeCache(self.model)
        cache.prefill(sequences)
        return cache

    def _probe(self, count: int) -> torch.Tensor:
        ids = torch.arange(1, count + 1, device=self.device) * 7919 % self.vocabulary
        return ids[None]


class _Lanes:
    """Sampling settings and random numbers of the rows of a running batch, as tensors in the rows' order."""

    def __init__(self, rows: Sequence[Row], device: Any) -> None:
        self.rows, self.live = list(rows), len(rows)
        settings = [row.sampling for row in rows]
        self.greedy = torch.tensor([s.temperature <= 0 for s in settings], device=device)
        self.temperature = torch.tensor([s.temperature or 1.0 for s in settings], device=device)
        self.top_p = torch.tensor([s.top_p for s in settings], device=device)
        draws = np.zeros((len(rows), max(s.max_tokens for s in settings)), dtype=np.float32)
        for line, row in enumerate(rows):
            if row.sampling.temperature > 0:
                key = np.array([row.sampling.seed % 2**64, row.sample], dtype=np.uint64)
                generator = np.random.Generator(np.random.Philox(key=key))
                draws[line, : row.sampling.max_tokens] = generator.random(row.sampling.max_tokens, dtype=np.float32)
        # Below 1 by one float more than the largest draw, so that a draw times the total stays below the total.
        self.draws = torch.from_numpy(np.minimum(draws, np.float32(1 - 2**-23))).to(device)
        self._choose_path()

    def sample(self, logits: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One token a row by inverse CDF, and its log-probability at temperature 1. Logits: rows by vocabulary."""
        logits = logits.float()
        logprobs = torch.log_softmax(logits, -1)
        if self.all_greedy:
            tokens = logits.argmax(-1)
        else:
            tempered = logprobs if self.untempered else torch.log_softmax(logits / self.temperature[:, None], -1)
            tokens = self._inverse(tempered.exp(), self.draws[:, step, None])
            if self.some_greedy:
                tokens = torch.where(self.greedy, logits.argmax(-1), tokens)
        return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]

    def move(self, holes: Sequence[int], movers: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        """As `Slab.move`; gives `tokens` in the new order."""
        order = list(range(self.live))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        index = torch.tensor(order, device=tokens.device)
        self.rows = [self.rows[i] for i in order]
        self.greedy, self.temperature, self.top_p = self.greedy[index], self.temperature[index], self.top_p[index]
        self.draws = self.draws[index]
        self._choose_path()
        return tokens[index]

    def _choose_path(self) -> None:
        self.all_greedy, self.some_greedy = bool(self.greedy.all()), bool(self.greedy.any())
        self.untempered = bool((self.temperature == 1).all())
        self.nucleus = bool((self.top_p < 1).any())

    def _inverse(self, probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        ids = None
        if self.nucleus:
            probabilities, ids = torch.sort(probabilities, dim=-1, descending=True, stable=True)
            before = probabilities.cumsum(-1) - probabilities
            outside = (before >= self.top_p[:, None]) & (self.top_p < 1)[:, None]
            outside[:, 0] = False
            probabilities = probabilities.masked_fill(outside, 0.0)
        mass = probabilities.cumsum(-1)
        chosen = torch.searchsorted(mass, draws * mass[:, -1:], right=True).clamp_(max=mass.shape[1] - 1)
        return (chosen if ids is None else ids.gather(-1, chosen))[:, 0]

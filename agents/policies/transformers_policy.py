"""Any Hugging Face causal language model as a policy: a folder or a hub name, with or without a LoRA adapter.

    policy = open_policy("runs/x/policy-3")
    async with live(policy):                                   # while an episode runs
        completions = await policy.complete(Request(messages=…, n=4))

The calls of many episodes are gathered into batches (`batch_queue.py`), which one background thread decodes
(`batch_decoder.py`), so the event loop stays free. Adapters are merged into their base when they are loaded.

Left out: several GPUs, and joining a batch that already runs (the vLLM policy has both).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.agents.policies.batch_decoder import BatchDecoder, Row
from kintsugi.agents.policies.batch_queue import Batching, BatchQueue, Ticket
from kintsugi.agents.policies.policy import Completion, Request
from kintsugi.agents.policies.weight_loading import known_device, loading
from kintsugi.errors import ConfigError, ContextTooLong, PolicyError
from kintsugi.hub import hub_or_cache

WEIGHTS = (".safetensors", ".bin", ".pt")
WHOLE_BYTES = 64 << 20
"""Weight files up to this size count wholly for the version; of larger ones the header and eight samples."""


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Where a model comes from: weights, the adapter to merge into them ("" for none), and the tokenizer."""

    base: str
    adapter: str
    tokenizer: str


@dataclass(eq=False, kw_only=True)
class _Work:
    """What one call wants: rows to sample, or a (context, completion) pair to score."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    pair: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


def open_policy(
    path: str,
    *,
    adapter: str | None = None,
    device: Annotated[str, AfterValidator(known_device)] = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto",
    max_batch: Annotated[int, Field(ge=1)] = 256,
    max_batch_tokens: Annotated[int, Field(ge=1)] = 65536,
    batching: Batching = "repeatable",
    prefix_cache_tokens: Annotated[int, Field(ge=0)] = 200_000,
    threads: Annotated[int, Field(ge=1)] | None = None,
    version: str | None = None,
) -> TransformersPolicy:
    """Load a model and its tokenizer.

    path: a model folder, a LoRA adapter folder (its base is loaded too), or a hub name. adapter: an adapter folder to
    merge into `path`. device: "auto" takes CUDA when there is one. dtype: "auto" is float32 on a CPU, the model's own
    elsewhere. max_batch: most samples at once; max_batch_tokens: most samples times (context + max_tokens).
    batching: "repeatable" or "eager" (see `batch_queue.py`). prefix_cache_tokens: most tokens whose keys and values are
    kept for later calls; 0 keeps none; at most 2 GiB, or an eighth of a GPU's free memory.
    threads: CPU threads of the model. version: a name for these weights; by default a hash of their content.

    Raises PolicyError when something is missing or has no chat template, ConfigError for an unknown `batching` or device.
    """
    if batching not in ("repeatable", "eager"):
        raise ConfigError(f'batching must be "repeatable" or "eager", found "{batching}"')
    device = known_device(device)
    sources = _find(path, adapter)
    chat = ChatTokens(_load_tokenizer(sources.tokenizer))
    model = _load_model(sources, "float32" if dtype == "auto" and device == "cpu" else dtype).to(device)
    return TransformersPolicy(
        model,
        chat,
        name=f"transformers:{path}" + (f"+{adapter}" if adapter else ""),
        version=version or _content_version(sources, model),
        max_batch=max_batch,
        max_batch_tokens=max_batch_tokens,
        batching=batching,
        prefix_cache_tokens=prefix_cache_tokens,
        threads=threads,
    )


class TransformersPolicy:
    """A `Policy` for a loaded model; see the module's text. Serves one event loop after another."""

    def __init__(
        self,
        model: Any,
        chat: ChatTokens,
        *,
        name: str,
        version: str,
        max_batch: int = 256,
        max_batch_tokens: int = 65536,
        batching: Batching = "repeatable",
        prefix_cache_tokens: int = 200_000,
        threads: int | None = None,
    ) -> None:
        rows = model.get_input_embeddings().weight.shape[0]
        if len(chat.tokenizer) > rows:
            raise PolicyError(
                f"The tokenizer knows {len(chat.tokenizer)} tokens, the model {rows}: call "
                "model.resize_token_embeddings(len(tokenizer)) and save both again, or mend the folder."
            )
        self.name, self.version, self.chat = name, version, chat
        self._max_batch, self._max_batch_tokens = max(1, max_batch), max_batch_tokens
        self._cache_tokens = prefix_cache_tokens
        self._decoder = self._new_decoder(model.eval())
        # OpenMP keeps the number of threads per thread, so the model's own thread must set it.
        prepare = (lambda: torch.set_num_threads(threads)) if threads else None
        self._queue = BatchQueue(self._run, batching=batching, prepare=prepare)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled tokens, special ones written out."""
        return self.chat.decode(ids)

    async def complete(self, request: Request) -> list[Completion]:
        """`request.n` completions, sample by sample. Raises PolicyError when it fails or the context is too long."""
        if request.n < 1 or request.sampling.max_tokens < 1:
            found = f"{request.n} and {request.sampling.max_tokens}"
            raise ConfigError(f"n and max_tokens must be 1 or more, found {found}")
        context = self._context(request)
        room = min(request.sampling.max_tokens, self._longest() - len(context))
        sampling = dataclasses.replace(request.sampling, max_tokens=room)
        rows = [Row(context=context, sampling=sampling, sample=i) for i in range(request.n)]
        await self._submit(request, _Work(rows=rows))
        return [
            Completion(
                text=row.text,
                finish=row.finish or "length",
                stop=row.stop,
                prompt_ids=context,
                token_ids=tuple(row.tokens),
                logprobs=tuple(row.logprobs),
                processed_tokens=row.processed,
            )
            for row in rows
        ]

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        """Log-probability of each token of `completion` and of its end of turn; calls are batched like samples."""
        pair = (self._context(request), self.chat.completion_ids(completion))
        if len(pair[0]) + len(pair[1]) > self._longest():
            raise PolicyError(f"The completion to score does not fit into the model's {self._longest()} positions.")
        return await self._submit(request, _Work(pair=pair))

    def live(self) -> Any:
        """Async context manager that an episode enters while it runs (see `policy.live`)."""
        return self._queue.live()

    async def forget(self) -> None:
        """Drop all cached keys and values, so that what follows does not depend on what ran before."""
        await self._queue.call(self._decoder.clear)

    async def reload(self, path: str, version: str | None = None) -> None:
        """Take the weights in `path` (a model or adapter folder) from the next batch on; cached keys and values go.

        The same architecture is loaded in place. The tokenizer stays. Raises PolicyError, keeping the old weights.
        """

        def swap() -> str:
            sources, old = _find(path, None), self._decoder.model
            new = _load_model(sources, str(old.dtype).removeprefix("torch."))
            state, target = new.state_dict(), old.state_dict()
            if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in target.items()}:
                old.load_state_dict(state)
                self._decoder.clear()
            else:
                self._decoder = self._new_decoder(new.to(old.device).eval())
            return version or _content_version(sources, new)

        self.version = await self._queue.call(swap)
        self.name = f"transformers:{path}"

    async def close(self) -> None:
        """Fail what is under way and free the cached keys and values."""
        await self._queue.close()
        self._decoder.clear()

    def _new_decoder(self, model: Any) -> BatchDecoder:
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        extra = ends if isinstance(ends, list) else [] if ends is None else [ends]
        device = next(model.parameters()).device
        return BatchDecoder(
            model,
            end_ids=[*self.chat.end_of_turn_ids, *extra],
            decode_text=self.chat.decode,
            cache_tokens=self._cache_tokens,
            cache_bytes=torch.cuda.mem_get_info(device)[0] // 8 if device.type == "cuda" else 2 << 30,
        )

    def _longest(self) -> int:
        config = self._decoder.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    def _context(self, request: Request) -> tuple[int, ...]:
        context = self.chat.context(request)
        if not 0 < len(context) < self._longest():
            raise ContextTooLong(
                f"The context has {len(context)} tokens, the model takes 1 to {self._longest() - 1}: shorten the "
                "prompt, or take a model with more positions."
            )
        return context

    async def _submit(self, request: Request, work: _Work) -> Any:
        said = tuple((message["role"], message["content"]) for message in request.messages)
        order = (request.key, said, request.prefill, request.sampling.seed, bool(work.rows))
        ticket = Ticket(order=order, work=work)
        try:
            return await self._queue.submit(ticket)
        finally:
            for row in work.rows:
                row.dropped = ticket.dropped

    def _run(
        self, tickets: Sequence[Ticket], finish: Callable[[Ticket, Any], None], stopped: Callable[[], bool]
    ) -> None:
        """One batch, on the model's thread."""
        owner = {row: ticket for ticket in tickets for row in ticket.work.rows}
        left = {ticket: len(ticket.work.rows) for ticket in tickets}

        def done(row: Row) -> None:
            ticket = owner[row]
            left[ticket] -= 1
            if not left[ticket]:
                finish(ticket, None)

        def sample(rows: Sequence[Row]) -> None:
            rows = [row for row in rows if row.finish is None and not row.dropped]
            for row in rows:  # of an earlier try that ran out of memory
                row.tokens.clear()
                row.logprobs.clear()
            if rows and not stopped():
                self._decoder.decode(rows, done=done, stop=stopped)

        def score(some: Sequence[Ticket]) -> None:
            if not stopped():
                for ticket, values in zip(some, self._decoder.score([t.work.pair for t in some]), strict=True):
                    finish(ticket, values)

        scored = [ticket for ticket in tickets if not ticket.work.rows and not ticket.dropped]
        self._decoder.expect([*(row.context for row in owner), *(ticket.work.pair[0] for ticket in scored)])
        for rows in self._chunks(list(owner), lambda row: len(row.context) + row.sampling.max_tokens):
            _halving(rows, sample)
        for some in self._chunks(scored, lambda ticket: sum(map(len, ticket.work.pair))):
            _halving(some, score)

    def _chunks(self, items: list[Any], length: Callable[[Any], int]) -> Iterator[list[Any]]:
        """Batches as large as max_batch and max_batch_tokens allow, one item at least; the like long go together."""
        chunk: list[Any] = []
        longest = 0
        for item in sorted(items, key=length):
            wide = max(longest, length(item))
            if chunk and (len(chunk) >= self._max_batch or wide * (len(chunk) + 1) > self._max_batch_tokens):
                yield chunk
                chunk, wide = [], length(item)
            chunk.append(item)
            longest = wide
        if chunk:
            yield chunk


def _halving(items: Sequence[Any], work: Callable[[Sequence[Any]], None]) -> None:
    """`work(items)`; when memory runs out, the two halves one after the other."""
    try:
        work(items)
        return
    except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU allocator raises it plainly
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        if len(items) == 1:
            raise PolicyError(
                "The model ran out of memory on a single sequence: use a shorter history, a smaller model or dtype."
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(items) // 2
    _halving(items[:middle], work)
    _halving(items[middle:], work)


def _find(path: str, adapter: str | None) -> _Sources:
    """Which folders or hub names to load for `path` and `adapter`."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise PolicyError(f'No model folder "{path}": give a folder with config.json or a hub name "owner/model".')
    if folder.is_dir() and adapter is None and (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path") or ""
        near = folder / base
        if not base or (not Path(base).is_dir() and not near.is_dir() and base.startswith((".", "/"))):
            raise PolicyError(f'The adapter "{path}" has a base that is not here, "{base}": mend adapter_config.json.')
        base = str(near) if near.is_dir() else base
        own = (folder / "tokenizer_config.json").is_file()
        return _Sources(base=base, adapter=str(folder), tokenizer=str(folder) if own else base)
    if adapter and not (Path(adapter) / "adapter_config.json").is_file():
        raise PolicyError(f'No adapter in "{adapter}": expected a folder with adapter_config.json.')
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise PolicyError(
            f'expected a model in "{path}", found neither config.json nor adapter_config.json there: give a folder that '
            "save_pretrained wrote, such as policies/start of a run."
        )
    source = str(folder) if folder.is_dir() else path
    return _Sources(base=source, adapter=adapter or "", tokenizer=source)


def _load_tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with hub_or_cache():
            return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        if Path(source).is_dir() and not list(Path(source).glob("tokenizer*")):
            raise PolicyError(
                f'expected a tokenizer in "{source}", found no tokenizer.json or tokenizer_config.json there: call '
                "tokenizer.save_pretrained on that folder."
            ) from error
        raise PolicyError(f'No tokenizer could be loaded from "{source}": {_first_line(error)}') from error


def _load_model(sources: _Sources, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    if Path(sources.base).is_dir():
        logging.disable_progress_bar()  # worth seeing for a download, not for a file that is read in a moment
    try:
        with loading(sources.base), hub_or_cache():
            model = AutoModelForCausalLM.from_pretrained(sources.base, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise PolicyError(f'No model could be loaded from "{sources.base}": {_first_line(error)}') from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if not sources.adapter:
        return model
    from peft import PeftModel

    try:
        with loading(sources.adapter):
            return PeftModel.from_pretrained(model, sources.adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        what = f'The adapter "{sources.adapter}" does not fit "{sources.base}"'
        raise PolicyError(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _content_version(sources: _Sources, model: Any) -> str:
    """Short hash of the weights: the same bytes give the same version on every machine."""
    digest = hashlib.sha256()
    for source in filter(None, (sources.base, sources.adapter)):
        folder = Path(source)
        if not folder.is_dir():
            digest.update(f"{source}@{getattr(model.config, '_commit_hash', '')}".encode())
            continue
        for file in sorted(folder.iterdir()):
            if file.suffix in WEIGHTS or file.name in ("config.json", "adapter_config.json"):
                digest.update(file.name.encode())
                _hash_file(file, digest)
    return digest.hexdigest()[:12]


def _hash_file(file: Path, digest: Any) -> None:
    size = file.stat().st_size
    digest.update(str(size).encode())
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            digest.update(stream.read())
            return
        for part in range(9):
            stream.seek(part * (size - (1 << 20)) // 8)
            digest.update(stream.read(1 << 20))

"""The one interface that every model has here, and `open_policy`, which finds an implementation by name.

A policy completes a chat, scores a given completion, and closes. Implementations are one file each in this folder
(`transformers_policy.py`, `endpoint_policy.py`, `scripted_policy.py`, `human_policy.py`, `langchain_policy.py`) or come
from another package through the entry-point group `kintsugi.policies`. A policy knows nothing about environments,
episodes or training; it is the only holder of weights, so every caller shares its batches.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, TypedDict, runtime_checkable

from kintsugi.config import check_arguments
from kintsugi.errors import ConfigError, missing_extra, nearest

TOO_LONG = re.compile(r"context.?(length|window|size)|(prompt|input|request) is (too|longer)", re.IGNORECASE)
"""How servers and libraries say that a chat has outgrown its model."""


class ChatMessage(TypedDict):
    """One message of a chat: `role` is system, user or assistant; `content` is plain text."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; then `top_p` and `seed` have no effect.

    max_tokens: most new tokens per completion.
    stop: strings that end a completion; the stop string itself is not part of `Completion.text`.
    seed: 64-bit; the same request with the same seed on the same machine gives the same tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of a policy.

    messages: the chat so far, without the answer asked for.
    prefill: text that the answer already begins with; it is context (never sampled, never trained), and it is not
        repeated in `Completion.text`.
    prior_ids: token ids of the chat up to and including the last sampled completion of this episode, as they were fed
        and sampled; the policy appends only what `messages` adds since (`prior_messages` of them are covered). Empty:
        the policy encodes `messages` from the start. Policies without tokens ignore it.
    prior_messages: how many of `messages` are covered by `prior_ids` (the last of them an assistant message).
    key: names the request among others (an episode id and turn): it orders batches, and so keeps them repeatable.
    """

    messages: tuple[ChatMessage, ...]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    prefill: str = ""
    prior_ids: tuple[int, ...] = ()
    prior_messages: int = 0
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer.

    text: the answer without the end-of-turn token or stop string.
    finish: "stop" (end-of-turn token or stop string) or "length" (max_tokens reached).
    stop: the stop string that ended it; "" when none did, None when the policy cannot tell.
    prompt_ids: ids fed as context (prefill included); empty when the policy cannot tell.
    token_ids: ids sampled, the end-of-turn token included when it was sampled; empty when the policy cannot tell.
    logprobs: natural log-probability of each of `token_ids` under the model at temperature 1 (not the tempered
        distribution): the mean of these is the self-reward.
    processed_tokens: context tokens that were really run through the model for this answer (the rest came from a KV
        cache); shared prefill of n samples counts once, on the first sample.
    """

    text: str
    finish: str = "stop"
    stop: str | None = None
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    processed_tokens: int = 0

    @property
    def mean_logprob(self) -> float | None:
        """Mean log-probability a token, nats; None when the policy gave none."""
        return math.fsum(self.logprobs) / len(self.logprobs) if self.logprobs else None


@runtime_checkable
class Policy(Protocol):
    """Anything that answers chats. All methods are coroutines and may be called by many episodes at once."""

    name: str
    """What it is, for people: "transformers:runs/x/policy-3", "endpoint:gpt-oss", "scripted"."""
    version: str
    """Which weights answer: changes when the weights do; it goes on every trajectory."""

    async def complete(self, request: Request) -> list[Completion]:
        """`request.n` completions. Raises PolicyError when the model cannot be reached."""
        ...

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        """Log-probability of each token of `completion` (end-of-turn token included) after the request's context.

        Raises PolicyError when the model cannot tell (an endpoint without log-probs, a human)."""
        ...

    async def close(self) -> None:
        """Free what it holds; calling it twice is harmless."""
        ...


def live(policy: Policy) -> Any:
    """`policy.live()` when it has one, else a context that does nothing.

    A batching policy offers `live()`, an async context manager that an episode enters while it runs: the policy then
    knows how many requests can still arrive, and starts a batch as soon as every live episode waits for one. That makes
    batches, and so float rounding, the same from run to run.
    """
    enter = getattr(policy, "live", None)
    return enter() if enter is not None else _Idle()


class _Idle:
    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


def policy_kinds() -> dict[str, str]:
    """Known kinds and where each comes from: files here named `*_policy.py`, and entry points `kintsugi.policies`."""
    from importlib.resources import files

    kinds = {
        entry.name.removesuffix("_policy.py"): f"kintsugi.agents.policies.{entry.name.removesuffix('.py')}"
        for entry in files("kintsugi.agents.policies").iterdir()
        if entry.name.endswith("_policy.py")
    }
    kinds.update({point.name: point.value for point in entry_points(group="kintsugi.policies")})
    return kinds


def open_policy(kind: str, options: Mapping[str, Any] | None = None) -> Policy:
    """Open a policy by kind ("transformers", "endpoint", …) with its own options.

    Each module has `open_policy(**options) -> Policy`. Unknown kinds and options, missing options, and those of another
    type raise ConfigError; packages that are not installed, MissingExtra.

    Example: `open_policy("endpoint", {"url": "http://localhost:8000/v1", "model": "my-model"})`
    """
    with _what_it_needs(kind):
        return check_options(kind, options or {})(**dict(options or {}))


def check_options(kind: str, options: Mapping[str, Any]) -> Callable[..., Policy]:
    """What opens policies of that kind; raises what `open_policy` would raise before it does anything."""
    kinds = policy_kinds()
    if kind not in kinds:
        raise ConfigError(f'unknown policy kind "{kind}": {nearest(kind, kinds)}')
    with _what_it_needs(kind):
        opens = importlib.import_module(kinds[kind].split(":")[0]).open_policy
    check_arguments(opens, options, f'a policy of kind "{kind}"', "model.options")
    return opens


@contextmanager
def _what_it_needs(kind: str) -> Iterator[None]:
    """An import that fails here is a missing extra; another package's is for that to say."""
    try:
        yield
    except ImportError as error:
        if not policy_kinds()[kind].startswith("kintsugi."):
            raise
        extra = kind if kind in ("vllm", "ray") else "train"
        raise missing_extra(f'a policy of kind "{kind}"', extra) from error


def as_messages(*pairs: tuple[str, str]) -> tuple[ChatMessage, ...]:
    """`as_messages(("user", "hi"))` → a chat."""
    return tuple(ChatMessage(role=role, content=content) for role, content in pairs)


__all__: Sequence[str] = (
    "ChatMessage",
    "Completion",
    "Policy",
    "Request",
    "Sampling",
    "as_messages",
    "check_options",
    "live",
    "open_policy",
    "policy_kinds",
)

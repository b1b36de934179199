"""Who plays in the tests of graphs: a policy with made-up tokens that keeps the token contract, a sandbox that runs the
tests' own programs in this process, and short forms of casts and plans. Nothing here samples or loads a model."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Callable, Sequence
from typing import Any

from kintsugi.agents.policies.policy import ChatMessage, Completion, Policy, Request, Sampling
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan
from kintsugi.graphs.rollout import play_wave
from kintsugi.graphs.worlds import Worlds
from kintsugi.records import Episode, Task
from kintsugi.sandboxes.environments.environment import Environment, open_environment
from kintsugi.sandboxes.sandbox import RunResult

END = 256


class TokenPolicy:
    """Feeds `prior_ids` and appends what the chat adds since, as the transformers policy does; UTF-8 bytes are its tokens.

    fed: for each request, what stood before the model, and what it sampled. `forgets`: ignores `prior_ids`, as a
    policy behind a server does that encodes each chat anew (and differently)."""

    name = version = "token"

    def __init__(self, answer: Callable[[tuple[ChatMessage, ...]], str], *, forgets: bool = False) -> None:
        self.answer, self.forgets = answer, forgets
        self.requests: list[Request] = []
        self.fed: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    async def complete(self, request: Request) -> list[Completion]:
        prior = () if self.forgets else request.prior_ids
        since = request.messages[request.prior_messages if prior else 0 :]
        new = "".join(f"{message['role']}:{message['content']}\n" for message in since) + "assistant:" + request.prefill
        context = (*prior, *new.encode())
        text = self.answer(request.messages)
        sampled = (*text.encode(), END)
        self.requests.append(request)
        self.fed.append((context, sampled))
        logprobs = tuple(-0.01 * (token % 50) for token in sampled)
        return [Completion(text=text, prompt_ids=context, token_ids=sampled, logprobs=logprobs, processed_tokens=7)]

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        raise NotImplementedError

    async def close(self) -> None:
        return None


class OwnPrograms:
    """A sandbox for programs that the tests wrote themselves. `broken`: how many runs fail as a sandbox does."""

    guarantees = frozenset[str]()

    def __init__(self, *, broken: int = 0) -> None:
        self.broken, self.runs = broken, 0

    async def arun(self, code: str, **_: Any) -> RunResult:
        self.runs += 1
        if self.broken > 0:
            self.broken -= 1
            return result("sandbox_failed")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, {})  # programs of these tests only
        except Exception as error:
            return result("error", stderr=f"{type(error).__name__}: {error}")
        return result("ok", stdout=printed.getvalue())


def result(status: Any, stdout: str = "", stderr: str = "") -> RunResult:
    return RunResult(status=status, stdout=stdout, stderr=stderr)


def word_problems(**options: Any) -> Any:
    return open_environment("word_problems", {"sandbox": OwnPrograms(), **options})


def cast_of(
    policy: Policy,
    environment: Environment,
    *,
    prompts: str = "program",
    repair: dict[str, Any] | None = None,
    timeout_s: float = 5.0,
    repairer: Policy | None = None,
    **episode: Any,
) -> Cast:
    """Everybody is `policy` (the repairers `repairer`, when given)."""
    roles = {
        name: Role(
            name=name,
            policy=policy if name == "actor" or repairer is None else repairer,
            prompt=load_prompt(prompts, name).without_shots(),
            sampling=Sampling(max_tokens=2000),
        )
        for name in ("actor", "refiner", "reflector")
    }
    return Cast(
        roles=roles,
        worlds=Worlds(environment, timeout_s=timeout_s),
        repair=RepairConfig(**(repair or {})),
        episode=EpisodeConfig(**episode),
    )


def plan_of(task: Task, sample: int = 0, **changes: Any) -> EpisodePlan:
    values: dict[str, Any] = {"run_id": "r", "purpose": "explore", "round": 1, "seed": 7, "policy_version": "v0"}
    return EpisodePlan(**{**values, "task": task, "sample": sample, **changes})


def played(cast: Cast, *plans: EpisodePlan) -> list[Episode]:
    return asyncio.run(play_wave(plans, cast))


def turn(messages: Sequence[ChatMessage]) -> int:
    """How many actions the chat holds already."""
    return sum(message["role"] == "assistant" for message in messages)


def follows(actions: Sequence[str]) -> Callable[[Sequence[ChatMessage]], str]:
    """Says `actions` in turn, and "quit" after them."""
    return lambda messages: [*actions, *["quit"] * 99][turn(messages)]

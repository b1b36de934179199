"""Who plays in a session: a policy with a seat that a person can take for one turn.

`open_players` opens what the config names: the world, and a person, its expert, or any kind of policy. `cast_of` gives
the seat every role of the episode graph. Used by `kintsugi.graphs.playing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kintsugi.agents.policies.policy import ChatMessage, Completion, Policy, Request, Sampling, open_policy, policy_kinds
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.errors import ConfigError, PolicyError, nearest
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.play_config import PlayConfig, PlayerConfig
from kintsugi.graphs.turn_repair import check_repair
from kintsugi.graphs.worlds import Worlds
from kintsugi.records import Task
from kintsugi.sandboxes.environments.environment import Environment, open_environment


class Seat:
    """A policy whose next answer a person may give. inner: who sits there; None is the person alone."""

    def __init__(self, inner: Policy | None, *, lent: bool = False) -> None:
        self._inner, self._lent = inner, lent
        self._said: str | None = None
        self.name = inner.name if inner is not None else "human"
        self.version = inner.version if inner is not None else "human"

    @property
    def is_human(self) -> bool:
        return self._inner is None

    @contextmanager
    def saying(self, text: str) -> Iterator[None]:
        """The next answer, if one is asked for meanwhile, is `text`."""
        self._said = text
        try:
            yield
        finally:
            self._said = None

    async def complete(self, request: Request) -> list[Completion]:
        if self._said is not None:
            said, self._said = self._said, None
            return [Completion(text=said)]
        return await self._policy().complete(request)

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        return await self._policy().score(request, completion)

    async def close(self) -> None:
        if self._inner is not None and not self._lent:
            await self._inner.close()

    def _policy(self) -> Policy:
        if self._inner is None:
            raise PolicyError("it is your turn: say what to do")
        return self._inner


async def open_players(
    config: PlayConfig, task: Task, environment: Environment | None, policy: Policy | None
) -> tuple[Environment, Seat]:
    """Open the world and who acts in it; what is given stays as it is."""
    world = environment or open_environment(config.environment.name, config.environment.options)
    try:
        check_repair(config.in_one_try, world)
        return world, await open_player(config.model, world, task, policy)
    except BaseException:
        if environment is None:
            await world.close()
        raise


async def open_player(player: PlayerConfig, environment: Environment, task: Task, given: Policy | None = None) -> Seat:
    """The seat of whoever the config names, or of `given`, which is not closed with the session.

    Raises ConfigError for unknown kinds and options, and for an expert where the environment knows no gold actions."""
    if given is not None:
        return Seat(given, lent=True)
    if player.kind == "human":
        return Seat(None)
    if player.kind == "expert":
        gold = await environment.gold(task)
        if not gold:
            raise ConfigError(f"{environment.name} knows no gold actions for {task.id}: let a policy or yourself act")
        return Seat(ScriptedPolicy(_follower(gold), name="expert", version="expert"))
    if player.kind not in (kinds := policy_kinds()):
        raise ConfigError(f'nobody called "{player.kind}" can act: {nearest(player.kind, ["human", "expert", *kinds])}')
    options: dict[str, Any] = dict(player.options)
    if player.kind == "transformers":
        options = {"batching": "eager", **options}  # one episode alone: there is nobody to wait for
    return Seat(open_policy(player.kind, options))


def cast_of(config: PlayConfig, seat: Seat, environment: Environment) -> Cast:
    """The seat in every role, with the config's prompts, sampling, repair and bounds."""
    prompts = config.model.prompts or ("program" if environment.max_turns == 1 else "react")
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens, stop=config.stop)
    roles = {}
    for name in ("actor", "refiner", "reflector"):
        prompt = load_prompt(prompts, name)
        prompt = prompt if config.model.few_shot and config.model.kind != "expert" else prompt.without_shots()
        roles[name] = Role(name=name, policy=seat, prompt=prompt, sampling=sampling)
    worlds = Worlds(environment, timeout_s=config.episode.turn_timeout_s)
    rules = config.episode
    if config.model.kind == "expert":  # where it is in its plan follows from all that was done
        rules = rules.model_copy(update={"history_turns": None})
    return Cast(roles=roles, worlds=worlds, repair=config.in_one_try, episode=rules)


def _follower(gold: Sequence[str]) -> Any:
    """Says the first gold action that was not done yet; what a person does in between leaves the plan where it is."""

    def answer(messages: tuple[ChatMessage, ...], _: int) -> str:
        at = 0
        for message in messages:
            if message["role"] == "assistant" and at < len(gold) and message["content"].strip() == gold[at].strip():
                at += 1
        if at == len(gold):
            raise PolicyError("the expert's plan is at its end: go back, or say yourself what to do")
        return gold[at]

    return answer

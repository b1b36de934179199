"""From a recipe to who plays: the environment, the policies, and the roles they take.

`Troupe` opens them once a run and lends them out as a `Cast` for a policy version, loading that version's weights into
the policy that is already there. It leaves out what is played when: that is `training.stages`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kintsugi.agents.policies.policy import Policy, Sampling, open_policy
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.errors import PolicyError
from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.worlds import Worlds
from kintsugi.sandboxes.environments.environment import Environment, open_environment
from kintsugi.training.recipe import Recipe


class Troupe:
    """The environment and policies of a run, opened on first use and closed together."""

    def __init__(self, recipe: Recipe, *, policy: Policy | None = None, environment: Environment | None = None) -> None:
        self.recipe = recipe
        self.environment = environment or open_environment(recipe.environment.name, recipe.environment.options)
        self.shown: dict[tuple[int, int], Any] = {}
        """Demonstrations by (number, seed), once made."""
        self._given = policy
        self._policies: dict[str, Policy] = {} if policy is None else {"actor": policy}

    async def policy(self, slot: str, version: str, folder: str | Path) -> Policy:
        """The policy of a slot ("actor", "reflector") with the weights of `version`."""
        policy = self._policies.get(slot)
        if policy is None:
            options: dict[str, Any] = dict(self.recipe.model.options)
            if self.recipe.model.kind == "transformers":
                options = {"threads": self.recipe.threads, **options, "path": str(folder), "version": version}
            policy = self._policies[slot] = open_policy(self.recipe.model.kind, options)
        elif policy.version != version and policy is not self._given:
            reload = getattr(policy, "reload", None)
            if reload is None:
                raise PolicyError(f"{policy.name} cannot load trained weights: train with model.kind=transformers")
            await reload(str(folder), version)
        return policy

    async def cast(
        self,
        version: str,
        folder: str | Path,
        *,
        greedy: bool = False,
        repair: RepairConfig | None = None,
        few_shot: bool = False,
        reflector: tuple[str, str | Path] | None = None,
        worlds: Worlds | None = None,
    ) -> Cast:
        """Who plays with the weights of `version`. `reflector`: (version, folder) of a reflector's own weights."""
        recipe = self.recipe
        actor = await self.policy("actor", version, folder)
        other = await self.policy("reflector", *reflector) if reflector and reflector[0] != version else actor
        sampling = Sampling(
            temperature=0.0 if greedy else recipe.explore.temperature,
            top_p=recipe.explore.top_p,
            max_tokens=(recipe.evaluate.max_tokens if greedy else None) or recipe.explore.max_tokens,
            stop=recipe.explore.stop,
        )
        roles = {
            name: Role(name=name, policy=policy, prompt=self.prompt(name, few_shot=few_shot), sampling=sampling)
            for name, policy in (("actor", actor), ("refiner", actor), ("reflector", other))
        }
        return Cast(
            roles=roles,
            worlds=worlds or Worlds(self.environment, timeout_s=recipe.episode.turn_timeout_s),
            repair=repair if repair is not None else RepairConfig(who="none"),
            episode=recipe.episode,
        )

    def prompt(self, role: str, *, few_shot: bool = False) -> Any:
        """The role's prompt of the recipe's prompt set; without its few-shot examples unless `few_shot`."""
        prompt = load_prompt(self.recipe.model.prompts, role)
        return prompt if few_shot else prompt.without_shots()

    async def close(self, *, keep_environment: bool = False) -> None:
        """Close what was opened here."""
        for policy in self._policies.values():
            if policy is not self._given:
                await policy.close()
        if not keep_environment:
            await self.environment.close()

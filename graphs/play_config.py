"""What a played episode is made of: plain values, so that a session can be left and opened again later.

    values = {"environment": {"name": "treasure_hunt"}, "model": {"kind": "expert"}}
    config = validate(PlayConfig, values, "kintsugi play")

Opening what it names is `kintsugi.graphs.playing`'s; where it comes from (a recipe, a run) is the command line's.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from kintsugi.config import StrictConfig
from kintsugi.errors import nearest
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig

NODES = ("agent", "environment", "refiner", "reflector")
EVERY = "every"


class PlayedWorldConfig(StrictConfig):
    """Which world. options: what its `open_environment` takes."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class PlayerConfig(StrictConfig):
    """Who acts. kind: "human" (whoever steers the session), "expert" (does the environment's gold actions), or a kind of
    `kintsugi.agents.policies`; options: what that kind's `open_policy` takes. prompts: the prompt set; empty takes
    "program" for worlds of one turn and "react" for longer ones. few_shot: with the prompt's examples."""

    kind: str = "human"
    options: dict[str, Any] = Field(default_factory=dict)
    prompts: str = ""
    few_shot: bool = False


class PlayConfig(StrictConfig):
    """One played episode; where a recipe has the same thing, it has the same name.

    temperature, top_p, max_tokens, stop, seed: how the policy samples. repair: on = "unsolved" means the same as
    "failures" here, since there is one try. pauses: where `go` stops: "every" (node), or "before:NODE", "after:NODE"; by
    default wherever something was proposed that can still be changed.
    """

    environment: PlayedWorldConfig
    model: PlayerConfig = PlayerConfig()
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[str, ...] = ()
    seed: int = 0
    repair: RepairConfig = RepairConfig()
    episode: EpisodeConfig = EpisodeConfig()
    pauses: tuple[str, ...] = ("after:agent", "after:refiner", "after:reflector")

    @field_validator("pauses")
    @classmethod
    def _known_pauses(cls, pauses: tuple[str, ...]) -> tuple[str, ...]:
        known = [EVERY, *(f"{when}:{node}" for node in NODES for when in ("before", "after"))]
        for pause in pauses:
            if pause not in known:
                raise ValueError(f'pauses such as before:agent or every ("{pause}": {nearest(pause, known)})')
        return pauses

    @property
    def in_one_try(self) -> RepairConfig:
        """The repair as an episode on its own can do it."""
        if self.repair.on != "unsolved":
            return self.repair
        return self.repair.model_copy(update={"on": "failures"})

"""What an episode's edges depend on: who repairs, what, how, and the bounds of an attempt.

Part of every recipe (`[repair]`, `[episode]`). The words are those of the two papers' comparison: `who` repairs (the
actor's own weights as refiner, or a separate reflector), `on` which attempts, in which `form`, seeing what (`sees`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from kintsugi.config import StrictConfig


class RepairConfig(StrictConfig):
    """When and how an attempt is repaired inside its episode.

    who: "none"; "self" (the refiner: the actor's weights); "reflector" (a policy of its own).
    on: "failures", "all" attempts (ENVISIONS), or "unsolved" (only when all samples of the task failed: decided by the
        rollout, after the samples are in).
    form: "rewrite" (a new program in one go), "rollback" (go on from the first line the environment objects to),
        "again" (a reflection, then a new attempt from the start), "from_turn" (several turns: a reflection, then an attempt
        that goes on from before the first turn that went wrong, see `turn_repair`).
    sees: "attempt" (ENVISIONS) or "feedback" (the attempt and what the environment said of it; Re-ReST).
    words: who writes the reflection: the repairer's policy, or "notes": the environment, from what stands in the
        lost attempt and nothing else (`Environment.notes`, where there is one).
    redraws: a rollback that begins with the very line objected to is ended there and drawn again, at most so often (its
        tokens count); not for a repairer that sees no feedback.
    memory: how many reflections an attempt has before it, the last ones; None: those of all trials (Reflexion keeps 1 to 3).
    rounds: repairs in a row, at most. budget: repairs of an unsolved task (only with on = "unsolved").
    fresh: for an unsolved task, also draw fresh samples of the actor: "none"; "pooled" (they join the pool: the
        more-sampling baseline); "measured" (a yardstick for the repair: on record, in no pool). fresh_budget: how many at
        most, as many as `budget` when None.
    """

    who: Literal["none", "self", "reflector"] = "none"
    on: Literal["failures", "all", "unsolved"] = "failures"
    form: Literal["rewrite", "rollback", "again", "from_turn"] = "rewrite"
    sees: Literal["attempt", "feedback"] = "feedback"
    words: Literal["policy", "notes"] = "policy"
    memory: int | None = Field(default=None, ge=1)
    redraws: int = Field(default=2, ge=0)
    rounds: int = Field(default=1, ge=0)
    budget: int = Field(default=4, ge=0, lt=1000)
    fresh: Literal["none", "pooled", "measured"] = "none"
    fresh_budget: int | None = Field(default=None, ge=0, lt=1000)

    @model_validator(mode="after")
    def _fits(self) -> RepairConfig:
        if self.reflects and self.who == "self" and self.sees == "attempt":
            raise ValueError(f'sees = "feedback" with form = "{self.form}": a reflection on nothing says nothing')
        if self.words == "notes" and not self.reflects:
            raise ValueError(f'form = "again" with words = "notes": form = "{self.form}" has no reflection')
        return self

    @property
    def reflects(self) -> bool:
        """True when the repairer says something and the agent acts, False when the repairer acts itself."""
        return self.form in ("again", "from_turn")

    @property
    def num_fresh(self) -> int:
        """Fresh samples of an unsolved task, at most."""
        return self.budget if self.fresh_budget is None else self.fresh_budget

    @property
    def in_episode(self) -> bool:
        """True when the episode graph itself has the repair edge."""
        return self.who != "none" and self.on != "unsolved" and self.rounds > 0


class EpisodeConfig(StrictConfig):
    """Bounds of an attempt.

    max_turns: actions an attempt may take; None takes the environment's own. turn_timeout_s: seconds the environment may
    take for one action before it counts as crashed. wave: episodes that run at once, and are committed at once.
    history_turns: how many of its last turns an agent sees at most, besides the task; None: all. Half of them fall out at
        once, so that a context lasts for several turns.
    refused: how observations begin that say that an action came to nothing ("Nothing happens."). max_refused: as many of
        them end an attempt as lost (small models repeat what is refused until their turns run out); None: none do.
    """

    max_turns: int | None = Field(default=None, ge=1)
    turn_timeout_s: float = Field(default=60.0, gt=0)
    wave: int = Field(default=250, ge=1)
    history_turns: int | None = Field(default=None, ge=1)
    refused: tuple[str, ...] = ()
    max_refused: int | None = Field(default=None, ge=1)

    def out_of_turns(self, num_actions: int, most: int, observations: Iterable[str]) -> str:
        """Why an attempt may not go on after so many actions (of `most`) and these observations; "" while it may."""
        if num_actions >= most:
            return f"out of turns: {num_actions} actions did not reach the goal"
        refused = sum(text.startswith(self.refused) for text in observations)
        if self.max_refused is not None and refused >= self.max_refused:
            return f"given up: {refused} of {num_actions} actions came to nothing"
        return ""

    def turns_dropped(self, num_turns: int) -> int:
        """How many of an attempt's first `num_turns` turns are out of the agent's sight."""
        if self.history_turns is None:
            return 0
        step = (self.history_turns + 1) // 2
        return -(-max(0, num_turns - self.history_turns) // step) * step

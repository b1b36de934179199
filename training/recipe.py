"""Recipes: one method = one setting of the loop's knobs, in a TOML file.

`load_recipe("envisions", ["explore.k=8"])` reads `training/recipes/envisions.toml` (or a path to a file of one's own),
lays it on the recipe that its `extends` names, applies the overrides and validates the whole. Unknown keys are refused
with the nearest known name. No method has code of its own: `training.stages` reads these knobs and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kintsugi.config import StrictConfig, load_toml, merged, validate, with_overrides
from kintsugi.errors import ConfigError, nearest
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig
from kintsugi.sandboxes.environments.environment import is_file_name
from kintsugi.training.gate import GateConfig
from kintsugi.training.learn_config import LearnConfig
from kintsugi.training.selection import SelectConfig
from kintsugi.training.small_model import SmallModelConfig

FOLDER = Path(__file__).parent / "recipes"


class EnvironmentConfig(StrictConfig):
    """Which world: a name, or a Python file with `open_environment` (in a recipe's file, relative to that file's folder).
    options: what its `open_environment` takes. splits: where training and held-out tasks come from."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    train_split: str = "train"
    heldout_split: str = "heldout"


class ModelConfig(StrictConfig):
    """Which policy acts first.

    path: a Hugging Face folder or hub name; empty makes a small model from scratch (`small`), which needs `[warm_start]`.
    kind, options: how it is served ("transformers"; "endpoint" can be evaluated but not trained).
    prompts: the prompt set of `agents/prompts`.
    """

    path: str = ""
    kind: str = "transformers"
    options: dict[str, Any] = Field(default_factory=dict)
    prompts: str = "program"
    small: SmallModelConfig = SmallModelConfig()

    @field_validator("path")
    @classmethod
    def _home(cls, path: str) -> str:
        return str(Path(path).expanduser()) if path.startswith("~") else path

    @model_validator(mode="after")
    def _options(self) -> ModelConfig:
        given = [name for name in ("path", "version") if name in self.options and self.kind == "transformers"]
        if given:
            raise ValueError(f"model.path to say which model, not model.options.{given[0]}: the run sets that")
        return self


class FirstPhase(StrictConfig):
    """Training before the main warm start, at a constant rate: steps on the `shortest` share of the demonstrations."""

    steps: int = Field(ge=1)
    shortest: float = Field(default=1.0, gt=0, le=1)


class WarmStartConfig(StrictConfig):
    """Scripted demonstrations that a small model begins with; afterwards it sees no other human answer.

    demonstrations: how many tasks of the environment's "demonstrations" split. first: phases before `learn`, easy ones
    first. repair_share: share of `learn`'s rows that are scripted repairs; in blind_share of those the objection is only
        "wrong", as for a repairer that is not told it.
    word_noise, noise_share: in this share of `learn`'s demonstrations every other sentence is garbled: each word piece
        becomes another one with this probability (numbers and programs stay). A model that has met words it cannot know
        guesses at them, and what it guesses right it can learn from.
    low, high: held-out success must lie between; outside there is little to learn, or little to see: the run stops.
    """

    demonstrations: int = Field(default=500, ge=1)
    first: tuple[FirstPhase, ...] = ()
    repair_share: float = Field(default=0.2, ge=0, lt=1)
    blind_share: float = Field(default=0.0, ge=0, le=1)
    word_noise: float = Field(default=0.0, ge=0, le=1)
    noise_share: float = Field(default=0.5, ge=0, le=1)
    low: float = Field(default=0.15, ge=0, le=1)
    high: float = Field(default=0.45, ge=0, le=1)
    learn: LearnConfig = LearnConfig()

    @model_validator(mode="after")
    def _band(self) -> WarmStartConfig:
        if self.low > self.high:
            raise ValueError(f"warm_start.low ({self.low:g}) of at most warm_start.high ({self.high:g})")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases that count them."""
        return sum(phase.steps for phase in self.first) + (self.learn.steps or 0)


class ExploreConfig(StrictConfig):
    """tasks: a round. k: samples a task. budget_tokens: stop exploring at the wave that ends nearest to this many
    generated tokens, repairs included: equal budgets for unequal methods. few_shot_rounds: the first
    rounds use the few-shot prompt (ENVISIONS: 1), later ones none."""

    tasks: int = Field(default=250, ge=1)
    k: int = Field(default=5, ge=1, lt=1000)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=128, ge=1)
    stop: tuple[str, ...] = ()
    budget_tokens: int | None = Field(default=None, ge=1)
    few_shot_rounds: int = Field(default=0, ge=0)


class ReflectorConfig(StrictConfig):
    """The reflector's own training (Re-ReST): after the first, zero-shot reflections it learns from wrong → right pairs
    and reflects on what is still failed once more. token_share: of explore.budget_tokens, kept back for that second look."""

    train: bool = False
    token_share: float = Field(default=0.2, ge=0, lt=1)
    learn: LearnConfig = LearnConfig()


class TargetsConfig(StrictConfig):
    """Which rows a round trains on.

    repairs: (x, y⁻) → y⁺ rows (learning from mistakes): "none"; "ranked" (ENVISIONS: of a task with several right answers,
        the best wrong one with the answer kept back, `select.repair_cap`); "failures" (each failed attempt of a solved
        task with its own repair, else with a right answer, `select.match`; at most `select.pair_cap` a task).
    repair_weight: weight of such a row.
    solved_weight, rescued_weight: weight of an explore row of a task that its samples solved, or that only a repair did.
    replay: demonstrations repeated among the rows, as many as this (0: none); replay_repairs: scripted repairs likewise.
    own_share: repeat the policy's own rows until they are this share of all (0: as they are); few right attempts then
        still weigh as much as the replayed demonstrations.
    unlearned: an action whose answer begins with one of these texts ("Nothing happens.") gets no loss, in a right
        attempt too; only where its token ids are known.
    score: "sampled" keeps the self-reward of the policy that sampled; "current" re-scores the pool every round.
    """

    repairs: Literal["none", "ranked", "failures"] = "none"
    repair_weight: float = Field(default=1.0, ge=0)
    solved_weight: float = Field(default=1.0, ge=0)
    rescued_weight: float = Field(default=1.0, ge=0)
    replay: int = Field(default=0, ge=0)
    replay_repairs: int = Field(default=0, ge=0)
    own_share: float = Field(default=0.0, ge=0, lt=1)
    unlearned: tuple[str, ...] = ()
    score: Literal["sampled", "current"] = "sampled"


class EvaluateConfig(StrictConfig):
    """tasks: held-out tasks, the same in every round and arm. samples: for pass@k at temperature 1 (0: greedy only)."""

    tasks: int = Field(default=300, ge=1)
    seed: int = 0
    samples: int = Field(default=0, ge=0)
    pass_k: tuple[int, ...] = (1,)
    max_tokens: int | None = Field(default=None, ge=1)


class ControlConfig(StrictConfig):
    """The control: the same optimizer steps on the demonstrations alone, from the same start. Needs `[warm_start]`.

    evaluate_every: it is evaluated after every so many rounds, and after the last."""

    enabled: bool = False
    evaluate_every: int = Field(default=1, ge=1)


class Recipe(StrictConfig):
    """The eight stages' knobs. learn_init: "champion" trains on from the promoted policy; "base" begins from the start
    policy every round (ENVISIONS, STaR). threads: CPU threads of torch (small models: 1 beats all on a busy machine);
    None leaves torch's own choice."""

    name: str
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**32)
    rounds: int = Field(default=4, ge=0)
    threads: int | None = Field(default=None, ge=1, le=4096)
    environment: EnvironmentConfig
    model: ModelConfig = ModelConfig()
    warm_start: WarmStartConfig | None = None
    episode: EpisodeConfig = EpisodeConfig()
    explore: ExploreConfig = ExploreConfig()
    repair: RepairConfig = RepairConfig()
    reflector: ReflectorConfig = ReflectorConfig()
    select: SelectConfig = SelectConfig()
    targets: TargetsConfig = TargetsConfig()
    learn: LearnConfig = LearnConfig()
    learn_init: Literal["champion", "base"] = "champion"
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    control: ControlConfig = ControlConfig()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if not self.model.path and self.model.kind == "transformers" and self.warm_start is None:
            raise ValueError("a [warm_start] table for a model made from scratch, or model.path")
        if self.control.enabled and self.warm_start is None:
            raise ValueError("a [warm_start] table when control.enabled is true: the control learns demonstrations alone")
        if self.control.enabled and self.learn.steps is None:
            raise ValueError("learn.steps when control.enabled is true: the control spends the same optimizer steps")
        if self.evaluate.samples and max(self.evaluate.pass_k, default=0) > self.evaluate.samples:
            raise ValueError(f"evaluate.samples of at least {max(self.evaluate.pass_k)}, the greatest of evaluate.pass_k")
        if self.targets.replay and self.warm_start is None:
            raise ValueError("a [warm_start] table when targets.replay > 0: there is nothing to replay")
        if self.episode.history_turns is not None and self.learn.loss in ("dpo", "contrastive"):
            raise ValueError('learn.loss = "sft" or "l1_l2" with episode.history_turns: its pairs are whole')
        weighted = (self.targets.solved_weight, self.targets.rescued_weight, self.select.soft_temperature) != (1, 1, None)
        if self.learn.loss == "dpo" and weighted:
            raise ValueError(
                'learn.loss = "contrastive" for weighted rows (targets.solved_weight, targets.rescued_weight, '
                "select.soft_temperature): dpo has no place for them"
            )
        return self

    @property
    def explore_budget(self) -> int | None:
        """Tokens that exploring may generate: the budget less what is kept back for a trained reflector."""
        tokens, reflector = self.explore.budget_tokens, self.reflector
        kept_back = self.repair.who == "reflector" and reflector.train
        return tokens if tokens is None or not kept_back else round(tokens * (1 - reflector.token_share))


def recipe_names() -> dict[str, str]:
    """Bundled recipes and what each says of itself."""
    return {path.stem: str(load_toml(path).get("description", "")) for path in sorted(FOLDER.glob("*.toml"))}


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that name or path, with `key=value` overrides. Raises ConfigError.

    Files that a recipe names (`extends`, `environment.name`) are relative to its own folder, those of overrides to the
    present one."""
    values = with_overrides(_read(name, ()), overrides)
    return validate(Recipe, _placed(values, Path()), f"recipe {name}")


def _read(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") or "/" in name else FOLDER / f"{name}.toml"
    if path.parent == FOLDER and not path.exists():
        raise ConfigError(f'unknown recipe "{name}": {nearest(name, recipe_names())}')
    if name in seen:
        raise ConfigError(f"recipe {name} extends itself: {' → '.join([*seen, name])}")
    values: Mapping[str, Any] = load_toml(path)
    parent = values.get("extends")
    own = _placed({key: value for key, value in values.items() if key != "extends"}, path.parent)
    if parent is None:
        return {"name": path.stem, **own}
    if not isinstance(parent, str):
        raise ConfigError(f"expected the name or path of one recipe in extends of {path}, found {parent!r}")
    base = _read(_beside(parent, path.parent), (*seen, name))
    named = own.get("environment", {}).get("name") if isinstance(own.get("environment"), Mapping) else None
    if named is not None and named != base.get("environment", {}).get("name"):
        base["environment"].pop("options", None)  # they are another environment's
    return merged({**base, "name": path.stem}, own)


def _beside(name: str, folder: Path) -> str:
    """A recipe that a file in `folder` names: a path is relative to that folder."""
    return str((folder / Path(name).expanduser()).resolve()) if name.endswith(".toml") or "/" in name else name


def _placed(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with the file of an environment, if it is one, as a whole path: a run goes on from anywhere."""
    environment = values.get("environment")
    name = environment.get("name") if isinstance(environment, Mapping) else None
    if not isinstance(name, str) or not is_file_name(name):
        return values
    return merged(values, {"environment": {"name": str((folder / Path(name).expanduser()).resolve())}})

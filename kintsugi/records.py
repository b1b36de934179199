"""Everything that happens, as records: frozen, keyword-only, plain data.

Actors share nothing; they pass these. A record turns into JSON-ready values with `to_plain` and back with `from_plain`, so
that graph states, the ledger and exports hold the same thing. Records know nothing of how they came to be.

Worked example, one task through one episode::

    task = Task(id="wp-7", environment="word_problems", split="train", prompt="Ann has 3 pens …", payload={"answer": 8})
    action = Action(text="print(3 + 5)", tokens=Tokens(context_ids=(1, 9), completion_ids=(4, 2), logprobs=(-0.1, -0.2)))
    verdict = Verdict(success=True, reward=1.0, feedback="8")
    trajectory = Trajectory(id="…", episode_id="…", task_id=task.id, environment="word_problems", stage="explore", attempt=0,
                            policy_version="v0", round=0, messages=(Observation(text=task.prompt), action, verdict), …)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar, Literal, TypeVar

Stage = Literal["explore", "refine", "reflect", "teacher", "human"]
"""Who made a trajectory: the actor, the refiner (same weights), the reflector, a scripted demonstration, a person."""

Stop = Literal["success", "failure", "truncated", "error"]
"""Why a trajectory ended. `truncated`: out of turns or tokens (a failure to repair). `error`: the environment broke
after a retry: never counted as a wrong answer, never trained on."""

R = TypeVar("R")
_LATER: Mapping[str, bool] = {"later": True}  # see `shown`


def content_hash(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a value's canonical JSON."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]  # JSON may say half a character


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem to solve.

    id: unique in its environment. split: "train", "heldout", "demonstrations" or an official split's name. prompt: what the
    agent is told. payload: what only the environment may see (gold answers, unit tests, game files).
    """

    id: str
    environment: str
    split: str
    prompt: str
    payload: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Content hash: two tasks with the same prompt and payload have the same one, whatever they are called."""
        return content_hash({"environment": self.environment, "prompt": self.prompt, "payload": self.payload})


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The tokens behind an action, exactly as fed and sampled.

    context_ids: ids fed to the model since the last action of this trajectory (all of them at the first, or when
        `restart`), prefill included: never trained on. restart: the context was built anew (a history window moved), so
        earlier tokens are not before these.
    completion_ids: ids sampled, end-of-turn token included when sampled. logprobs: natural log-probability of each.
    """

    context_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    restart: bool = False


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the environment tells the agent. The first one of a trajectory is the task's prompt."""

    kind: ClassVar[str] = "observation"
    text: str


@dataclass(frozen=True, kw_only=True)
class Action:
    """What the agent does. text: the whole action as the environment gets it (a refiner's kept lines included).

    prefill: the first part of `text` when it was given, not sampled. tokens: None when a person or a script acted, or when
    a person edited what was sampled: ids and text must say the same, so rows are then made from the texts.
    """

    kind: ClassVar[str] = "action"
    text: str
    prefill: str = ""
    tokens: Tokens | None = None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Where a failed action first went wrong, as far as the environment can tell without the gold answer.

    kept: what stands before it. bad: the piece objected to. note: the objection, in few words.
    """

    kept: str
    bad: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The environment's judgement of an attempt.

    success: hard outcome. reward: hard reward in [0, 1]. feedback: text a refiner may read; it gives no part of a gold
    answer away. fault: located objection, when there is one. error: the environment itself broke ("sandbox_failed", …);
    then `success` says nothing. detail: metric values by name (exact match, F1, tests passed, …).
    """

    kind: ClassVar[str] = "verdict"
    success: bool
    reward: float
    feedback: str = ""
    fault: Fault | None = None
    error: str = ""
    detail: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Critique:
    """What a refiner or reflector said of an attempt before trying again. kept: the next one begins with so many of its
    turns, done again, with their tokens. note: who said which turn went wrong, or why none. tokens: as sampled."""

    kind: ClassVar[str] = "critique"
    text: str
    author: str = "reflector"
    kept: int = field(default=0, metadata=_LATER)
    note: str = field(default="", metadata=_LATER)
    tokens: Tokens | None = field(default=None, metadata=_LATER)


Message = Observation | Action | Verdict | Critique


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an attempt cost. Tokens generated; context tokens processed (KV-cached ones not counted); wall seconds;
    programs or environment turns executed."""

    generated_tokens: int = 0
    processed_tokens: int = 0
    seconds: float = 0.0
    executions: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One attempt at a task, from the prompt to the verdict.

    id: content-derived (episode, attempt, stage). attempt: order within the episode, from 0. parent_id: the attempt that
    this one repairs. policy_version: who acted. hard_reward: the verdict's; soft_reward: mean log-probability a sampled
    token (nats), None without tokens. saw_gold: its maker saw a gold answer (off by default in every selection). crashes:
    why the environment broke in it, each time (it is begun anew once, and goes on); like wall time, it tells none apart.
    """

    id: str
    episode_id: str
    task_id: str
    environment: str
    stage: Stage
    attempt: int
    policy_version: str
    round: int
    messages: tuple[Message, ...]
    stop: Stop
    hard_reward: float
    soft_reward: float | None = None
    feedback: str = ""
    parent_id: str | None = None
    saw_gold: bool = False
    cost: Cost = field(default_factory=Cost)
    crashes: tuple[str, ...] = field(default=(), compare=False, metadata=_LATER)

    @property
    def success(self) -> bool:
        return self.stop == "success"

    @property
    def actions(self) -> tuple[Action, ...]:
        return tuple(message for message in self.messages if isinstance(message, Action))

    @property
    def text(self) -> str:
        """The actions, one after another: what duplicates are recognised by."""
        return "\n".join(action.text for action in self.actions)

    @property
    def fault(self) -> Fault | None:
        """The last verdict's located fault."""
        return next((message.fault for message in reversed(self.messages) if isinstance(message, Verdict)), None)

    def token_rows(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(ids, loss mask) of each unbroken stretch of context: one row unless a history window restarted it.

        Mask 1 exactly on sampled tokens. Yields nothing when an action has no tokens, or when the policy could not tell
        what it was fed.
        """
        all_tokens = [action.tokens for action in self.actions if action.tokens is not None]
        begins = [tokens for index, tokens in enumerate(all_tokens) if index == 0 or tokens.restart]
        if len(all_tokens) < len(self.actions) or not all(tokens.context_ids for tokens in begins):
            return
        ids: list[int] = []
        mask: list[int] = []
        for tokens in all_tokens:
            if tokens.restart and ids:
                yield tuple(ids), tuple(mask)
                ids, mask = [], []
            ids += [*tokens.context_ids, *tokens.completion_ids]
            mask += [0] * len(tokens.context_ids) + [1] * len(tokens.completion_ids)
        if ids:
            yield tuple(ids), tuple(mask)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One run of the episode graph on one task.

    id: content-derived (run, purpose, round, policy version, task hash, sample, seed), so that a resumed run repeats
    none. purpose: "explore", "evaluate", "measure" (a yardstick: on record, in no pool) or "play". sample: which of the k
    explorations. path: graph nodes in the order visited. seconds: wall time of each of these visits, or empty when nobody
    took it; two episodes that differ in nothing else are equal.
    """

    id: str
    run_id: str
    purpose: Literal["explore", "evaluate", "measure", "play"]
    round: int
    task_id: str
    environment: str
    sample: int
    seed: int
    policy_version: str
    trajectories: tuple[Trajectory, ...]
    path: tuple[str, ...] = ()
    seconds: tuple[float, ...] = field(default=(), compare=False)

    @property
    def success(self) -> bool:
        return any(trajectory.success for trajectory in self.trajectories)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A rejected trajectory and the chosen one of the same task that answers it."""

    task_id: str
    rejected_id: str
    chosen_id: str


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """One training row and where it comes from.

    kind: "explore" (x → y⁺), "repair" (x, y⁻ → y⁺), "pair" (x: y⁺ preferred to y⁻), "demonstration".
    ids: token ids of the whole row; mask: 1 where the loss falls, as long as ids (2 in demonstrations: what the environment
    said, see `learn.observation_loss`). rejected_ids, rejected_mask: the other side of a pair, or the negative of a
    contrastive row; empty otherwise.
    weight: multiplies the row's loss.
    """

    kind: Literal["explore", "repair", "pair", "demonstration"]
    task_id: str
    trajectory_id: str
    ids: tuple[int, ...]
    mask: tuple[int, ...]
    rejected_trajectory_id: str = ""
    rejected_ids: tuple[int, ...] = ()
    rejected_mask: tuple[int, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What one `learn` stage is given. `hash` covers every row."""

    run_id: str
    round: int
    target: str
    rows: tuple[DatasetRow, ...]

    @property
    def hash(self) -> str:
        return content_hash(self.rows)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A policy on disk. path is relative to the run folder; base: folder or hub name of the weights it starts from;
    adapter: True when `path` holds only a LoRA adapter of `base`; parent: version it was trained from; steps: optimizer
    steps of this training; loss: mean of the last tenth of them."""

    version: str
    run_id: str
    round: int
    role: str
    path: str
    base: str
    adapter: bool
    parent: str
    dataset_hash: str
    steps: int = 0
    loss: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out success of one policy version. outcomes: task id → 0/1 under greedy decoding; pass_at_k: from `samples`
    samples a task at temperature 1, by k (unbiased estimator), empty when not asked for. errors: tasks left out because
    the environment broke. metrics: means of the verdicts' details, and what else was lost (`training/evaluation.py`)."""

    run_id: str
    round: int
    arm: str
    policy_version: str
    outcomes: Mapping[str, int]
    pass_at_k: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    errors: int = 0

    @property
    def success_rate(self) -> float:
        """Fraction of held-out tasks solved greedily; 0.0 for none."""
        return sum(self.outcomes.values()) / len(self.outcomes) if self.outcomes else 0.0


_SCALARS = frozenset((int, float, str, bool, type(None)))
_KINDS: dict[str, type] = {cls.kind: cls for cls in (Observation, Action, Verdict, Critique)}


def shown(record: Any) -> dict[str, Any]:
    """The fields of a plain value, as they are: those that came later only off their defaults, so that old hashes stay."""
    found = ((item, getattr(record, item.name)) for item in dataclasses.fields(record))
    return {item.name: at for item, at in found if not item.metadata or at != item.default}


def to_plain(value: Any) -> Any:
    """A record (or any nesting of records, tuples and mappings) as JSON-ready values; messages carry their `kind`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {name: to_plain(at) for name, at in shown(value).items()}
        kind = getattr(type(value), "kind", None)
        return {"kind": kind, **plain} if isinstance(kind, str) else plain
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        # Token ids are most of what there is: nothing in such a list needs a second look.
        return list(value) if _SCALARS.issuperset(map(type, value)) else [to_plain(item) for item in value]
    return value


def from_plain(cls: type[R], plain: Any) -> R:
    """The record that `to_plain` made `plain` from. Unknown or missing fields raise TypeError."""
    values = dict(plain)
    if isinstance(getattr(cls, "kind", None), str):
        values.pop("kind", None)
    for name, restore in _restorers(cls).items():
        if name in values:
            values[name] = restore(values[name])
    return cls(**values)


def message_from_plain(plain: Mapping[str, Any]) -> Message:
    """The message of the kind that `plain["kind"]` names."""
    return from_plain(_KINDS[plain["kind"]], plain)


@cache
def _restorers(cls: type) -> dict[str, Callable[[Any], Any]]:
    """How to restore the fields that are not plain already; made once, for states are read at every turn."""
    hints = typing.get_type_hints(cls)
    return {name: restore for name, hint in hints.items() if (restore := _restorer(hint)) is not None}


def _restorer(hint: Any) -> Callable[[Any], Any] | None:
    if hint == Message:
        return message_from_plain
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        item = _restorer(args[0])
        return tuple if item is None else lambda value: tuple(map(item, value))
    if origin in (typing.Union, types.UnionType):
        inner = _restorer(next(arg for arg in args if arg is not type(None)))
        return None if inner is None else lambda value: None if value is None else inner(value)
    return partial(from_plain, hint) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None

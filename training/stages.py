"""What each stage of a round does: the eight knobs' one implementation, given to the round graph as coroutines.

Every stage can be repeated: what it makes is named by what it is made from (episode ids, dataset hashes, policy versions)
and is committed once, so a killed run that is resumed ends with the rows of an undisturbed one. Stages are in the order
of `kintsugi.graphs.round_graph.STAGES`; `training.run` opens the run and starts the graph.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.round_graph import RoundState, Stage
from kintsugi.graphs.worlds import Worlds
from kintsugi.ledger import Ledger
from kintsugi.records import Checkpoint, Dataset, Evaluation, Trajectory
from kintsugi.sandboxes.environments.environment import success_by_kind
from kintsugi.training import exploration
from kintsugi.training.casting import Troupe
from kintsugi.training.evaluation import evaluation_of, evaluation_plans, lost_text, play_plans, seed_of
from kintsugi.training.gate import decide
from kintsugi.training.intervals import wilson_interval
from kintsugi.training.learn import dropped_text, learn
from kintsugi.training.lessons import Lessons
from kintsugi.training.recipe import Recipe
from kintsugi.training.reflecting import train_and_reflect
from kintsugi.training.round_tasks import RoundTasks
from kintsugi.training.run_folder import RunFolder, write_whole
from kintsugi.training.selection import Pool, build_pool, select
from kintsugi.training.self_reward import self_rewards
from kintsugi.training.warm_start import check_band, describe, load_chat, warm_start
from kintsugi.training.watch import Watch

START = "start"
"""The version of the policy that a run begins with."""


class Stages:
    """The stages of one run."""

    def __init__(
        self, recipe: Recipe, run: RunFolder, ledger: Ledger, troupe: Troupe, *, run_id: str, watch: Watch
    ) -> None:
        self.recipe, self.run, self.ledger, self.troupe, self.watch = recipe, run, ledger, troupe, watch
        self.run_id = run_id
        self.worlds = Worlds(troupe.environment, timeout_s=recipe.episode.turn_timeout_s)
        self.tasks = RoundTasks(recipe, troupe.environment)
        self._stopped = threading.Event()

    def table(self) -> dict[str, Stage]:
        """Stage coroutines by name, for `build_round_graph`."""
        names = ["prepare", "explore", "reward", "select", "learn", "evaluate", "promote"]
        if self.recipe.repair.who == "reflector" and self.recipe.reflector.train:
            names.insert(2, "reflect")
        return {name: _apart(getattr(self, name)) for name in names}

    def stop(self) -> None:
        """End a training that still runs in its thread (Ctrl-C) at its next step: Python waits for its threads."""
        self._stopped.set()

    # -- the start

    async def prepare(self, state: RoundState) -> dict[str, Any]:
        """Make or find the start policy, and measure it."""
        recipe = self.recipe
        folder = recipe.model.path
        if not folder and recipe.warm_start is not None:
            settings = recipe.warm_start
            shown = self.troupe.environment.tasks("demonstrations", limit=settings.demonstrations, seed=recipe.seed)
            self.tasks.check_apart(shown, "demonstrations")
            self.watch.begin("warm start", settings.steps)
            shelf = self.run.path.parent / "warm_starts"
            folder = str(await warm_start(recipe, self.troupe, recipe.seed, shelf, on_step=self._on_step))
            if told := dropped_text(describe(Path(folder))["dropped"]):
                self.watch.warn(f"start    the warm start learned without {told} of its rows")
            self._copy_in(Path(folder))
            folder = f"policies/{START}"
        elif Path(folder).exists():
            folder = str(Path(folder).resolve())
        versions = {START: folder}
        self.ledger.add_checkpoint(self._checkpoint(START, "actor", folder, base=folder, round=0))
        first = await self._evaluate(START, self._at(folder), arm="main", round=0)
        if not recipe.model.path:
            check_band(recipe, first.success_rate)
        if recipe.control.enabled:
            control = dataclasses.replace(first, arm="control")
            self.ledger.add_evaluation(control)
            self._record_evaluation(control, arm="control", promoted=True)
        return {"round": 1, "champion": START, "versions": versions, "datasets": {}, "trained": {}}

    # -- explore → verify → repair

    async def explore(self, state: RoundState) -> dict[str, Any]:
        """Samples, verdicts and repairs of this round's tasks, into the ledger."""
        recipe, number = self.recipe, state["round"]
        tasks = self.tasks.of_round(number)
        cast = await self.cast(state, repair=recipe.repair, few_shot=number <= recipe.explore.few_shot_rounds)
        explorer = exploration.Exploration(
            recipe, cast, self.ledger, run_id=self.run_id, round=number, version=state["champion"]
        )
        self.watch.begin(f"round {number}: explore", len(tasks) * recipe.explore.k)
        started, crashes = time.monotonic(), self.worlds.crashes
        episodes = await explorer.play(tasks, lambda episode: self.watch.advance())
        counted = exploration.count(episodes, recipe.explore.k)
        crashes, seconds = self.worlds.crashes - crashes, round(time.monotonic() - started, 2)
        self.run.record("round", round=number, **counted.plain(), crashes=crashes, seconds=seconds)
        rescued = f", {counted.rescued} rescued by repair" if counted.repairs else ""
        sandbox = f" ({counted.sandbox_failed} of them to the sandbox)" if counted.sandbox_failed else ""
        broken = f", {counted.errors} attempts lost to the environment{sandbox}" if counted.errors else ""
        broken += f", which broke {crashes} times in all" if crashes else ""
        self.watch.say(
            f"round {number}  explored {counted.tasks} tasks: {counted.solved} solved{rescued}{broken} "
            f"({counted.generated_tokens:,} tokens)"
        )
        return {"datasets": {}, "trained": {}}

    async def reflect(self, state: RoundState) -> dict[str, Any]:
        """Train the reflector on wrong → right, then reflect once more on what is still failed (Re-ReST, section 3)."""
        return await train_and_reflect(self, state)

    # -- reward → select → learn

    async def reward(self, state: RoundState) -> dict[str, Any]:
        """Soft rewards for ranking: as sampled, or the whole pool re-scored under the current champion."""
        if self.recipe.targets.score == "sampled":
            return {}
        number = state["round"]
        path = self._scores_file(number)
        if path.exists():
            return {}
        trajectories = self.trajectories(number)
        right = [one for one in trajectories.values() if one.success]
        cast = await self.cast(state)
        rows = self.lessons().rows(trajectories)
        self.watch.begin(f"round {number}: re-score the pool", len(right))
        scores = await rows.scores(right, cast.roles["actor"].policy, on_done=self.watch.advance)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(scores))
        return {}

    async def select(self, state: RoundState) -> dict[str, Any]:
        """From the pool to this round's dataset."""
        number, recipe = state["round"], self.recipe
        trajectories = self.trajectories(number)
        pool = self.pool(number, trajectories)
        selection = select(pool, recipe.select)
        rows = await self.lessons().of_round(number, trajectories, selection)
        if not rows:
            self.run.record("select", round=number, rows=0)
            self.watch.warn(f"round {number}  {nothing_to_learn(trajectories.values(), recipe)}")
            return {"datasets": {}}
        hashes = {}
        for target, made in {"main": rows, "control": await self.lessons().of_control(number)}.items():
            if made:
                dataset = Dataset(run_id=self.run_id, round=number, target=target, rows=tuple(made))
                self.ledger.add_dataset(dataset)
                hashes[target] = dataset.hash
        kinds = {kind: sum(row.kind == kind for row in rows) for kind in sorted({row.kind for row in rows})}
        self.run.record("select", round=number, rows=len(rows), dataset=hashes["main"], **kinds)
        return {"datasets": hashes}

    async def learn(self, state: RoundState) -> dict[str, Any]:
        """Train the challenger, and the control where there is one."""
        number = state["round"]
        trained = {}
        versions = dict(state["versions"])
        for target in state["datasets"]:
            version = f"{'round' if target == 'main' else target}-{number}"
            source = self.source(state) if target == "main" else self._previous_control(state)
            dataset = self.ledger.dataset(run_id=self.run_id, round=number, target=target)
            config = self.recipe.learn
            if target == "control":  # demonstrations have no rejected side
                config = config.model_copy(update={"loss": "sft"})
            await self.learn_version(state, dataset, version, source=source, config=config)
            trained[target] = version
            versions[version] = f"policies/{version}"
        return {"trained": trained, "versions": versions}

    # -- evaluate → promote

    async def evaluate(self, state: RoundState) -> dict[str, Any]:
        """Held-out success of what was trained."""
        number, every = state["round"], self.recipe.control.evaluate_every
        for target, version in state["trained"].items():
            if target == "control" and number % every and number != self.recipe.rounds:
                continue
            await self._evaluate(version, self._at(state["versions"][version]), arm=target, round=number)
        return {}

    async def promote(self, state: RoundState) -> dict[str, Any]:
        """The gate: the challenger becomes the champion, or the champion stays."""
        number, version = state["round"], state["trained"].get("main")
        if version is None:
            return {"round": number + 1}
        known = {one.policy_version: one for one in self.ledger.evaluations(run_id=self.run_id)}
        decision = decide(known[state["champion"]], known[version], self.recipe.gate)
        self._record_evaluation(known[version], arm="main", promoted=decision.promote)
        self.run.record("gate", round=number, promoted=decision.promote, reason=decision.reason, version=version)
        control = state["trained"].get("control")
        beside = f", control {known[control].success_rate:.1%}" if control in known else ""
        self.watch.say(f"round {number}  held out {known[version].success_rate:.1%}{beside}; {decision.reason}")
        champion = version if decision.promote else state["champion"]
        return {"champion": champion, "round": number + 1}

    async def cast(
        self,
        state: RoundState,
        *,
        repair: RepairConfig | None = None,
        few_shot: bool = False,
        reflector: str | None = None,
    ) -> Cast:
        champion, versions = state["champion"], state["versions"]
        other = (reflector, self._at(versions[reflector])) if reflector else None
        return await self.troupe.cast(
            champion, self._at(versions[champion]), repair=repair, few_shot=few_shot, reflector=other, worlds=self.worlds
        )

    def trajectories(self, number: int) -> dict[str, Trajectory]:
        """Everything explored up to this round, by id."""
        episodes = self.ledger.episodes(run_id=self.run_id, purpose="explore", round=list(range(1, number + 1)))
        return {one.id: one for episode in episodes for one in episode.trajectories}

    def pool(self, number: int, trajectories: Mapping[str, Trajectory]) -> Pool:
        """The long-term memory as this round's selection sees it, self-rewards of whole attempts among one another."""
        path = self._scores_file(number)
        rescored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        scores = {**self_rewards(trajectories, load_chat(self._tokenizer()).decode), **rescored}
        recipe = self.recipe
        return build_pool(trajectories.values(), recipe.select, round=number, seed=recipe.seed, rescored=scores)

    def lessons(self) -> Lessons:
        return Lessons(self.recipe, self.troupe, load_chat(self._tokenizer()))

    def _tokenizer(self) -> str:
        start = self.ledger.checkpoints(run_id=self.run_id, version=START)[0]
        return self._at(start.path)

    def _at(self, folder: str) -> str:
        """A version's folder as a path that opens; one that is gone is a RunError."""
        return str(self.run.weights(folder))

    def _copy_in(self, folder: Path) -> None:
        """The warm start into the run, so that the run is whole by itself."""
        target = self.run.policy(START)
        if not target.exists():
            half = target.with_name(".start.half")
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(folder, half)
            half.replace(target)

    def source(self, state: RoundState) -> tuple[str, str]:
        version = START if self.recipe.learn_init == "base" else state["champion"]
        return version, state["versions"][version]

    def _previous_control(self, state: RoundState) -> tuple[str, str]:
        """The last control there is (a round without rows trains none), or the start."""
        rounds = [] if self.recipe.learn_init == "base" else range(state["round"] - 1, 0, -1)
        version = next((name for n in rounds if (name := f"control-{n}") in state["versions"]), START)
        return version, state["versions"][version]

    async def learn_version(
        self, state: RoundState, dataset: Dataset, version: str, *, source: tuple[str, str], config: Any
    ) -> None:
        number = state["round"]
        self.watch.begin(f"round {number}: learn {version}", config.steps or 0)
        result = await asyncio.to_thread(
            learn,
            dataset.rows,
            model=self._at(source[1]),
            out=self.run.policy(version),
            config=config,
            seed=seed_of(self.recipe.seed, "learn", number) % 2**32,
            base=self._at(state["versions"][START]),
            on_step=self._on_step,
            threads=self.recipe.threads,
        )
        tail = result.losses[-max(1, len(result.losses) // 10) :]
        checkpoint = self._checkpoint(
            version,
            "reflector" if version.startswith("reflector") else "actor",
            f"policies/{version}",
            base=state["versions"][START],
            round=number,
            adapter=result.adapter,
            parent=source[0],
            dataset_hash=dataset.hash,
            steps=result.steps,
            loss=sum(tail) / len(tail),
        )
        self.ledger.add_checkpoint(checkpoint)
        self.run.record(
            "learn", round=number, arm=dataset.target, steps=result.steps, loss=checkpoint.loss,
            rows=len(dataset.rows), dropped=dict(result.dropped), tokens=result.tokens, seconds=round(result.seconds, 2),
        )  # fmt: skip
        if told := dropped_text(result.dropped):
            self.watch.warn(f"round {number}  {version} learned without {told} of its {len(dataset.rows)} rows")

    def _checkpoint(self, version: str, role: str, path: str, **values: Any) -> Checkpoint:
        defaults = {"adapter": False, "parent": "", "dataset_hash": ""}
        return Checkpoint(version=version, run_id=self.run_id, role=role, path=path, **{**defaults, **values})

    async def _evaluate(self, version: str, folder: str, *, arm: str, round: int) -> Evaluation:
        settings = self.recipe.evaluate
        tasks = self.tasks.heldout()
        greedy = await self.troupe.cast(version, folder, greedy=True, worlds=self.worlds)
        common = {"run_id": self.run_id, "round": round, "version": version}
        plans = evaluation_plans(tasks, seed=settings.seed, samples=0, **common)
        self.watch.begin(f"round {round}: evaluate {version}", len(tasks) * (1 + settings.samples))
        self.ledger.add_tasks(tasks)
        done = lambda episode: self.watch.advance()  # noqa: E731
        episodes = await play_plans(plans, greedy, self.ledger, done)
        sampled = []
        if settings.samples:
            warm = await self.troupe.cast(version, folder, worlds=self.worlds)
            more = evaluation_plans(tasks, seed=settings.seed, samples=settings.samples, **common)
            sampled = await play_plans(more, warm, self.ledger, done)
        evaluation = evaluation_of(episodes, sampled, arm=arm, ks=settings.pass_k if sampled else (), **common)
        self.ledger.add_evaluation(evaluation)
        self._record_evaluation(evaluation, arm=arm, promoted=version == START)
        lost = lost_text(evaluation)
        if version == START:
            held_out = f"held out {evaluation.success_rate:.1%} of {len(evaluation.outcomes)} tasks"
            self.watch.say(f"start    {held_out}" + (f", {lost}" if lost else ""))
        elif lost:
            self.watch.say(f"round {round}  evaluated {version}: {lost}")
        return evaluation

    def _record_evaluation(self, evaluation: Evaluation, *, arm: str, promoted: bool) -> None:
        solved = sum(evaluation.outcomes.values())
        kinds = success_by_kind(self.troupe.environment, self.tasks.heldout(), evaluation.outcomes)
        self.run.record(
            "evaluation",
            round=evaluation.round,
            arm=arm,
            policy_version=evaluation.policy_version,
            success_rate=evaluation.success_rate,
            num_tasks=len(evaluation.outcomes),
            interval=list(wilson_interval(solved, len(evaluation.outcomes))),
            promoted=promoted,
            errors=evaluation.errors,
            pass_at_k=dict(evaluation.pass_at_k),
            metrics=dict(evaluation.metrics),
            **({"kinds": kinds} if kinds else {}),
        )

    def _scores_file(self, number: int) -> Path:
        return self.run.path / "scores" / f"round-{number}.json"

    def _on_step(self, step: int, steps: int, loss: float) -> None:
        if self._stopped.is_set():
            raise RuntimeError("the run was interrupted")
        self.watch.advance(note=f"loss {loss:.3f}")


def nothing_to_learn(trajectories: Iterable[Trajectory], recipe: Recipe) -> str:
    """Why a round trains nothing, and what to do."""
    tried = list(trajectories)
    right = sum(one.success for one in tried)
    why = "nothing to learn from, so nothing is trained: "
    if not right:
        return why + "no attempt succeeded. Give an easier task or a better start policy, or raise explore.k"
    if right == len(tried):
        return why + "every attempt succeeded. Give harder tasks"
    if recipe.learn.loss == "dpo":
        return why + "no right attempt stands beside a wrong one of its task. Raise explore.k, or learn.loss = \"sft\""
    return why + f"the selection keeps none of {right} right attempts of {len(tried)}. Loosen [select]"


def _apart(stage: Stage) -> Stage:
    """The stage in a context of its own: else LangGraph takes the episode graphs in it for subgraphs of the round graph,
    which inherit its checkpointer (a graph checkpoint for every node of every episode) and its `durability`."""

    async def run(state: RoundState) -> dict[str, Any]:
        async def inside() -> dict[str, Any]:
            return await stage(state)

        return await asyncio.create_task(inside(), context=contextvars.Context())

    return run

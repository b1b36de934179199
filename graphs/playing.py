"""An episode that somebody watches and steers: pause at any node, change what is said, go back, branch, come back later.

    session = await PlaySession.begin(config, task)        # a file in runs/plays; `resume(path)` opens it again
    while not session.point.over:
        point = await session.step()                       # one node: agent, environment, refiner, reflector
        if point.node == "agent":
            point = await session.say("go north")          # instead of what the agent proposed
    await session.back(3)                                  # and on from there: what was done stays a line of its own
    session.commit("runs/demo")                            # purpose "play": never trained on unless asked
    await session.close()

It is the episode graph of every rollout, compiled with LangGraph's SQLite checkpointer and interrupted before every
node; worlds are rebuilt by replaying their actions. What a person says has no tokens, and the attempt's stage becomes
"human" (a reflection's author). Calls wait for each other, so a server may pass on several people's. Left out: screens.
"""

from __future__ import annotations

import asyncio
import dataclasses
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kintsugi.agents.policies.policy import Policy
from kintsugi.config import validate
from kintsugi.errors import ConfigError, RunError
from kintsugi.graphs.episode_graph import build_episode_graph, recursion_limit, timed
from kintsugi.graphs.episode_nodes import attempt_key, nodes
from kintsugi.graphs.episode_state import EpisodePlan, EpisodeState, finished_episode, start_state
from kintsugi.graphs.play_cast import Seat, cast_of, open_players
from kintsugi.graphs.play_config import EVERY, PlayConfig
from kintsugi.graphs.play_file import SESSIONS, SessionFile, SessionInfo, info_of, plain_errors
from kintsugi.graphs.play_point import Line, Point, by_person, lines_of, said_since, same_point, way_to
from kintsugi.graphs.worlds import WorldBroke
from kintsugi.records import Episode, Task, Trajectory, content_hash, from_plain, to_plain
from kintsugi.sandboxes.environments.environment import Environment

Watcher = Callable[[Point], None]


class PlaySession:
    """One session; make it with `begin` or `resume`. `point` is where it stands, `points` all there are."""

    def __init__(self, file: SessionFile, config: PlayConfig, task: Task, seat: Seat, environment: Environment) -> None:
        self.file, self.config, self.task, self.environment = file, config, task, environment
        self.points: list[Point] = []
        self._seat, self._cast = seat, cast_of(config, seat, environment)
        self._nodes = {name: timed(node) for name, node in nodes(self._cast).items()}
        self._busy = asyncio.Lock()
        self._head = 0
        self._numbers: dict[str, int] = {}
        self._newest = ""
        self._saver: Any = None
        self._graph: Any = None
        self._opened: Any = None
        self._own_environment = False

    @classmethod
    async def begin(
        cls,
        config: PlayConfig,
        task: Task,
        *,
        folder: str | Path = SESSIONS,
        policy: Policy | None = None,
        environment: Environment | None = None,
    ) -> PlaySession:
        """A new session before its first node. `policy`, `environment`: open ones to use (and not to close)."""
        world, seat = await open_players(config, task, environment, policy)
        now = _now()
        row = {"created": now, "updated": now, "config": config.model_dump(mode="json"), "task": to_plain(task)}
        row |= {"environment": task.environment, "task_id": task.id, "policy": config.model.kind}
        row |= {"policy_version": seat.version, "points": 0, "lines": 0, "turns": 0, "next": ""}
        session = cls(SessionFile.create(Path(folder), row), config, task, seat, world)
        session._own_environment = environment is None
        plan = EpisodePlan(
            run_id=f"play-{session.id}",
            purpose="play",
            round=0,
            task=task,
            sample=0,
            seed=config.seed,
            policy_version=seat.version,
        )
        try:
            await session._open()
            await session._graph.ainvoke(start_state(plan), session._config(), interrupt_before="*", durability="sync")
            await session._read_new()
        except BaseException:
            await session.close()
            session.file.path.unlink(missing_ok=True)  # it has no point to come back to
            raise
        return session

    @classmethod
    async def resume(
        cls, path: str | Path, *, policy: Policy | None = None, environment: Environment | None = None
    ) -> PlaySession:
        """A session where it was left. Raises RunError for a file that is none, or that somebody has open."""
        file = SessionFile.open(Path(path))
        try:
            config = validate(PlayConfig, file.values.get("config", {}), str(path))
            task, version = from_plain(Task, file.values["task"]), file.values["policy_version"]
            world, seat = await open_players(config, task, environment, policy)
        except (KeyError, TypeError) as error:
            file.close()
            raise RunError(f"{path} is no whole session ({error}): restore it, or begin another one") from None
        except BaseException:
            file.close()
            raise
        if seat.version != version:
            warnings.warn(f"{seat.version} acts now; the session began with {version}", stacklevel=2)
        session = cls(file, config, task, seat, world)
        session._own_environment = environment is None
        try:
            await session._open()
            await session._read_new()
            if not session.points:
                raise RunError(f"the session {path} was left before its first point: begin another one")
        except (LookupError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            await session.close()  # one of its checkpoints is damaged
            raise RunError(f"{path} is no whole session ({error!r}): restore it, or begin another one") from None
        except BaseException:
            await session.close()
            raise
        return session

    # -- where it stands -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        return self.file.values["id"]

    @property
    def point(self) -> Point:
        """Where the session stands."""
        return self.points[self._head]

    @property
    def actor(self) -> str:
        """Who acts, for people: "human", "expert", "transformers:path"."""
        return self._seat.name

    @property
    def info(self) -> SessionInfo:
        return info_of(self.file.path, self.file.values)

    @property
    def way(self) -> tuple[Point, ...]:
        """The points from the first to this one."""
        return tuple(self.points[number] for number in way_to(self.points, self._head))

    @property
    def lines(self) -> list[Line]:
        """Every way that was gone, the present one among them."""
        return lines_of(self.points)

    async def opening(self) -> str:
        """What the agent is told first, for a person who is to act before anything was said."""
        try:
            return await self._cast.worlds.observe(attempt_key(self.points[0].state), self.task)
        except WorldBroke:  # whoever acts will be told
            return self.task.prompt

    def pause_at(self, *pauses: str) -> None:
        """Change where `go` stops, now and when the session is opened again: "every", "before:NODE", "after:NODE"."""
        self.config = validate(PlayConfig, {**self.config.model_dump(mode="json"), "pauses": pauses}, "kintsugi play")
        self.file.save(config=self.config.model_dump(mode="json"))

    @property
    def graph(self) -> Any:
        """The compiled episode graph, for drawing."""
        return self._graph

    @property
    def waits(self) -> bool:
        """True when the next node is a person's turn: `say` goes on, `step` does not."""
        return self._seat.is_human and self.point.next in ("agent", "refiner", "reflector")

    # -- going on ------------------------------------------------------------------------------------------------------

    async def step(self) -> Point:
        """Run one node. Raises ConfigError when it is a person's turn or the episode is over."""
        async with self._busy:
            self._check_going_on()
            if self.waits:
                raise ConfigError("it is your turn: say what to do")
            config = self._config(None if self._numbers[self._newest] == self._head else self.point)
            with plain_errors(self.file.path):
                await self._graph.ainvoke(None, config, interrupt_before="*", durability="sync")
            await self._read_new()
            return self.point

    async def go(self, on_point: Watcher | None = None, pauses: tuple[str, ...] | None = None) -> Point:
        """Run to the next pause (the config's, or these), a person's turn, or the end; `on_point` sees every point."""
        stops = self.config.pauses if pauses is None else pauses
        while not self.point.over and not self.waits:
            point = await self.step()
            if on_point is not None:
                on_point(point)
            if EVERY in stops or f"after:{point.node}" in stops or f"before:{point.next}" in stops:
                break
        return self.point

    async def finish(self, on_point: Watcher | None = None) -> Point:
        """Run to the end, or to a person's turn."""
        return await self.go(on_point, ())

    async def say(self, text: str) -> Point:
        """Say `text` (an action, or a reflection) in place of whoever's turn it is, or of what was just proposed."""
        async with self._busy:
            here = self.point
            if here.proposal is not None and not self.waits:
                return await self._change(here, text)
            self._check_going_on()
            if here.next == "environment":
                raise ConfigError("nothing can be said here: the environment answers next")
            with self._seat.saying(text):
                state = await self._nodes[here.next](here.state)
            return await self._write(here, by_person(state, text), here.next, by="human")

    async def edit(self, text: str) -> Point:
        """Change what was just said, an action or a reflection, before anybody answers it."""
        async with self._busy:
            if self.point.proposal is None:
                raise ConfigError("there is nothing to edit here: step to the agent first, or type what to say")
            return await self._change(self.point, text)

    async def again(self) -> Point:
        """Ask the policy anew for what it just proposed, with another seed. The first proposal stays a line of its own."""
        async with self._busy:
            here = self.point
            if here.proposal is None or here.parent is None:
                raise ConfigError("there is no proposal here to ask for again: step to the agent first")
            while here.by == "human" and self.points[here.parent or 0].proposal is not None:
                here = self.points[here.parent or 0]
            before = self.points[here.parent or 0]
            if self._seat.is_human:
                raise ConfigError("nobody but you acts here: say something else instead")
            tries = sum(point.parent == before.number for point in self.points)
            plan = before.state["plan"]
            state = {**before.state, "plan": {**plan, "seed": plan["seed"] + 1000 * tries}}
            state = await self._nodes[before.next](state)  # pyright: ignore[reportArgumentType]
            return await self._write(before, state, before.next, by="graph")

    async def back(self, num: int = 1) -> Point:
        """Stand `num` points further back on this line."""
        way = way_to(self.points, self._head)
        if not 1 <= num < len(way):
            raise ConfigError(f"expected at most {len(way) - 1} points back, found {num}")
        return await self.branch(way[-1 - num])

    async def branch(self, number: int) -> Point:
        """Stand at point `number`, of whatever line: what is done next begins a line of its own there."""
        if not 0 <= number < len(self.points):
            raise ConfigError(f"expected a point from 0 to {len(self.points) - 1}, found {number}")
        self._head = number
        self._save()
        return self.point

    # -- what comes of it ----------------------------------------------------------------------------------------------

    def episode(self) -> Episode:
        """The present line as an episode's record; its ids follow from what was said. ConfigError before its end."""
        if not self.point.over:
            raise ConfigError(f"the episode is not over ({self.point.next} comes next): finish it, or another line")
        played = finished_episode(self.point.state)
        words = [[one.stage, to_plain(one.messages)] for one in played.trajectories]
        id = content_hash([played.id, words])
        ids = {one.id: content_hash([id, one.attempt, one.stage]) for one in played.trajectories}
        expert = self.config.model.kind == "expert"

        def renamed(one: Trajectory) -> Trajectory:
            stage = "teacher" if expert and one.stage == "explore" else one.stage
            parent = ids.get(one.parent_id or "", one.parent_id)
            return dataclasses.replace(
                one, id=ids[one.id], episode_id=id, parent_id=parent, stage=stage, saw_gold=one.saw_gold or expert
            )

        return dataclasses.replace(played, id=id, trajectories=tuple(renamed(one) for one in played.trajectories))

    def commit(self, place: str | Path, run_id: str = "") -> Episode:
        """Add the present line to a run's ledger (or a ledger file), under the run's id when it is given. Adding it twice
        changes nothing. Raises ConfigError before the end, LedgerError where there is no ledger."""
        from kintsugi.ledger import Ledger

        episode = self.episode()
        if run_id:
            episode = dataclasses.replace(episode, run_id=run_id)
        with Ledger.open(place, create=str(place).endswith(".sqlite")) as ledger:
            ledger.add_tasks([self.task])
            ledger.commit_episodes([episode])
        known = self.file.values.get("committed", [])
        self.file.save(committed=[*known, *([] if episode.id in known else [episode.id])])
        return episode

    async def close(self) -> None:
        """Leave the session; it stays where it stands. Calling it twice is harmless."""
        await self._cast.worlds.close()
        await self._seat.close()
        if self._own_environment:
            await self.environment.close()
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.__aexit__(None, None, None)
        self.file.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        opening = AsyncSqliteSaver.from_conn_string(str(self.file.path))
        with plain_errors(self.file.path):
            self._saver = await opening.__aenter__()
        self._opened = opening
        self._graph = build_episode_graph(self._cast, checkpointer=self._saver)

    def _config(self, point: Point | None = None, **metadata: str) -> Any:
        """LangGraph's config: the thread's newest checkpoint, or this point's."""
        where = {"thread_id": "play", "checkpoint_ns": ""}
        if point is not None:
            where["checkpoint_id"] = point.checkpoint
        return {"configurable": where, "metadata": metadata, "recursion_limit": recursion_limit(self._cast)}

    def _check_going_on(self) -> None:
        if self.point.over:
            raise ConfigError("the episode is over: go back, or begin another one")

    async def _change(self, here: Point, text: str) -> Point:
        return await self._write(here, by_person(here.state, text), here.state["path"][-1], by="human")

    async def _write(self, before: Point, state: EpisodeState, node: str, *, by: str) -> Point:
        """A new point after `before`, as if `node` had led to `state`."""
        with plain_errors(self.file.path):
            await self._graph.aupdate_state(self._config(before, by=by), state, as_node=node)
        await self._read_new()
        return self.point

    async def _read_new(self) -> None:
        """Take up the checkpoints that are not known yet, the last one as where the session stands."""
        fresh = []
        # A step leaves two checkpoints at most; asking for no more keeps long sessions quick.
        with plain_errors(self.file.path):
            async for found in self._graph.aget_state_history(self._config(), limit=4 if self.points else None):
                if found.config["configurable"]["checkpoint_id"] in self._numbers:
                    break
                fresh.append(found)
        left = (self.file.values.get("newest"), self.file.values.get("head", 0)) if not self.points else None
        for found in reversed(fresh):
            id = found.config["configurable"]["checkpoint_id"]
            parent = self._numbers.get((found.parent_config or {}).get("configurable", {}).get("checkpoint_id", ""))
            if "path" not in found.values:  # LangGraph's own, of the input
                continue
            self._newest = id
            if found.metadata.get("source") == "fork":  # a copy that LangGraph goes on from
                self._numbers[id] = parent or 0
                continue
            point = _point(found, id, len(self.points), parent, self.points)
            known = next((one for one in self.points if same_point(one, point)), None)
            if known is None:
                self.points.append(point)
            self._numbers[id] = self._head = (known or point).number
        if left is not None and left[0] == self._newest and left[1] in range(len(self.points)):
            self._head = left[1]  # nothing was added after it was left: it may stand further back
        self._save()

    def _save(self) -> None:
        here = self.point if self.points else None
        if here is None:
            return
        row = {"head": here.number, "newest": self._newest, "points": len(self.points), "lines": len(self.lines)}
        self.file.save(updated=_now(), turns=here.turn, next=here.next, stops=list(here.stops), **row)


def _point(found: Any, id: str, number: int, parent: int | None, points: list[Point]) -> Point:
    state: EpisodeState = found.values
    before = points[parent].state if parent is not None else None
    return Point(
        number=number,
        parent=parent,
        node=state["path"][-1] if state["path"] else "",
        next=found.next[0] if found.next else "",
        by=found.metadata.get("by", "graph"),
        said=said_since(before, state),
        state=state,
        checkpoint=id,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

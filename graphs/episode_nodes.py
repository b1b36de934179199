"""The actors of an episode, one node each: agent, environment, refiner, reflector.

Each node reads the plain state, says or does one thing, and hands on a new state; what it says is a typed message on the
attempt. Nodes share nothing but the `Cast` they were built with (policies in roles, worlds), which is never in the state.
What an agent does wrong, and what breaks in an environment, ends as a verdict; a policy that cannot be reached raises.

Single turn: the refiner (same weights) or the reflector writes the next action itself. Multi-turn: the reflector writes a
reflection, and the agent acts again from the start with it in context (Re-ReST, arXiv 2406.01495, section 3), or from the
first turn that went wrong (`turn_repair`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from kintsugi.agents.policies.policy import ChatMessage, Completion, Request, Sampling
from kintsugi.agents.roles import Prompt, Role
from kintsugi.errors import ContextTooLong
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig
from kintsugi.graphs.episode_state import Attempt, EpisodeState, failed_attempt, finish_attempt, new_attempt, noted, task_of
from kintsugi.graphs.turn_repair import ASKED, done_again, kept_messages, note_taker, num_kept, placed, turns
from kintsugi.graphs.worlds import WorldBroke, Worlds
from kintsugi.records import (
    Action,
    Cost,
    Critique,
    Fault,
    Message,
    Observation,
    Stop,
    Tokens,
    Trajectory,
    Verdict,
    from_plain,
    message_from_plain,
    to_plain,
)

Node = Callable[[EpisodeState], Awaitable[EpisodeState]]

CUT_OFF = "cut off: the answer ran out of tokens before its end"


class Answered(Attempt):
    """An attempt in which a policy has spoken. cut: its last answer met max_tokens."""

    cut: bool


@dataclass
class Cast:
    """Who plays: roles by name ("actor", "refiner", "reflector"), the worlds, and the episode's rules."""

    roles: dict[str, Role]
    worlds: Worlds
    repair: RepairConfig = field(default_factory=RepairConfig)
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)

    @property
    def max_turns(self) -> int:
        return self.episode.max_turns or self.worlds.environment.max_turns


def nodes(cast: Cast) -> dict[str, Node]:
    """The node functions by name. Refiner and reflector are there only when the recipe repairs through them."""
    table: dict[str, Node] = {"agent": _Agent(cast), "environment": _Environment(cast)}
    if cast.repair.who == "self":
        table["refiner"] = _Repairer(cast, "refiner")
    if cast.repair.who == "reflector":
        table["reflector"] = _Repairer(cast, "reflector")
    return table


class _Agent:
    """Says the next action of the current attempt, or opens the first one."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast

    async def __call__(self, state: EpisodeState) -> EpisodeState:
        attempt = state["current"]
        if attempt is None:
            task = task_of(state)
            try:
                first = await self.cast.worlds.observe(attempt_key(state), task)
            except WorldBroke as broke:
                # There is nothing to act on: the environment node ends the attempt with this verdict.
                attempt = new_attempt("explore", None, [Observation(text=task.prompt), _broken(broke)])
                return _went(state, "agent", attempt)
            attempt = new_attempt("explore", None, [Observation(text=first)])
        if attempt["messages"][-1]["kind"] == "verdict":  # the transcript was too long for its repairer
            return _went(state, "agent", attempt)
        role = self.cast.roles["actor"]
        chat, prior = _chat(role, attempt, self.cast.episode)
        request = Request(
            messages=chat,
            sampling=_seeded(role.sampling, state, attempt),
            prior_ids=prior,
            prior_messages=len(chat) - 1 if prior else 0,
            key=_key(state, attempt),
        )
        try:
            completion, attempt = await _ask(role, request, attempt)
        except ContextTooLong as error:
            if len(attempt["messages"]) == 1:  # the task itself does not fit: that is for the user to mend
                raise
            return _went(state, "agent", _outgrown(attempt, error))
        tokens = _tokens(completion, prior, first=not _texts(attempt, "action"))
        return _went(state, "agent", _add(attempt, Action(text=completion.text, tokens=tokens)))


def _outgrown(attempt: Attempt, error: ContextTooLong) -> Attempt:
    return _add(attempt, Verdict(success=False, reward=0.0, feedback=f"out of context: {error}"))


class _Environment:
    """Does the last action and answers; ends the attempt on a verdict, on a crash, or when turns run out."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast

    async def __call__(self, state: EpisodeState) -> EpisodeState:
        attempt = state["current"]
        assert attempt is not None, "the environment node needs an action to answer"
        last = message_from_plain(attempt["messages"][-1])
        if isinstance(last, Verdict):
            return await self._end(state, attempt, last, "error" if last.error else "truncated")
        if isinstance(last, Critique):
            return await self._done_again(state, attempt, last)
        actions = _texts(attempt, "action")
        started = time.monotonic()
        try:
            reply = await self.cast.worlds.act(attempt_key(state), task_of(state), actions[:-1], actions[-1])
        except WorldBroke as broke:
            attempt = _paid(attempt, Cost(seconds=time.monotonic() - started))
            verdict = _broken(broke)
            return await self._end(state, _add(attempt, verdict), verdict, "error")
        attempt = _paid(attempt, Cost(seconds=time.monotonic() - started, executions=reply.executions))
        if reply.observation or reply.verdict is None:
            attempt = _add(attempt, Observation(text=reply.observation))
        verdict, stop = reply.verdict, "failure"
        if verdict is not None:
            stop = "success" if verdict.success else "failure"
        elif feedback := self.cast.episode.out_of_turns(len(actions), self.cast.max_turns, _texts(attempt, "observation")):
            verdict, stop = Verdict(success=False, reward=0.0, feedback=feedback), "truncated"
        if verdict is None:
            return _went(state, "environment", noted(attempt, self.cast.worlds.broke(attempt_key(state))))
        if attempt.get("cut") and not verdict.success:
            stop, told = "truncated", f"{verdict.feedback}\n{CUT_OFF}".strip()
            verdict = dataclasses.replace(verdict, feedback=told)
        return await self._end(state, _add(attempt, verdict), verdict, stop)

    async def _done_again(self, state: EpisodeState, attempt: Attempt, critique: Critique) -> EpisodeState:
        """The turns that the critique keeps of the lost attempt, once more; the agent goes on from there."""
        lost, started = failed_attempt(state), time.monotonic()
        assert lost is not None, "turns are kept of an attempt"
        said = attempt["messages"][:-1]
        try:
            task, key = task_of(state), attempt_key(state)
            opening, executions, other = await done_again(self.cast.worlds, key, task, lost, critique.kept)
        except WorldBroke as broke:
            verdict = _broken(broke)
            return await self._end(state, _add(attempt, verdict), verdict, "error")
        attempt = _paid(attempt, Cost(seconds=time.monotonic() - started, executions=executions))
        if other:
            critique = dataclasses.replace(critique, kept=0, note=f"from the start: {other}")
            said = [to_plain(Observation(text=opening)), *said[1:]]
        after = [critique, *kept_messages(lost, critique.kept)]
        return _went(state, "environment", {**attempt, "messages": [*said, *map(to_plain, after)]})

    async def _end(self, state: EpisodeState, attempt: Attempt, verdict: Verdict, stop: Stop) -> EpisodeState:
        await self.cast.worlds.leave(attempt_key(state))
        attempt = noted(attempt, self.cast.worlds.broke(attempt_key(state)))
        trajectory = finish_attempt(state, attempt, verdict, stop)
        state = _went(state, "environment", None)
        return {**state, "attempts": [*state["attempts"], to_plain(trajectory)]}


class _Repairer:
    """The refiner or the reflector: opens a new attempt that mends the last failed one."""

    def __init__(self, cast: Cast, name: str) -> None:
        self.cast, self.name = cast, name

    async def __call__(self, state: EpisodeState) -> EpisodeState:
        failed = failed_attempt(state)
        assert failed is not None, f"the {self.name} node needs an attempt to repair"
        role = self.cast.roles[self.name]
        first = failed.messages[0]
        opening = first if isinstance(first, Observation) else Observation(text=task_of(state).prompt)
        stage = "refine" if self.name == "refiner" else "reflect"
        reflects, most = self.cast.repair.reflects, self.cast.repair.memory
        earlier = _critiques(failed.messages) if reflects else []
        earlier = earlier if most is None else earlier[max(0, len(earlier) + 1 - most) :]  # and the one to come
        attempt = new_attempt(stage, failed.id, [opening, *earlier])
        if self.cast.repair.words == "notes":
            notes = note_taker(self.cast.worlds.environment).notes(task_of(state), turns(failed.messages))
            return self._reflected(state, attempt, failed, Critique(text=notes, author="notes"))
        keep = state["plan"].get("keep") if not state["attempts"] else None
        request, fault = repair_request(role.prompt, self.cast.repair, opening.text, failed, keep)
        sampling = _seeded(role.sampling, state, attempt)
        request = dataclasses.replace(request, sampling=sampling, key=_key(state, attempt))
        try:
            completion, attempt = await self._draw(role, request, attempt, fault)
        except ContextTooLong as error:
            return _went(state, self.name, _outgrown(attempt, error))
        kept = fault.kept if fault else ""
        if reflects:
            tokens = _tokens(completion, completion.prompt_ids, first=True)  # without their context
            return self._reflected(state, attempt, failed, Critique(text=completion.text, author=self.name, tokens=tokens))
        action = Action(text=kept + completion.text, prefill=kept, tokens=_tokens(completion, (), first=True))
        return _went(state, self.name, _add(attempt, action))

    def _reflected(self, state: EpisodeState, attempt: Attempt, failed: Trajectory, critique: Critique) -> EpisodeState:
        if self.cast.repair.form == "from_turn":
            critique = placed(critique, self.cast.worlds.environment, task_of(state), failed)
        return _went(state, self.name, _add(attempt, critique))

    async def _draw(self, role: Role, request: Request, attempt: Attempt, fault: Fault | None) -> tuple[Completion, Attempt]:
        """The repair; one that begins with the very line objected to ends there and is drawn again (`repair.redraws`).

        Further on that line may be right (one was missing before it): a repair cut there is drawn once more, whole."""
        if fault is None or self.cast.repair.sees != "feedback":
            return await _ask(role, request, attempt)
        sampling, again = request.sampling, f"{fault.bad}\n"
        for number in range(self.cast.repair.redraws):
            whole = dataclasses.replace(sampling, seed=sampling.seed ^ (number + 1))
            draw = dataclasses.replace(whole, stop=(*sampling.stop, again) if fault.bad else sampling.stop)
            completion, attempt = await _ask(role, dataclasses.replace(request, sampling=draw), attempt)
            if not completion.text or completion.text.split("\n", 1)[0] == fault.bad:
                continue
            cut = completion.stop == again or (completion.stop is None and completion.text.endswith("\n"))
            if not (cut and fault.bad):
                return completion, attempt
            return await _ask(role, dataclasses.replace(request, sampling=whole), attempt)
        return await _ask(role, request, attempt)


def repair_request(
    prompt: Prompt, repair: RepairConfig, task: str, failed: Trajectory, keep: str | None = None
) -> tuple[Request, Fault | None]:
    """What the repairer is asked about a failed attempt, and (in a rollback) where its answer goes on from.

    keep: the beginning to keep in a rollback; None keeps what stands before the located fault.
    The same for sampling a repair and for training one (`training.rows`), so that the two never differ.
    """
    memory = _memory(failed.messages)
    if repair.form == "rollback":
        fault = (failed.fault if repair.sees == "feedback" else None) or blind_fault(failed)
        if keep is not None and keep != fault.kept:
            fault = Fault(kept=keep, bad=failed.text[len(keep) :].split("\n", 1)[0], note="wrong")
        return rollback_request(prompt, task, transcript(failed), fault, memory), fault
    feedback = failed.feedback if repair.sees == "feedback" else ""
    if repair.form == "from_turn":
        told = transcript(failed, numbered=True)
        *before, last = prompt.messages(task=task, attempt=told, feedback=feedback, memory=memory)
        asked = ChatMessage(role=last["role"], content=f"{last['content']}\n\n{ASKED}")
        return Request(messages=(*before, asked)), None
    return Request(messages=prompt.messages(task=task, attempt=transcript(failed), feedback=feedback, memory=memory)), None


def rollback_request(prompt: Prompt, task: str, attempt: str, fault: Fault, memory: str = "") -> Request:
    """What is asked of a repair that goes on from `fault.kept`: the feedback is the line objected to and the objection."""
    feedback = f"{fault.bad} # {fault.note}"
    messages = prompt.messages(task=task, attempt=attempt, feedback=feedback, memory=memory)
    return Request(messages=messages, prefill=prompt.prefill(fault.kept, fault.bad, fault.note))


def blind_fault(failed: Trajectory) -> Fault:
    """A place to go on from when the environment objects to no line: one drawn by the attempt's id."""
    lines = failed.text.splitlines(keepends=True) or [""]
    cut = int(failed.id, 16) % len(lines)
    return Fault(kept="".join(lines[:cut]), bad=lines[cut].rstrip("\n"), note="wrong")


def transcript(trajectory: Trajectory, *, numbered: bool = False) -> str:
    """An attempt as text: the action alone for programs, actions (from 1 on if `numbered`) and observations in turn for
    longer ones."""
    if len(trajectory.actions) == 1 and not numbered:
        return trajectory.actions[0].text
    lines, turn = [], 0
    for message in trajectory.messages[1:]:
        if isinstance(message, Action):
            turn += 1
            lines.append(f"{turn if numbered else ''}> {message.text}")
        elif isinstance(message, Observation):
            lines.append(message.text)
    return "\n".join(lines)


def _critiques(messages: Sequence[Message]) -> list[Critique]:
    return [message for message in messages if isinstance(message, Critique)]


def _memory(messages: Sequence[Message]) -> str:
    """The reflections so far, oldest first (Reflexion, arXiv 2303.11366, keeps them over its attempts)."""
    return "\n".join(critique.text for critique in _critiques(messages))


def _texts(attempt: Attempt, kind: str) -> list[str]:
    return [message["text"] for message in attempt["messages"] if message["kind"] == kind]


def _broken(broke: WorldBroke) -> Verdict:
    return Verdict(success=False, reward=0.0, feedback="the environment broke", error=str(broke))


def attempt_key(state: EpisodeState) -> str:
    """Names the attempt in progress among all live ones."""
    return f"{state['plan']['episode_id']}:{len(state.get('attempts', []))}"


def _key(state: EpisodeState, attempt: Attempt) -> str:
    return f"{attempt_key(state)}:{len(attempt['messages']):04d}"


def _chat(role: Role, attempt: Attempt, rules: EpisodeConfig) -> tuple[tuple[ChatMessage, ...], tuple[int, ...]]:
    """The actor's chat, and the ids of it up to the last sampled answer (empty when any action has none, and when turns
    have just fallen out of the history window)."""
    num_turns, turn = len(_texts(attempt, "action")), -1
    dropped = rules.turns_dropped(num_turns)
    # States are plain, and long ones are read at every turn: only the reflections, which are few, become records.
    messages = attempt["messages"]
    assert messages[0]["kind"] == "observation"
    critiques = [message_from_plain(message) for message in messages if message["kind"] == "critique"]
    memory = _memory(critiques)
    chat = list(role.messages(task=messages[0]["text"], attempt="", feedback="", memory=memory))
    ids: list[int] = []
    # A repairer's own action was sampled in the repairer's chat, and kept turns in that of the lost attempt.
    kept = num_kept(critiques)
    exact = (attempt["stage"] not in ("refine", "reflect") or bool(critiques)) and not kept
    exact = exact and dropped == rules.turns_dropped(num_turns - 1)
    for message in messages[1:]:
        if message["kind"] == "action":
            turn += 1
            if turn >= dropped:
                chat.append(ChatMessage(role="assistant", content=message["text"]))
            tokens = message.get("tokens")
            if tokens is not None and tokens.get("restart") and turn >= kept:
                ids, exact = [], dropped == rules.turns_dropped(num_turns - 1)
            exact = exact and tokens is not None and bool(ids or tokens["context_ids"])
            if exact and tokens is not None:
                ids += [*tokens["context_ids"], *tokens["completion_ids"]]
        elif message["kind"] == "observation" and turn >= dropped:
            chat.append(ChatMessage(role="user", content=message["text"]))
    return tuple(chat), tuple(ids) if exact else ()


async def _ask(role: Role, request: Request, attempt: Attempt) -> tuple[Completion, Answered]:
    started = time.monotonic()
    completion = (await role.policy.complete(request))[0]
    spent = Cost(
        generated_tokens=len(completion.token_ids),
        processed_tokens=completion.processed_tokens,
        seconds=time.monotonic() - started,
    )
    return completion, {**_paid(attempt, spent), "cut": completion.finish == "length"}


def _tokens(completion: Completion, prior: tuple[int, ...], *, first: bool) -> Tokens | None:
    """The action's tokens: what was fed since `prior`, or all of it when the policy was fed something else instead."""
    if not completion.token_ids:
        return None
    fed = completion.prompt_ids
    goes_on = bool(prior) and fed[: len(prior)] == prior
    return Tokens(
        context_ids=fed[len(prior) :] if goes_on else fed,
        completion_ids=completion.token_ids,
        logprobs=completion.logprobs,
        restart=not first and not goes_on,
    )


def _seeded(sampling: Sampling, state: EpisodeState, attempt: Attempt) -> Sampling:
    """The role's sampling with this turn's own seed: a hash of the episode's seed, the attempt and the turn."""
    place = f"{state['plan']['seed']}:{len(state.get('attempts', []))}:{len(attempt['messages'])}:{attempt['stage']}"
    seed = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "big") >> 1
    return dataclasses.replace(sampling, seed=seed)


def _add(attempt: Attempt, message: Action | Observation | Verdict | Critique) -> Attempt:
    return {**attempt, "messages": [*attempt["messages"], to_plain(message)]}


def _paid(attempt: Attempt, spent: Cost) -> Attempt:
    return {**attempt, "cost": to_plain(from_plain(Cost, attempt["cost"]) + spent)}


def _went(state: EpisodeState, node: str, current: Attempt | None) -> EpisodeState:
    return {**state, "path": [*state["path"], node], "current": current}

"""From trajectories to training rows: ids exactly as sampled, the loss exactly on what the agent should have said.

Three kinds of rows come from a selection: *explore* (x → y⁺: the plain agent prompt, then the attempt), *repair*
(x, y⁻ → y⁺: what the repairer is asked, then what it should answer; learning from mistakes, ENVISIONS section 3.3, and the
reflector's own rows of Re-ReST) and *pair* (y⁺ preferred to y⁻, for DPO and the contrastive loss). A reflection in an
attempt's context is stripped from the agent's row (Re-ReST, section 3): the prompt is rendered anew, the sampled ids stay.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.agents.policies.policy import ChatMessage, Policy, Request, live
from kintsugi.agents.roles import Prompt
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig
from kintsugi.graphs.episode_nodes import repair_request, rollback_request
from kintsugi.graphs.turn_repair import turns
from kintsugi.records import Critique, DatasetRow, Fault, Observation, Pair, Trajectory
from kintsugi.training.casting import Troupe
from kintsugi.training.recipe import Recipe

Ids = tuple[int, ...]


class Rows:
    """Builds rows for one tokenizer and one set of prompts. `trajectories`: everything a selection may name, by id."""

    def __init__(
        self,
        chat: ChatTokens,
        *,
        actor: Prompt,
        repairer: Prompt,
        repair: RepairConfig,
        trajectories: Mapping[str, Trajectory],
        unlearned: Collection[str] = (),
        rules: EpisodeConfig | None = None,
    ) -> None:
        self.chat, self.actor, self.repairer, self.repair = chat, actor, repairer, repair
        self.trajectories = trajectories
        self.unlearned, self.rules = unlearned, rules or EpisodeConfig()

    @classmethod
    def of(cls, recipe: Recipe, troupe: Troupe, chat: ChatTokens, trajectories: Mapping[str, Trajectory]) -> Rows:
        """Rows in the recipe's own prompts and form of repair."""
        who = "reflector" if recipe.repair.who == "reflector" else "refiner"
        return cls(
            chat,
            actor=troupe.prompt("actor"),
            repairer=troupe.prompt(who),
            repair=recipe.repair,
            trajectories=trajectories,
            unlearned=recipe.targets.unlearned,
            rules=recipe.episode,
        )

    async def scores(
        self, trajectories: Sequence[Trajectory], policy: Policy, *, on_done: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Mean log-probability a token of each single-turn attempt under `policy`, by trajectory id (self-reward);
        longer attempts are left out."""

        async def score(one: Trajectory) -> tuple[str, float]:
            async with live(policy):
                messages = self.actor.messages(task=_opening(one), attempt="", feedback="", memory="")
                found = await policy.score(Request(messages=messages, key=one.id), one.text)
            on_done()
            return one.id, math.fsum(found) / max(1, len(found))

        return dict(await asyncio.gather(*(score(one) for one in trajectories if len(one.actions) == 1)))

    def explore(self, trajectory: Trajectory, *, weight: float = 1.0) -> DatasetRow:
        """x → y⁺."""
        ids, mask = self._attempt(trajectory)
        return DatasetRow(
            kind="explore", task_id=trajectory.task_id, trajectory_id=trajectory.id, ids=ids, mask=mask, weight=weight
        )

    def explore_rows(self, trajectory: Trajectory, *, weight: float = 1.0) -> list[DatasetRow]:
        """x → y⁺, a row for each stretch between turns that fell out of the history window: what the agent saw then, without
        loss, and the actions of the stretch. Without a window, or without token ids, one row."""
        known = [action.tokens for action in trajectory.actions]
        begins = [0, *(i for i, tokens in enumerate(known) if i and tokens is not None and tokens.restart), len(known)]
        if self.rules.history_turns is None or None in known or len(begins) == 2:
            return [self.explore(trajectory, weight=weight)]
        whole = DatasetRow(
            kind="explore", task_id=trajectory.task_id, trajectory_id=trajectory.id, ids=(), mask=(), weight=weight
        )
        stretches = [self._stretch(trajectory, first, end) for first, end in itertools.pairwise(begins)]
        return [dataclasses.replace(whole, ids=ids, mask=mask) for ids, mask in stretches]

    def pair(self, pair: Pair, *, weight: float = 1.0) -> DatasetRow:
        """y⁺ preferred to y⁻ after the same prompt."""
        chosen, rejected = self.trajectories[pair.chosen_id], self.trajectories[pair.rejected_id]
        ids, mask = self._attempt(chosen)
        rejected_ids, rejected_mask = self._attempt(rejected)
        return DatasetRow(
            kind="pair",
            task_id=pair.task_id,
            trajectory_id=chosen.id,
            ids=ids,
            mask=mask,
            rejected_trajectory_id=rejected.id,
            rejected_ids=rejected_ids,
            rejected_mask=rejected_mask,
            weight=weight,
        )

    def repair_row(self, pair: Pair, *, weight: float = 1.0) -> DatasetRow:
        """x, y⁻ → y⁺: what the repairer is asked about y⁻, then its answer.

        A chosen attempt that was sampled as the repair of exactly this rejected one keeps its own ids after the very
        context it was sampled in; for a reflection, that is the reflection. Any other chosen attempt stands as
        it is (for a rollback: what it has after the lines both share), or gives no loss where a reflection is wanted."""
        chosen, rejected = self.trajectories[pair.chosen_id], self.trajectories[pair.rejected_id]
        own = chosen.parent_id == rejected.id
        keep = chosen.actions[0].prefill if own and self.repair.form == "rollback" else None
        request, place = repair_request(self.repairer, self.repair, _opening(rejected), rejected, keep)
        if self.repair.reflects:
            answer = self._reflection(chosen) if own else ()
        elif own:
            tokens = chosen.actions[0].tokens
            kept = place.kept if place else ""
            answer = tokens.completion_ids if tokens else self.chat.completion_ids(chosen.actions[0].text[len(kept) :])
        elif self.repair.form == "rollback":
            fault, rest = rollback_cut(rejected, chosen, blind=self.repair.sees == "attempt")
            request = rollback_request(self.repairer, _opening(rejected), rejected.text, fault)
            answer = self.chat.completion_ids(rest)
        else:
            answer = self._answer(chosen)
        context = self.chat.context(request)
        return DatasetRow(
            kind="repair",
            task_id=pair.task_id,
            trajectory_id=chosen.id,
            ids=(*context, *answer),
            mask=(0,) * len(context) + (1,) * len(answer),
            rejected_trajectory_id=rejected.id,
            weight=weight,
        )

    def _reflection(self, trajectory: Trajectory) -> Ids:
        """The ids of the last reflection before the attempt, as sampled: one that was cut off has no end of turn."""
        said = [message for message in trajectory.messages if isinstance(message, Critique)]
        if not said:
            return ()
        return said[-1].tokens.completion_ids if said[-1].tokens else self.chat.completion_ids(said[-1].text)

    def _answer(self, trajectory: Trajectory) -> Ids:
        """The ids of a single action, kept lines included."""
        action = trajectory.actions[0]
        if action.tokens is None:
            return self.chat.completion_ids(action.text)
        return (*self._kept(trajectory), *action.tokens.completion_ids)

    def _kept(self, trajectory: Trajectory) -> Ids:
        """The ids of the lines a rollback kept: as the parent sampled them, where its tokens split there."""
        kept = trajectory.actions[0].prefill if trajectory.actions else ""
        if not kept:
            return ()
        parent = self.trajectories.get(trajectory.parent_id or "")
        if parent is not None and parent.actions[0].tokens is not None:
            ids = self._answer(parent)
            for end in range(1, len(ids) + 1):
                text = self.chat.decode(ids[:end])
                if text == kept:
                    return ids[:end]
                if len(text) > len(kept):
                    break
        return self.chat.completion_ids(kept)[: -len(self.chat.end_of_turn_ids)]

    def _attempt(self, trajectory: Trajectory) -> tuple[Ids, Ids]:
        """(ids, mask) of an attempt after the plain agent prompt; from its text where an action's ids are not known."""
        opening = _opening(trajectory)
        messages = self.actor.messages(task=opening, attempt="", feedback="", memory="")
        actions = trajectory.actions
        if any(action.tokens is None for action in actions):
            chat = list(messages)
            for message in trajectory.messages[1:]:
                if isinstance(message, Observation) or message in actions:
                    role = "user" if isinstance(message, Observation) else "assistant"
                    chat.append({"role": role, "content": message.text})  # type: ignore[union-attr]
            while chat and chat[-1]["role"] != "assistant":
                chat.pop()
            return self.chat.row(chat)
        return self._stretch(trajectory, 0, len(actions))

    def _stretch(self, trajectory: Trajectory, first: int, end: int) -> tuple[Ids, Ids]:
        """(ids, mask) of the turns from `first` to before `end`: the plain agent prompt, the earlier turns that the agent
        still saw then, and what was sampled. Where a context was built anew (after turns that a repair kept), what the
        environment said before it is encoded as going on from the ids so far."""
        said = turns(trajectory.messages)
        chat = list(self.actor.messages(task=_opening(trajectory), attempt="", feedback="", memory=""))
        for turn in said[self.rules.turns_dropped(first) : first]:
            chat += _exchange(*turn)
        ids = list(self.chat.context(Request(messages=tuple(chat))))
        mask = [0] * len(ids)
        for index in range(first, end):
            tokens, learned = trajectory.actions[index].tokens, int(not said[index][1].startswith(tuple(self.unlearned)))
            assert tokens is not None
            kept = self._kept(trajectory) if index == 0 else ()
            given: Ids = () if index == first else tokens.context_ids
            if index > first and tokens.restart:
                so_far = Request(messages=tuple(chat), prior_ids=tuple(ids), prior_messages=len(chat) - 1)
                given = self.chat.context(so_far)[len(ids) :]
            ids += [*kept, *given, *tokens.completion_ids]
            mask += [learned] * len(kept) + [0] * len(given) + [learned] * len(tokens.completion_ids)
            chat += _exchange(*said[index])
        return tuple(ids), tuple(mask)


def rollback_cut(rejected: Trajectory, chosen: Trajectory, *, blind: bool = False) -> tuple[Fault, str]:
    """Where a failed program leaves the right one: (kept, bad, note) and what the right one has instead.

    The environment's own located fault is used when the right program agrees with everything before it; else (and for
    a repairer that is not told it, `blind`) the first line in which the two differ, with the note "wrong"."""
    fault = None if blind else rejected.fault
    if fault is not None and chosen.text.startswith(fault.kept):
        return fault, chosen.text[len(fault.kept) :]
    wrong, right = rejected.text.splitlines(keepends=True), chosen.text.splitlines(keepends=True)
    same = 0
    while same < min(len(wrong), len(right)) and wrong[same] == right[same]:
        same += 1
    kept = "".join(wrong[:same])
    bad = wrong[same].rstrip("\n") if same < len(wrong) else ""
    return Fault(kept=kept, bad=bad, note="wrong"), "".join(right[same:])


def _exchange(action: str, answer: str) -> tuple[ChatMessage, ChatMessage]:
    return ChatMessage(role="assistant", content=action), ChatMessage(role="user", content=answer)


def _opening(trajectory: Trajectory) -> str:
    first = trajectory.messages[0]
    assert isinstance(first, Observation), "a trajectory begins with what the environment said"
    return first.text


"""Rows of attempts that go on from a turn of a lost one: the kept turns with the ids they were sampled with, the reflection
left out, and what was sampled after it; with a history window, and after a repair of a repair."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.agents.policies.policy import ChatMessage, Completion, Request
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan
from kintsugi.graphs.rollout import play_wave
from kintsugi.graphs.worlds import Worlds
from kintsugi.records import Action, Critique, Observation, Pair, Trajectory
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.training.exports import RoleChats
from kintsugi.training.rows import Rows
from kintsugi.training.small_model import make_small_model
from kintsugi.training.warm_start import load_chat

SLIPS = ("dance", "take moon")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatTokens:
    texts = ["go north, take lamp, put lamp", "You are in the hall."] * 5
    return load_chat(make_small_model(texts, tmp_path_factory.mktemp("model")))


def odd(chat: ChatTokens, text: str) -> tuple[int, ...]:
    """Ids of `text` as no tokenizer would cut it: character by character, then the end of turn."""
    return tuple(i for letter in text for i in chat.completion_ids(letter)[:-1]) + chat.end_of_turn_ids


class Slipping:
    """Follows the plan; after so many hints as there were slips it slips no more. Where it slips it gives up."""

    name, version = "slipping", "s0"

    def __init__(self, chat: ChatTokens, plan: Sequence[str]) -> None:
        self.chat, self.plan = chat, plan

    async def complete(self, request: Request) -> list[Completion]:
        text = self.answer(request)
        ids = odd(self.chat, text)
        context = self.chat.context(request)
        return [Completion(text=text, prompt_ids=context, token_ids=ids, logprobs=(-0.5,) * len(ids))]

    def answer(self, request: Request) -> str:
        messages = request.messages
        if "Write the reflection" in messages[-1]["content"]:
            return "HINT: keep going"
        hints = messages[1]["content"].count("HINT")
        if any(message["content"] in SLIPS for message in messages):
            return "quit"
        # A window may hide turns: the key counts the messages of the attempt.
        num_done = (int(request.key.rpartition(":")[2]) - 1 - hints) // 2
        return SLIPS[hints] if hints < len(SLIPS) and num_done == hints + 1 else self.plan[num_done]

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        raise NotImplementedError

    async def close(self) -> None:
        return None


def hunts(chat: ChatTokens, rules: EpisodeConfig | None = None) -> tuple[Trajectory, ...]:
    """Two lost hunts, each gone on from before its slip, and the won one."""

    async def play() -> tuple[Trajectory, ...]:
        environment = open_environment("treasure_hunt")
        plans = [(task, await environment.gold(task) or ()) for task in environment.tasks("train", limit=9)]
        task, way = next(both for both in plans if len(both[1]) > 4)
        policy = Slipping(chat, way)
        roles = {name: Role(name=name, policy=policy, prompt=load_prompt("react", name)) for name in ("actor", "reflector")}
        repair = RepairConfig(who="reflector", form="from_turn", rounds=2)
        cast = Cast(roles=roles, worlds=Worlds(environment), repair=repair, episode=rules or EpisodeConfig())
        plan = EpisodePlan(run_id="r", purpose="explore", round=1, task=task, sample=0, seed=0, policy_version="s0")
        return (await play_wave([plan], cast))[0].trajectories

    return asyncio.run(play())


def built(chat: ChatTokens, *known: Trajectory, rules: EpisodeConfig | None = None) -> Rows:
    return Rows(
        chat,
        actor=load_prompt("react", "actor").without_shots(),
        repairer=load_prompt("react", "reflector"),
        repair=RepairConfig(who="reflector", form="from_turn"),
        trajectories={one.id: one for one in known},
        rules=rules,
    )


def spelled(chat: ChatTokens, one: Trajectory) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The row as it should be, put together message by message: sampled ids, and the template's between them."""
    task, prompt = one.messages[0].text, load_prompt("react", "actor").without_shots()  # type: ignore[union-attr]
    said: list[Any] = list(prompt.messages(task=task, attempt="", feedback="", memory=""))
    ids = list(chat.context(Request(messages=tuple(said))))
    mask = [0] * len(ids)
    for message in one.messages[1:]:
        if isinstance(message, Action):
            assert message.tokens is not None
            if said[-1]["role"] == "user" and len(said) > 2:
                grown = chat.context(Request(messages=tuple(said), prior_ids=tuple(ids), prior_messages=len(said) - 1))
                mask += [0] * (len(grown) - len(ids))
                ids = list(grown)
            ids += message.tokens.completion_ids
            mask += [1] * len(message.tokens.completion_ids)
            said.append(ChatMessage(role="assistant", content=message.text))
        elif isinstance(message, Observation):
            said.append(ChatMessage(role="user", content=message.text))
    return tuple(ids), tuple(mask)


def test_a_row_is_token_for_token_what_was_sampled(chat: ChatTokens) -> None:
    one, two, won = hunts(chat)
    assert won.success and [critique.kept for critique in won.messages if isinstance(critique, Critique)] == [1, 2]
    assert won.actions[0] == one.actions[0] and won.actions[1] == two.actions[1]
    # Of a repair, and of the repair of a repair, with and without the attempts that they keep turns of.
    for attempt in (two, won):
        for known in ((attempt,), (one, two, won)):
            row = built(chat, *known).explore(attempt)
            assert (row.ids, row.mask) == spelled(chat, attempt)
            assert "HINT" not in chat.decode(row.ids) and row.trajectory_id == attempt.id
    row = built(chat, won).explore(won)
    learned = [token for token, at in zip(row.ids, row.mask, strict=True) if at]
    assert learned == [token for action in won.actions for token in odd(chat, action.text)]
    assert built(chat, won).explore_rows(won) == [row]


def test_what_came_to_nothing_gets_no_loss_there_either(chat: ChatTokens) -> None:
    _, _, won = hunts(chat)
    builder = built(chat, won)
    whole = builder.explore(won)
    first = next(message.text for message in won.messages[1:] if isinstance(message, Observation))
    builder.unlearned = (first,)
    row = builder.explore(won)
    assert row.ids == whole.ids and sum(whole.mask) - sum(row.mask) == len(odd(chat, won.actions[0].text))


def test_a_history_window_keeps_every_sampled_token_once(chat: ChatTokens) -> None:
    rules = EpisodeConfig(history_turns=2)
    one, two, won = hunts(chat, rules)
    assert won.success
    made = built(chat, one, two, won, rules=rules).explore_rows(won)
    learned = [token for row in made for token, at in zip(row.ids, row.mask, strict=True) if at]
    assert len(made) > 1 and learned == [token for action in won.actions for token in odd(chat, action.text)]
    assert all("HINT" not in chat.decode(row.ids) for row in made)


def test_the_reflector_learns_what_it_was_asked_with_numbers(chat: ChatTokens) -> None:
    one, two, won = hunts(chat)
    pair = Pair(task_id=won.task_id, rejected_id=two.id, chosen_id=won.id)
    row = built(chat, one, two, won).repair_row(pair)
    asked = chat.decode(row.ids[: row.mask.index(1)])
    assert "2> " in asked and "First mistake: N" in asked
    assert chat.decode([token for token, at in zip(row.ids, row.mask, strict=True) if at]) == "HINT: keep going"
    actor, reflector = (load_prompt("react", role).without_shots() for role in ("actor", "reflector"))
    chats = RoleChats(actor, reflector, built(chat).repair)
    prompt, answer, _ = chats.repair(two, won)
    assert "First mistake: N" in prompt[-1]["content"] and answer == [{"role": "assistant", "content": "HINT: keep going"}]


def test_a_preferred_pair_shares_the_kept_turns(chat: ChatTokens) -> None:
    _, two, won = hunts(chat)
    row = built(chat, two, won).pair(Pair(task_id=won.task_id, rejected_id=two.id, chosen_id=won.id))
    assert (row.ids, row.rejected_ids) == (spelled(chat, won)[0], spelled(chat, two)[0])


def test_an_edited_kept_action_makes_a_row_from_text(chat: ChatTokens) -> None:
    """Ids are not known where a person acted: the row then comes from the texts, the reflection left out all the same."""
    _, _, won = hunts(chat)
    edited = dataclasses.replace(won.actions[0], tokens=None)
    one = dataclasses.replace(won, messages=tuple(edited if m is won.actions[0] else m for m in won.messages))
    row = built(chat, one).explore(one)
    assert "HINT" not in chat.decode(row.ids) and sum(row.mask) > 0


def test_empty_notes_do_not_break_the_ids(chat: ChatTokens) -> None:
    """Nothing was worth noting: the agent still acts in a chat of its own, whose ids go on from one another."""
    one, _, _ = hunts(chat)

    async def play() -> Trajectory:
        environment: Any = open_environment("treasure_hunt")
        task = next(each for each in environment.tasks("train", limit=50) if each.id == one.task_id)
        policy = Slipping(chat, ["look"] * 3 + ["quit"])
        environment.__class__ = type("Silent", (type(environment),), {"notes": lambda self, task, turns: ""})
        role = Role(name="actor", policy=policy, prompt=load_prompt("react", "actor").without_shots())
        repair = RepairConfig(who="self", form="again", words="notes")
        cast = Cast(roles={"actor": role, "refiner": role}, worlds=Worlds(environment), repair=repair)
        plan = EpisodePlan(run_id="r", purpose="explore", round=1, task=task, sample=0, seed=0, policy_version="s0")
        return (await play_wave([plan], cast))[0].trajectories[1]

    again = asyncio.run(play())
    assert len(again.actions) > 1 and not any(action.tokens and action.tokens.restart for action in again.actions)

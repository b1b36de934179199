"""A small model's tool-use trace trains without an observation in the loss: played, turned into rows, learned from.

The trace comes from a real (tiny, untrained) model through the transformers policy, or from a scripted policy with ids that
no tokenizer would choose; in both, every token under the loss is a token of an action as it was sampled.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.agents.policies.policy import Completion, Policy, Request, Sampling, open_policy
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan
from kintsugi.graphs.rollout import play_wave
from kintsugi.graphs.worlds import Worlds
from kintsugi.records import Observation, Task, Trajectory
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.training.learn import learn
from kintsugi.training.learn_config import LearnConfig
from kintsugi.training.rows import Rows
from kintsugi.training.small_model import SmallModelConfig, make_small_model
from kintsugi.training.warm_start import load_chat

pytest.importorskip("bm25s", reason='searching needs bm25s: pip install "kintsugi-agents[hotpotqa]"')

NUM_TASKS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model whose tokenizer knows the questions, the pages and the actions."""
    environment: Any = open_environment("hotpotqa")
    texts = ["Thought: next.\nAction: search[", "There is no page. Similar: ", "lookup[", "finish[yes]"]
    for task in environment.tasks("demonstrations"):
        texts += [task.prompt, *("".join(sentences) for _, sentences in task.payload["context"])]
    config = SmallModelConfig(hidden=32, layers=2, intermediate=64, max_positions=4096)
    return make_small_model(texts, tmp_path_factory.mktemp("model") / "small", config)


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatTokens:
    return load_chat(folder)


class Gold:
    """Plays each question's gold actions, thinking aloud, sampled letter by letter; feeds `prior_ids` as a model does."""

    name = version = "gold"

    def __init__(self, chat: ChatTokens, plans: dict[str, list[str]]) -> None:
        self.chat, self.plans = chat, plans

    async def complete(self, request: Request) -> list[Completion]:
        question = next(message["content"] for message in request.messages if message["content"] in self.plans)
        done = sum(message["role"] == "assistant" for message in request.messages)
        text = self.plans[question][done]
        ids = tuple(i for letter in text for i in self.chat.completion_ids(letter)[:-1]) + self.chat.end_of_turn_ids
        return [Completion(text=text, prompt_ids=self.chat.context(request), token_ids=ids, logprobs=(-0.5,) * len(ids))]

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        raise NotImplementedError

    async def close(self) -> None:
        return None


def traces(policy: Policy, tasks: list[Task], sampling: Sampling) -> list[Trajectory]:
    async def main() -> list[Trajectory]:
        prompt = load_prompt("react_qa", "actor").without_shots()
        actor = Role(name="actor", policy=policy, prompt=prompt, sampling=sampling)
        cast = Cast(roles={"actor": actor}, worlds=Worlds(open_environment("hotpotqa")))
        plans = [
            EpisodePlan(run_id="r", purpose="explore", round=1, task=task, sample=0, seed=n, policy_version="v")
            for n, task in enumerate(tasks)
        ]
        played = [episode.trajectories[0] for episode in await play_wave(plans, cast)]
        await policy.close()
        return played

    return asyncio.run(main())


def played(who: str, folder: Path, chat: ChatTokens) -> list[Trajectory]:
    environment: Any = open_environment("hotpotqa")
    tasks = environment.tasks("train", limit=NUM_TASKS)
    if who == "model":
        policy = open_policy("transformers", {"path": str(folder), "threads": 1})
        return traces(policy, tasks, Sampling(temperature=1.0, max_tokens=12, seed=3))
    turns = {
        task.prompt: [f"Thought: on.\nAction: {action}" for action in asyncio.run(environment.gold(task))] for task in tasks
    }
    return traces(Gold(chat, turns), tasks, Sampling())


def rows_of(chat: ChatTokens, found: list[Trajectory]) -> Rows:
    return Rows(
        chat,
        actor=load_prompt("react_qa", "actor").without_shots(),
        repairer=load_prompt("react_qa", "reflector"),
        repair=RepairConfig(who="reflector", form="again"),
        trajectories={one.id: one for one in found},
    )


@pytest.mark.parametrize("who", ["model", "gold"])
def test_every_token_under_the_loss_is_an_actions(who: str, folder: Path, chat: ChatTokens) -> None:
    found = played(who, folder, chat)
    assert len(found) == NUM_TASKS and all(len(one.actions) >= 3 for one in found)
    assert all(one.success for one in found) == (who == "gold")
    builder = rows_of(chat, found)
    for one in found:
        row = builder.explore(one)
        at = 0
        for action in one.actions:  # the row is context, action, context, action …, id by id as fed and sampled
            tokens = action.tokens
            assert tokens is not None and not tokens.restart and tokens.completion_ids
            for ids, learned in ((tokens.context_ids, 0), (tokens.completion_ids, 1)):
                assert row.ids[at : at + len(ids)] == ids
                assert row.mask[at : at + len(ids)] == (learned,) * len(ids)
                at += len(ids)
        assert at == len(row.ids) == len(row.mask)
        last = max(place for place, message in enumerate(one.messages) if message in one.actions)
        seen = [message.text for message in one.messages[:last] if isinstance(message, Observation)]
        unlearned = chat.decode([token for token, learn in zip(row.ids, row.mask, strict=True) if not learn])
        assert len(seen) >= 3 and all(text in unlearned for text in seen)


def test_a_row_from_text_learns_the_actions_alone(folder: Path, chat: ChatTokens) -> None:
    """A demonstration or a served model gives text without ids: the same holds."""
    import dataclasses

    one = played("gold", folder, chat)[0]
    bare = [dataclasses.replace(message, tokens=None) if message in one.actions else message for message in one.messages]
    text = dataclasses.replace(one, messages=tuple(bare))
    row = rows_of(chat, [text]).explore(text)
    learned = chat.decode([token for token, learn in zip(row.ids, row.mask, strict=True) if learn])
    assert learned + chat.end_of_turn == "".join(action.text + chat.end_of_turn for action in one.actions)
    seen = [message.text for message in one.messages[1:] if isinstance(message, Observation) and message.text]
    assert seen and not any(part in learned for part in seen)


def test_the_trace_trains(folder: Path, chat: ChatTokens, tmp_path: Path) -> None:
    """A few optimizer steps on the rows: the actions become likelier; the loss counts their tokens only."""
    found = played("gold", folder, chat)
    rows = [rows_of(chat, found).explore(one) for one in found]
    losses: list[float] = []
    config = LearnConfig(lr=3e-3, steps=12, batch_tokens=4096, max_length=4096)
    learn(
        rows,
        model=folder,
        out=tmp_path / "learned",
        config=config,
        seed=0,
        on_step=lambda step, of, loss: losses.append(loss),
        threads=1,
    )
    assert losses[-1] < losses[0] - 0.5, losses

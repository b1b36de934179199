"""Exported rows ask what the policy was really asked: system and user messages as rendered, and the prefill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import kintsugi
from kintsugi.agents.policies.policy import Request
from kintsugi.ledger import Ledger
from kintsugi.records import Fault, Task, Verdict
from kintsugi.sandboxes.environments.environment import Environment, ProgramEnvironment, open_environment
from kintsugi.training.recipe import Recipe, load_recipe
from kintsugi.training.run_folder import RunFolder
from tests.graphs.episode_players import TokenPolicy, cast_of, plan_of, played, turn

WRONG, RIGHT = "one\nthree", "one\ntwo"


class Lines(ProgramEnvironment):
    """Wants two lines; objects to the second."""

    name = "lines"

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        return [Task(id="t", environment="lines", split=split, prompt="Count to $two.")]

    async def judge(self, task: Task, action: str) -> Verdict:
        if action == RIGHT:
            return Verdict(success=True, reward=1.0)
        fault = Fault(kept="one\n", bad="three", note="too many")
        return Verdict(success=False, reward=0.0, feedback="three is too many", fault=fault)


def recipe_for(tmp_path: Path, environment: str, prompts: str, repair: dict[str, Any]) -> Recipe:
    text = f'[environment]\nname = "{environment}"\n[model]\nkind = "scripted"\nprompts = "{prompts}"\n[repair]\n'
    (tmp_path / "mine.toml").write_text(text + "".join(f'{key} = "{value}"\n' for key, value in repair.items()))
    return load_recipe(str(tmp_path / "mine.toml"))


def run_of(
    tmp_path: Path,
    recipe: Recipe,
    environment: Environment,
    policy: TokenPolicy,
    task: Task,
    repairer: TokenPolicy | None = None,
) -> Path:
    """A run folder in which the policy has played one episode."""
    repair = recipe.repair.model_dump()
    cast = cast_of(policy, environment, prompts=recipe.model.prompts, repair=repair, repairer=repairer)
    run = RunFolder.create(tmp_path / "run", recipe=recipe.model_dump(mode="json"), seed=0, name="mine", run_id="r")
    with Ledger.open(run.path) as ledger:
        ledger.add_tasks([task])
        ledger.commit_episodes(played(cast, plan_of(task)))
    return run.path


def rows_of(run: Path, kind: str, **options: Any) -> list[dict[str, Any]]:
    with Ledger.open(run, read_only=True) as ledger:
        kintsugi.export(ledger, kind, run / "rows.jsonl", **options)
    return [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]


def chat_of(request: Request) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in request.messages]


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("prompts", ["program", "bare"])
@pytest.mark.parametrize("form", ["rewrite", "rollback"])
@pytest.mark.parametrize("who", ["self", "reflector"])
def test_programs(tmp_path: Path, prompts: str, form: str, who: str) -> None:
    recipe = recipe_for(tmp_path, "lines", prompts, {"who": who, "form": form})
    environment, answers = Lines(), iter([WRONG, RIGHT if form == "rewrite" else "two"])
    policy = TokenPolicy(lambda _: next(answers))
    run = run_of(tmp_path, recipe, environment, policy, environment.tasks("train")[0])
    first, repair = policy.requests
    asked = chat_of(first)
    assert "Count to $two." in asked[-1]["content"]
    assert (asked[0]["role"] == "system") == (prompts == "program"), "the prompt set has a system message"

    (sft,) = rows_of(run, "sft")
    assert sft["messages"] == [*asked, assistant(RIGHT)]
    (dpo,) = rows_of(run, "dpo")
    assert (dpo["prompt"], dpo["chosen"], dpo["rejected"]) == (asked, [assistant(RIGHT)], [assistant(WRONG)])
    (mended,) = rows_of(run, "repairs")
    assert mended["prompt"] == chat_of(repair) and "too many" in mended["prompt"][-1]["content"]
    assert mended["prefill"] == repair.prefill == ("" if form == "rewrite" else "one\n")
    assert mended["completion"] == [assistant(RIGHT)]


def test_many_turns(tmp_path: Path) -> None:
    """The agent's chat without the reflection; the reflector's with what it reflected on, and its reflection as answer."""
    recipe = recipe_for(tmp_path, "treasure_hunt", "react", {"who": "reflector", "form": "again"})
    environment = open_environment("treasure_hunt")
    task = environment.tasks("train", limit=1)[0]
    gold = list(asyncio.run(environment.gold(task)) or ())
    agent = TokenPolicy(lambda chat: gold[turn(chat)] if "Look first." in str(chat) else "quit")
    reflector = TokenPolicy(lambda _: "Look first.")
    run = run_of(tmp_path, recipe, environment, agent, task, reflector)
    asked, (reflection,) = chat_of(agent.requests[0]), reflector.requests
    assert "Look first." in str(agent.requests[1].messages), "the agent was told of the reflection"
    (sft,) = rows_of(run, "sft")
    assert sft["messages"][: len(asked)] == asked and "Look first." not in json.dumps(sft)
    assert [one["content"] for one in sft["messages"][len(asked) :: 2]] == gold
    (mended,) = rows_of(run, "repairs")
    assert mended["prompt"] == chat_of(reflection) and mended["completion"] == [assistant("Look first.")]


def test_a_ledger_by_itself(tmp_path: Path) -> None:
    """It knows no prompts: the environment's words alone, unless a recipe is named."""
    recipe = recipe_for(tmp_path, "lines", "program", {"who": "self"})
    environment, answers = Lines(), iter([WRONG, RIGHT])
    run = run_of(tmp_path, recipe, environment, TokenPolicy(lambda _: next(answers)), environment.tasks("train")[0])
    named = rows_of(run, "sft")
    (run / "run.json").unlink()
    (alone,) = rows_of(run, "sft")
    assert alone["messages"] == [{"role": "user", "content": "Count to $two."}, assistant(RIGHT)]
    assert rows_of(run, "sft", recipe=recipe) == named != [alone]

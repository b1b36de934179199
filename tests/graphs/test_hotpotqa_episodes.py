"""HotpotQA through the episode graph: scripted, in ReAct's form and by native tool calls, many at once; LangChain tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from kintsugi.agents.policies.langchain_policy import open_policy
from kintsugi.agents.policies.policy import ChatMessage, Policy
from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan
from kintsugi.graphs.rollout import play_wave
from kintsugi.graphs.worlds import Worlds
from kintsugi.records import Action, Critique, Episode, Observation, Task, Trajectory, Verdict
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.hotpotqa_tools import SCHEMAS, langchain_tools

pytest.importorskip("bm25s", reason='searching needs bm25s: pip install "kintsugi-agents[hotpotqa]"')

ARGUMENTS = {"search": "title", "lookup": "text", "finish": "answer"}
AGAIN = RepairConfig(who="reflector", form="again", on="failures")
NATIVE = "kintsugi.sandboxes.environments.hotpotqa_tools:SCHEMAS"


def environment(**options: Any) -> Any:
    return open_environment("hotpotqa", options)


def plans_by_question(number: int, turn: Callable[[str], str] = str) -> tuple[list[Task], dict[str, list[str]]]:
    """Tasks and, for each question, the gold policy's messages."""
    source = environment()
    tasks = source.tasks("train", limit=number)
    return tasks, {task.prompt: [turn(action) for action in asyncio.run(source.gold(task))] for task in tasks}


def episodes(tasks: Sequence[Task], policy: Policy, prompts: str = "react_qa", **more: Any) -> list[Episode]:
    async def main() -> list[Episode]:
        worlds = Worlds(environment())
        roles = {name: Role(name=name, policy=policy, prompt=load_prompt(prompts, name)) for name in ("actor", "reflector")}
        cast = Cast(roles=roles, worlds=worlds, **more)
        plans = [
            EpisodePlan(run_id="r", purpose="explore", round=1, task=task, sample=0, seed=5, policy_version="v")
            for task in tasks
        ]
        played = await play_wave(plans, cast)
        assert worlds.crashes == 0 and not worlds._live
        return played

    return asyncio.run(main())


def scripted(plans: dict[str, list[str]], skipped: int = 0) -> ScriptedPolicy:
    """Plays the plan of the question in the chat; `skipped`: messages of the prompt's own examples."""

    def answer(messages: tuple[ChatMessage, ...], _: int) -> str:
        live = messages[skipped:]
        question = next(message["content"] for message in live if message["role"] == "user")
        return plans[question][sum(message["role"] == "assistant" for message in live)]

    return ScriptedPolicy(answer)


def spoken(trajectory: Trajectory) -> list[tuple[str, str]]:
    return [(type(one).__name__, one.text) for one in trajectory.messages if not isinstance(one, Verdict)]


def test_sixty_four_scripted_episodes_at_once() -> None:
    tasks, plans = plans_by_question(64, lambda action: f"Thought: on.\nAction: {action}")
    examples = len(load_prompt("react_qa", "actor").messages(task="?", attempt="", feedback="", memory="")) - 1
    first = episodes(tasks, scripted(plans, examples))
    assert [episode.success for episode in first] == [True] * 64
    again = episodes(tasks, scripted(plans, examples))
    assert [spoken(one.trajectories[0]) for one in first] == [spoken(one.trajectories[0]) for one in again]
    for task, episode in zip(tasks, first, strict=True):
        verdict = episode.trajectories[0].messages[-1]
        assert isinstance(verdict, Verdict) and verdict.detail == {"exact_match": 1.0, "f1": 1.0}
        assert [action.text for action in episode.trajectories[0].actions] == plans[task.prompt]


class ToolCaller(BaseChatModel):
    """A chat model that calls the tools of a plan, as a served model would; it reads results from tool messages only."""

    plans: dict[str, list[str]]

    @property
    def _llm_type(self) -> str:
        return "tool-caller"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        assert tools == SCHEMAS
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        question = next(str(message.content) for message in messages if isinstance(message, HumanMessage))
        results = [message for message in messages if isinstance(message, ToolMessage)]
        calls = [call for message in messages if isinstance(message, AIMessage) for call in message.tool_calls]
        assert [call["id"] for call in calls] == [result.tool_call_id for result in results]
        assert sum(isinstance(message, HumanMessage) for message in messages) == 1
        name, _, rest = self.plans[question][len(results)].partition("[")
        call = {"name": name, "args": {ARGUMENTS[name]: rest[:-1]}, "id": "x"}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content="", tool_calls=[call]))])


def test_native_tool_calls_play_the_same_episodes() -> None:
    tasks, plans = plans_by_question(8)
    native = episodes(tasks, open_policy(ToolCaller(plans=plans), tools=NATIVE), prompts="tools_qa")
    text = episodes(tasks, scripted(plans), prompts="tools_qa")
    assert all(episode.success for episode in native)
    assert [spoken(one.trajectories[0]) for one in native] == [spoken(one.trajectories[0]) for one in text]


def test_a_reflector_sees_the_whole_lost_attempt_and_the_feedback() -> None:
    (task,), plans = plans_by_question(1)
    gold = plans[task.prompt]
    seen: list[str] = []

    def answer(messages: tuple[ChatMessage, ...], _: int) -> str:
        if "Write the reflection." in messages[-1]["content"]:
            seen.append(messages[-1]["content"])
            return "Open the second page before answering."
        done = sum(message["role"] == "assistant" for message in messages)
        hinted = any("Open the second page" in message["content"] for message in messages)
        return gold[done] if hinted or done == 0 else "finish[a wild guess]"

    (episode,) = episodes([task], ScriptedPolicy(answer), prompts="tools_qa", repair=AGAIN)
    lost, won = episode.trajectories
    assert (lost.stop, won.stop) == ("failure", "success") and won.parent_id == lost.id
    first_page = gold[0].removeprefix("search[").removesuffix("]")
    assert f'"a wild guess" is not the answer. Pages opened: {first_page}.' in seen[0]
    read = [message.text for message in lost.messages[1:] if isinstance(message, Observation)]
    assert len(read) == 1 and read[0] in seen[0] and f"> {gold[0]}" in seen[0]
    assert task.payload["answer"] not in lost.feedback
    assert any(isinstance(message, Critique) for message in won.messages)
    assert all(isinstance(one, Action) for one in won.actions)


def test_out_of_turns_is_a_failure_to_repair() -> None:
    (task,), _ = plans_by_question(1)
    (episode,) = episodes([task], ScriptedPolicy(lambda messages, _: "think: and on"), prompts="tools_qa")
    (only,) = episode.trajectories
    assert only.stop == "truncated" and len(only.actions) == 7 and only.cost.executions == 0
    assert only.feedback == "out of turns: 7 actions did not reach the goal"


def test_langchain_tools_act_on_a_world() -> None:
    """For agents that LangChain runs by itself."""

    async def main() -> None:
        source = environment()
        task = source.tasks("train", limit=1)[0]
        world = await source.start(task)
        tools = {tool.name: tool for tool in langchain_tools(world)}
        assert {name: list(tool.args) for name, tool in tools.items()} == {n: [a] for n, a in ARGUMENTS.items()}
        titles = [title for title, _ in task.payload["supporting_facts"]]
        assert (await tools["search"].ainvoke({"title": titles[0]})).startswith(f"{titles[0]}: ")
        assert (await tools["lookup"].ainvoke({"text": titles[0].upper()})).startswith("(Result 1 / ")
        call = {"name": "search", "args": {"title": "no\nsuch page"}, "id": "c1", "type": "tool_call"}
        result = await tools["search"].ainvoke(call)
        assert isinstance(result, ToolMessage) and "There is no page" in str(result.content)
        assert world.verdict is None
        assert await tools["finish"].ainvoke({"answer": task.payload["answer"]}) == "The attempt is over."
        assert world.verdict is not None and world.verdict.success
        assert await tools["finish"].ainvoke({"answer": "x"}) == "The question has been answered."

    asyncio.run(main())

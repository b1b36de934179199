"""What several tests of environments do alike: play scripted episodes, throw odd texts, replay a page's transcript."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.graphs.rollout import play_wave
from kintsugi.records import Action, Cost, Episode, Observation, Task, Verdict, to_plain
from kintsugi.sandboxes.environments.conformance import LONGEST_FEEDBACK, malformed_actions, play
from kintsugi.sandboxes.environments.environment import Environment, open_environment
from tests.graphs.episode_players import cast_of, plan_of

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
LOCAL = {"kind": "local", "allow_unsafe": True}
FOREIGN = (
    "search[Eiffel Tower]",
    "go north",
    'agent.click_xpath("//button")',
    "finish[42]",
    '{"name": "python", "arguments": {"code": "print(1)"}}',
    "<tool_call>\n</tool_call>",
    "#script(python) import os; os.system('id') #end.",
    "h(0,1,0). d(X) :- X = 1..99999999.",
    "Facts:\nA(x, True)\nQuery:\nA(x, True) :- not B.",
    "Rules:\nP($x, True) >>> P($x, False)\nQuery:\nP(a, True)",
    "Facts:\n" + "A(b, True)\n" * 2_000 + "Query:\nA(b, True)",
    "Query:\n" + "A(" * 3_000,
    "\\boxed{",
    "\\boxed{}",
    "\\boxed{" * 500 + "}" * 500,
    "import sys; sys.exit(0)",
    "while True: pass" + "\x00",
    "__import__('os')._exit(0)",
    "class E:\n    def __eq__(self, other): return True\nprint(E())",
    "def solution():\n    return [solution] * 10\nprint(solution())",
    "print('\\ud800')",
    "print(float('nan'))",
    "print(9 ** 99)",
    "exec('print(1)')",
    "raise SystemExit('gold')",
)


def opened(kind: str, **options: Any) -> Any:
    """The environment with its bundled set, in a local sandbox."""
    return open_environment(kind, {"data": "bundled", "sandbox": LOCAL, **options})


def scripted_episodes(environment: Environment, prompts: str, num: int = 50) -> list[Episode]:
    """`num` concurrent episodes: every third actor fails at first and its refiner writes the gold; closes nothing."""
    tasks = [*environment.tasks("train"), *environment.tasks("heldout"), *environment.tasks("demonstrations")]

    async def main() -> list[Episode]:
        golds = {task.prompt: (await environment.gold(task) or [""])[0] for task in tasks}

        def answer(messages: Any, sample: int) -> str:
            prompt = next(text for text in golds if any(text in message["content"] for message in messages[-1:]))
            improving = messages[-1]["content"] != prompt
            return golds[prompt] if improving or len(prompt) % 3 else golds[prompt][: len(golds[prompt]) // 2]

        cast = cast_of(
            ScriptedPolicy(answer),
            environment,
            prompts=prompts,
            timeout_s=60.0,
            repair={"who": "self", "on": "failures", "form": "rewrite", "sees": "feedback", "rounds": 1},
        )
        plans = [plan_of(tasks[index % len(tasks)], sample=index // len(tasks)) for index in range(num)]
        return await play_wave(plans, cast)

    return asyncio.run(main())


def without_clock(episodes: Sequence[Episode]) -> list[Any]:
    """The episodes without what a clock said."""
    return [
        dataclasses.replace(
            episode,
            trajectories=tuple(
                dataclasses.replace(part, cost=Cost(executions=part.cost.executions)) for part in episode.trajectories
            ),
        )
        for episode in episodes
    ]


async def odd_verdicts(environment: Environment, num: int = 1000) -> list[str]:
    """`num` malformed actions, many at once; sentences about whatever is not a verdict with usable feedback."""
    task = environment.tasks("train", limit=1)[0]
    gold = (await environment.gold(task) or [""])[0]
    actions = [*FOREIGN, *malformed_actions(gold, num - len(FOREIGN))]
    objections: list[str] = []

    async def one(action: str) -> None:
        (reply,) = await play(environment, task, [action])
        verdict = reply.verdict
        if verdict is None or verdict.error:
            objections.append(f"{action[:60]!a} got {verdict}")
        elif not verdict.success and not 0 < len(verdict.feedback.strip()) <= LONGEST_FEEDBACK:
            objections.append(f"{action[:60]!a} got feedback of {len(verdict.feedback)} characters")
        else:
            str(to_plain(verdict)).encode()

    for start in range(0, num, 50):
        await asyncio.gather(*map(one, actions[start : start + 50]))
    assert len(actions) == num
    return objections


def transcript(environment: Environment, task: Task, first: str, second: str) -> str:
    """An episode whose actor says `first` and whose reflector says `second`, as the pages under docs show it."""
    policy = ScriptedPolicy(lambda messages, sample: second if first in messages[-1]["content"] else first)
    repair = {"who": "reflector", "on": "failures", "form": "rewrite", "sees": "feedback", "rounds": 1}
    cast = cast_of(policy, environment, prompts="program", repair=repair, timeout_s=60.0)
    (episode,) = asyncio.run(play_wave([plan_of(task)], cast))
    parts: list[str] = []
    for trajectory in episode.trajectories:
        for message in trajectory.messages:
            match message:
                case Observation() if not parts:
                    parts.append(f"task {task.id}\n{message.text}")
                case Action():
                    parts.append(f"{'actor' if trajectory.stage == 'explore' else 'reflector'}\n{message.text}")
                case Verdict():
                    parts.append(f"{'success' if message.success else 'failure'}\n{message.feedback}")
                case _:
                    pass
    return "\n\n".join(indented(part) for part in parts)


def indented(part: str) -> str:
    """The first line as it is, the others moved to the right."""
    head, *rest = part.split("\n")
    return "\n".join([f"{head}:", *(f"  {line}".rstrip() for line in rest)])

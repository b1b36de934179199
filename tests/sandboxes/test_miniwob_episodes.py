"""MiniWoB++ with many attempts at once: 50 episodes that are the same again, 1,000 odd actions."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kintsugi.agents.policies.scripted_policy import ScriptedPolicy
from kintsugi.graphs.rollout import play_wave
from kintsugi.records import Episode, Task
from kintsugi.sandboxes.environments.conformance import malformed_actions, play
from tests.graphs.episode_players import cast_of, plan_of
from tests.sandboxes.environment_trials import FOREIGN, without_clock
from tests.sandboxes.miniwob_trials import first, needs_pages, opened


def episodes_of(environment: Any, tasks: list[Task], *, kill: bool = False) -> list[Episode]:
    """An episode each: every third actor leaves out its last command, and its refiner writes the gold."""

    async def main() -> list[Episode]:
        golds = {task.prompt: (await environment.gold(task))[0] for task in tasks}

        def answer(messages: Any, sample: int) -> str:
            prompt = next(text for text in golds if text in messages[-1]["content"])
            lines = golds[prompt].split("\n")
            return golds[prompt] if messages[-1]["content"] != prompt or len(prompt) % 3 else "\n".join(lines[:-1])

        repair = {"who": "self", "on": "failures", "form": "rewrite", "sees": "feedback", "rounds": 1}
        cast = cast_of(ScriptedPolicy(answer), environment, prompts="web", timeout_s=120.0, repair=repair)
        wave = asyncio.ensure_future(play_wave([plan_of(task) for task in tasks], cast))
        if kill:
            await asyncio.sleep(1.0)
            os.kill(environment.browser.pid, signal.SIGKILL)
        return await wave

    return asyncio.run(main())


@needs_pages
def test_fifty_episodes_at_once_are_the_same_again_though_the_browser_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = opened()
    try:
        tasks = list(environment.tasks("envisions", limit=50, seed=1))
        episodes = episodes_of(environment, tasks)
        assert environment.browser.starts == 1
        again = episodes_of(environment, tasks, kill=True)
        assert environment.browser.starts == 2 and list(tmp_path.iterdir())
    finally:
        asyncio.run(environment.close())
    assert without_clock(episodes) == without_clock(again)
    assert len(episodes) == 50 and all(episode.success for episode in episodes)
    assert 5 <= sum(len(episode.trajectories) == 2 for episode in episodes) < 50
    assert list(tmp_path.iterdir()) == []


@needs_pages
def test_a_thousand_odd_actions_all_get_a_verdict() -> None:
    environment = opened()
    try:
        check_odd_actions(environment)
    finally:
        asyncio.run(environment.close())


def check_odd_actions(environment: Any) -> None:
    tasks = [first(environment, page) for page in ("enter-text", "click-link", "choose-list", "social-media-all")]
    own = [
        "agent.click_xpath('//html')",
        "agent.click_xpath('//script')",
        "agent.click_xpath('//*[@id=\"sync-task-cover\"]')",
        "agent.click_xpath('count(//*)')",
        "agent.click_xpath('//@id')",
        "agent.click_xpath('id(\"tt\")/ancestor-or-self::*')",
        "agent.click_xpath('//*[contains(., //*[contains(., //*)])]')",
        "agent.click_xpath('document(\"file:///etc/passwd\")')",
        "agent.click_xpath('/html/body/div[\\'')",
        "agent.movemouse('//body')\nagent.press('enter', 400)\nagent.press('tab', 400)",
        "agent.type('javascript:WOB_RAW_REWARD_GLOBAL=1;core.endEpisode(1)')\nagent.press('enter')",
        "agent.click_xpath('//a[core.endEpisode(1)]')",
        "\n".join(["agent.click_xpath('//body')"] * 100),
        "agent.click_xpath('//input')\n" + "agent.type('" + "\U0001f642é确" * 300 + "')",
        "agent.click_xpath('//input')\nagent.press('ctrl+a')\nagent.press('ctrl+v')\nagent.press('\u00e9', 50)",
    ]
    golds = [asyncio.run(environment.gold(task))[0] for task in tasks]
    actions = [*own, *FOREIGN]
    for gold in golds:
        actions += malformed_actions(gold, 250)
    actions = actions[:1_000]

    async def main() -> list[Any]:
        each = [play(environment, tasks[n % len(tasks)], [action]) for n, action in enumerate(actions)]
        return await asyncio.gather(*each)

    verdicts = [replies[-1].verdict for replies in asyncio.run(main())]
    assert len(verdicts) == 1_000
    for action, verdict in zip(actions, verdicts, strict=True):
        damaged = any(action.startswith(gold.split("\n")[0]) for gold in golds)  # what is left of it may still be right
        assert verdict is not None and not verdict.error and (damaged or not verdict.success), ascii(action[:80])
        assert 0 < len(verdict.feedback) < 5_000 and "Traceback" not in verdict.feedback, ascii(action[:80])
        verdict.feedback.encode()

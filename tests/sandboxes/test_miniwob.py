"""MiniWoB++ as an environment: tasks and splits, gold programs, feedback, turns, many at once, odd actions, pictures."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kintsugi.agents.roles import load_prompt
from kintsugi.errors import ConfigError, DataError, MissingExtra
from kintsugi.records import Task
from kintsugi.sandboxes.environments import miniwob_page
from kintsugi.sandboxes.environments.about import about
from kintsugi.sandboxes.environments.conformance import play
from kintsugi.sandboxes.environments.environment import success_by_kind
from kintsugi.sandboxes.environments.miniwob import PAGES, Miniwob, split_of
from kintsugi.sandboxes.environments.miniwob_expert import expert, shapes
from tests.sandboxes.environment_trials import ROOT
from tests.sandboxes.miniwob_trials import first, needs_pages, opened, verdict_on


@pytest.fixture(scope="module")
def environment() -> Iterator[Any]:
    """One browser for all tests of this file that need nothing else."""
    world = opened()
    yield world
    asyncio.run(world.close())


# What needs no browser ------------------------------------------------------------------------------------------------


def test_it_says_what_it_is_and_names_envisions_pages() -> None:
    assert len(set(PAGES)) == 44 and about("miniwob").extra == "web" and "0.8" in about("miniwob").metric
    roles = [load_prompt("web", role) for role in ("actor", "refiner", "reflector", "judge")]
    assert len(roles[0].messages(task="T")) > 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pages": "../../etc"}, "names of pages"),
        ({"pages": []}, "names of pages"),
        ({"seeds": 0}, "at least 1"),
        ({"tabs": 0}, "at least 1"),
        ({"max_turns": 0}, "at least 1"),
        ({"timeout_s": 0}, "above 0"),
        ({"page": "click-test"}, "did you mean"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(**options)


def test_without_the_package_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniwob_page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"kintsugi-agents\[web\]"):
        opened().tasks("train", limit=1)


def test_the_expert_reads_drawings_and_knows_no_other_page() -> None:
    drawing = (
        '<rect x="0" y="0" width="20" height="20" fill="red"></rect><text x="1" y="2" fill="blue" font-size="10px">7</text>'
    )
    assert shapes(drawing) == [("large", "red", "shape", "rectangle"), ("small", "blue", "digit", "7")]
    assert expert("bisect-angle", "Task: x\nPage:\ny") is None


def test_success_is_summed_up_by_page() -> None:
    tasks = [Task(id=str(n), environment="miniwob", split="x", prompt="", payload={"page": "ab"[n % 2]}) for n in range(5)]
    found = success_by_kind(object.__new__(Miniwob), tasks, {"0": 1, "1": 0, "2": 1, "4": 0})
    assert found == {"a": (2, 3), "b": (0, 1)}


# Tasks ----------------------------------------------------------------------------------------------------------------


@needs_pages
def test_splits_take_the_pages_in_turn_and_share_no_prompt(environment: Any) -> None:
    small = opened(pages="click-button, use-spinner, guess-number", seeds=3)
    small.browser.close()
    small.browser = environment.browser
    splits = {name: small.tasks(name) for name in ("train", "heldout", "demonstrations")}
    turns = [task.payload["page"] for task in splits["train"]]
    assert turns == ["click-button", "use-spinner", "guess-number"] * 3
    assert {task.payload["page"] for task in splits["heldout"]} == {"click-button", "use-spinner"}
    prompts = [task.prompt for tasks in splits.values() for task in tasks]
    assert len(prompts) == 9 + 6 + 6 and len(set(prompts)) == 7 + 6 + 6
    for name, tasks in splits.items():
        assert {split_of(task.prompt) for task in tasks if task.payload["page"] != "guess-number"} == {name}
        assert tasks == small.tasks(name)
        assert tasks[:4] == small.tasks(name, limit=4)
    assert not {task.id for task in splits["train"][:2]} & {task.id for task in small.tasks("train", limit=2, seed=1)}
    with pytest.raises(DataError, match="did you mean"):
        small.tasks("trian")


@needs_pages
def test_the_papers_split_is_its_seeds(environment: Any) -> None:
    tasks = environment.tasks("envisions", limit=46, seed=2)
    assert [task.payload["page"] for task in tasks] == [*PAGES, *PAGES[:2]]
    assert {task.payload["seed"] for task in tasks} == {150, 151} and tasks[0].split == "envisions"


@needs_pages
def test_a_page_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match='did you mean "click-button"'):
        opened(pages="click-buton").tasks("train", limit=1)


# Verdicts -------------------------------------------------------------------------------------------------------------


@needs_pages
def test_the_expert_wins_every_page_and_loses_without_its_last_command(environment: Any) -> None:
    tasks = environment.tasks("envisions", limit=44)

    async def both(task: Task) -> tuple[Any, Any]:
        gold = await environment.gold(task)
        (spoiled,) = environment.perturbed(task, gold)
        return (await play(environment, task, gold))[-1].verdict, (await play(environment, task, spoiled))[-1].verdict

    async def main() -> list[tuple[Any, Any]]:
        return await asyncio.gather(*map(both, tasks))

    for task, (won, lost) in zip(tasks, asyncio.run(main()), strict=True):
        assert won.success and won.reward == 1.0 and won.detail["raw_reward"] == 1.0, (task.id, won.feedback)
        assert not lost.success and lost.reward == 0.0 and lost.feedback, task.id


@needs_pages
def test_the_pages_episode_is_the_experts(environment: Any) -> None:
    page = (ROOT / "docs" / "environments" / "miniwob.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "environments" / "miniwob.png").read_bytes().startswith(b"\x89PNG")
    (program,) = asyncio.run(environment.gold(first(environment, "enter-password", 52)))
    assert f"```\n{program}\n```" in page


@needs_pages
def test_only_a_raw_reward_above_the_bar_is_success(environment: Any) -> None:
    task = first(environment, "click-checkboxes-large", 51)
    gold = asyncio.run(environment.gold(task))[0].split("\n")
    assert len(gold) > 4
    verdict = verdict_on(environment, task, "\n".join(gold[1:]))
    assert 0 < verdict.detail["raw_reward"] <= 0.9 and verdict.success == (verdict.detail["raw_reward"] > 0.8)
    verdict = verdict_on(environment, task, gold[-1])
    assert not verdict.success and verdict.reward == 0.0 and verdict.detail["raw_reward"] < 0.8
    assert "counted it as wrong" in verdict.feedback


@needs_pages
def test_feedback_says_what_happened_and_where(environment: Any) -> None:
    task = first(environment, "enter-text")
    verdict = verdict_on(environment, task, "agent.click_xpath('//input')\nagent.type('zz')\nagent.click_xpath('//button')")
    assert "after line 3, agent.click_xpath('//button')" in verdict.feedback and 'input#tt holds "zz"' in verdict.feedback
    verdict = verdict_on(environment, task, "agent.type('zz')\n")
    assert "Line 1: nothing that takes text had the focus" in verdict.feedback
    assert "did not count the task as done" in verdict.feedback and "<button" in verdict.feedback
    verdict = verdict_on(environment, task, "```\nagent.click_xpath('//input')\nagent.click_xpath('//b')\n```")
    assert "Line 2" in verdict.feedback and '<button id="subbtn">Submit' in verdict.feedback
    assert verdict.fault.kept == "```\nagent.click_xpath('//input')\n" and verdict.fault.bad == "agent.click_xpath('//b')"
    verdict = verdict_on(environment, first(environment, "choose-list"), "agent.click_option('//button')")
    assert "no option of a list" in verdict.feedback
    hidden = "agent.click_xpath('//div[@aria-hidden=\"true\"]')"
    assert "not shown" in verdict_on(environment, first(environment, "click-collapsible"), hidden).feedback


@needs_pages
def test_the_clipboard_belongs_to_the_attempt(environment: Any) -> None:
    task = first(environment, "copy-paste")
    gold = asyncio.run(environment.gold(task))[0]

    async def main() -> list[Any]:
        others = [first_task for first_task in environment.tasks("envisions", limit=44) if "copy" in first_task.id]
        return await asyncio.gather(*[play(environment, one, await environment.gold(one)) for one in others * 4])

    assert all(replies[-1].verdict.success for replies in asyncio.run(main()))
    without_copy = "\n".join(line for line in gold.split("\n") if "ctrl+c" not in line)
    assert not verdict_on(environment, task, without_copy).success


@needs_pages
def test_several_turns_see_the_page_between(tmp_path: Path) -> None:
    environment = opened(max_turns=5, pages="guess-number", tabs=1, screenshots=tmp_path / "failed")
    task = environment.tasks("train", limit=1)[0]
    first_click = 'agent.click_xpath("//input")\n'

    async def main() -> Any:
        try:
            world = await environment.start(task)
            told = [await world.observe(), await world.act("think: halve the range"), await world.act("nonsense")]
            low, high = 0, 9
            for _ in range(4):
                guess = (low + high) // 2
                submit = f'agent.press("ctrl+a")\nagent.type("{guess}")\nagent.click_xpath("//button")'
                reply = await world.act(first_click + submit)
                if reply.verdict is not None:
                    return told, reply
                higher = '<div id="higher" class="">' in reply.observation
                low, high = (guess + 1, high) if higher else (low, guess - 1)
            await world.close()
            return told, reply
        finally:
            await environment.close()

    told, reply = asyncio.run(main())
    assert told[0] == task.prompt and told[1].observation == "OK." and "expected a command" in told[2].observation
    assert reply.verdict is not None and reply.verdict.success


@needs_pages
def test_failed_attempts_leave_a_picture_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "failed"
    environment = opened(screenshots=folder, tabs=1)
    try:
        task = first(environment, "click-test-2")
        assert verdict_on(environment, task, "agent.click_xpath('//button[1]')").success and not folder.exists()
        assert not verdict_on(environment, task, "agent.click_xpath('//button[2]')").success
        assert not verdict_on(environment, task, "agent.press('tab')").success
        assert not verdict_on(environment, task, "import os").success  # nothing of it ran: the page at its start
    finally:
        asyncio.run(environment.close())
    pictures = sorted(folder.iterdir())
    assert len(pictures) == 3 and all(path.name.startswith("click-test-2-50-") for path in pictures)
    for path in pictures:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and struct.unpack(">II", data[16:24]) == (320, 420)

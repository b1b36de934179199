"""Every environment of programs: 50 episodes at once, 1,000 odd actions, and the transcript on its page in the docs."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import tempfile
from pathlib import Path

import pytest

from kintsugi.sandboxes.environments.about import about
from kintsugi.sandboxes.environments.environment import environment_kinds
from tests.sandboxes.environment_trials import ROOT, odd_verdicts, opened, scripted_episodes, transcript, without_clock

PROMPTS = {
    "gsm8k": "program",
    "gsm_hard": "program",
    "svamp": "program",
    "asdiv": "program",
    "math": "math",
    "proofwriter": "logic",
    "ruletaker": "logic",
    "mbpp": "code",
}
LOGIC = ("proofwriter", "ruletaker")


def needs(kind: str) -> None:
    if kind in LOGIC and importlib.util.find_spec("clingo") is None:
        pytest.skip('clingo is not installed: pip install "kintsugi-agents[logic]"')


@pytest.mark.parametrize("kind", PROMPTS)
def test_fifty_episodes_at_once_are_the_same_again_and_leave_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(kind)
    tmp_path.chmod(0o711)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = opened(kind)
    try:
        episodes = scripted_episodes(environment, PROMPTS[kind])
        again = scripted_episodes(environment, PROMPTS[kind])
        assert list(tmp_path.iterdir()), "the sandbox was expected to lie here"
    finally:
        asyncio.run(environment.close())
    assert without_clock(episodes) == without_clock(again)
    assert len(episodes) == 50 and all(episode.success for episode in episodes)
    repaired = [episode for episode in episodes if len(episode.trajectories) == 2]
    assert 5 <= len(repaired) < 50 and all(episode.trajectories[0].feedback for episode in repaired)
    assert list(tmp_path.iterdir()) == [] and not children_of_sandboxes(tmp_path)


def children_of_sandboxes(folder: Path) -> list[str]:
    """Processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.decode(errors="replace"))
    return found


@pytest.mark.parametrize("kind", PROMPTS)
def test_a_thousand_odd_actions_all_get_a_verdict(kind: str) -> None:
    needs(kind)
    environment = opened(kind, limits={"cpu_s": 0.5})
    try:
        assert asyncio.run(odd_verdicts(environment)) == []
    finally:
        asyncio.run(environment.close())


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_pages_transcript_is_what_happens(kind: str) -> None:
    needs(kind)
    page = (ROOT / "docs" / "environments" / f"{kind}.md").read_text(encoding="utf-8")
    shown = page.partition("````text\n")[2].partition("\n````")[0]
    said = re.findall(r"^(?:actor|reflector):\n((?:  .*\n|\n(?=  ))*)", shown + "\n", re.MULTILINE)
    first, second = ("\n".join(line[2:] for line in text.rstrip("\n").split("\n")) for text in said)
    task_id = re.match(r"task (\S+):", shown)
    assert task_id is not None
    environment = opened(kind)
    try:
        splits = ("train", "heldout", "demonstrations")
        (task,) = [task for split in splits for task in environment.tasks(split) if task.id == task_id[1]]
        assert transcript(environment, task, first, second) == shown
    finally:
        asyncio.run(environment.close())


@pytest.mark.parametrize("kind", PROMPTS)
def test_each_says_what_it_is(kind: str) -> None:
    said = about(kind)
    assert kind in environment_kinds()
    assert said.bundled and said.licence and said.home.startswith("https://") and said.downloads
    assert said.metric and said.data and said.splits

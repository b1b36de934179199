"""MiniWoB++ measured: what the scripted expert wins, how fast pages are played, what an episode looks like.

    python benchmarks/miniwob_pages.py                       # 10 seeds of each of the 44 pages
    python benchmarks/miniwob_pages.py --seeds 1 --picture docs/environments/miniwob.png

Prints won and tried by page, tasks drawn and episodes played a second, and the CPU seconds that Chromium and this
process took for them. `--picture` draws one episode, a picture after each command (needs Pillow, which miniwob brings).
Left out: language models.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import time
from functools import partial
from pathlib import Path
from typing import Any

from kintsugi.records import Task
from kintsugi.sandboxes.environments.conformance import play as play_actions
from kintsugi.sandboxes.environments.environment import success_by_kind
from kintsugi.sandboxes.environments.miniwob import PAGES, open_environment
from kintsugi.sandboxes.environments.miniwob_page import play
from kintsugi.sandboxes.environments.miniwob_program import parse_commands

GAP, MARGIN = 12, 16


def cpu_seconds(leader: int | None) -> float:
    """CPU seconds of the live processes of a browser's session (those that ended are not counted)."""
    total = 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            total += (int(fields[11]) + int(fields[12])) / 100
    return total


async def outcomes_of(environment: Any, tasks: list[Task]) -> dict[str, int]:
    """1 for each task that the expert wins."""

    async def one(task: Task) -> int:
        gold = await environment.gold(task)
        replies = await play_actions(environment, task, gold or [""])
        verdict = replies[-1].verdict
        return int(verdict is not None and verdict.success)

    won = await asyncio.gather(*map(one, tasks))
    return {task.id: success for task, success in zip(tasks, won, strict=True)}


def draw_episode(environment: Any, page: str, seed: int, path: Path) -> str:
    """The page at first and after each command of the expert, side by side; the program."""
    from PIL import Image

    (prompt,) = environment.prompts([(page, seed)])
    task = Task(id="x", environment="miniwob", split="x", prompt=prompt, payload={"page": page, "seed": seed})
    (program,) = asyncio.run(environment.gold(task))
    commands = parse_commands(program).commands
    frames = []
    for done in range(len(commands) + 1):
        work = partial(play, folder=environment.folder, page=page, seed=seed, programs=[commands[:done]], picture=True)
        frames.append(Image.open(io.BytesIO(environment.browser.ask(work).picture)))
    width, height = frames[0].size
    size = (2 * MARGIN + len(frames) * (width + GAP) - GAP, height + 2 * MARGIN)
    sheet = Image.new("RGB", size, "#d8dbe0")
    for number, frame in enumerate(frames):
        sheet.paste(frame, (MARGIN + number * (width + GAP), MARGIN))
    sheet.quantize(128).save(path, optimize=True)
    return program


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tabs", type=int, default=4)
    parser.add_argument("--chromium")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--page", default="enter-password")
    options = parser.parse_args()
    environment = open_environment(tabs=options.tabs, chromium=options.chromium, timeout_s=600)
    try:
        if options.picture is not None:
            print(draw_episode(environment, options.page, 52, options.picture))
        begun = time.perf_counter()
        tasks = list(environment.tasks("envisions", limit=options.seeds * len(PAGES)))
        drawn, before = time.perf_counter(), cpu_seconds(environment.browser.pid)
        outcomes = asyncio.run(outcomes_of(environment, tasks))
        played, cpu = time.perf_counter(), cpu_seconds(environment.browser.pid) - before
        for page, (won, tried) in success_by_kind(environment, tasks, outcomes).items():
            print(f"{page:28} {won} of {tried}")
        print(f"{sum(outcomes.values())} of {len(tasks)} won")
        print(
            f"{len(tasks) / (drawn - begun):.1f} tasks drawn a second, {len(tasks) / (played - drawn):.1f} episodes played"
        )
        print(f"{1000 * cpu / len(tasks):.0f} ms of Chromium's CPU an episode, {environment.browser.starts} browser started")
    finally:
        asyncio.run(environment.close())


if __name__ == "__main__":
    main()

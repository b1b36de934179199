"""MiniWoB++: small web pages in a real Chromium, acted on by programs of commands.

    environment = open_environment()
    task = environment.tasks("train", limit=1)[0]
    verdict = (await (await environment.start(task)).act('agent.click_xpath("//button")')).verdict

It needs the extra `[web]` and Chromium. **Tasks**: the 44 pages of ENVISIONS (`PAGES`), each at many seeds. The prompt is
what is asked and the page's HTML, as ENVISIONS has it. In each split the pages take turns; which split a seed belongs to
follows from its prompt, so train, heldout and demonstrations share none (guess-number, which always looks the same,
is in train alone). The split `envisions` is theirs instead: 50 seeds of every page, the seeds of round `seed`.

**An action** is a program (`miniwob_program`), done at once; with `max_turns` above 1 each program is answered by the page
as it then stands, and `think: …` is answered "OK.". **Success**: the page ended the attempt with a raw reward above 0.8, the
one without the page's own discount for time; the verdict's reward is then 1, else 0, and `detail["raw_reward"]` is what
the page gave.

One browser serves all episodes, `tabs` of them at once; a world holds nothing but its programs, and is done again from
its seed for each, so a browser that dies is started anew and nothing is lost. `screenshots` names a folder: each
failed attempt leaves a picture of its end there.

Source: Liu et al. 2018 (arXiv 1802.08802), ENVISIONS (arXiv 2406.11736). Left out: the other 86 pages, which take a name in
`pages` all the same but are untried; dragging and drawing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Fault, Task, Verdict, content_hash
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.environment import Reply
from kintsugi.sandboxes.environments.miniwob_browser import Browser, TookTooLong
from kintsugi.sandboxes.environments.miniwob_expert import expert
from kintsugi.sandboxes.environments.miniwob_page import Seen, first_looks, pages_folder, play
from kintsugi.sandboxes.environments.miniwob_program import Command, Parsed, parse_commands
from kintsugi.sandboxes.environments.printed_number import readable

PAGES: Final = (
    "choose-date", "choose-list", "click-button", "click-button-sequence", "click-checkboxes", "click-checkboxes-large",
    "click-checkboxes-soft", "click-checkboxes-transfer", "click-collapsible", "click-color", "click-dialog",
    "click-dialog-2", "click-link", "click-option", "click-scroll-list", "click-shades", "click-shape", "click-tab",
    "click-test", "click-test-2", "click-widget", "copy-paste", "copy-paste-2", "enter-date", "enter-password",
    "enter-text", "enter-text-dynamic", "enter-time", "focus-text", "focus-text-2", "guess-number", "identify-shape",
    "multi-layouts", "multi-orderings", "navigate-tree", "read-table", "search-engine", "simple-algebra",
    "simple-arithmetic", "social-media-all", "text-transform", "unicode-test", "use-slider", "use-spinner",
)  # fmt: skip
"""ENVISIONS' 44 tasks."""
SAME_PROMPT: Final = ("guess-number",)
"""Pages that look the same at every seed: they are in train alone."""
WINS_ABOVE: Final = 0.8
SPLITS: Final = ("train", "heldout", "demonstrations")
OFFICIAL: Final = "envisions"
OFFICIAL_SEEDS: Final = 50
_SHARES: Final = ("train", "train", "heldout", "demonstrations")
_THINK: Final = re.compile(r"\s*think ?:", re.IGNORECASE)
_LONGEST_TOLD: Final = 1_500
_FRUITLESS: Final = 40
"""Seeds in a row that give a page's split nothing new, after which it has no more."""

ABOUT = About(
    kind="programs of commands in a real browser",
    metric="raw reward > 0.8, by page",
    data="none: the pages come with the package miniwob",
    splits=(*SPLITS, OFFICIAL),
    on_request=(OFFICIAL,),
    licence="MIT",
    home="https://github.com/Farama-Foundation/miniwob-plusplus",
    extra="web",
)


def open_environment(
    pages: str | Sequence[str] = PAGES,
    seeds: int = 3,
    max_turns: int = 1,
    screenshots: str | Path | None = None,
    tabs: int = 4,
    timeout_s: float = 60.0,
    chromium: str | Path | None = None,
) -> Miniwob:
    """MiniWoB++. pages: names, or text with commas between. seeds: tasks a page and split without a limit. max_turns:
    programs an attempt. screenshots: folder for pictures of failed attempts. tabs: how many are played at once.
    timeout_s: the longest that the programs of an attempt may take. chromium: its program (looked for)."""
    names = [name.strip() for name in pages.split(",")] if isinstance(pages, str) else list(pages)
    if not names or any(re.fullmatch(r"[a-z0-9-]+", name) is None for name in names):
        raise ConfigError(f'expected names of pages such as "click-button, use-slider", found "{pages}"')
    if min(seeds, max_turns, tabs) < 1 or timeout_s <= 0:
        raise ConfigError(
            f"expected seeds, max_turns and tabs of at least 1 and timeout_s above 0, "
            f"found {seeds}, {max_turns}, {tabs} and {timeout_s}"
        )
    browser = Browser(binary=chromium, tabs=tabs, timeout_s=timeout_s)
    return Miniwob(pages=names, seeds=seeds, max_turns=max_turns, screenshots=screenshots, browser=browser)


class Miniwob:
    """The environment. A payload holds `page` and `seed`."""

    name = "miniwob"

    def __init__(
        self, *, pages: Sequence[str], seeds: int, max_turns: int, screenshots: str | Path | None, browser: Browser
    ) -> None:
        self.pages, self.seeds, self.max_turns, self.browser = tuple(dict.fromkeys(pages)), seeds, max_turns, browser
        self.screenshots = None if screenshots is None else Path(screenshots).expanduser()
        self._folder: Path | None = None
        self._prompts: dict[tuple[str, int], str] = {}

    @property
    def folder(self) -> Path:
        """Where the pages lie. Raises MissingExtra, and ConfigError for a page that is not there."""
        if self._folder is None:
            folder = pages_folder()
            for page in self.pages:
                if not (folder / f"{page}.html").is_file():
                    known = [path.stem for path in folder.glob("*.html")]
                    raise ConfigError(f'miniwob has no page "{page}": {nearest(page, known)}')
            self._folder = folder
        return self._folder

    # Tasks

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Tasks of the pages in turn; another `seed` gives others (for `envisions`: the round, from 0).

        Raises DataError for an unknown split, MissingExtra without the package or Chromium."""
        if split not in (*SPLITS, OFFICIAL):
            raise DataError(f'miniwob has no split "{split}": {nearest(split, (*SPLITS, OFFICIAL))}')
        turns = OFFICIAL_SEEDS if split == OFFICIAL else self.seeds
        wanted = len(self.pages) * turns if limit is None else limit
        deal = _Deal(self, split, seed, ahead=-(-wanted // len(self.pages)) if split == OFFICIAL else 4)
        tasks: list[Task] = []
        while len(tasks) < wanted and deal.left and (limit is not None or deal.turns < turns):
            tasks += deal.turn(wanted - len(tasks))
        return tasks

    def prompts(self, wanted: Sequence[tuple[str, int]]) -> list[str]:
        """The prompts of pages at seeds, in order; several tabs draw them at once."""
        missing: dict[str, list[int]] = {}
        for page, seed in dict.fromkeys(wanted):
            if (page, seed) not in self._prompts:
                missing.setdefault(page, []).append(seed)
        drawn = {
            page: self.browser.submit(partial(first_looks, folder=self.folder, page=page, seeds=seeds))
            for page, seeds in missing.items()
        }
        for page, future in drawn.items():
            for seed, seen in zip(missing[page], future.result(), strict=True):
                self._prompts[page, seed] = prompt_of(seen)
        return [self._prompts[one] for one in wanted]

    def kind(self, task: Task) -> str:
        """The page."""
        return task.payload["page"]

    async def gold(self, task: Task) -> Sequence[str] | None:
        """The scripted expert's program, made from the prompt alone; None for pages that it does not know."""
        program = expert(task.payload["page"], task.prompt)
        return None if program is None else (program,)

    def perturbed(self, task: Task, gold: Sequence[str]) -> list[list[str]]:
        """The gold without its last command, which is the one that ends the attempt, wherever it stands in it."""
        *lines, last = gold[-1].split("\n")
        return [["\n".join(line for line in lines if line != last)]]

    # Worlds

    async def start(self, task: Task) -> MiniwobWorld:
        return MiniwobWorld(self, task)

    async def seen(self, task: Task, programs: Sequence[Sequence[Command]], *, picture: bool = False) -> Seen:
        """The task's page after the programs. Raises TookTooLong and what the browser raises."""
        page, seed = task.payload["page"], task.payload["seed"]
        return await self.browser.use(
            partial(play, folder=self.folder, page=page, seed=seed, programs=programs, picture=picture)
        )

    def keep_picture(self, task: Task, actions: Sequence[str], seen: Seen) -> None:
        """Put the picture of a failed attempt into `screenshots`, named after the task and the attempt."""
        if self.screenshots is not None and seen.picture:
            self.screenshots.mkdir(parents=True, exist_ok=True)
            shown = [action.encode(errors="replace").decode() for action in actions]
            (self.screenshots / f"{task.id}-{content_hash(shown)}.png").write_bytes(seen.picture)

    async def close(self) -> None:
        await asyncio.to_thread(self.browser.close)


class _Deal:
    """Deals the tasks of one split: a page at a time, each with its next seed. ahead: how many seeds are drawn at once."""

    def __init__(self, environment: Miniwob, split: str, seed: int, *, ahead: int) -> None:
        self.environment, self.split, self.ahead = environment, split, ahead
        self.left = list(environment.pages)
        self.turns = 0
        first = (seed + 1) * OFFICIAL_SEEDS if split == OFFICIAL else seed * 1_000_000
        self._next = dict.fromkeys(self.left, first)
        self._given: set[str] = set()

    def turn(self, most: int) -> list[Task]:
        """One task each of the first `most` pages left, as far as they have one."""
        self.turns += 1
        waiting, tried = self.left[:most], dict.fromkeys(self.left, 0)
        found: dict[str, Task] = {}
        while waiting:
            self.environment.prompts([(page, self._next[page] + n) for page in waiting for n in range(self.ahead)])
            for page in waiting:
                for _ in range(self.ahead):
                    if page not in found and (task := self._try(page)) is not None:
                        found[page] = task
                tried[page] += self.ahead
                if page not in found and tried[page] >= _FRUITLESS:
                    self.left.remove(page)
            waiting = [page for page in waiting if page not in found and page in self.left]
        return [found[page] for page in self.environment.pages if page in found]

    def _try(self, page: str) -> Task | None:
        """The task of a page's next seed, None when it belongs to another split or was given."""
        seed = self._next[page]
        self._next[page] += 1
        (prompt,) = self.environment.prompts([(page, seed)])
        if page in SAME_PROMPT:
            if self.split not in ("train", OFFICIAL):
                return None
        elif self.split != OFFICIAL and (split_of(prompt) != self.split or prompt in self._given):
            return None
        self._given.add(prompt)
        payload = {"page": page, "seed": seed}
        return Task(id=f"{page}-{seed}", environment="miniwob", split=self.split, prompt=prompt, payload=payload)


class MiniwobWorld:
    """One attempt: its programs so far. Each is done on a fresh page after all those before it."""

    def __init__(self, environment: Miniwob, task: Task) -> None:
        self.environment, self.task = environment, task
        self.programs: list[tuple[Command, ...]] = []
        self.actions: list[str] = []
        self.over = self.pictured = False

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        """Any text is answered. Raises what the browser raises when it dies twice in a row."""
        single = self.environment.max_turns == 1
        if not single and _THINK.match(action):
            return Reply(observation="OK.", executions=0)
        if self.over:
            return Reply(observation="The attempt is over.", executions=0)
        self.actions.append(action)
        parsed = parse_commands(action)
        if parsed.objection is not None:
            return self._failed(parsed, parsed.objection.text, parsed.objection.line, parsed.objection.note, executions=0)
        try:
            seen = await self._seen([*self.programs, parsed.commands], picture=single)
        except TookTooLong:
            limit = self.environment.browser.timeout_s
            return self._failed(parsed, f"The program was stopped after {limit:g} s: use fewer commands or a simpler XPath.")
        self.programs.append(parsed.commands)
        if seen.done:
            self.over = True
            return await self._judged(parsed, seen)
        if single:
            self._keep(seen)
            line = seen.command.line if seen.problem and seen.command else None
            return self._failed(parsed, told_unfinished(seen), line, "problem", raw=seen.raw_reward)
        return Reply(observation=told_page(seen))

    async def _judged(self, parsed: Parsed, seen: Seen) -> Reply:
        detail = {"raw_reward": seen.raw_reward}
        if seen.raw_reward > WINS_ABOVE:
            return Reply(verdict=Verdict(success=True, reward=1.0, feedback="The task is done.", detail=detail))
        if self.environment.screenshots is not None:
            self._keep(seen if seen.picture else await self._seen(self.programs, picture=True))
        verdict = Verdict(success=False, reward=0.0, feedback=told_ended(seen), detail=detail)
        return Reply(verdict=verdict)

    async def _seen(self, programs: Sequence[Sequence[Command]], *, picture: bool) -> Seen:
        wanted = picture and self.environment.screenshots is not None
        return await self.environment.seen(self.task, programs, picture=wanted)

    def _failed(
        self, parsed: Parsed, text: str, line: int | None = None, note: str = "", *, executions: int = 1, raw: float = 0.0
    ) -> Reply:
        """A failure of this program: the verdict on it, or with turns left an observation."""
        if self.environment.max_turns > 1:
            return Reply(observation=text, executions=executions)
        fault: Fault | None = None
        if line is not None and line <= len(parsed.program.lines):
            fault = parsed.program.fault_at(line, note)
        detail = {"raw_reward": raw}
        verdict = Verdict(success=False, reward=0.0, feedback=text, fault=fault, detail=detail)
        return Reply(verdict=verdict, executions=executions)

    async def close(self) -> None:
        """Forget the attempt; one that the page did not end leaves its picture now: of the page after what it ran."""
        if self.actions and not (self.over or self.pictured) and self.environment.screenshots is not None:
            self.over = True
            try:
                seen = await self._seen(self.programs, picture=True)
            except TookTooLong:
                return
            self._keep(seen)

    def _keep(self, seen: Seen) -> None:
        self.environment.keep_picture(self.task, self.actions, seen)
        self.pictured = True


# What is said


def prompt_of(seen: Seen) -> str:
    """The prompt: what is asked, and the page."""
    return f"Task: {seen.query}\nPage:\n{seen.html}"


def told_page(seen: Seen) -> str:
    """The page after a program that did not end the attempt."""
    return "\n".join([*_said(seen), "Page:", seen.html])


def told_unfinished(seen: Seen) -> str:
    """What a program of one turn came to that did not end the attempt."""
    head = "The page did not count the task as done."
    return "\n".join([head, *_said(seen), f"The page then: {readable(' '.join(seen.html.split()), _LONGEST_TOLD)}"])


def told_ended(seen: Seen) -> str:
    """What a program came to that ended the attempt with too small a reward."""
    by = f" after line {seen.command.line}, {seen.command}" if seen.command else ""
    reward = f"reward {seen.raw_reward:.2f}, wanted above {WINS_ABOVE}"
    return "\n".join([f"The page ended the attempt{by}, and counted it as wrong ({reward}).", *_said(seen)])


def _said(seen: Seen) -> list[str]:
    lines = [f"Line {seen.command.line}: {readable(seen.problem, 700)}."] if seen.problem and seen.command else []
    lines += [f"{readable(note[0].upper() + note[1:], 200)}." for note in seen.notes[:5]]
    if seen.fields:
        lines.append(f"Fields: {readable('; '.join(seen.fields), 600)}.")
    return lines


# Splits


def split_of(prompt: str) -> str:
    """The split that a prompt belongs to, half of them to train."""
    return _SHARES[int(content_hash(prompt), 16) % len(_SHARES)]

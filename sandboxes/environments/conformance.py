"""What every environment must do, as a suite that any implementation passes unchanged, third parties' too.

    report = asyncio.run(check(open_environment("gsm8k", {"data": folder})))
    assert report.ok, str(report)

Each `check_…` function tests one promise of `environment.py` and returns sentences about what is broken, none if it
holds; what the environment raises is such a sentence too (`careful_calls.py`). After an answer that never came the other
checks are not tried. `check` runs them all on a few tasks and then closes the environment; hand over one that owns what it
opens, for the last check looks for processes and files. The malformed actions are drawn from a fixed seed.

`perturb(task, gold)` may give action sequences that must fail, for what only the environment's author can think of
(a wrong number, another room); emptied, cut and reversed golds are always tried.

Left out: speed, and whether the official metric is computed right; that is each environment's own test. A world that
remembers is found where it answers one of a few wrong actions otherwise after a success, not by a password of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from kintsugi.records import Task, to_plain
from kintsugi.sandboxes.environments.careful_calls import (
    TIME_LIMIT_S,
    Attempt,
    Broken,
    asked,
    attempt,
    findings_of,
    gold_of,
    known_bad,
    replies_of,
    spoiled_by,
    stretched,
    time_limit,
    warmed,
    won,
)
from kintsugi.sandboxes.environments.environment import Environment, Reply
from kintsugi.sandboxes.environments.leak_checks import check_leaks, text_of
from kintsugi.sandboxes.environments.leftovers import Leftovers
from kintsugi.sandboxes.environments.malformed_actions import malformed_actions
from kintsugi.sandboxes.environments.split_reading import read_split
from kintsugi.sandboxes.environments.task_checks import check_tasks

Perturb = Callable[[Task, Sequence[str]], Iterable[Sequence[str]]]

NUM_WORLDS: Final = 32
NUM_REMEMBERED: Final = 6
"""Tasks that are played, won and played again."""
CLOSE_WAIT_S: Final = 3.0
LONGEST_FEEDBACK: Final = 5_000
_SHOWN: Final = 20
_PATIENCE: Final = 4.0
"""So much longer than alone may an answer take among `NUM_WORLDS` at once."""
_IDLE: Final = ("no such action", "", "again", "done", "submit", "yes", "print(-987654.25)")
"""What a world that remembers a success may take for another one."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome. checks: names of what was tried; failures: one sentence each; num_tasks: tasks used. skipped: names of
    what was not tried, after an answer that never came or without tasks. found: the failures of each check."""

    environment: str
    split: str
    num_tasks: int
    checks: tuple[str, ...]
    failures: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.failures and not self.skipped

    def __str__(self) -> str:
        head = f"{self.environment} ({self.split}, {self.num_tasks} tasks): {len(self.checks)} checks"
        lines = [f"{head}, {len(self.failures)} failures", *(f"- {text}" for text in self.failures[:_SHOWN])]
        if len(self.failures) > _SHOWN:
            lines.append(f"- and {len(self.failures) - _SHOWN} more (all with --json)")
        if self.skipped:
            lines.append(f"not tried: {', '.join(self.skipped)}")
        return "\n".join(lines)


async def check(
    environment: Environment,
    *,
    split: str = "train",
    num_tasks: int = 20,
    perturb: Perturb | None = None,
    limit_s: float = TIME_LIMIT_S,
    left: Leftovers | None = None,
) -> Report:
    """Run every check on `num_tasks` tasks of `split`, then close `environment`.

    limit_s: seconds for one answer. left: the caller's, who opened the environment inside it.
    Raises DataError for a split that is not there, MissingExtra and others for what cannot be played here."""
    found: dict[str, list[str]] = {}
    skipped: list[str] = []
    with ExitStack() as stack:
        left = stack.enter_context(Leftovers()) if left is None else left
        reading = read_split(environment, split, limit=num_tasks)
        if reading.left_out and reading.error is not None:
            raise reading.error
        async with time_limit(limit_s):
            await warmed(environment)
            found["tasks"] = check_tasks(environment, split, num_tasks, reading)
            for name, checked in _playing(environment, list(reading.tasks), perturb).items():
                if not reading.tasks or skipped:
                    skipped.append(name)
                    continue
                try:
                    found[name] = await checked()
                except Broken as broken:
                    found[name] = [broken.finding]
                    skipped += [name] if broken.hung else []
            found["close"] = await check_close(environment, left)
    found = _merged(found)
    return Report(
        environment=str(getattr(environment, "name", "")),
        split=split,
        num_tasks=len(reading.tasks),
        checks=tuple(found),
        failures=tuple(text for texts in found.values() for text in texts),
        skipped=tuple(name for name in skipped if name not in found),
        found={name: tuple(texts) for name, texts in found.items() if texts},
    )


def _playing(
    environment: Environment, tasks: list[Task], perturb: Perturb | None
) -> dict[str, Callable[[], Awaitable[list[str]]]]:
    """The checks that play, in order; the first must be, since nothing was won before it."""
    return {
        "state": lambda: check_state(environment, tasks),
        "gold": lambda: check_gold(environment, tasks),
        "perturbed": lambda: check_perturbed(environment, tasks, perturb),
        "malformed": lambda: check_malformed(environment, tasks),
        "replay": lambda: check_replay(environment, tasks),
        "concurrent": lambda: check_concurrent(environment, tasks),
        "leaks": lambda: check_leaks(environment, tasks),
    }


def _merged(found: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same fault told once, with how often it was met."""
    counts: dict[str, int] = {}
    for text in (text for texts in found.values() for text in texts):
        counts[_key(text)] = counts.get(_key(text), 0) + 1
    told: set[str] = set()
    merged: dict[str, list[str]] = {}
    for name, texts in found.items():
        merged[name] = []
        for text in texts:
            more = counts[_key(text)] - 1
            if _key(text) not in told:
                merged[name].append(f"{text}; {more} more like it" if more and getattr(text, "key", "") else str(text))
            told.add(_key(text))
    return merged


def _key(text: str) -> str:
    return getattr(text, "key", "") or text


async def play(environment: Environment, task: Task, actions: Sequence[str]) -> list[Reply]:
    """Replies of a fresh world to `actions`, up to a verdict or `max_turns`. Raises what the environment raises, and
    Broken for what it gives against the contract."""
    try:
        return await replies_of(environment, task, actions)
    except Broken as broken:
        raise (broken.__cause__ or broken) from None


async def check_state(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """A success leaves nothing behind: wrong actions get the same replies before and after it. For fresh environments."""
    chosen = tasks[:NUM_REMEMBERED]
    failures: list[str] = []
    try:
        before = await _idle(environment, chosen)
        for task in chosen:
            gold = await gold_of(environment, task)
            await replies_of(environment, task, gold or ())
        after = await _idle(environment, chosen)
        changed = [place for place, task in enumerate(chosen) if before[place] != after[place]]
        steady = await _idle(environment, [chosen[place] for place in changed])
    except Broken as broken:
        return findings_of(broken)
    for place, still in zip(changed, steady, strict=True):
        if still != after[place]:
            continue  # it answers differently each time, which `check_replay` tells
        one, two = next(pair for pair in zip(before[place], after[place], strict=True) if pair[0] != pair[1])
        told = f"{_outcome(one)} / {_outcome(two)}" if one.first == two.first else f"{one.first!a:.80} / {two.first!a:.80}"
        failures.append(f"{chosen[place].id} answers a wrong action otherwise once its gold has been played: {told}")
    return failures


async def _idle(environment: Environment, tasks: Sequence[Task]) -> list[list[Attempt]]:
    """Attempts at each task with actions that are nobody's answer: one by one, and at the end all together."""
    plans = [[action] for action in _IDLE] + ([list(_IDLE)] if environment.max_turns > 1 else [])
    return [[await attempt(environment, task, plan) for plan in plans] for task in tasks]


async def check_gold(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """The gold actions end in success, with reward 1, on the last of them; `known_bad` names tasks whose golds do not."""
    failures = []
    for task in tasks:
        try:
            gold = await gold_of(environment, task)
            if gold is None or task.id in known_bad(environment):
                continue
            replies = await replies_of(environment, task, gold)
        except Broken as broken:
            failures += findings_of(broken)
            continue
        if not won(replies) or len(replies) != len(gold):
            failures.append(f"the gold actions of {task.id} do not win: {_last(replies)}")
        elif (verdict := replies[-1].verdict) is not None and verdict.reward != 1.0:
            failures.append(f"the gold actions of {task.id} earn reward {verdict.reward}, expected 1")
    return failures


async def check_perturbed(environment: Environment, tasks: Sequence[Task], perturb: Perturb | None = None) -> list[str]:
    """Emptied, cut and reversed golds fail, and so does what `perturb` gives."""
    failures = []
    for task in tasks:
        try:
            gold = await gold_of(environment, task)
            if gold is None:
                continue
            last = gold[-1]
            wrong = [[*gold[:-1], text] for text in ("", last[: len(last) // 2], last[::-1])]
            for actions in [*wrong, *spoiled_by(perturb, task, gold)]:
                if actions != gold and won(await replies_of(environment, task, actions)):
                    failures.append(f"{task.id} is won by a spoiled gold: {actions[-1][:120]!r}")
        except Broken as broken:
            failures += findings_of(broken)
    return failures


async def check_malformed(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """Any text is answered, with a usable sentence; nothing is raised, nothing breaks."""
    failures = []
    for index, action in enumerate(malformed_actions(await _first_gold(environment, tasks[0]))):
        shown = ascii(action[:60])
        try:
            reply = (await replies_of(environment, tasks[index % len(tasks)], [action]))[0]
        except Broken as broken:
            failures += findings_of(broken)
            continue
        if reply.verdict is not None and reply.verdict.error:
            failures.append(f"action {shown} broke the environment: {reply.verdict.error}")
        failures += [f"action {shown} got {objection}" for objection in _unusable(reply)]
    return failures


async def check_replay(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """A fresh world begins as the other did, and the same actions get the same replies."""
    failures = []
    for task in tasks:
        try:
            gold = await gold_of(environment, task) or []
            for actions in (gold, [*gold[:-1], "look", "no such action"], ["no such action"] * 3):
                first, second = await attempt(environment, task, actions), await attempt(environment, task, actions)
                if first.first != second.first:
                    told = f"{ascii(first.first)[:80]} / {ascii(second.first)[:80]}"
                    failures.append(f"two worlds of {task.id} begin differently: observe() gives {told}")
                    break
                if first != second:
                    told = f"{_outcome(first)} / {_outcome(second)}"
                    failures.append(f"{task.id} answers the same actions differently: {told}")
                    break
        except Broken as broken:
            failures += findings_of(broken)
    return failures


async def check_concurrent(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """Worlds that run at once do not see each other: each begins and replies as it does alone."""
    chosen = [tasks[index % len(tasks)] for index in range(NUM_WORLDS)]
    try:
        plans = [[*(await gold_of(environment, task) or ()), "no such action"] for task in chosen]
        alone = [await attempt(environment, task, plan) for task, plan in zip(chosen, plans, strict=True)]
        with stretched(_PATIENCE):
            tried = (attempt(environment, task, plan) for task, plan in zip(chosen, plans, strict=True))
            at_once = await asyncio.gather(*tried, return_exceptions=True)
    except Broken as broken:
        return findings_of(broken)
    raised = [one for one in at_once if isinstance(one, BaseException)]
    for error in raised:
        if not isinstance(error, Broken):
            raise error
    failures = [text for error in raised if isinstance(error, Broken) for text in findings_of(error)]
    differ = sum(one != two for one, two in zip(alone, at_once, strict=True)) - len(raised)
    return failures + ([f"{differ} of {NUM_WORLDS} worlds reply differently when they run at once"] if differ else [])


async def check_close(environment: Environment, left: Leftovers) -> list[str]:
    """`close` works twice and leaves no process and no file that `left` had not seen before."""
    failures: list[str] = []
    for attempted in ("first", "second"):
        try:
            await asked(environment.close, what=f"the {attempted} close")
        except Broken as broken:
            failures.append(broken.finding)
    deadline = time.monotonic() + CLOSE_WAIT_S
    while ((processes := left.processes()) or left.files()) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    for what, names in (("child processes are", processes), ("files are", left.files())):
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            failures.append(f"{len(names)} {what} left {CLOSE_WAIT_S:g} s after close: {shown}")
    return failures


def _unusable(reply: Reply) -> list[str]:
    """What is wrong with a reply to a malformed action."""
    feedback = reply.verdict.feedback if reply.verdict else ""
    text = f"{reply.observation}{feedback}"
    objections = []
    if not text.strip() and not (reply.verdict and reply.verdict.success):
        objections.append("no observation and no feedback")
    if len(text) > LONGEST_FEEDBACK:
        objections.append(f"a reply of {len(text)} characters, expected at most {LONGEST_FEEDBACK}")
    if "Traceback (most recent call last)" in text:
        objections.append("a raw traceback as its reply")
    try:
        json.dumps(to_plain(reply), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        objections.append("a reply that cannot be stored: it holds lone surrogates")
    return objections


async def _first_gold(environment: Environment, task: Task) -> str:
    try:
        gold = await gold_of(environment, task)
    except Broken as broken:
        findings_of(broken)
        return ""
    return gold[0] if gold else ""


def _last(replies: Sequence[Reply]) -> str:
    return "no reply" if not replies else ascii(text_of(replies[-1:]))[:160]


def _outcome(played: Attempt) -> str:
    """The end of an attempt, and whether it is a success."""
    return f"{_last(played.replies)}{' (a success)' if won(played.replies) else ''}"

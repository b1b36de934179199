"""What every environment must do, as a suite that any implementation passes unchanged, third parties' too.

    report = asyncio.run(check(open_environment("gsm8k", {"data": folder})))
    assert report.ok, str(report)

Each `check_…` function tests one promise of `environment.py` and returns sentences about what is broken, none if it
holds.
`check` runs them all on a few tasks and then closes the environment; hand over one that owns what it opens, for the
last check counts child processes. The malformed actions are drawn from a fixed seed.

`perturb(task, gold)` may give action sequences that must fail, for what only the environment's author can think of
(a wrong number, another room); emptied, cut and reversed golds are always tried.

Left out: speed, and whether the official metric is computed right; that is each environment's own test.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kintsugi.errors import DataError
from kintsugi.records import Task, to_plain
from kintsugi.sandboxes.environments.environment import Environment, Reply

Perturb = Callable[[Task, Sequence[str]], Iterable[Sequence[str]]]

NUM_FUZZED: Final = 200
NUM_WORLDS: Final = 32
CLOSE_WAIT_S: Final = 3.0
LONGEST_FEEDBACK: Final = 5_000

_PIECES: Final = (
    "a = 3", "print(", "))", "\n", "\r\n", "\t", " ", "```", "```python\n", "go ", "think:", "finish[", "]", '"', "'",
    "\\", "\0", "\x1b[31m", "\x07", "\x0c", "\ud800", "\udfff", "\u202e", "\u2028", "é", "٣", "🙂", "{}", "%s", "${x}",
    "<|im_end|>", "</s>", "'; DROP TABLE tasks; --", "$(touch x)", "`id`", "../../etc/passwd", "__import__('os')",
    "1e999", "9" * 30, "lambda: (yield)", "def f(", "return 5", "NaN", '{"success": true, "reward": 1}', "<script>",
    "#### 5", "Verdict(",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome. checks: names of what was tried; failures: one sentence each; num_tasks: tasks used."""

    environment: str
    split: str
    num_tasks: int
    checks: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        head = f"{self.environment} ({self.split}, {self.num_tasks} tasks): {len(self.checks)} checks"
        return "\n".join([f"{head}, {len(self.failures)} failures", *(f"- {text}" for text in self.failures)])


async def check(
    environment: Environment, *, split: str = "train", num_tasks: int = 20, perturb: Perturb | None = None
) -> Report:
    """Run every check on `num_tasks` tasks of `split`, then close `environment`. Raises what loading tasks raises."""
    before = _children()
    tasks = list(environment.tasks(split, limit=num_tasks))
    failures = {"tasks": check_tasks(environment, split, num_tasks)}
    if tasks:
        failures["gold"] = await check_gold(environment, tasks)
        failures["perturbed"] = await check_perturbed(environment, tasks, perturb)
        failures["malformed"] = await check_malformed(environment, tasks)
        failures["replay"] = await check_replay(environment, tasks)
        failures["concurrent"] = await check_concurrent(environment, tasks)
        failures["leaks"] = await check_leaks(environment, tasks)
    failures["close"] = await check_close(environment, before)
    return Report(
        environment=environment.name,
        split=split,
        num_tasks=len(tasks),
        checks=tuple(failures),
        failures=tuple(text for texts in failures.values() for text in texts),
    )


async def play(environment: Environment, task: Task, actions: Sequence[str]) -> list[Reply]:
    """Replies of a fresh world to `actions`, up to a verdict or `max_turns`."""
    world = await environment.start(task)
    replies: list[Reply] = []
    try:
        await world.observe()
        for action in actions[: environment.max_turns]:
            replies.append(await world.act(action))
            if replies[-1].verdict is not None:
                break
    finally:
        await world.close()
    return replies


def check_tasks(environment: Environment, split: str, num_tasks: int) -> list[str]:
    """Tasks are the same each time, plain data, named apart, and held-out ones are no training tasks."""
    tasks = list(environment.tasks(split, limit=num_tasks))
    failures = []
    if not tasks:
        failures.append(f'tasks("{split}", limit={num_tasks}) gave none')
    if len(tasks) > num_tasks:
        failures.append(f'tasks("{split}", limit={num_tasks}) gave {len(tasks)}')
    if tasks != list(environment.tasks(split, limit=num_tasks)):
        failures.append(f'tasks("{split}") differ when asked for twice with the same seed')
    if len({task.id for task in tasks}) < len(tasks):
        failures.append(f'tasks("{split}") have ids that occur twice')
    for task in tasks:
        if task.split != split or task.environment != environment.name or not task.prompt.strip() or not task.id:
            failures.append(f"task {task.id!r} has a wrong split, a wrong environment, no prompt or no id")
        if json.loads(json.dumps(to_plain(task))) != to_plain(task):
            failures.append(f"task {task.id!r} does not survive JSON: its payload must be plain data with text keys")
    try:
        environment.tasks("no such split", limit=1)
        failures.append('tasks("no such split") gave tasks; expected DataError')
    except DataError:
        pass
    return failures + _overlap(environment, num_tasks)


def _overlap(environment: Environment, num_tasks: int) -> list[str]:
    prompts: dict[str, set[str]] = {}
    for split in ("train", "heldout", "demonstrations"):
        try:
            several = [environment.tasks(split, limit=10 * num_tasks, seed=seed) for seed in (0, 1)]
        except DataError:
            continue
        prompts[split] = {" ".join(task.prompt.split()).casefold() for tasks in several for task in tasks}
    return [
        f'the splits {split} and heldout share a prompt: "{sorted(shared)[0][:80]}"'
        for split in prompts
        if split != "heldout" and (shared := prompts[split] & prompts.get("heldout", set()))
    ]


async def check_gold(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """The gold actions end in success, with reward 1, on the last of them; `known_bad` names tasks whose golds do not."""
    failures = []
    for task in tasks:
        gold = await environment.gold(task)
        if gold is None or task.id in getattr(environment, "known_bad", {}):
            continue
        replies = await play(environment, task, gold)
        if not _won(replies) or len(replies) != len(gold):
            failures.append(f"the gold actions of {task.id} do not win: {_last(replies)}")
        elif (verdict := replies[-1].verdict) is not None and verdict.reward != 1.0:
            failures.append(f"the gold actions of {task.id} earn reward {verdict.reward}, expected 1")
    return failures


async def check_perturbed(environment: Environment, tasks: Sequence[Task], perturb: Perturb | None = None) -> list[str]:
    """Emptied, cut and reversed golds fail, and so does what `perturb` gives."""
    failures = []
    for task in tasks:
        gold = await environment.gold(task)
        if gold is None:
            continue
        last = gold[-1]
        wrong = [(*gold[:-1], text) for text in ("", last[: len(last) // 2], last[::-1])]
        for actions in [*wrong, *(perturb(task, gold) if perturb else ())]:
            replies = await play(environment, task, actions)
            if list(actions) != list(gold) and _won(replies):
                failures.append(f"{task.id} is won by a spoiled gold: {actions[-1][:120]!r}")
    return failures


async def check_malformed(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """Any text is answered, with a usable sentence; nothing is raised, nothing breaks."""
    failures = []
    for index, action in enumerate(malformed_actions(await _first_gold(environment, tasks[0]))):
        task = tasks[index % len(tasks)]
        shown = ascii(action[:60])
        try:
            reply = (await play(environment, task, [action]))[0]
        except Exception as error:  # the very thing under test: whatever it raises is the finding
            failures.append(f"action {shown} raised {type(error).__name__}: {str(error)[:120]}")
            continue
        if reply.verdict is not None and reply.verdict.error:
            failures.append(f"action {shown} broke the environment: {reply.verdict.error}")
        failures += [f"action {shown} got {objection}" for objection in _unusable(reply)]
    return failures


def malformed_actions(gold: str, num: int = NUM_FUZZED) -> list[str]:
    """The same `num` odd texts each time: empty, huge, deep, binary, control characters, surrogates, injections, and
    `gold` with a few characters changed."""
    rng = random.Random("kintsugi malformed actions")
    actions = ["", " ", "\n\n", "\0", "\ud800", "x" * 200_000, "(" * 10_000, "-" * 10_000 + "1", "9" * 10_000]
    actions += [
        "```",
        "\\",
        "a" + "[0]" * 5_000,
        "\n" * 50_000,
        "".join(map(chr, range(256))),
        "go " + "north " * 999,
        *_PIECES,
    ]
    while len(actions) < num:
        if rng.random() < 0.3 and gold:
            cut = rng.randrange(len(gold))
            actions.append(gold[:cut] + rng.choice(_PIECES) + gold[cut + rng.randrange(3) :])
        elif rng.random() < 0.3:
            actions.append(rng.randbytes(rng.randrange(1, 80)).decode("utf-8", "surrogateescape"))
        else:
            actions.append("".join(rng.choices(_PIECES, k=rng.randrange(1, 12))))
    return actions[:num]


async def check_replay(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """The same actions get the same replies in a fresh world."""
    failures = []
    for task in tasks:
        gold = await environment.gold(task) or ()
        for actions in (gold, [*gold[:-1], "look", "no such action"], ["no such action"] * 3):
            first, second = await play(environment, task, actions), await play(environment, task, actions)
            if first != second:
                failures.append(f"{task.id} answers the same actions differently: {_last(first)} / {_last(second)}")
                break
    return failures


async def check_concurrent(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """Worlds that run at once do not see each other: each replies as it does alone."""
    chosen = [tasks[index % len(tasks)] for index in range(NUM_WORLDS)]
    plans = [[*(await environment.gold(task) or ()), "no such action"] for task in chosen]
    alone = [await play(environment, task, plan) for task, plan in zip(chosen, plans, strict=True)]
    pairs = zip(chosen, plans, strict=True)
    at_once = await asyncio.gather(*(play(environment, task, plan) for task, plan in pairs))
    differ = sum(one != other for one, other in zip(alone, at_once, strict=True))
    return [f"{differ} of {NUM_WORLDS} worlds reply differently when they run at once"] if differ else []


async def check_leaks(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """Replies to wrong actions do not hold the answer, unless the prompt or the action does.

    A payload's `answer` found in a reply is a leak when it goes away or changes as the answer in the payload changes
    (otherwise it is there by chance, like a line number). Lines of a one-turn gold action must not occur at all."""
    failures = []
    for task in tasks:
        gold = await environment.gold(task)
        for wrong in await _wrong_actions(environment, task):
            text = _text(await play(environment, task, wrong))
            answer = str(task.payload.get("answer", ""))
            known = task.prompt + "\n" + "\n".join(wrong)
            if answer and _holds(text, answer) and not _holds(known, answer):
                other = replace(task, payload={**task.payload, "answer": _changed(task.payload["answer"])})
                if _text(await play(environment, other, wrong)) != text:
                    failures.append(f"a reply to a wrong action of {task.id} holds its answer {answer}: {text[:120]!r}")
            if environment.max_turns == 1 and gold:
                lines = [line.strip() for line in gold[0].split("\n") if len(line.strip()) >= 8]
                shown = [line for line in lines if line in text and line not in known]
                failures += [f"a reply to a wrong action of {task.id} holds the gold line {line!r}" for line in shown]
    return failures


async def _wrong_actions(environment: Environment, task: Task) -> list[list[str]]:
    """Sequences that do not win: nonsense, and golds with a number changed or an end missing."""
    gold = list(await environment.gold(task) or ())
    wrong = [["no such action"], [""], ["print(-987654.25)"]]
    if gold:
        spoiled = re.sub(r"\d+", lambda match: str(int(match[0]) + 1), gold[-1], count=1)
        wrong += [[*gold[:-1], text] for text in (spoiled, gold[-1].rpartition("\n")[0], gold[-1][:-1])]
    return [actions for actions in wrong if not _won(await play(environment, task, actions))]


async def check_close(environment: Environment, before: set[int]) -> list[str]:
    """`close` works twice and leaves no child process that was not there `before`."""
    failures = []
    for attempt in ("first", "second"):
        try:
            await environment.close()
        except Exception as error:  # the very thing under test
            failures.append(f"the {attempt} close raised {type(error).__name__}: {str(error)[:120]}")
    deadline = time.monotonic() + CLOSE_WAIT_S
    while (left := _children() - before) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return [*failures, f"{len(left)} child processes are left {CLOSE_WAIT_S:g} s after close"] if left else failures


def _children() -> set[int]:
    """Process ids of this process's children, zombies included; empty where there is no /proc."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        if int(fields[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


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
    gold = await environment.gold(task)
    return gold[0] if gold else ""


def _won(replies: Sequence[Reply]) -> bool:
    verdict = replies[-1].verdict if replies else None
    return verdict is not None and verdict.success


def _last(replies: Sequence[Reply]) -> str:
    return "no reply" if not replies else ascii(_text(replies[-1:]))[:160]


def _text(replies: Sequence[Reply]) -> str:
    verdicts = [reply.verdict for reply in replies]
    told = [f"{v.feedback}\n{v.fault.note if v.fault else ''}" if v else "" for v in verdicts]
    return "\n".join(f"{reply.observation}\n{text}" for reply, text in zip(replies, told, strict=True)).strip()


def _holds(text: str, piece: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(piece)}(?!\w)", text) is not None


def _changed(answer: object) -> object:
    return answer + 31 if isinstance(answer, int | float) else f"other {answer}"

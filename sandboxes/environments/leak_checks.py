"""The part of the conformance suite that looks for the answer in what is said of wrong actions.

    await check_leaks(environment, tasks)      # sentences about what is given away, none if nothing is

Left out: payload keys other than `answer`; golds of several turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from kintsugi.records import Task
from kintsugi.sandboxes.environments.careful_calls import Broken, findings_of, gold_of, replies_of, won
from kintsugi.sandboxes.environments.environment import Environment, Reply


async def check_leaks(environment: Environment, tasks: Sequence[Task]) -> list[str]:
    """Replies to wrong actions do not hold the answer, unless the prompt or the action does.

    A payload's `answer` found in a reply is a leak when it goes away or changes as the answer in the payload changes
    (otherwise it is there by chance, like a line number). Lines of a one-turn gold action must not occur at all."""
    failures = []
    for task in tasks:
        try:
            failures += await _leaks(environment, task)
        except Broken as broken:
            failures += findings_of(broken)
    return failures


async def _leaks(environment: Environment, task: Task) -> list[str]:
    failures = []
    gold = await gold_of(environment, task)
    for wrong in await _wrong_actions(environment, task):
        text = text_of(await replies_of(environment, task, wrong))
        answer = str(task.payload.get("answer", ""))
        known = task.prompt + "\n" + "\n".join(wrong)
        if answer and _holds(text, answer) and not _holds(known, answer):
            other = replace(task, payload={**task.payload, "answer": _changed(task.payload["answer"])})
            if text_of(await replies_of(environment, other, wrong)) != text:
                failures.append(f"a reply to a wrong action of {task.id} holds its answer {answer}: {text[:120]!r}")
        if environment.max_turns == 1 and gold:
            lines = [line.strip() for line in gold[0].split("\n") if len(line.strip()) >= 8]
            shown = [line for line in lines if line in text and line not in known]
            failures += [f"a reply to a wrong action of {task.id} holds the gold line {line!r}" for line in shown]
    return failures


async def _wrong_actions(environment: Environment, task: Task) -> list[list[str]]:
    """Sequences that do not win: nonsense, and golds with a number changed or an end missing."""
    gold = list(await gold_of(environment, task) or ())
    wrong = [["no such action"], [""], ["print(-987654.25)"]]
    if gold:
        spoiled = re.sub(r"\d+", lambda match: str(int(match[0]) + 1), gold[-1], count=1)
        wrong += [[*gold[:-1], text] for text in (spoiled, gold[-1].rpartition("\n")[0], gold[-1][:-1])]
    return [actions for actions in wrong if not won(await replies_of(environment, task, actions))]


def text_of(replies: Sequence[Reply]) -> str:
    """All that an agent reads in these replies."""
    verdicts = [reply.verdict for reply in replies]
    told = [f"{v.feedback}\n{v.fault.note if v.fault else ''}" if v else "" for v in verdicts]
    return "\n".join(f"{reply.observation}\n{text}" for reply, text in zip(replies, told, strict=True)).strip()


def _holds(text: str, piece: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(piece)}(?!\w)", text) is not None


def _changed(answer: object) -> object:
    return answer + 31 if isinstance(answer, int | float) else f"other {answer}"

"""Word problems made on the spot: the bundled environment, no data needed.

    environment = open_environment(events="3-5")
    task = environment.tasks("train", limit=250, seed=1)[0]

Tasks come from `word_problem_generator`: splits `train`, `heldout` and `demonstrations` share no question, and a seed
gives other tasks of the split. The prompt is the question; the answer wanted is lines of Python that print the number.
A payload holds `answer`, the gold `program` and its `events`.

A failed program gets a located fault (the line, what stands before it, an objection) that is found without the gold
answer, and the feedback `b = a + 70 # 70 not in question`. Left out: prompts, and the warm start's mixture of rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, get_args

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Fault, Task
from kintsugi.sandboxes.environments import word_problem_generator as generator
from kintsugi.sandboxes.environments.about import About
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.program_of_thought import ProgramOfThought, find_program

ABOUT = About(kind="program of thought", metric="|printed number - answer| <= 1e-4")


def open_environment(
    events: str | int | Sequence[int] = "1-3",
    sandbox: Any = None,
    limits: Any = None,
    allow_answer: bool = False,
    memo: bool = True,
    num_tasks: int = 200,
    demonstration_events: str | int | Sequence[int] | None = None,
    paraphrase_share: float = generator.PARAPHRASE_SHARE,
) -> WordProblems:
    """Word problems of `events` events ("1-3", "4" or a pair); the rest as `ProgramOfThought` has it.

    num_tasks: how many `tasks` makes when it is given no limit. demonstration_events: events of the demonstrations, when
    others. paraphrase_share: share of each operation's wordings that the demonstrations show; the others are left to be
    found out."""
    return WordProblems(
        events=events,
        num_tasks=num_tasks,
        demonstration_events=demonstration_events,
        paraphrase_share=paraphrase_share,
        sandbox=sandbox,
        limits=limits,
        allow_answer=allow_answer,
        memo=memo,
    )


class WordProblems(ProgramOfThought):
    """The environment; see the module."""

    name = "word_problems"

    def __init__(
        self,
        *,
        events: str | int | Sequence[int] = "1-3",
        num_tasks: int = 200,
        demonstration_events: str | int | Sequence[int] | None = None,
        paraphrase_share: float = generator.PARAPHRASE_SHARE,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.events = _events(events)
        self.demonstration_events = _events(events if demonstration_events is None else demonstration_events)
        if not 0 < paraphrase_share <= 1:
            raise ConfigError(f"word_problems.paraphrase_share: expected above 0 and at most 1, found {paraphrase_share}")
        self.num_tasks, self.paraphrase_share = num_tasks, paraphrase_share

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """`limit` tasks of `split`; another seed gives others. Raises DataError for an unknown split."""
        splits = get_args(generator.Split)
        if split not in splits:
            raise DataError(f'word_problems has no split "{split}": {nearest(split, splits)}')
        number = self.num_tasks if limit is None else limit
        try:
            events = self.demonstration_events if split == "demonstrations" else self.events
            problems = generator.generate(
                seed,
                number,
                split=split,  # type: ignore[arg-type]
                events=events,
                paraphrase_share=self.paraphrase_share,
            )
        except ValueError as error:
            raise DataError(f"word_problems cannot make {number} tasks: {error}") from error
        return [
            Task(
                id=problem.id,
                environment=self.name,
                split=split,
                prompt=problem.question,
                payload={"answer": problem.answer, "program": problem.program, "events": list(problem.events)},
            )
            for problem in problems
        ]

    async def gold(self, task: Task) -> Sequence[str]:
        return (task.payload["program"],)

    def find_fault(self, task: Task, action: str) -> Fault | None:
        program = find_program(action)
        fault = generator.find_fault(task.prompt, program.source)
        return program.fault_at(fault.line + 1, fault.note) if fault is not None else None

    def locate(self, task: Task, action: str, crash: Fault | None) -> Fault | None:
        """The first line to object to: it often stands before the one at which Python stops."""
        return self.find_fault(task, action) or crash

    def feedback(self, task: Task, action: str, text: str, fault: Fault | None) -> str:
        if fault is None:
            return text
        return readable(f"{fault.bad} # {fault.note}".strip(), 200)

    def scripted_repair(self, task: Task, rng: random.Random) -> tuple[str, Fault, str]:
        """A slip made on purpose and its repair: (bad program, its fault, completion); kept + completion is the gold
        program. For warm starts: no model is asked."""
        payload = task.payload
        problem = generator.WordProblem(
            id=task.id,
            question=task.prompt,
            program=payload["program"],
            answer=payload["answer"],
            events=tuple(payload["events"]),
        )
        bad, fault, completion = generator.scripted_repair(problem, rng)
        return bad, Fault(kept=fault.kept, bad=fault.bad, note=fault.note), completion


def _events(events: str | int | Sequence[int]) -> tuple[int, int]:
    """ "1-3", "4", 4 or a pair, as (least, greatest)."""
    try:
        pair = events.split("-") if isinstance(events, str) else [events] if isinstance(events, int) else list(events)
        least, greatest = int(pair[0]), int(pair[-1])
        if not 1 <= least <= greatest <= 20 or len(pair) > 2:
            raise ValueError
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f'word_problems.events: expected "1-3" or "4", from 1 to 20, found {events!r}') from error
    return least, greatest

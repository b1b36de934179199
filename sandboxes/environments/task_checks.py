"""The part of the conformance suite that looks at tasks and plays nothing.

    check_tasks(environment, "train", 20)      # sentences about what is broken, none if all holds

Left out: what is tried in worlds, which is `conformance.py`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from kintsugi.errors import DataError
from kintsugi.records import Task, to_plain
from kintsugi.sandboxes.environments.careful_calls import Broken
from kintsugi.sandboxes.environments.environment import Environment
from kintsugi.sandboxes.environments.split_reading import NO_SPLIT, Reading, read_split, tasks_of


def check_tasks(environment: Environment, split: str, num_tasks: int, reading: Reading | None = None) -> list[str]:
    """Tasks are the same each time, plain data, named apart, and held-out ones are no training tasks."""
    reading = read_split(environment, split, limit=num_tasks) if reading is None else reading
    if reading.broken is not None:
        return [reading.broken]
    tasks = list(reading.tasks)
    failures: list[str] = _attributes(environment)
    try:
        if not tasks:
            failures.append(f'tasks("{split}", limit={num_tasks}) gave none')
        if len(tasks) > num_tasks:
            failures.append(f'tasks("{split}", limit={num_tasks}) gave {len(tasks)}')
        if tasks != tasks_of(environment, split, limit=num_tasks, seed=0):
            failures.append(f'tasks("{split}") differ when asked for twice with the same seed')
        if len({task.id for task in tasks}) < len(tasks):
            failures.append(f'tasks("{split}") have ids that occur twice')
        failures += _plain(environment, tasks, split) + _refused(environment) + _overlap(environment, num_tasks)
    except Broken as broken:
        failures.append(broken.finding)
    except DataError as error:
        failures.append(f'tasks("{split}") cannot be read twice: {error}')
    return failures


def _attributes(environment: Environment) -> list[str]:
    failures = []
    if not isinstance(environment.name, str) or not environment.name.strip():
        failures.append(f"the environment's name is {environment.name!r:.40}; expected a text")
    if isinstance(environment.max_turns, bool) or not isinstance(environment.max_turns, int) or environment.max_turns < 1:
        failures.append(f"max_turns is {environment.max_turns!r:.40}; expected a whole number from 1")
    return failures


def _plain(environment: Environment, tasks: Sequence[Task], split: str) -> list[str]:
    failures = []
    for task in tasks:
        if task.split != split or task.environment != environment.name:
            found = f"split {task.split!r:.40} and environment {task.environment!r:.40}"
            failures.append(f'task {task.id!r} of tasks("{split}") has {found}; expected its own')
        try:
            plain = json.loads(json.dumps(to_plain(task))) == to_plain(task)
        except (TypeError, ValueError, RecursionError):
            plain = False
        if not plain:
            failures.append(f"task {task.id!r} does not survive JSON: its payload must be plain data with text keys")
    return failures


def _refused(environment: Environment) -> list[str]:
    try:
        tasks_of(environment, NO_SPLIT, limit=1)
    except DataError:
        return []
    except Broken as broken:
        return [f"{broken}; expected DataError, which says that there is no such split"]
    return [f'tasks("{NO_SPLIT}") gave tasks; expected DataError']


def _overlap(environment: Environment, num_tasks: int) -> list[str]:
    """Prompts that a training split shares with the held-out one, and splits that cannot be read."""
    prompts: dict[str, set[str]] = {}
    failures: list[str] = []
    for split in ("train", "heldout", "demonstrations"):
        reading = read_split(environment, split, limit=10 * num_tasks)
        failures += [reading.broken] if reading.broken is not None else []
        if reading.tasks:
            several = [reading.tasks, tasks_of(environment, split, limit=10 * num_tasks, seed=1)]
            prompts[split] = {" ".join(task.prompt.split()).casefold() for tasks in several for task in tasks}
    return failures + [
        f'the splits {split} and heldout share a prompt: "{sorted(shared)[0][:80]}"'
        for split in prompts
        if split != "heldout" and (shared := prompts[split] & prompts.get("heldout", set()))
    ]

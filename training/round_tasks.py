"""Which tasks a run trains and is measured on, and the check that the two never meet."""

from __future__ import annotations

from collections.abc import Sequence

from kintsugi.errors import LearningError
from kintsugi.records import Task
from kintsugi.sandboxes.environments.environment import Environment
from kintsugi.training.evaluation import seed_of
from kintsugi.training.recipe import Recipe


class RoundTasks:
    """The tasks of one run."""

    def __init__(self, recipe: Recipe, environment: Environment) -> None:
        self.recipe, self.environment = recipe, environment
        self._heldout: Sequence[Task] | None = None

    def heldout(self) -> Sequence[Task]:
        """The held-out tasks: the same in every round, arm and recipe with this evaluation seed."""
        if self._heldout is None:
            settings, evaluate = self.recipe.environment, self.recipe.evaluate
            self._heldout = self.environment.tasks(settings.heldout_split, limit=evaluate.tasks, seed=evaluate.seed)
            if not self._heldout:
                raise LearningError(f'{settings.name} has no tasks in its split "{settings.heldout_split}"')
        return self._heldout

    def of_round(self, number: int) -> Sequence[Task]:
        """The tasks that round `number` explores. Raises LearningError when a held-out one is among them."""
        split = self.recipe.environment.train_split
        seed = seed_of(self.recipe.seed, "tasks", number)
        tasks = self.environment.tasks(split, limit=self.recipe.explore.tasks, seed=seed)
        self.check_apart(tasks, f"tasks of round {number}")
        return tasks

    def check_apart(self, tasks: Sequence[Task], which: str) -> None:
        """Raises LearningError when a held-out question is among `tasks`."""
        heldout = {task.prompt for task in self.heldout()}
        both = [task.id for task in tasks if task.prompt in heldout]
        if both:
            raise LearningError(
                f"{len(both)} held-out tasks are among the {which} (first: {both[0]}): choose disjoint "
                "splits (environment.train_split, environment.heldout_split)"
            )

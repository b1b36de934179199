"""`export`: a run's rows for trainers elsewhere, asked exactly as its policies are: the one call behind `kintsugi episodes
export`.

    import kintsugi
    with kintsugi.Ledger.open("runs/demo", read_only=True) as ledger:
        kintsugi.export(ledger, "dpo", "pairs.jsonl", round=2)

The prompts are those of `training.rows`: the agent's own, without examples and reflections, before an attempt; the
repairer's, told of the failed attempt as the recipe says, before a repair. `ledger/export.py` says which rows there are.
"""

from __future__ import annotations

from pathlib import Path

from kintsugi.agents.policies.policy import ChatMessage
from kintsugi.agents.roles import Prompt, load_prompt
from kintsugi.graphs.episode_config import RepairConfig
from kintsugi.graphs.episode_nodes import repair_request
from kintsugi.ledger import Ledger
from kintsugi.ledger.export import Chat, Chats
from kintsugi.ledger.export import export as write_rows
from kintsugi.ledger.filters import Wanted
from kintsugi.records import Critique, Observation, Trajectory
from kintsugi.training.recipe import Recipe
from kintsugi.training.run import recipe_of


def export(
    ledger: Ledger, kind: str, path: str | Path, *, saw_gold: bool = False, recipe: Recipe | None = None, **filters: Wanted
) -> int:
    """Write one kind of rows ("sft", "dpo", "repairs", "trajectories") to `path` and return how many.

    recipe: whose prompts and repair; None takes that of the run that the ledger lies in, and where there is none (a
    ledger by itself) the environment's words alone. saw_gold, filters and errors: see `kintsugi.ledger.export`.
    """
    recipe = recipe or recipe_beside(ledger)
    chats = None if recipe is None else RoleChats.of(recipe)
    return write_rows(ledger, kind, path, saw_gold=saw_gold, chats=chats, **filters)


def recipe_beside(ledger: Ledger) -> Recipe | None:
    """The recipe of the run that the ledger lies in; None for a ledger by itself, or one on a server."""
    folder = Path(ledger.place).parent
    return recipe_of(folder) if (folder / "run.json").is_file() else None


class RoleChats(Chats):
    """Chats in the prompts of an agent and of a repairer."""

    def __init__(self, actor: Prompt, repairer: Prompt, repair: RepairConfig) -> None:
        self.actor, self.repairer, self.repairs = actor, repairer, repair

    @classmethod
    def of(cls, recipe: Recipe) -> RoleChats:
        """The recipe's own prompts, as a round trains with them."""
        who = "reflector" if recipe.repair.who == "reflector" else "refiner"
        actor, repairer = (load_prompt(recipe.model.prompts, role).without_shots() for role in ("actor", who))
        return cls(actor, repairer, recipe.repair)

    def opening(self, said: str) -> Chat:
        return _plain(self.actor.messages(task=said, attempt="", feedback="", memory=""))

    def repair(self, failed: Trajectory, right: Trajectory) -> tuple[Chat, Chat, str]:
        """As `Rows.repair_row`: a rollback's answer goes on from its prefill; where there is a reflection, it is that."""
        first = failed.messages[0]
        assert isinstance(first, Observation), "a trajectory begins with what the environment said"
        form = self.repairs.form
        keep = right.actions[0].prefill if form == "rollback" else None
        request, place = repair_request(self.repairer, self.repairs, first.text, failed, keep)
        if self.repairs.reflects:
            said = [one.text for one in right.messages if isinstance(one, Critique) and one.author != "notes"]
            answer = said[-1] if said else ""
        else:
            answer = request.prefill + right.actions[0].text[len(place.kept if place else "") :]
        completion = [{"role": "assistant", "content": answer}] if answer else []
        return _plain(request.messages), completion, request.prefill


def _plain(messages: tuple[ChatMessage, ...]) -> Chat:
    return [{"role": message["role"], "content": message["content"]} for message in messages]

"""Rows: what was sampled is what is trained, and the loss falls on what the agent should have said and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from kintsugi.agents.chat_tokens import ChatTokens
from kintsugi.agents.policies.policy import ChatMessage, Completion, Request, as_messages
from kintsugi.agents.roles import Role, load_prompt
from kintsugi.graphs.episode_config import EpisodeConfig, RepairConfig
from kintsugi.graphs.episode_nodes import Cast
from kintsugi.graphs.episode_state import EpisodePlan
from kintsugi.graphs.rollout import play_wave
from kintsugi.graphs.worlds import Worlds
from kintsugi.ledger import Ledger
from kintsugi.records import Action, Critique, Fault, Observation, Pair, Tokens, Trajectory, Verdict
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.training.casting import Troupe
from kintsugi.training.rows import Rows, rollback_cut
from kintsugi.training.run import RunResult, recipe_of
from kintsugi.training.small_model import make_small_model
from kintsugi.training.warm_start import load_chat

WRONG, RIGHT = "a = 3\nb = a + 70\nprint(b)", "a = 3\nb = a + 7\nprint(b)"
FAULT = Fault(kept="a = 3\n", bad="b = a + 70", note="70 not in question")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatTokens:
    texts = [WRONG, RIGHT, "Ann has 3 pens and gets 7 more. How many are there?", "go north, take lamp"] * 3
    return load_chat(make_small_model(texts, tmp_path_factory.mktemp("model")))


def rows(
    chat: ChatTokens,
    *known: Trajectory,
    form: str = "rollback",
    sees: str = "feedback",
    prompts: str = "bare",
    who: str = "refiner",
) -> Rows:
    repair = {"who": "self" if who == "refiner" else "reflector", "form": form, "sees": sees}
    return Rows(
        chat,
        actor=load_prompt(prompts, "actor").without_shots(),
        repairer=load_prompt(prompts, who),
        repair=RepairConfig.model_validate(repair),
        trajectories={one.id: one for one in known},
    )


def odd(chat: ChatTokens, text: str) -> tuple[int, ...]:
    """Ids of `text` as no tokenizer would cut it: character by character, then the end of turn."""
    return tuple(i for letter in text for i in chat.completion_ids(letter)[:-1]) + chat.end_of_turn_ids


def tried(chat: ChatTokens, id: str, text: str, context: Request, **more: Any) -> Trajectory:
    kept = more.pop("kept", "")
    tokens = Tokens(context_ids=chat.context(context), completion_ids=odd(chat, text.removeprefix(kept)))
    right = more.pop("right", True)
    values: dict[str, Any] = {
        "task_id": "t",
        "episode_id": "e",
        "environment": "x",
        "stage": "explore",
        "attempt": 0,
        "policy_version": "v0",
        "round": 1,
        "stop": "success" if right else "failure",
        "hard_reward": float(right),
        "messages": (
            Observation(text="Ann?"),
            *more.pop("said", ()),
            Action(text=text, prefill=kept, tokens=tokens),
            Verdict(success=right, reward=float(right), feedback="no", fault=more.pop("fault", None)),
        ),
    }
    return Trajectory(id=id, **{**values, **more})


def learned(chat: ChatTokens, row: Any) -> str:
    """What the loss falls on, as text."""
    return chat.decode([token for token, learn in zip(row.ids, row.mask, strict=True) if learn])


def test_a_real_run_trains_on_what_was_sampled(tiny_run: RunResult) -> None:
    """In the plain prompt, a row is the recorded context and completion, id by id; a repair's context likewise."""
    recipe = recipe_of(tiny_run.folder)
    with Ledger.open(tiny_run.folder, read_only=True) as ledger:
        known = {one.id: one for one in ledger.trajectories(purpose="explore")}
        trained = [row for number in (1, 2) for row in ledger.dataset(ledger.datasets()[0].run_id, number, "main").rows]
    built = Rows.of(recipe, Troupe(recipe), load_chat(tiny_run.champion_folder), known)
    samples = [one for one in known.values() if one.parent_id is None]
    repairs = [one for one in known.values() if one.parent_id is not None]
    assert len(samples) > 70 and repairs
    for one in samples:
        tokens = one.actions[0].tokens
        assert tokens is not None
        row = built.explore(one)
        assert row.ids == (*tokens.context_ids, *tokens.completion_ids)
        assert row.mask == (0,) * len(tokens.context_ids) + (1,) * len(tokens.completion_ids)
    for one in repairs:
        tokens, kept = one.actions[0].tokens, one.actions[0].prefill
        assert tokens is not None
        row = built.repair_row(Pair(task_id=one.task_id, rejected_id=one.parent_id or "", chosen_id=one.id))
        assert row.ids == (*tokens.context_ids, *tokens.completion_ids)
        assert sum(row.mask) == len(tokens.completion_ids)
        parent = known[one.parent_id or ""].actions[0].tokens
        assert parent is not None and one.text.startswith(kept)
        plain = built.explore(one)
        start = len(plain.ids) - sum(plain.mask)
        given = plain.ids[start : len(plain.ids) - len(tokens.completion_ids)]
        assert built.chat.decode(given) == kept
        assert given == parent.completion_ids[: len(given)], "kept lines stay as the parent sampled them"
    own = [row for row in trained if row.kind == "explore"]
    assert own and all(row == dataclasses.replace(built.explore(known[row.trajectory_id]), weight=row.weight) for row in own)


def test_what_else_was_in_the_context_is_stripped(chat: ChatTokens) -> None:
    """Few-shot examples and reflections are left out of the row; the sampled ids stay as they were."""
    actor = load_prompt("program", "actor")
    shots = Request(messages=actor.messages(task="Ann?", attempt="", feedback="", memory=""))
    plain = chat.context(Request(messages=actor.without_shots().messages(task="Ann?", attempt="", feedback="", memory="")))
    one = tried(chat, "a", RIGHT, shots)
    row = rows(chat, one, prompts="program").explore(one)
    assert len(plain) < len(chat.context(shots)) and row.ids == (*plain, *odd(chat, RIGHT))
    assert odd(chat, RIGHT) != chat.completion_ids(RIGHT) and learned(chat, row) == RIGHT

    react = load_prompt("react", "actor")
    hinted = Request(messages=react.messages(task="Ann?", attempt="", feedback="", memory="add, do not multiply"))
    one = tried(chat, "b", RIGHT, hinted, said=[Critique(text="add, do not multiply")])
    row = rows(chat, one, prompts="react", form="again", who="reflector").explore(one)
    assert "multiply" in chat.decode(chat.context(hinted)) and "multiply" not in chat.decode(row.ids)
    assert row.ids[-len(odd(chat, RIGHT)) :] == odd(chat, RIGHT)


@pytest.mark.parametrize("sees", ["feedback", "attempt"])
@pytest.mark.parametrize("form", ["rollback", "rewrite"])
def test_a_repair_row_is_what_the_refiner_was_fed(chat: ChatTokens, form: str, sees: str) -> None:
    """For the repair that was really sampled, and from text for any other right answer."""
    from kintsugi.graphs.episode_nodes import repair_request

    prompts = "bare" if form == "rollback" else "program"
    start = Request(messages=as_messages(("user", "Ann?")))
    wrong = tried(chat, "0a", WRONG, start, right=False, fault=FAULT, feedback="b = a + 70 # 70 not in question")
    builder = rows(chat, form=form, sees=sees, prompts=prompts)
    asked, place = repair_request(builder.repairer, builder.repair, "Ann?", wrong)
    kept = place.kept if place else ""
    answer = RIGHT if RIGHT.startswith(kept) else kept + RIGHT
    own = tried(chat, "0b", answer, asked, kept=kept, parent_id="0a", stage="refine")
    other = tried(chat, "0c", RIGHT, start)
    builder = rows(chat, wrong, own, other, form=form, sees=sees, prompts=prompts)

    row = builder.repair_row(Pair(task_id="t", rejected_id="0a", chosen_id="0b"), weight=0.5)
    tokens = own.actions[0].tokens
    assert tokens is not None and row.ids == (*tokens.context_ids, *tokens.completion_ids) and row.weight == 0.5
    assert row.mask == (0,) * len(tokens.context_ids) + (1,) * len(tokens.completion_ids)
    assert (row.trajectory_id, row.rejected_trajectory_id) == ("0b", "0a")

    row = builder.repair_row(Pair(task_id="t", rejected_id="0a", chosen_id="0c"))
    told = chat.decode(row.ids[: row.mask.index(1)])
    assert ("70 not in question" in told) == (sees == "feedback"), "a repairer that sees no feedback is shown none"
    assert learned(chat, row) == ("b = a + 7\nprint(b)" if form == "rollback" else RIGHT)


def test_rollback_cut() -> None:
    wrong = Trajectory(
        id="a", task_id="t", episode_id="e", environment="x", stage="explore", attempt=0, policy_version="v", round=1,
        messages=(Observation(text="?"), Action(text=WRONG), Verdict(success=False, reward=0, fault=FAULT)),
        stop="failure", hard_reward=0,
    )  # fmt: skip
    right = dataclasses.replace(wrong, messages=(Observation(text="?"), Action(text=RIGHT)))
    assert rollback_cut(wrong, right) == (FAULT, "b = a + 7\nprint(b)")
    assert rollback_cut(wrong, right, blind=True) == (dataclasses.replace(FAULT, note="wrong"), "b = a + 7\nprint(b)")
    late = dataclasses.replace(FAULT, kept="a = 3\nb = a + 70\n", bad="print(b)")  # objects after the real slip
    wrong = dataclasses.replace(wrong, messages=(*wrong.messages[:2], Verdict(success=False, reward=0, fault=late)))
    assert rollback_cut(wrong, right)[0].kept == "a = 3\n"
    assert rollback_cut(right, right) == (Fault(kept=RIGHT, bad="", note="wrong"), "")


def test_pairs_and_weights(chat: ChatTokens) -> None:
    start = Request(messages=as_messages(("user", "Ann?")))
    wrong, right = tried(chat, "0a", WRONG, start, right=False), tried(chat, "0b", RIGHT, start)
    row = rows(chat, wrong, right).pair(Pair(task_id="t", rejected_id="0a", chosen_id="0b"))
    assert (row.kind, row.trajectory_id, row.rejected_trajectory_id) == ("pair", "0b", "0a")
    assert row.ids == (*chat.context(start), *odd(chat, RIGHT)) and row.rejected_ids[-1:] == chat.end_of_turn_ids
    assert row.rejected_ids == (*chat.context(start), *odd(chat, WRONG)) and sum(row.rejected_mask) == len(odd(chat, WRONG))
    assert rows(chat).explore(right, weight=2.0).weight == 2.0


def test_kept_lines_that_the_parent_did_not_split_there(chat: ChatTokens) -> None:
    """A token that spans the cut: the kept lines are tokenised anew, and still belong to the answer."""
    start = Request(messages=as_messages(("user", "Ann?")))
    parent = tried(chat, "0a", WRONG, start, right=False)
    one = tried(chat, "0b", RIGHT, start, kept="a = 3\n", parent_id="0a")
    assert learned(chat, rows(chat, parent, one).explore(one)) == RIGHT
    assert rows(chat, parent, one).explore(one).ids == (*chat.context(start), *odd(chat, RIGHT))
    assert learned(chat, rows(chat, one).explore(one)) == RIGHT, "the parent is not known"


class Hunter:
    """Plays treasure_hunt: `plan` after a reflection (or when there is none to wait for), else gives up; with ids."""

    name, version = "hunter", "h0"

    def __init__(self, chat: ChatTokens, plan: Any, *, exact: bool = True) -> None:
        self.chat, self.plan, self.exact = chat, plan, exact

    async def complete(self, request: Request) -> list[Completion]:
        done = sum(message["role"] == "assistant" for message in request.messages)
        hinted = any("HINT" in message["content"] for message in request.messages)
        if any("Write the reflection" in message["content"] for message in request.messages):
            text = "HINT: keep going"
        else:
            text = self.plan[done] if hinted or done == 0 else "quit"
        ids = odd(self.chat, text) if self.exact else ()
        logprobs = (-0.5,) * len(ids)
        return [Completion(text=text, prompt_ids=self.chat.context(request), token_ids=ids, logprobs=logprobs)]

    async def score(self, request: Request, completion: str) -> tuple[float, ...]:
        return (-1.0,) * len(completion)

    async def close(self) -> None:
        return None


def hunt(chat: ChatTokens, *, exact: bool = True) -> tuple[Trajectory, ...]:
    """A lost hunt and the one that a reflection saved."""

    async def play() -> tuple[Trajectory, ...]:
        environment = open_environment("treasure_hunt")
        task = environment.tasks("train", limit=1, seed=4)[0]
        policy = Hunter(chat, await environment.gold(task), exact=exact)
        roles = {
            name: Role(name=name, policy=policy, prompt=load_prompt("react", name)) for name in ("actor", "reflector")
        }
        cast = Cast(
            roles=roles, worlds=Worlds(environment), repair=RepairConfig(who="reflector", form="again", on="failures")
        )
        plan = EpisodePlan(run_id="r", purpose="explore", round=1, task=task, sample=0, seed=0, policy_version="h0")
        return (await play_wave([plan], cast))[0].trajectories

    return asyncio.run(play())


def test_observations_are_never_learned(chat: ChatTokens) -> None:
    lost, won = hunt(chat)
    assert (lost.stop, won.stop) == ("failure", "success") and len(won.actions) > 2
    builder = rows(chat, lost, won, form="again", prompts="react", who="reflector")
    row = builder.explore(won)
    ends = "".join(action.text + chat.end_of_turn for action in won.actions)
    assert learned(chat, row) + chat.end_of_turn == ends
    assert sum(row.mask) == sum(len(odd(chat, action.text)) for action in won.actions), "sampled ids, not encoded ones"
    text = chat.decode(row.ids)
    seen = [message.text for message in won.messages[1:-1] if isinstance(message, Observation)]
    assert seen and all(one in text for one in seen[:-1]) and "HINT" not in text
    # The reflector learns the reflection that helped; another right attempt says nothing of what to reflect.
    row = builder.repair_row(Pair(task_id="t", rejected_id=lost.id, chosen_id=won.id))
    assert learned(chat, row) == "HINT: keep going" and "Write the reflection" in chat.decode(row.ids)
    critique = next(message for message in won.messages if isinstance(message, Critique))
    assert critique.tokens is not None and not critique.tokens.context_ids
    said = odd(chat, "HINT: keep going")
    assert critique.tokens.completion_ids == said == row.ids[-len(said) :], "sampled ids, not encoded ones"
    cut = dataclasses.replace(critique, tokens=dataclasses.replace(critique.tokens, completion_ids=said[:-1]))
    short = dataclasses.replace(won, messages=tuple(cut if message is critique else message for message in won.messages))
    row = rows(chat, lost, short, form="again", prompts="react", who="reflector").repair_row(
        Pair(task_id="t", rejected_id=lost.id, chosen_id=won.id)
    )
    assert row.ids[-len(said) + 1 :] == said[:-1], "a reflection that was cut off learns no end"
    other = dataclasses.replace(won, id="ff", parent_id=None)
    row = rows(chat, lost, other, form="again", prompts="react", who="reflector").repair_row(
        Pair(task_id="t", rejected_id=lost.id, chosen_id="ff")
    )
    assert not any(row.mask)


def test_an_action_that_came_to_nothing_is_not_learned(chat: ChatTokens) -> None:
    """`targets.unlearned`: actions whose answers begin with one of these texts stay in the context, without loss."""
    _, won = hunt(chat)
    said = [message.text for message in won.messages[1:-1] if isinstance(message, Observation)]
    builder = rows(chat, won, prompts="react")
    whole = builder.explore(won)
    builder.unlearned = (said[0],)
    row = builder.explore(won)
    kept = [action for action, answer in zip(won.actions, [*said, ""], strict=False) if not answer.startswith(said[0])]
    assert row.ids == whole.ids and 0 < len(kept) < len(won.actions)
    assert sum(row.mask) == sum(len(odd(chat, action.text)) for action in kept)


def test_attempts_without_tokens_give_rows_from_text(chat: ChatTokens) -> None:
    _, won = hunt(chat, exact=False)
    assert all(action.tokens is None for action in won.actions)
    row = rows(chat, won, form="again", prompts="react", who="reflector").explore(won)
    assert learned(chat, row) + chat.end_of_turn == "".join(action.text + chat.end_of_turn for action in won.actions)
    task = won.messages[0].text  # type: ignore[union-attr]
    messages = list(load_prompt("react", "actor").messages(task=task, attempt="", feedback="", memory=""))
    for message in won.messages[1:]:
        if isinstance(message, Action | Observation):
            messages.append(ChatMessage(role="assistant" if isinstance(message, Action) else "user", content=message.text))
    assert (row.ids, row.mask) == chat.row(messages)


def test_an_edited_action_is_learned_as_edited(chat: ChatTokens) -> None:
    """A person replaced one action's text (tokens=None): nothing of what was sampled there is left in the row."""
    _, won = hunt(chat)
    sampled = won.actions[1]
    assert sampled.tokens is not None
    edited = Action(text="open the old chest")
    one = dataclasses.replace(won, messages=tuple(edited if message is sampled else message for message in won.messages))
    row = rows(chat, one, form="again", prompts="react", who="reflector").explore(one)
    assert learned(chat, row) + chat.end_of_turn == "".join(action.text + chat.end_of_turn for action in one.actions)
    assert "open the old chest" in learned(chat, row) and len(row.ids) == len(row.mask)

    start = Request(messages=as_messages(("user", "Ann?")))
    wrong = tried(chat, "0a", WRONG, start, right=False, fault=FAULT)
    head, _, verdict = tried(chat, "0b", WRONG, start).messages
    for kept, text, told in (("a = 3\n", RIGHT, "b = a + 7\nprint(b)"), ("", "print(3 + 7)", "print(3 + 7)")):
        action = Action(text=text, prefill=kept)
        mended = dataclasses.replace(wrong, id="0b", parent_id="0a", messages=(head, action, verdict))
        builder = rows(chat, wrong, mended)
        assert builder.explore(mended).ids == (*chat.context(start), *chat.completion_ids(text))
        repaired = builder.repair_row(Pair(task_id="t", rejected_id="0a", chosen_id="0b"))
        assert learned(chat, repaired) == told, "lines that were kept are given, not learned"


def test_a_context_that_was_built_anew_is_not_repeated(chat: ChatTokens) -> None:
    """Where ids do not go on from one another, the row comes from the text: nothing stands in it twice."""
    _, won = hunt(chat)
    head, *rest = won.messages
    second = won.actions[1]
    assert second.tokens is not None
    anew = dataclasses.replace(second, tokens=dataclasses.replace(second.tokens, restart=True))
    broken = [anew if one is second else one for one in rest]
    one = dataclasses.replace(won, messages=(head, *broken))
    row = rows(chat, one, form="again", prompts="react", who="reflector").explore(one)
    assert learned(chat, row) == learned(chat, rows(chat, won, form="again", prompts="react", who="reflector").explore(won))
    assert chat.decode(row.ids).count(head.text) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_history_window_trains_on_what_the_agent_saw(chat: ChatTokens, window: int) -> None:
    """Every row is, id by id, what the policy was fed and sampled; every action is learned once."""
    rules = EpisodeConfig(history_turns=window)
    fed: list[tuple[int, ...]] = []

    class Walker(Hunter):
        async def complete(self, request: Request) -> list[Completion]:
            assert len(request.messages) <= 2 + 2 * window, "the task, and what the window holds"
            text, context = self.plan[len(fed)], self.chat.context(request)
            ids = odd(self.chat, text)
            fed.append((*context, *ids))
            return [Completion(text=text, prompt_ids=context, token_ids=ids, logprobs=(-0.5,) * len(ids))]

    async def play() -> Trajectory:
        environment = open_environment("treasure_hunt")
        task = environment.tasks("train", limit=1, seed=4)[0]
        policy = Walker(chat, [*["look"] * 3, *(await environment.gold(task) or ())])
        actor = Role(name="actor", policy=policy, prompt=load_prompt("react", "actor").without_shots())
        plan = EpisodePlan(run_id="r", purpose="explore", round=1, task=task, sample=0, seed=0, policy_version="h0")
        (episode,) = await play_wave([plan], Cast(roles={"actor": actor}, worlds=Worlds(environment), episode=rules))
        return episode.trajectories[0]

    won = asyncio.run(play())
    assert won.success and len(won.actions) == len(fed) > 5
    builder = rows(chat, won, prompts="react")
    builder.rules = rules
    made = builder.explore_rows(won)
    assert 1 < len(made) <= len(fed)
    # The last thing fed in each stretch is the whole row.
    ends = [index for index, action in enumerate(won.actions) if index and action.tokens and action.tokens.restart]
    assert [row.ids for row in made] == [fed[index - 1] for index in [*ends, len(fed)]]
    assert sum(sum(row.mask) for row in made) == sum(len(odd(chat, action.text)) for action in won.actions)
    builder.rules = EpisodeConfig()
    assert len(builder.explore_rows(won)) == 1


def test_scores(chat: ChatTokens) -> None:
    start = Request(messages=as_messages(("user", "Ann?")))
    lost, _ = hunt(chat)
    one = tried(chat, "0a", RIGHT, start)
    found = asyncio.run(rows(chat).scores([one, lost], Hunter(chat, ())))
    assert found == {"0a": -1.0}, "attempts of several turns keep the self-reward of their sampling"

"""HotpotQA with tools: what actions do, who may know what, the official data, many episodes at once, odd texts."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import ConfigError, DataError, MissingExtra
from kintsugi.records import Task, content_hash, to_plain
from kintsugi.sandboxes.environments.answer_match import normalize_answer
from kintsugi.sandboxes.environments.conformance import LONGEST_FEEDBACK, check, malformed_actions, play
from kintsugi.sandboxes.environments.environment import open_environment
from kintsugi.sandboxes.environments.hotpotqa_actions import parse_action

pytest.importorskip("bm25s", reason='searching needs bm25s: pip install "kintsugi-agents[hotpotqa]"')

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "hotpotqa"
SLICES = {"train": 199, "dev": 100}
NOT_WON_BY_GOLD: dict[str, str] = {}
"""Record id → why the gold policy cannot score exact match 1 on it. None is known in the slice."""

CONTEXT = [
    ["Avonmere", ["Avonmere is a town.", " It lies on the Tarn.", " The Tarn often floods.", " Mills stand there."]],
    ["Tarn", ["The Tarn is a river.", " It flows into the Grey Sea."]],
    ["Harris &amp; Co. (firm)", ["Harris &amp; Co. makes clocks."]],
]


def opened(**options: Any) -> Any:
    return open_environment("hotpotqa", options)


def question(prompt: str = "Into which sea does the river of Avonmere flow?", answer: str = "Grey Sea") -> Task:
    payload = {"answer": answer, "supporting_facts": [["Tarn", 1], ["Avonmere", 1]], "context": CONTEXT}
    return Task(id="q", environment="hotpotqa", split="train", prompt=prompt, payload=payload)


def said(task: Task, *actions: str, **options: Any) -> list[str]:
    """What each action is answered: the observation, or the verdict's feedback."""
    replies = asyncio.run(play(opened(max_turns=50, **options), task, actions))
    return [reply.verdict.feedback if reply.verdict else reply.observation for reply in replies]


def official(data: Any = DATA, **options: Any) -> Any:
    if not DATA.is_dir():
        pytest.skip(f"HotpotQA's official files are not in {DATA}")
    return opened(data=data, **options)


@pytest.mark.parametrize("which", ["bundled", "official", "corpus"])
def test_conforms(which: str) -> None:
    corpus = {"corpus": DATA / "corpus.jsonl"} if which == "corpus" else {}
    environment = opened() if which == "bundled" else official(**corpus)
    report = asyncio.run(check(environment, num_tasks=12, perturb=_other_answers))
    assert report.ok, str(report)


def _other_answers(task: Task, gold: Sequence[str]) -> list[list[str]]:
    other = "no" if task.payload["answer"] != "no" else "yes"
    longer = f"finish[{task.payload['answer']} and more]"
    return [[*gold[:-1], f"finish[{other}]"], [*gold[:-1], longer], [*gold[:-1], "finish[the]"]]


def test_search_opens_exact_titles_and_names_similar_ones() -> None:
    title, named, none, entity = said(
        question(), "search[avonmere ]", "search[river Tarn]", "search[zzz]", "Search[Harris & Co. (firm)]"
    )
    assert title == "Avonmere: Avonmere is a town. It lies on the Tarn. The Tarn often floods. Mills stand there."
    assert named == 'There is no page "river Tarn". Similar: Tarn; Avonmere.'
    assert none == 'There is no page "zzz". None is similar: try other words.'
    assert entity.startswith("Harris & Co. (firm): Harris &amp; Co.")
    (short,) = said(question(), "search[Avonmere]", shown_sentences=2)
    assert short == "Avonmere: Avonmere is a town. It lies on the Tarn. (2 more sentences: lookup[text] finds in them.)"


def test_lookup_goes_on_and_starts_anew() -> None:
    replies = said(
        question(),
        "lookup[Tarn]",
        "search[Avonmere]",
        "lookup[TARN]",
        "lookup[tarn]",
        "lookup[tarn]",
        "lookup[mills]",
        "lookup[Tarn]",
        "search[nowhere at all]",
        "lookup[tarn]",
        "search[Tarn]",
        "lookup[Tarn]",
        "lookup[Grey Sea]",
        "lookup[Mills]",
    )
    assert replies == [
        "No page is open: search[title] opens one.",
        replies[1],
        "(Result 1 / 2) It lies on the Tarn.",
        "(Result 2 / 2) The Tarn often floods.",
        "No more results.",
        "(Result 1 / 1) Mills stand there.",
        "(Result 1 / 2) It lies on the Tarn.",
        'There is no page "nowhere at all". None is similar: try other words.',
        "(Result 2 / 2) The Tarn often floods.",
        replies[9],
        "(Result 1 / 1) The Tarn is a river.",
        "(Result 1 / 1) It flows into the Grey Sea.",
        '"Mills" is not on the page Tarn.',
    ]


@pytest.mark.parametrize(
    ("text", "kind", "argument"),
    [
        ("search[Tarn]", "search", "Tarn"),
        ("  Finish[ The  Tarn ] ", "finish", "The Tarn"),
        ("Thought: first the town.\nAction: search[Avonmere]", "search", "Avonmere"),
        ("Thought 1: hm\nAction 1: Lookup[a [b] c]\nObservation 1: made up\nAction 2: finish[x]", "lookup", "a [b] c"),
        ("Thought: I could use finish[x] later. Action: search[y]", "search", "y"),
        ("Search[A] Search[B [c]]", "search", "A"),
        ("Finish[Paris] (see [1])", "finish", "Paris"),
        ("finish[a [b]", "finish", "a [b"),
        ("**Action 1:** Search[The Tarn]", "search", "The Tarn"),
        ("Thought: x\n`lookup[sea]`", "lookup", "sea"),
        ("search[The [b] c] is next", "search", "The [b] c"),
        ("think[search[Tarn] would be best]", "think", "search[Tarn] would be best"),
        ("think: search[Tarn] would be best", "think", "search[Tarn] would be best"),
        ("Thought: only thinking", "think", "only thinking"),
        ('{"name": "search", "arguments": {"title": "Tarn"}}', "search", "Tarn"),
        ('<tool_call>\n{"name": "finish", "arguments": "{\\"answer\\": \\"no\\"}"}\n</tool_call>', "finish", "no"),
        ('I call <tool_call>{"name": "lookup", "parameters": {"text": "sea"}}', "lookup", "sea"),
        ('```json\n{"name": "search", "arguments": {"title": "Tarn"}}\n```', "search", "Tarn"),
        ('[{"name": "search", "arguments": {"title": "Tarn"}}, {"name": "finish"}]', "search", "Tarn"),
        ("search[A]\nObservation: made up\n<tool_call>{\"name\": \"finish\"}</tool_call>", "search", "A"),
        ("search[A]\n{\"name\": \"finish\", \"arguments\": {\"answer\": \"B\"}}", "search", "A"),
        ("Thought: the film.\nSearch for it, then the rest\nAction: search[The Film]", "search", "The Film"),
        ('Thought: so\n{"name": "finish", "arguments": {"answer": 1984}}\n{"name": "search"}', "finish", "1984"),
        ('[\n  {"name": "finish", "arguments": {"answer": "yes", "reason": "both"}}\n]', "finish", "yes"),
        ('So:\n```JSON\n{"name": "finish", "arguments": {"answer": "no"}}\n```', "finish", "no"),
        ("finish[x] y]", "finish", "x] y"),
        ("search[]", "unknown", "search[] needs its title"),
        ("search[Tarn", "unknown", "brackets closed"),
        ("Action: search Tarn", "unknown", "brackets closed"),
        ('<tool_call>{"name": "buy"}</tool_call>', "unknown", "no such tool"),
        ('<tool_call>{"name": "search", "arguments": 5}</tool_call>', "unknown", 'takes one text, "title"'),
        ("<tool_call>search</tool_call>", "unknown", "looks like"),
        ("", "unknown", "empty"),
        ("dance", "unknown", "You can: search[title]"),
        ("x" * 30_000, "unknown", "too long"),
    ],
)
def test_forms_of_actions(text: str, kind: str, argument: str) -> None:
    step = parse_action(text)
    assert step.kind == kind and (argument in step.argument if kind == "unknown" else step.argument == argument)


def test_both_formats_give_the_same_replies() -> None:
    plain = ["search[Avonmere]", "lookup[tarn]", "search[Tarn]", "finish[the grey sea]"]
    react = [f"Thought: step {n}\nAction: {action}" for n, action in enumerate(plain)]
    names = {"search": "title", "lookup": "text", "finish": "answer"}
    native = [
        json.dumps({"name": name, "arguments": {names[name]: action.partition("[")[2][:-1]}})
        for action in plain
        for name in [action.partition("[")[0]]
    ]
    assert said(question(), *plain) == said(question(), *react) == said(question(), *native)
    assert said(question(), *plain)[-1] == "Right."


def test_thoughts_cost_a_turn_and_nothing_else() -> None:
    environment = opened(max_turns=3)
    replies = asyncio.run(play(environment, question(), ["think: a", "Thought: b", "search[Tarn]", "finish[Grey Sea]"]))
    assert [reply.observation[:5] for reply in replies] == ["OK.", "OK.", "Tarn:"], "out of turns before the answer"
    assert [reply.executions for reply in replies] == [0, 0, 1]


def test_the_verdict() -> None:
    environment = opened()
    (reply,) = asyncio.run(play(environment, question(), ["finish[Sea]"]))
    assert reply.verdict is not None and not reply.verdict.success and reply.verdict.reward == 0.0
    assert reply.verdict.detail == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}

    async def after() -> str:
        world = await environment.start(question())
        await world.act("finish[x]")
        return (await world.act("finish[Grey Sea]")).observation

    assert asyncio.run(after()) == "The question has been answered."


@pytest.mark.parametrize(
    ("prompt", "actions", "parts"),
    [
        ("Which sea?", ["finish[Blue Sea]"], ["No page was opened"]),
        ("Which sea?", ["search[Tarn]", "finish[Blue Sea]"], ["Pages opened: Tarn.", "stand on none of them"]),
        ("Which sea?", ["search[tarn]", "search[Seas]", "finish[a river]"], ["no such page: Seas."]),
        ("Are both towns?", ["search[Tarn]", "finish[Tarn]"], ["seems to ask for yes or no"]),
        ("Which sea?", ["search[Tarn]", "finish[yes]"], ["does not seem to ask for yes or no"]),
        ("Which sea?", ["finish[" + "word " * 20 + "]"], ["It has 20 words"]),
    ],
)
def test_feedback_for_a_reflector(prompt: str, actions: list[str], parts: list[str]) -> None:
    """It speaks of the question and the attempt, and is the same whatever the gold answer is."""
    feedback = said(question(prompt), *actions)[-1]
    assert all(part in feedback for part in parts), feedback
    assert "Grey" not in feedback and said(question(prompt, "Amaran Gulf"), *actions)[-1] == feedback
    if "a river" in actions[-1]:
        assert "stand on none" not in feedback


def test_a_thousand_odd_actions_are_answered() -> None:
    """Alone, and after a page is open; every reply can be stored, is short, and says something."""
    environment = opened()
    tasks = environment.tasks("train", limit=5)

    async def main() -> int:
        answered = 0
        for index, action in enumerate(malformed_actions("finish[Tarn]", 500)):
            task = tasks[index % len(tasks)]
            gold = await environment.gold(task)
            for before in ((), gold[:1]):
                reply = (await play(environment, task, [*before, action]))[-1]
                text = reply.observation + (reply.verdict.feedback if reply.verdict else "")
                assert text.strip() and len(text) <= LONGEST_FEEDBACK and "Traceback" not in text, ascii(action[:60])
                assert reply.verdict is None or (not reply.verdict.success and not reply.verdict.error)
                json.dumps(to_plain(reply), ensure_ascii=False).encode()
                answered += 1
        return answered

    assert asyncio.run(main()) == 1000


@pytest.mark.parametrize("corpus", [False, True])
def test_sixty_four_episodes_at_once_are_deterministic(corpus: bool, tmp_path: Path) -> None:
    """Each world has its own page and cursor: interleaved turn by turn, every one replies as it does alone."""
    options: dict[str, Any] = {"max_turns": 20}
    source = opened()
    if corpus:
        tasks = source.tasks("train", limit=64)
        pages = {title: sentences for task in tasks for title, sentences in task.payload["context"]}
        lines = [json.dumps({"title": title, "sentences": sentences}) for title, sentences in pages.items()]
        (tmp_path / "pages.jsonl").write_text("\n".join(lines))
        options["corpus"] = tmp_path / "pages.jsonl"
    environment = opened(**options)
    tasks = environment.tasks("train", limit=64)

    async def plan(task: Task) -> list[str]:
        searches = list(await environment.gold(task))[:-1]
        looks = [action for search in searches for action in (search, "lookup[the]", "lookup[the]", "search[the river]")]
        return [*looks, "think: enough", f"finish[{task.payload['answer']}]"]

    async def at_once(seed: int) -> list[Any]:
        """All worlds open, one turn of each in a shuffled order, until all are done."""
        rng = random.Random(seed)
        worlds = [await environment.start(task) for task in tasks]
        plans = [iter(await plan(task)) for task in tasks]
        replies: list[list[Any]] = [[] for _ in tasks]
        running = list(range(len(tasks)))
        while running:
            rng.shuffle(running)
            for index in list(running):
                action = next(plans[index], None)
                if action is None:
                    running.remove(index)
                else:
                    replies[index].append(await worlds[index].act(action))
        return replies

    async def main() -> None:
        alone = [await play(environment, task, await plan(task)) for task in tasks]
        assert all(replies[-1].verdict is not None and replies[-1].verdict.success for replies in alone)
        first, second = await at_once(1), await at_once(2)
        assert content_hash(first) == content_hash(second) == content_hash(alone)
        plans = [await plan(task) for task in tasks]
        together = await asyncio.gather(*map(play, [environment] * 64, tasks, plans))
        assert content_hash(together) == content_hash(alone)

    asyncio.run(main())


def test_bundled_questions() -> None:
    """Forty and more a split, disjoint in questions and in names, answered by their supporting sentences."""
    environment = opened()
    titles: dict[str, set[str]] = {}
    for split in ("train", "heldout", "demonstrations"):
        tasks = environment.tasks(split)
        assert len(tasks) >= 40 and len({task.prompt for task in tasks}) == len(tasks)
        assert {task.payload["type"] for task in tasks} == {"bridge", "comparison"}
        assert environment.tasks(split, limit=10) == tasks[:10] and environment.tasks(split, seed=1) != tasks
        titles[split] = set()
        for task in tasks:
            pages = dict(task.payload["context"])
            assert len(pages) == 10 and len({title for title, _ in task.payload["supporting_facts"]}) == 2
            titles[split] |= set(pages)
            facts = [pages[title][number] for title, number in task.payload["supporting_facts"]]
            answer = task.payload["answer"]
            assert answer in ("yes", "no") or answer in " ".join(facts)
            asks_for_one = " or " in task.prompt  # "Who was born first, A or B?" names its answer
            assert answer in ("yes", "no") or asks_for_one or answer not in task.prompt
    assert not titles["train"] & titles["heldout"] and not titles["demonstrations"] & (titles["train"] | titles["heldout"])
    with pytest.raises(DataError, match='no split "tran": did you mean "train"'):
        environment.tasks("tran")
    with pytest.raises(DataError, match="cannot make 100000 bundled tasks"):
        environment.tasks("demonstrations", limit=100_000)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_gold_policy_wins_the_official_slice(split: str) -> None:
    """Exact match 1 on every record but those listed, with both supporting pages found by their titles; the answer was
    on what it read, but for one page that shows its sentence to `lookup` only."""
    environment = official()
    tasks = environment.tasks(split)
    assert len(tasks) == SLICES[split] and environment.tasks(split, limit=3) == tasks[:3]

    async def main() -> list[str]:
        unread = []
        for task in tasks:
            replies = await play(environment, task, await environment.gold(task))
            verdict = replies[-1].verdict
            won = verdict is not None and verdict.detail == {"exact_match": 1.0, "f1": 1.0}
            assert won != (task.id in NOT_WON_BY_GOLD), task.id
            read = " ".join(reply.observation for reply in replies[:-1])
            assert len(replies) == 3 and "There is no page" not in read, task.id
            answer = normalize_answer(task.payload["answer"])
            if answer not in ("yes", "no") and answer not in normalize_answer(read):
                unread.append(task.payload["answer"])
        return unread

    assert asyncio.run(main()) == {"train": [], "dev": ["To SquarePants or Not to SquarePants"]}[split]


def test_the_hub_layout_gives_the_same_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason='needs datasets: pip install "kintsugi-agents[train]"')
    wanted = official().tasks("heldout")
    records = json.loads((DATA / "hotpot_dev_distractor_v1.json").read_bytes())
    rows = [
        {
            **{name: record[name] for name in ("question", "answer", "type", "level")},
            "id": record["_id"],
            "supporting_facts": {
                "title": [title for title, _ in record["supporting_facts"]],
                "sent_id": [number for _, number in record["supporting_facts"]],
            },
            "context": {
                "title": [title for title, _ in record["context"]],
                "sentences": [sentences for _, sentences in record["context"]],
            },
        }
        for record in records
    ]
    asked: list[Any] = []

    def load(*names: str, split: str) -> Any:
        asked.append((*names, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert opened(data="hub").tasks("heldout") == wanted
    assert asked == [("hotpotqa/hotpot_qa", "distractor", "validation")]

    def refuse(*names: str, split: str) -> Any:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"from the hub \(ConnectionError: no route\): .*data="):
        opened(data="hub").tasks("train")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, r"found none \(No such file"),
        ("[]", "holds no records"),
        ("{}", "found dict"),
        ("[", "expected a JSON list"),
        ("[5]", "record 1: expected an object, found int"),
        ('[{"_id": "a", "question": "q?"}]', 'expected a text "answer", found the fields _id, question'),
        ('[{"_id": "a", "question": "q?", "answer": "x", "supporting_facts": [["T", "1"]]}]', "supporting_facts as"),
        (
            '[{"_id": "a", "question": "q?", "answer": "x", "supporting_facts": [["T", 1]], "context": [["T", [1]]]}]',
            "context as",
        ),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path: Path, text: str | None, found: str) -> None:
    if text is not None:
        (tmp_path / "hotpot_train_v1.1.json").write_text(text)
    with pytest.raises(DataError, match=found) as caught:
        opened(data=tmp_path).tasks("train")
    assert 'data="…"' in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_options_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match='found no wikipeda: did you mean "wikipedia"'):
        opened(corpus="wikipeda")
    with pytest.raises(ConfigError, match="max_turns: expected a whole number from 1, found 0"):
        opened(max_turns=0)
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(MissingExtra, match=r"kintsugi-agents\[hotpotqa\]"):
        opened()


def test_the_documents_transcript_and_example(capsys: pytest.CaptureFixture[str]) -> None:
    """What the page shows is what happens."""
    text = (Path(__file__).parents[2] / "docs" / "environments" / "hotpotqa.md").read_text(encoding="utf-8")
    first, _, rest = text.partition("```\n")[2].partition("\n```")[0].partition("\n\n")
    task = opened().tasks("heldout", limit=1)[0]
    assert task.prompt == first
    turns = [turn.split("\n") for turn in rest.removeprefix("> ").split("\n\n> ")]
    actions = ["\n".join(line.removeprefix("  ") for line in turn[:-1]) for turn in turns]
    assert said(task, *actions) == [turn[-1] for turn in turns] and len(turns) == 6
    example = text.partition("```python\n")[2].partition("```")[0]
    exec(compile(example, "hotpotqa.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [turns[3][-1], "True"]

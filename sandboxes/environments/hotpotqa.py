"""HotpotQA with tools: a question whose answer needs two pages, which the agent must search for and read.

    environment = open_environment()                                         # bundled questions, no download
    environment = open_environment(data="path/to/hotpotqa")                  # the official files; data="hub": the hub's
    environment = open_environment(data="…", corpus="pages.jsonl")           # search a corpus; "wikipedia": the live one

Actions: `search[title]` opens the page of that title, or names similar ones; `lookup[text]` goes through the sentences of
the open page that hold the text, one a turn; `finish[answer]` ends the attempt; `think: …` is answered "OK." Each is a
turn. ReAct's `Thought: … / Action: search[…]` and native tool calls are read too (`hotpotqa_actions`, `hotpotqa_tools`).

**Where is searched** (`corpus`): "question" is the question's own ten paragraphs (the distractor setting); a folder or
`.jsonl` file (see `page_index`); or "wikipedia". Each world has its own open page and cursor; pages are shared, read only.

**Judged** by official exact match (success, reward) and F1, both in the verdict's detail. Feedback is made from the
question and what the agent did, never from the gold answer. Sources: Yang et al. 2018 (arXiv 1809.09600); actions and the
seven turns: Yao et al. 2022 (ReAct, arXiv 2210.03629). Left out: supporting-fact scores, the test split.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, nearest
from kintsugi.records import Task, Verdict
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.answer_match import exact_match, f1, normalize_answer
from kintsugi.sandboxes.environments.environment import Reply
from kintsugi.sandboxes.environments.hotpotqa_actions import HELP, action_text, parse_action
from kintsugi.sandboxes.environments.hotpotqa_data import Records, read_records
from kintsugi.sandboxes.environments.invented_encyclopedia import SPLITS, make_records
from kintsugi.sandboxes.environments.page_index import Page, PageIndex, Pages, read_corpus, require_search
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.wikipedia_pages import WIKIPEDIA, WikipediaPages

_OFFICIAL: Final = {"train": "train", "dev": "dev", "heldout": "dev"}
_NUM_SIMILAR: Final = 5
_LONGEST_SHOWN: Final = 1_500
_LONGEST_ANSWER_WORDS: Final = 12
_ASKS_YES_NO: Final = re.compile(r"(?:are|is|was|were|do|does|did|has|have|had|can|could|will|would)\b", re.IGNORECASE)

ABOUT = About(
    kind="several turns: search, lookup, finish",
    metric="official exact match of the answer; F1 beside it",
    data="hotpot_train_v1.1.json, hotpot_dev_distractor_v1.json: _id, question, answer, supporting_facts, context",
    splits=("train", "dev", "heldout (= dev)"),
    licence="CC BY-SA 4.0",
    home="https://hotpotqa.github.io",
    bundled=True,
    extra="hotpotqa",
    downloads=tuple(
        Download(url=f"http://curtis.ml.cmu.edu/datasets/hotpot/{name}", path=name, sha256=sha256)
        for name, sha256 in (
            ("hotpot_train_v1.1.json", "26650cf50234ef5fb2e664ed70bbecdfd87815e6bffc257e068efea5cf7cd316"),
            ("hotpot_dev_distractor_v1.json", "4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea"),
        )
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "hotpotqa/hotpot_qa",
    corpus: str | Path = "question",
    api: str = WIKIPEDIA,
    max_turns: int = 7,
    shown_sentences: int = 5,
    num_tasks: int = 48,
) -> HotpotQA:
    """The environment.

    data: folder of the official files, "hub" for the data set `hub`, None or "bundled" for those questions. corpus: where is
    searched (see the module); api: the MediaWiki address for corpus="wikipedia". max_turns: most actions an attempt may
    take. shown_sentences: how many sentences of a page a search shows (`lookup` reaches all). num_tasks: how many bundled
    tasks `tasks` makes without a limit. Raises ConfigError, DataError and, without bm25s, MissingExtra."""
    for name, value in (("max_turns", max_turns), ("shown_sentences", shown_sentences), ("num_tasks", num_tasks)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"hotpotqa.{name}: expected a whole number from 1, found {value!r}")
    data = None if data == "bundled" else data
    pages: Pages | None = None
    if corpus == "wikipedia":
        pages = WikipediaPages(api)
    else:
        require_search()
        if corpus != "question":
            pages = _local_pages(Path(corpus).expanduser())
    return HotpotQA(data=data, hub=hub, pages=pages, max_turns=max_turns, shown=shown_sentences, num_tasks=num_tasks)


class HotpotQA:
    """The environment. pages: what every world searches; None: each question's own paragraphs, which are then in the
    task's payload beside `answer`, `type`, `level` and `supporting_facts`."""

    name = "hotpotqa"

    def __init__(
        self, *, data: str | Path | None, hub: str, pages: Pages | None, max_turns: int, shown: int, num_tasks: int
    ) -> None:
        self.data, self.hub, self.pages = data, hub, pages
        self.max_turns, self.shown, self.num_tasks = max_turns, shown, num_tasks
        self._read: dict[str, Records] = {}

    def tasks(self, split: str, *, limit: int | None = None, seed: int = 0) -> Sequence[Task]:
        """Bundled: `limit` tasks, others for another seed. Official: in the file's order; with `limit` the first ones for
        seed 0 and a sample for each other seed; `demonstrations` is empty there.

        Raises DataError for an unknown split and for files that are missing or malformed."""
        known = SPLITS if self.data is None else [*_OFFICIAL, "demonstrations"]
        if split not in known:
            raise DataError(f'hotpotqa has no split "{split}": {nearest(split, known)}')
        if self.data is None:
            try:
                records = make_records(split, number=self.num_tasks if limit is None else limit, seed=seed)
            except ValueError as error:
                raise DataError(f"hotpotqa cannot make {limit} bundled tasks of {split}: {error}") from error
            return [self._task(record, split) for record in records]
        if split == "demonstrations":
            return ()
        official = _OFFICIAL[split]
        if official not in self._read:
            self._read[official] = read_records(self.data, official, self.hub)
        records = self._read[official]
        chosen = list(range(len(records)))
        if limit is not None and limit < len(records):
            chosen = sorted(random.Random(f"hotpotqa {seed}").sample(chosen, limit)) if seed else chosen[:limit]
        return [self._task(records[place], split) for place in chosen]

    def kind(self, task: Task) -> str:
        """Bridge or comparison."""
        return task.payload["type"]

    async def start(self, task: Task) -> QuestionWorld:
        pages = self.pages or PageIndex([Page(title=t, sentences=tuple(s)) for t, s in task.payload["context"]])
        return QuestionWorld(task, pages, self.shown)

    async def gold(self, task: Task) -> Sequence[str]:
        """Search the supporting titles, those that the question names first, and finish with the answer."""
        titles = list(dict.fromkeys(title for title, _ in task.payload["supporting_facts"]))
        titles.sort(key=lambda title: _bare(title) not in task.prompt.casefold())
        finish = action_text("finish", task.payload["answer"])
        return (*(action_text("search", html.unescape(title)) for title in titles), finish)

    def wrong_turn(self, task: Task, turns: Sequence[tuple[str, str]]) -> int | None:
        """The first message that was no action. What was searched in vain, or answered, a reflector may judge."""
        return next((index for index, (action, _) in enumerate(turns) if parse_action(action).kind == "unknown"), None)

    async def close(self) -> None:
        if self.pages is not None:
            await self.pages.close()

    def _task(self, record: dict[str, Any], split: str) -> Task:
        names = ["answer", "type", "level", "supporting_facts", *(["context"] if self.pages is None else [])]
        payload = {name: record[name] for name in names}
        return Task(id=record["_id"], environment=self.name, split=split, prompt=record["question"], payload=payload)


class QuestionWorld:
    """One attempt: the open page, the cursor of `lookup`, and what was opened so far (for the feedback).

    verdict: None until `finish`."""

    def __init__(self, task: Task, pages: Pages, shown: int) -> None:
        self.task, self.pages, self.shown = task, pages, shown
        self.page: Page | None = None
        self.needle, self.cursor = "", 0
        self.opened: dict[str, Page] = {}
        self.missed: list[str] = []
        self.verdict: Verdict | None = None

    async def observe(self) -> str:
        return self.task.prompt

    async def act(self, action: str) -> Reply:
        if self.verdict is not None:
            return Reply(observation="The question has been answered.", executions=0)
        step = parse_action(action)
        if step.kind == "think":
            return Reply(observation="OK.", executions=0)
        if step.kind == "search":
            return Reply(observation=await self._search(step.argument))
        if step.kind == "lookup":
            return Reply(observation=self._lookup(step.argument))
        if step.kind == "finish":
            self.verdict = self._judge(step.argument)
            return Reply(verdict=self.verdict)
        shown = readable(action.strip(), 60)
        said = f'I do not understand "{shown}". {HELP}' if step.argument == HELP else step.argument
        return Reply(observation=said, executions=0)

    async def close(self) -> None:
        return None

    async def _search(self, title: str) -> str:
        page = await self.pages.page(title)
        if page is None:
            self.missed.append(title)
            similar = [_shown_title(name) for name in await self.pages.similar(title, _NUM_SIMILAR)]
            known = f"Similar: {'; '.join(similar)}." if similar else "None is similar: try other words."
            return f'There is no page "{readable(title, 80)}". {known}'
        self.page, self.needle, self.cursor = page, "", 0
        self.opened[page.title] = page
        text = " ".join(sentence.strip() for sentence in page.sentences[: self.shown])
        text, more = _stored(text), len(page.sentences) - self.shown
        if len(text) > _LONGEST_SHOWN:
            text = text[:_LONGEST_SHOWN] + "…"
        hidden = f" ({more} more sentences: lookup[text] finds in them.)" if more > 0 else ""
        return f"{_shown_title(page.title)}: {text}{hidden}"

    def _lookup(self, text: str) -> str:
        if self.page is None:
            return "No page is open: search[title] opens one."
        if text.casefold() != self.needle:
            self.needle, self.cursor = text.casefold(), 0
        hits = [sentence for sentence in self.page.sentences if self.needle in sentence.casefold()]
        shown, title = readable(text, 60), _shown_title(self.page.title)
        if not hits:
            return f'"{shown}" is not on the page {title}.'
        if self.cursor >= len(hits):
            return "No more results."
        self.cursor += 1
        return f"(Result {self.cursor} / {len(hits)}) {_stored(hits[self.cursor - 1].strip())[:_LONGEST_SHOWN]}"

    def _judge(self, answer: str) -> Verdict:
        gold = self.task.payload["answer"]
        match = exact_match(answer, gold)
        detail = {"exact_match": match, "f1": f1(answer, gold)}
        feedback = "Right." if match else self._feedback(answer)
        return Verdict(success=match == 1.0, reward=match, feedback=feedback, detail=detail)

    def _feedback(self, answer: str) -> str:
        """What a reflector may know of a wrong answer: nothing here looks at the gold one."""
        said, question = normalize_answer(answer), self.task.prompt
        parts = [f'"{readable(answer, 80)}" is not the answer.']
        if not self.opened:
            parts.append("No page was opened before answering.")
        else:
            titles = "; ".join(_shown_title(title) for title in list(self.opened)[:12])
            parts.append(f"Pages opened: {titles}.")
        closed, closed_wanted = said in ("yes", "no"), _asks_yes_no(question)
        if closed_wanted and not closed:
            parts.append("The question seems to ask for yes or no.")
        elif closed and not closed_wanted:
            parts.append("The question does not seem to ask for yes or no.")
        elif not closed and self.opened and not self._stands_somewhere(said):
            parts.append("These words stand on none of them.")
        if len(said.split()) > _LONGEST_ANSWER_WORDS:
            parts.append(f"It has {len(said.split())} words: a name, a number or a short phrase is wanted.")
        if self.missed:
            missed = "; ".join(readable(title, 40) for title in dict.fromkeys(self.missed[:6]))
            parts.append(f"Searched, and there was no such page: {missed}.")
        return " ".join(parts)

    def _stands_somewhere(self, said: str) -> bool:
        return any(
            f" {said} " in f" {normalize_answer(' '.join((page.title, *page.sentences)))} " for page in self.opened.values()
        )


def _local_pages(path: Path) -> PageIndex:
    if not path.exists():
        raise DataError(
            f'hotpotqa.corpus: expected "question", "wikipedia", a folder or a .jsonl file, found no {path}: '
            f"{nearest(str(path), ('question', 'wikipedia'))}"
        )
    index = PageIndex(read_corpus(path))
    index.build()
    return index


def _asks_yes_no(question: str) -> bool:
    return bool(_ASKS_YES_NO.match(question)) and " or " not in question


def _bare(title: str) -> str:
    """A title as a question names it: without the bracket that tells it from others."""
    return re.sub(r" \([^()]*\)$", "", html.unescape(title)).casefold()


def _shown_title(title: str) -> str:
    return readable(html.unescape(title), 120)


def _stored(text: str) -> str:
    """`text` without lone surrogates, which cannot be stored."""
    return text.encode(errors="replace").decode()

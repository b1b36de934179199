"""Two-hop questions over pages of an invented encyclopedia, in HotpotQA's own schema, of the project's own writing.

    records = make_records("train", number=48, seed=0)
    records[0]["question"]     "In which town was the author of the novel The Amber Gate born?"

Each record has ten short pages (two of them needed, eight others of the same kinds, some with a name in common), the
supporting facts, an answer that stands word for word in them or is yes or no, and a type, "bridge" or "comparison". People,
towns, rivers, works and firms exist nowhere else; the splits `train`, `heldout` and `demonstrations` draw from syllables
and words of their own, so that they share no name, and another seed gives other records.

It is for learning to use the tools and for tests, never a benchmark result: sentences follow some twenty patterns.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

SPLITS: Final = ("train", "heldout", "demonstrations")
NUM_PAGES: Final = 10
MOST_RECORDS: Final = 10_000
"""Of one split and seed."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_TOWN_HEADS: Final = {
    "train": _words("Avon Bram Corv Dorn Elm Farn Gorse Hazel Iver Kest Lyn Marsh"),
    "heldout": _words("Nether Oak Penn Quern Rush Stan Thorn Usk"),
    "demonstrations": _words("Vale Wyn Yar Zorn Ash Birk"),
}
_TOWN_LINKS: Final = ("", "er", "ing", "le", "s")
_TOWN_TAILS: Final = _words("mere wick holm stow bury combe haven ford")
_FIRST: Final = {
    "train": _words("Ada Bruno Celia Doran Edda Felix Greta Hugo Ilsa Joren Klara Lorin Anka Bodo Clea Dirk"),
    "heldout": _words("Mira Nils Odette Piers Rosa Silas Tilda Ulric Maren Otto Petra Ruben"),
    "demonstrations": _words("Vera Willem Yara Zeno Astrid Benno Viggo Wanda"),
}
_LAST: Final = {
    "train": _words("Ambrel Bestov Carrow Dunmar Estrik Falloran Gintar Hollick Ibsmar Jarvo Kestrin Lundav Aldry Corbet"),
    "heldout": _words("Morvane Nessik Orbeck Pruval Quillam Rostand Sarvik Tolmar Mellin Norrby"),
    "demonstrations": _words("Umberg Varlow Wessing Yorvan Zedlitz Anstrom Vintner Welk"),
}
_ADJECTIVES: Final = {
    "train": _words("Amber Bitter Copper Distant Endless Frozen Gilded Hollow Ivory Jagged Lonely Mirrored"),
    "heldout": _words("Northern Opal Painted Quiet Restless Silver Tangled Unlit"),
    "demonstrations": _words("Velvet Weary Yellow Ashen Broken Crimson"),
}
_NOUNS: Final = _words(
    "Gate Lantern Orchard Harbour Staircase Winter Compass Garden Window Parade Feather Bridge Kite Island Letter Ferry"
)
_RIVER_TAILS: Final = _words("a or is en ava ine")
_JOBS: Final = ("architect", "botanist", "composer", "engineer", "painter", "surgeon")
_GOODS: Final = ("clocks", "bicycles", "pianos", "lanterns", "sails", "kettles")
_SEAS: Final = ("Grey Sea", "Bay of Lorn", "Amaran Gulf", "Sound of Teal", "Southern Reach")
_MONTHS: Final = _words("January February March April May June July August September October November December")
_PRIZES: Final = ("Larkspur Prize", "Golden Quill", "Meridian Medal", "Blue Lamp Award", "Halcyon Prize")
_LANDMARKS: Final = ("lighthouse", "town hall", "observatory", "market cross", "opera house")
_SUBJECTS: Final = ("two sisters who share a boat", "a clockmaker's last winter", "a lost ferry", "a village without a map")

Record = dict[str, Any]


@dataclass(frozen=True)
class _Entity:
    """A thing with a page. facts: what questions ask for; where: the sentence that says it."""

    title: str
    sentences: tuple[str, ...]
    facts: dict[str, Any]
    where: dict[str, int]


@dataclass
class _Draw:
    """One record in the making: random names that do not repeat."""

    split: str
    rng: random.Random
    used: set[str] = field(default_factory=set)

    def name(self, make: Callable[[], str]) -> str:
        for _ in range(1000):
            name = make()
            if name not in self.used:
                self.used.add(name)
                return name
        raise AssertionError("the pools hold far more names than a record needs")

    def pick(self, words: Any) -> Any:
        return self.rng.choice(words)

    def town_name(self) -> str:
        pools = (_TOWN_HEADS[self.split], _TOWN_LINKS, _TOWN_TAILS)
        return self.name(lambda: "".join(self.pick(pool) for pool in pools))

    def person_name(self, last: str = "") -> str:
        return self.name(lambda: f"{self.pick(_FIRST[self.split])} {last or self.pick(_LAST[self.split])}")

    def river_name(self) -> str:
        return self.name(lambda: self.pick(_TOWN_HEADS[self.split]) + self.pick(_RIVER_TAILS))

    def work_title(self) -> str:
        return self.name(lambda: f"The {self.pick(_ADJECTIVES[self.split])} {self.pick(_NOUNS)}")


def make_records(split: str, *, number: int, seed: int = 0) -> list[Record]:
    """`number` records of `split`, each question once; the same arguments give the same records.

    Raises ValueError for more than `MOST_RECORDS`: the split's names do not suffice for so many questions."""
    if number > MOST_RECORDS:
        raise ValueError(f"there are at most {MOST_RECORDS} a seed")
    rng = random.Random(f"invented encyclopedia {split} {seed}")
    records: dict[str, Record] = {}
    for attempt in itertools.count():
        if len(records) >= number:
            break
        draw = _Draw(split=split, rng=random.Random(rng.random()))
        kind, ask = _KINDS[attempt % len(_KINDS)]
        question, answer, needed, facts = ask(draw)
        pages = [*needed, *_others(draw, needed)]
        draw.rng.shuffle(pages)
        digest = hashlib.sha256(f"{split} {seed} {question}".encode()).hexdigest()[:16]
        records[question] = {
            "_id": digest,
            "question": question,
            "answer": answer,
            "type": kind,
            "level": "easy",
            "supporting_facts": [[page.title, page.where[fact]] for page, fact in zip(needed, facts, strict=True)],
            "context": [[page.title, [s if n == 0 else f" {s}" for n, s in enumerate(page.sentences)]] for page in pages],
        }
    return list(records.values())


def _town(draw: _Draw, river: str = "") -> _Entity:
    title, river = draw.town_name(), river or draw.river_name()
    landmark, year, people = draw.pick(_LANDMARKS), draw.rng.randrange(1610, 1930), draw.rng.randrange(1100, 98_000)
    sentences = (
        f"{title} is a {draw.pick(('harbour', 'market', 'mill', 'mining'))} town on the river {river}.",
        f"At the last census it had {people:,} inhabitants.",
        f"Its {landmark}, finished in {year}, can be seen from afar.",
    )
    facts = {"title": title, "river": river, "people": f"{people:,}", "landmark": landmark, "year": str(year)}
    return _Entity(title, sentences, facts, {"river": 0, "people": 1, "landmark": 2, "year": 2})


def _person(
    draw: _Draw, *, job: str = "", last: str = "", town: str = "", known_for: str = "", before: int = 1975
) -> _Entity:
    title, town, job = draw.person_name(last), town or draw.town_name(), job or draw.pick(_JOBS)
    day, month, year = draw.rng.randrange(1, 29), draw.pick(_MONTHS), draw.rng.randrange(before - 90, before)
    sentences = (
        f"{title} was born on {day} {month} {year} in {town}.",
        f"After some years abroad {title.split()[0]} became a{'n' if job[0] in 'aeiou' else ''} {job}.",
        known_for or f"{title} is remembered for a collection of {draw.pick(_GOODS)}.",
    )
    facts = {"title": title, "town": town, "job": job, "born": year}
    return _Entity(title, sentences, facts, {"town": 0, "born": 0, "job": 1})


def _river(draw: _Draw, title: str = "") -> _Entity:
    title, sea, length = title or draw.river_name(), draw.pick(_SEAS), draw.rng.randrange(38, 900)
    sentences = (
        f"The {title} is a river {length} kilometres long.",
        f"It rises among low hills and flows into the {sea}.",
        "Barges use its lower course.",
    )
    return _Entity(title, sentences, {"title": title, "sea": sea, "length": length}, {"length": 0, "sea": 1})


def _work(draw: _Draw, by: str = "", form: str = "", year: int = 0) -> _Entity:
    title, form = draw.work_title(), form or draw.pick(("novel", "opera", "film"))
    by, year, prize = by or draw.person_name(), year or draw.rng.randrange(1830, 2015), draw.pick(_PRIZES)
    maker = {"novel": "written", "opera": "composed", "film": "directed"}[form]
    sentences = (
        f"{title} is a {form} of {year}, {maker} by {by}.",
        f"It tells of {draw.pick(_SUBJECTS)}.",
        f"It won the {prize}.",
    )
    facts = {"title": title, "form": form, "by": by, "year": year, "prize": prize}
    return _Entity(title, sentences, facts, {"by": 0, "year": 0, "prize": 2})


def _firm(draw: _Draw, by: str = "", town: str = "", year: int = 0) -> _Entity:
    by, town, goods = by or draw.person_name(), town or draw.town_name(), draw.pick(_GOODS)
    title = draw.name(lambda: f"{by.split()[-1]} {goods.title()[:-1]} {draw.pick(('Works', 'Company', 'Makers'))}")
    sentences = (
        f"{title} is a firm that makes {goods}.",
        f"It was founded by {by} in {year or draw.rng.randrange(1840, 1990)}.",
        f"Its seat is in {town}.",
    )
    return _Entity(title, sentences, {"title": title, "by": by, "town": town}, {"by": 1, "town": 2})


Asked = tuple[str, str, list[_Entity], list[str]]
_ROLES: Final = {"novel": "author", "opera": "composer", "film": "director"}


def _grown(draw: _Draw, person: _Entity) -> int:
    """A year in which the person can have done something."""
    return person.facts["born"] + draw.rng.randrange(24, 50)


def _birthplace_of_maker(draw: _Draw) -> Asked:
    form = draw.pick(tuple(_ROLES))
    person = _person(draw, job={"novel": "writer"}.get(form, _ROLES[form]))
    work = _work(draw, by=person.title, form=form, year=_grown(draw, person))
    question = f"In which town was the {_ROLES[form]} of the {form} {work.title} born?"
    return question, person.facts["town"], [work, person], ["by", "town"]


def _sea_of_town(draw: _Draw) -> Asked:
    river = _river(draw)
    town = _town(draw, river=river.title)
    question = f"Into which sea does the river of the town {town.title} flow?"
    return question, river.facts["sea"], [town, river], ["river", "sea"]


def _job_of_founder(draw: _Draw) -> Asked:
    person = _person(draw)
    firm = _firm(draw, by=person.title, year=_grown(draw, person))
    return f"What was the profession of the founder of {firm.title}?", person.facts["job"], [firm, person], ["by", "job"]


def _landmark_of_birthplace(draw: _Draw) -> Asked:
    town = _town(draw)
    person = _person(draw, town=town.title)
    question = f"In which year was the {town.facts['landmark']} of the town where {person.title} was born finished?"
    return question, town.facts["year"], [person, town], ["town", "year"]


def _people_of_seat(draw: _Draw) -> Asked:
    town = _town(draw)
    firm = _firm(draw, town=town.title)
    question = f"How many inhabitants does the town in which {firm.title} has its seat have?"
    return question, town.facts["people"], [firm, town], ["town", "people"]


def _prize_of_best_known(draw: _Draw) -> Asked:
    work = _work(draw, form="film")
    known_for = f"The leading part in {work.title} made the name known."
    actor = _person(draw, known_for=known_for, job="actor", before=work.facts["year"] - 20)
    actor.where["work"] = 2
    question = f"Which prize did the film that made {actor.title} known win?"
    return question, work.facts["prize"], [actor, work], ["work", "prize"]


def _first_born(draw: _Draw) -> Asked:
    pair = [_person(draw), _person(draw)]
    while pair[0].facts["born"] == pair[1].facts["born"]:
        pair[1] = _person(draw)
    first = min(pair, key=lambda one: one.facts["born"])
    return f"Who was born first, {pair[0].title} or {pair[1].title}?", first.title, pair, ["born", "born"]


def _longer_river(draw: _Draw) -> Asked:
    pair = [_river(draw), _river(draw)]
    while pair[0].facts["length"] == pair[1].facts["length"]:
        pair[1] = _river(draw)
    longer = max(pair, key=lambda one: one.facts["length"])
    return f"Which river is longer, the {pair[0].title} or the {pair[1].title}?", longer.title, pair, ["length", "length"]


def _same_job(draw: _Draw) -> Asked:
    job = draw.pick(_JOBS)
    pair = [_person(draw, job=job), _person(draw, job=draw.pick((job, draw.pick(_JOBS))))]
    answer = "yes" if pair[1].facts["job"] == job else "no"
    question = f"Were {pair[0].title} and {pair[1].title} both {job}s?"
    return question, answer, pair, ["job", "job"]


def _same_year(draw: _Draw) -> Asked:
    one = _work(draw)
    pair = [one, _work(draw, year=one.facts["year"] + draw.pick((0, 0, 1, 2, -3)))]
    answer = "yes" if pair[1].facts["year"] == one.facts["year"] else "no"
    return f"Are {one.title} and {pair[1].title} of the same year?", answer, pair, ["year", "year"]


_KINDS: Final = (
    ("bridge", _birthplace_of_maker),
    ("bridge", _sea_of_town),
    ("comparison", _first_born),
    ("bridge", _job_of_founder),
    ("bridge", _landmark_of_birthplace),
    ("comparison", _same_job),
    ("bridge", _people_of_seat),
    ("comparison", _longer_river),
    ("bridge", _prize_of_best_known),
    ("comparison", _same_year),
)


def _others(draw: _Draw, needed: list[_Entity]) -> Iterator[_Entity]:
    """Pages that are not needed: of the same kinds, two of them with a surname in common with a needed one."""
    lasts = [page.title.split()[-1] for page in needed if "job" in page.facts]
    makers = (_town, _person, _river, _work, _firm)
    for number in range(NUM_PAGES - len(needed)):
        if number < 2 and lasts:
            yield _person(draw, last=draw.pick(lasts))
        else:
            yield makers[number % len(makers)](draw)

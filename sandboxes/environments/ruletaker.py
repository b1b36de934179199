"""RuleTaker: is a statement true in a small theory in English, where what cannot be derived is false? By a logic program.

    environment = open_environment(data="~/rule-reasoning-dataset-V2020.2.4")
    task = environment.tasks("train", limit=1)[0]

**Data**: the official folders (`depth-5`, `NatLang`, `birds-electricity` unless `parts` names others; `data` names the
folder that holds them, or the one in which the release was unpacked), each with `train.jsonl`, `dev.jsonl` and
`test.jsonl`: a theory a line, `{"id", "context", "questions": [{"id", "text", "label"}]}`, one task a question. Where
`meta-train.jsonl` and so on lie beside them, line for line, gold programs are made from their notation; without them
only theories in the generator's English have one (paraphrases, NatLang, do not). A part without the split's file is
passed over. Ids repeat between NatLang's files: a task's key has folder and file in it.

**Right**: the program's label is the gold one; closed world, `False` in a condition is negation as failure.

Source: Clark et al. 2020 (arXiv 2002.05867), https://allenai.org/data/ruletaker. Left out: proofs and question depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError, MissingSplit
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.logic_theories import LogicTheories
from kintsugi.sandboxes.environments.official_records import Made, Row, digest, hub_rows, jsonl, texts

_MEND: Final = (
    "the release is rule-reasoning-dataset-V2020.2.4 at https://allenai.org/data/ruletaker: name the folder that holds "
    'depth-5 and the others with the option data="..."'
)
_FILES: Final = {"train": "train", "dev": "dev", "test": "test", "heldout": "test"}
_ASK: Final = "What cannot be derived from the above is false. Is the following statement true or false?"
PARTS: Final = ("depth-5", "NatLang", "birds-electricity")

ABOUT = About(
    kind="logic program",
    metric="label (True, False) equals the gold one; closed world",
    data="<part>/train.jsonl, dev.jsonl, test.jsonl (with meta-*.jsonl): context, questions",
    splits=("train", "dev", "test", "heldout (= test)"),
    licence="CC BY 4.0 (AI2)",
    home="https://allenai.org/data/ruletaker",
    bundled=True,
    extra="logic",
    downloads=(
        Download(
            url="https://aristo-data-public.s3-us-west-2.amazonaws.com/ruletaker/rule-reasoning-dataset-V2020.2.5.zip",
            path="rule-reasoning-dataset-V2020.2.5.zip",
            sha256="080c8bca836603d9fea040e5a242bbd281f631255ca83428b7141ebf7f3deb0c",
            unpack=True,
        ),
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "hitachi-nlp/ruletaker",
    parts: Sequence[str] = PARTS,
    sandbox: Any = None,
    limits: Any = None,
    memo: bool = True,
) -> RuleTaker:
    """RuleTaker from the folder `data`, "hub" or "bundled" (the default); the rest as `LogicTheories` has it."""
    return RuleTaker(data=data, hub=hub, parts=parts, sandbox=sandbox, limits=limits, memo=memo)


class RuleTaker(LogicTheories):
    """The environment. parts: which folders of the release."""

    name = "ruletaker"
    files = _FILES
    mend = _MEND
    closed = True

    def __init__(self, *, parts: Sequence[str] = PARTS, **options: Any) -> None:
        super().__init__(**options)
        self.parts = tuple(parts)

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        if not folder.is_dir():
            raise MissingSplit(f"expected the folder {folder}, found none; {_MEND}")
        if not (folder / self.parts[0]).is_dir():
            folder = next(iter(sorted(folder.glob(f"*/original/{self.parts[0]}"))), folder / self.parts[0]).parent
        there = [part for part in self.parts if (folder / part / f"{official}.jsonl").is_file()]
        if not there:
            names = ", ".join(f"{part}/{official}.jsonl" for part in self.parts)
            raise MissingSplit(f"expected one of {names} in {folder}, found none; {_MEND}")
        for part in there:
            meta = folder / part / f"meta-{official}.jsonl"
            metas = jsonl(meta, _MEND) if meta.is_file() else iter(())
            for record, where in jsonl(folder / part / f"{official}.jsonl", _MEND):
                known = next(metas, (None, ""))[0]
                yield {"part": part, "theory": record, "meta": known}, where

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        """The hub's copy has a question a row: context, question, label ("entailment" or not)."""
        for row, where in hub_rows(self.name, hub, _MEND, split="validation" if official == "dev" else official):
            context, question, label = texts(row, where, _MEND, "context", "question", "label")
            asked = {"id": digest(context + question), "text": question, "label": label == "entailment"}
            yield {"part": "hub", "theory": {"id": "hub", "context": context, "questions": [asked]}, "meta": None}, where

    def made(self, record: Any, where: str, official: str) -> Iterator[Made]:
        if "theory" not in record:  # a bundled record is a line of the release
            record = {"part": "own", "theory": record, "meta": None}
        theory, meta = record["theory"], record["meta"]
        key, context = texts(theory, where, _MEND, "id", "context")
        questions = theory.get("questions")
        if not isinstance(questions, list):
            raise DataError(f'{where}: expected a list "questions", found {type(questions).__name__}; {_MEND}')
        for asked in questions:
            name, statement = texts(asked, where, _MEND, "id", "text")
            if not isinstance(asked.get("label"), bool):
                raise DataError(f'{where}, {name}: expected a "label" true or false; {_MEND}')
            payload = {"answer": str(asked["label"]), "context": context, "statement": statement}
            notation = _notation(meta, key, statement) if meta else None
            yield Made(
                key=f"{record['part']}-{official}-{name}",
                prompt=f"{context}\n{_ASK} {statement}",
                payload={**payload, "notation": notation} if notation else payload,
            )


def _notation(meta: Any, key: str, statement: str) -> dict[str, Any] | None:
    """Facts, rules and query in the release's notation; None when the line beside does not match."""
    if not isinstance(meta, Mapping) or meta.get("id") != key:
        return None
    try:
        asked = next(one for one in meta["questions"].values() if one["question"] == statement)
        return {
            "facts": [one["representation"] for one in meta["triples"].values()],
            "rules": [one["representation"] for one in meta["rules"].values()],
            "query": asked["representation"],
        }
    except (StopIteration, KeyError, TypeError, AttributeError):
        return None

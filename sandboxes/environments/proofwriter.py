"""ProofWriter: does a small theory in English prove a statement, disprove it, or leave it open? By a logic program.

    environment = open_environment(data="~/Logic-LLM/data/ProofWriter")
    task = environment.tasks("heldout", limit=1)[0]

**Data**, either form: lists `train.json`, `dev.json`, `test.json` of `{"id", "context", "question", "options",
"answer"}` with A True, B False, C Unknown (the form that Logic-LM and ENVISIONS read); or the official
`meta-train.jsonl`, `meta-dev.jsonl`, `meta-test.jsonl` of the folder `OWA/depth-5`, a theory a line with `theory`,
`triples`, `rules` and `questions`. Splits: `train`, `dev`, `test`, and `heldout`, which is `test`.

**Right**: the program's label is the gold one; open world (`logic_program.py`). Gold programs come from the theories'
controlled English. The classical reading, by contraposition, gives other labels on some: forward chaining is the
release's own.

Source: Tafjord et al. 2021 (arXiv 2012.13048), https://allenai.org/data/proofwriter. Left out: proofs, abduction, the
closed-world half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import DataError
from kintsugi.sandboxes.environments.about import About, Download
from kintsugi.sandboxes.environments.logic_theories import LogicTheories
from kintsugi.sandboxes.environments.official_records import Made, Row, hub_rows, json_list, jsonl, texts

_MEND: Final = (
    "the lists are in data/ProofWriter of https://github.com/teacherpeterpan/Logic-LLM, the whole release at "
    'https://allenai.org/data/proofwriter: name the folder with the option data="..."'
)
_FILES: Final = {"train": "train", "dev": "dev", "test": "test", "heldout": "test"}
_LABELS: Final = {"A": "True", "B": "False", "C": "Unknown"}
_ASK: Final = "Based on the above information, is the following statement true, false, or unknown?"
_RAW: Final = "https://raw.githubusercontent.com/teacherpeterpan/Logic-LLM/main/data/ProofWriter/"

ABOUT = About(
    kind="logic program",
    metric="label (True, False, Unknown) equals the gold one; open world",
    data="train.json, dev.json, test.json: context, question, answer A|B|C; or meta-*.jsonl",
    splits=("train", "dev", "test", "heldout (= test)"),
    licence="CC BY 4.0 (AI2), lists MIT",
    home="https://allenai.org/data/proofwriter",
    bundled=True,
    extra="logic",
    downloads=(
        *(Download(url=f"{_RAW}{name}.json", path=f"{name}.json") for name in ("train", "dev", "test")),
        Download(
            url="https://aristo-data-public.s3.amazonaws.com/proofwriter/proofwriter-dataset-V2020.12.3.zip",
            path="proofwriter-dataset-V2020.12.3.zip",
            sha256="bbc5694901e8306d0bd659aa1ad53ccfd02c201864f4b320ffa3777827d1fc26",
            unpack=True,
        ),
    ),
)


def open_environment(
    data: str | Path | None = None,
    hub: str = "renma/ProofWriter",
    sandbox: Any = None,
    limits: Any = None,
    memo: bool = True,
) -> ProofWriter:
    """ProofWriter from the folder `data`, "hub" or "bundled" (the default); the rest as `LogicTheories` has it."""
    return ProofWriter(data=data, hub=hub, sandbox=sandbox, limits=limits, memo=memo)


class ProofWriter(LogicTheories):
    """The environment."""

    name = "proofwriter"
    files = _FILES
    mend = _MEND
    closed = False

    def from_folder(self, folder: Path, official: str) -> Iterator[Row]:
        meta = folder / f"meta-{official}.jsonl"
        return jsonl(meta, _MEND) if meta.is_file() else json_list(folder / f"{official}.json", _MEND)

    def from_hub(self, hub: str, official: str) -> Iterator[Row]:
        split = "validation" if official == "dev" else official
        return hub_rows(self.name, hub, _MEND, split=split)

    def made(self, record: Any, where: str, official: str) -> Made | Iterator[Made]:
        if isinstance(record, Mapping) and "theory" in record:
            return _official(record, where)
        key, context, question, answer = texts(record, where, _MEND, "id", "context", "question", "answer")
        if answer not in _LABELS or "?" not in question:
            raise DataError(f'{where}: expected a question "...? statement" and an answer A, B or C; {_MEND}')
        return _made(key, context, question, question.partition("?")[2].strip(), _LABELS[answer])


def _made(key: str, context: str, question: str, statement: str, answer: str, notation: Any = None) -> Made:
    payload = {"answer": answer, "context": context, "statement": statement}
    return Made(key=key, prompt=f"{context}\n{question}", payload={**payload, "notation": notation} if notation else payload)


def _official(record: Mapping[str, Any], where: str) -> Iterator[Made]:
    """One task a question of a line of `meta-*.jsonl`."""
    key, theory = texts(record, where, _MEND, "id", "theory")
    facts, rules = (_notations(record, where, name) for name in ("triples", "rules"))
    questions = record.get("questions")
    if not isinstance(questions, Mapping):
        raise DataError(f'{where}: expected an object "questions"; {_MEND}')
    for name, asked in questions.items():
        place = f"{where}, {name}"
        statement, query = texts(asked, place, _MEND, "question", "representation")
        label = str(asked.get("answer"))
        if label not in _LABELS.values():
            raise DataError(f"{place}: expected an answer true, false or Unknown, found {label!r}; {_MEND}")
        notation = {"facts": facts, "rules": rules, "query": query}
        yield _made(f"{key}_{name}", theory, f"{_ASK} {statement}", statement, label, notation)


def _notations(record: Mapping[str, Any], where: str, name: str) -> list[str]:
    parts = record.get(name)
    if not isinstance(parts, Mapping):
        raise DataError(f'{where}: expected an object "{name}"; {_MEND}')
    return [texts(part, f"{where}, {key}", _MEND, "representation")[0] for key, part in parts.items()]

"""GQA's official records: their programs as programs of this environment, and the official scores.

    program_of(question["semantic"])     'car = find("car")\\nanswer = query(car, "color")'
    official_scores({"05515938": "yes"}, {"05515938": question})

A record's `semantic` is a list of `{operation, argument, dependencies}`, a functional program; its steps become lines.
What stands in brackets after an argument is the object's id in the scene graph, which nobody who answers can know: it is
left out. **Scores**, as the official `eval.py`: one point where prediction and answer are the same text, averaged; `open`
over the questions whose structural type is `query`, `binary` over the others; then by structural and by semantic type.
Source: Hudson and Manning 2019 (arXiv 1902.09506). Left out: consistency, validity, plausibility, distribution and
grounding, which need all questions of an image, the choices file or attention maps.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kintsugi.sandboxes.environments.gqa_program import ANYTHING

_OBJECT_ID: Final = re.compile(r"\s*\([^()]*\)\s*$")
_NEGATED: Final = re.compile(r"not\((.*)\)$")


def is_open(structural: str) -> bool:
    """Whether the official script counts a question of that structural type as open, and not as binary."""
    return structural == "query"


def official_scores(predictions: Mapping[str, str], questions: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies in [0, 1] of predictions (question id → answer) over all `questions`; a missing prediction is wrong.

    Keys: `accuracy`, `binary`, `open`, `structural verify`, …, `semantic attr`, …; only those that have questions."""
    points: dict[str, list[float]] = defaultdict(list)
    for key, question in questions.items():
        point = float(predictions.get(key) == question["answer"])
        types = question["types"]
        points["accuracy"].append(point)
        points["open" if is_open(types["structural"]) else "binary"].append(point)
        points[f"structural {types['structural']}"].append(point)
        points[f"semantic {types['semantic']}"].append(point)
    return {name: sum(found) / len(found) for name, found in points.items()}


def program_of(semantic: Sequence[Mapping[str, Any]]) -> str:
    """The program, one line a step. Raises KeyError, ValueError or IndexError for steps that are none of GQA's."""
    names: list[str] = []
    lines: list[str] = []
    for place, step in enumerate(semantic):
        operation, _, kind = str(step["operation"]).strip().partition(" ")
        argument = str(step["argument"]).strip()
        before = [names[number] for number in step["dependencies"]]
        expression, stem = _STEPS[operation](kind, argument, before)
        name = "answer" if place == len(semantic) - 1 else _fresh(stem, names)
        names.append(name)
        lines.append(f"{name} = {expression}")
    return "\n".join(lines)


def _fresh(stem: str, names: Sequence[str]) -> str:
    """A Python name made of a word, unlike the others and the tools."""
    word = re.sub(r"\W+", "_", stem.lower()).strip("_") or "found"
    word = word if not word[0].isdigit() and word != "answer" and not _is_reserved(word) else f"the_{word}"
    number = next(n for n in range(1, 1000) if (word if n == 1 else f"{word}_{n}") not in names)
    return word if number == 1 else f"{word}_{number}"


def _is_reserved(word: str) -> bool:
    import keyword

    from kintsugi.sandboxes.environments.gqa_program import TOOLS

    return keyword.iskeyword(word) or word in TOOLS


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _bare(argument: str) -> str:
    return _OBJECT_ID.sub("", argument).strip()


def _listed(argument: str) -> str:
    return "[" + ", ".join(_quoted(one.strip()) for one in argument.split("|")) + "]"


def _select(kind: str, argument: str, before: list[str]) -> tuple[str, str]:
    name = _bare(argument)
    return ("scene()", "picture") if name == "scene" else (f"find({_quoted(name)})", name)


def _filter(kind: str, argument: str, before: list[str]) -> tuple[str, str]:
    negated = _NEGATED.match(argument)
    wanted = f"not {negated[1].strip()}" if negated else argument
    return f"filter({before[0]}, {_quoted(wanted)})", f"{wanted}_{before[0]}"


def _relation(argument: str) -> tuple[str, str, bool]:
    """Name, relation, and whether the name is the relation's subject, of `man,wearing,s (12)`."""
    name, relation, side = _bare(argument).rsplit(",", 2)
    return (ANYTHING if name.strip() == "_" else name.strip()), relation.strip(), side.strip() == "s"


def _relate(kind: str, argument: str, before: list[str]) -> tuple[str, str]:
    name, relation, subject = _relation(argument)
    call = (_quoted(name), _quoted(relation), before[0])
    return f"relate({', '.join(call if subject else call[::-1])})", "thing" if name == ANYTHING else name


def _verify(kind: str, argument: str, before: list[str]) -> tuple[str, str]:
    if kind == "rel":
        return f"exists({_relate(kind, argument, before)[0]})", "related"
    return f"verify({before[0]}, {_quoted(argument)})", f"is_{argument}"


def _choose(kind: str, argument: str, before: list[str]) -> tuple[str, str]:
    if kind != "rel":
        return f"choose({before[0]}, {_listed(argument)})", "chosen"
    name, relations, subject = _relation(argument)
    call = (_quoted(name), _listed(relations), before[0])
    return f"choose_relation({', '.join(call if subject else call[::-1])})", "chosen"


def _alike(word: str) -> Any:
    def made(kind: str, argument: str, before: list[str]) -> tuple[str, str]:
        return f"{word}({', '.join(before)}, {_quoted(kind or argument)})", word

    return made


_STEPS: Final[Mapping[str, Any]] = {
    "select": _select,
    "filter": _filter,
    "relate": _relate,
    "verify": _verify,
    "choose": _choose,
    "query": lambda kind, argument, before: (f"query({before[0]}, {_quoted(argument)})", argument),
    "exist": lambda kind, argument, before: (f"exists({before[0]})", f"has_{before[0]}"),
    "and": lambda kind, argument, before: (" and ".join(before), "both"),
    "or": lambda kind, argument, before: (" or ".join(before), "either"),
    "same": _alike("same"),
    "different": _alike("different"),
    "common": lambda kind, argument, before: (f"common({before[0]}, {before[1]})", "common"),
}

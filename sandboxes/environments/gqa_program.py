"""The language of programs about a picture: straight Python over a few tools, read with `ast` and run here, step by step.

    car = find("car")
    white = filter(car, "white")
    answer = query(white, "hposition")

**Statements**: `name = …`, `if … elif … else`, a bare expression. **Expressions**: texts, numbers, True, False, names,
lists of texts, `things[0]`, and, or, not, comparisons, `a if b else c`, and calls of the tools. Nothing else exists:
no import, attribute, loop, function or builtin, so every program ends, and nothing of Python is ever executed.

**The answer** is the variable `answer` at the end. True is "yes", False "no".

**Tools** see through a `Sight` (`gqa_scene.py`: a scene graph; `gqa_models.py`: vision models). Left out: what they see.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from kintsugi.errors import nearest
from kintsugi.sandboxes.environments.printed_number import readable
from kintsugi.sandboxes.environments.program_of_thought import Objection, parse_program

MAX_CALLS: Final = 100
ANYTHING: Final = "anything"


@dataclass(frozen=True)
class Thing:
    """Something in the picture. key: its own; name: what it is called; box: x, y, width and height in pixels."""

    key: str
    name: str
    box: tuple[float, float, float, float] | None = None


SCENE: Final = Thing("scene", "scene")


class Sight(Protocol):
    """What the tools are made of: one picture, seen."""

    def find(self, name: str) -> list[Thing]:
        """Everything of that name or kind; everything at all for "anything"."""
        ...

    def related(self, name: str, relation: str, things: Sequence[Thing], *, forward: bool) -> list[Thing]:
        """What is called `name` and stands in `relation` to one of `things` (forward: it is the relation's subject)."""
        ...

    def holds(self, thing: Thing, attribute: str) -> bool:
        """Whether the thing has the attribute, a position such as "left" included."""
        ...

    def value(self, thing: Thing, kind: str) -> str:
        """The thing's name, color, material, …; "" when that cannot be seen."""
        ...

    def pick(self, things: Sequence[Thing], options: Sequence[str]) -> str:
        """Which option fits best; "" when none does."""
        ...

    def ask(self, question: str) -> str | None:
        """A short answer to a simple question about the whole picture; None where nobody can answer it."""
        ...


TOOLS: Final = {
    "find": "find(name): everything of that name",
    "scene": "scene(): the whole picture",
    "filter": 'filter(things, attribute): those that have it ("left", "top" and "not red" are attributes too)',
    "relate": "relate(name, relation, things) or relate(things, relation, name): what is called name and is so related",
    "exists": "exists(things): whether there are any",
    "count": "count(things): how many",
    "verify": "verify(things, attribute): whether one of them has it",
    "query": "query(things, kind): their name, color, material, size, hposition, place, …",
    "choose": "choose(things, [text, text]): the one that fits",
    "choose_relation": "choose_relation(name, [relation, relation], things), or things first: the one that holds",
    "same": "same(things, things, kind) or same(things, kind): whether they are alike in it",
    "different": "different(things, things, kind) or different(things, kind): the opposite",
    "common": 'common(things, things): what they have in common ("color", "material", …)',
    "simple_query": "simple_query(question): a short answer; vision models only",
}
_SIDES: Final = {"to the left of": "left", "to the right of": "right"}
"""GQA answers a choice between these with the side alone."""
KINDS: Final = ("color", "material", "size", "shape", "pattern", "pose", "activity", "age", "length", "height", "weather")


@dataclass
class Outcome:
    """What a program came to. answer: "" unless it gave one; objection: why it gave none; steps: what each call said, as
    (line, text); empty: line and text of the first call that found nothing; calls: tools called."""

    answer: str = ""
    objection: Objection | None = None
    steps: list[tuple[int, str]] = field(default_factory=list)
    empty: tuple[int, str] | None = None
    calls: int = 0


def run_program(source: str, sight: Sight) -> Outcome:
    """Read and run. Never raises for anything that `source` says."""
    tree = parse_program(source)
    if isinstance(tree, Objection):
        empty = Objection(text="The answer holds no program: write one that ends with answer = …")
        return Outcome(objection=tree if source.strip() else empty)
    run = _Run(sight)
    try:
        run.statements(tree.body)
        run.outcome.answer = run.answer(tree)
    except Stopped as stopped:
        run.outcome.objection = stopped.objection
    except RecursionError:
        run.outcome.objection = Objection(text="The program is nested too deeply.")
    run.outcome.calls = run.calls
    return run.outcome


class Stopped(Exception):
    """Carries the objection out of the interpreter."""

    def __init__(self, text: str, node: ast.AST | None = None, note: str = "") -> None:
        line = getattr(node, "lineno", None)
        self.objection = Objection(text=f"{text} (line {line})." if line else f"{text}.", line=line, note=note or text)
        super().__init__(text)


_COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class _Run:
    def __init__(self, sight: Sight) -> None:
        self.sight = sight
        self.names: dict[str, Any] = {}
        self.outcome = Outcome()
        self.calls = 0

    def answer(self, tree: ast.Module) -> str:
        value = self.names.get("answer")
        node = tree.body[-1] if tree.body else None
        if value is None:
            raise Stopped('The program gives no answer: end it with "answer = …"')
        if isinstance(value, list):
            raise Stopped("The answer is a list of things, not a word: ask with query, verify, exists or choose", node)
        if not self.calls:
            raise Stopped("The program never looks at the picture: it calls no tool", node, "calls no tool")
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value)

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.names[node.targets[0].id] = self.value(node.value)
            elif isinstance(node, ast.Expr):
                self.value(node.value)
            elif isinstance(node, ast.If):
                self.statements(node.body if self.truth(node.test) else node.orelse)
            elif not isinstance(node, ast.Pass):
                raise Stopped(f"There is no {_kind(node)} here: only name = …, if and tools", node)

    def truth(self, node: ast.expr) -> bool:
        value = self.value(node)
        if isinstance(value, str):
            raise Stopped(f'A text is neither true nor false: compare it, as in x == "{readable(value, 20)}"', node)
        return bool(value)

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bool | int):
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in self.names:
                if node.id in TOOLS:
                    raise Stopped(f"{node.id} is a tool: call it, as in {TOOLS[node.id].partition(':')[0]}", node)
                raise Stopped(f"The name {readable(node.id, 40)} has no value yet", node)
            return self.names[node.id]
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.BoolOp):
            # Every side is looked at, as in the official programs: what each tool says is told afterwards.
            sides = [self.truth(side) for side in node.values]
            return all(sides) if isinstance(node.op, ast.And) else any(sides)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self.truth(node.operand)
        if isinstance(node, ast.IfExp):
            return self.value(node.body if self.truth(node.test) else node.orelse)
        if isinstance(node, ast.List | ast.Tuple) and len(node.elts) <= 20:
            return self.texts([self.value(one) for one in node.elts], node)
        if isinstance(node, ast.Compare):
            return self.compared(node)
        if isinstance(node, ast.Subscript):
            return self.item(node)
        raise Stopped(f"There is no {_kind(node)} here: only texts, names, and, or, not, comparisons and tools", node)

    def texts(self, values: list[Any], node: ast.expr) -> tuple[str, ...]:
        if not all(isinstance(value, str) for value in values):
            raise Stopped("A list holds texts alone", node)
        return tuple(values)

    def compared(self, node: ast.Compare) -> bool:
        left, result = self.value(node.left), True
        for sign, other in zip(node.ops, node.comparators, strict=True):
            right = self.value(other)
            if isinstance(sign, ast.In | ast.NotIn) and isinstance(left, str) and isinstance(right, str | tuple):
                result &= (left in right) == isinstance(sign, ast.In)
            elif type(sign) in _COMPARE and isinstance(left, str | int) and type(left) is type(right):
                result &= _COMPARE[type(sign)](left, right)
            else:
                raise Stopped(f"{_shown(left)} and {_shown(right)} cannot be compared so", node)
            left = right
        return result

    def item(self, node: ast.Subscript) -> Any:
        value, index = self.value(node.value), self.value(node.slice)
        if not isinstance(value, list | tuple) or not isinstance(index, int) or not -len(value) <= index < len(value):
            raise Stopped(f"{_shown(value)} has no item {readable(str(index), 20)}", node)
        return [value[index]] if isinstance(value, list) else value[index]

    def call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in TOOLS:
            name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
            raise Stopped(f"There is no tool {readable(name, 40)}: {nearest(name[:40], TOOLS)}", node)
        if node.keywords or any(isinstance(one, ast.Starred) for one in node.args):
            raise Stopped(f"Tools take their arguments by place: {TOOLS[node.func.id]}", node)
        values = [self.value(one) for one in node.args]
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise Stopped(f"The program calls more than {MAX_CALLS} tools", node)
        result = _Tool(self.sight, node.func.id, values, node).result()
        said = f"{readable(ast.unparse(node), 90)} {_said(result)}"
        self.outcome.steps.append((node.lineno, said))
        if result == [] and self.outcome.empty is None:
            self.outcome.empty = node.lineno, said
        return result


class _Tool:
    """One call: its arguments checked, and what it comes to."""

    def __init__(self, sight: Sight, name: str, values: list[Any], node: ast.Call) -> None:
        self.sight, self.name, self.values, self.node = sight, name, values, node

    def result(self) -> Any:
        return getattr(self, f"_{self.name}")()

    def _refused(self) -> Stopped:
        return Stopped(f"{self.name} was called with {_listed(self.values)}; it is {TOOLS[self.name]}", self.node)

    def _take(self, *types: type) -> list[Any]:
        """The arguments when they are of these types."""
        values = [(value,) if kind is tuple and isinstance(value, str) else value for kind, value in zip(types, self.values)]  # noqa: B905
        if len(self.values) != len(types) or not all(map(isinstance, values, types)):
            raise self._refused()
        return values

    def _seen(self, things: list[Thing]) -> list[Thing]:
        if not things:
            raise Stopped(f"{self.name} has nothing to look at: its list of things is empty", self.node, "nothing there")
        return things

    def _find(self) -> list[Thing]:
        return self.sight.find(*self._take(str))

    def _scene(self) -> list[Thing]:
        self._take()
        return [SCENE]

    def _filter(self) -> list[Thing]:
        things, attribute = self._take(list, str)
        wanted, unwanted = attribute, attribute.strip().lower().startswith("not ")
        if unwanted:
            wanted = attribute.strip()[4:]
        return [thing for thing in things if self.sight.holds(thing, wanted) != unwanted]

    def _relate(self) -> list[Thing]:
        forward = bool(self.values) and isinstance(self.values[0], str)
        first, relation, last = self._take(*((str, str, list) if forward else (list, str, str)))
        name, things = (first, last) if forward else (last, first)
        return self.sight.related(name, relation, things, forward=forward)

    def _exists(self) -> bool:
        return bool(self._take(list)[0])

    def _count(self) -> int:
        return len(self._take(list)[0])

    def _verify(self) -> bool:
        things, attribute = self._take(list, str)
        return any(self.sight.holds(thing, attribute) for thing in self._seen(things))

    def _query(self) -> str:
        things, kind = self._take(list, str)
        for thing in self._seen(things):
            if found := self.sight.value(thing, kind.strip().lower()):
                return found
        raise Stopped(f"No {readable(kind, 30)} can be seen of {_shown(things)}", self.node, "nothing seen")

    def _choose(self) -> str:
        things, options = self._take(list, tuple)
        found = self.sight.pick(self._seen(things), options) if options else ""
        if not found:
            raise Stopped(f"None of {_listed(options)} fits {_shown(things)}", self.node, "none fits")
        return found

    def _choose_relation(self) -> str:
        forward = bool(self.values) and isinstance(self.values[0], str)
        first, relations, last = self._take(*((str, tuple, list) if forward else (list, tuple, str)))
        name, things = (first, last) if forward else (last, first)
        for relation in relations:
            if self.sight.related(name, relation, things, forward=forward):
                return _SIDES.get(relation.strip().lower()) or relation
        raise Stopped(f"None of {_listed(relations)} holds", self.node, "none holds")

    def _same(self) -> bool:
        if len(self.values) == 2:
            things, kind = self._take(list, str)
            groups = [[thing] for thing in self._seen(things)]
        else:
            left, right, kind = self._take(list, list, str)
            groups = [self._seen(left), self._seen(right)]
        values = [{self.sight.value(thing, kind) for thing in group} - {""} for group in groups]
        return bool(values) and bool(set.intersection(*values))

    def _different(self) -> bool:
        return not self._same()

    def _common(self) -> str:
        left, right = self._take(list, list)
        for kind in KINDS:
            sides = [{self.sight.value(thing, kind) for thing in self._seen(side)} - {""} for side in (left, right)]
            if sides[0] & sides[1]:
                return kind
        raise Stopped("Nothing in common can be seen", self.node)

    def _simple_query(self) -> str:
        (question,) = self._take(str)
        found = self.sight.ask(question)
        if found is None:
            raise Stopped("simple_query works with vision models alone: use the other tools here", self.node)
        return found


def _kind(node: ast.AST) -> str:
    return type(node).__name__


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(_shown(value) for value in values[:4]) or "nothing"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{readable(value, 30)}"'
    if isinstance(value, list):
        named = ", ".join(readable(thing.name, 30) for thing in value[:3])
        return f"[{named}{', …' if len(value) > 3 else ''}]"
    return readable(str(value), 60)


def _said(result: Any) -> str:
    if isinstance(result, list):
        return f"found {_shown(result)[1:-1]}" if result else "found nothing"
    return f"said {'yes' if result is True else 'no' if result is False else readable(str(result), 40)}"

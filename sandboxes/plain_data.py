"""Plain values between two processes that do not trust each other: what the judging pair speaks (`judging.py`).

    wire = to_wire([1, (2.5, "x")], other=refuse)      # JSON-able; `other` answers for every value that is not plain
    value = from_wire(wire, other=refuse)              # exactly the same types
    found = containers([value])                        # each list, dict and set in it: what a call may change
    refill(found[0], [2])                              # such a change

Plain is decided by exact type, never by isinstance: a subclass of int whose `__eq__` is always true is not an int here
and never arrives as one. Nothing is ever executed to read a value. Travels beside `worker.py`; standard library only.
Leaves out: functions, classes and objects, which `other` may turn into handles.
"""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import fractions
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Other = Callable[[Any], Any]

_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque,
}  # fmt: skip
_MAPPINGS: dict[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "Counter": lambda pairs: collections.Counter(dict(pairs)),
    "defaultdict": lambda pairs: collections.defaultdict(None, pairs),
}
_TEXTS: dict[str, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    "int": (hex, lambda text: int(text, 16)),
    "bytes": (lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "bytearray": (lambda value: base64.b64encode(value).decode(), lambda text: bytearray(base64.b64decode(text))),
    "complex": (lambda value: f"{value.real!r} {value.imag!r}", lambda text: complex(*map(float, text.split()))),
    "Decimal": (str, decimal.Decimal),
    "Fraction": (lambda value: f"{value.numerator}/{value.denominator}", fractions.Fraction),
    "date": (lambda value: value.isoformat(), datetime.date.fromisoformat),
    "time": (lambda value: value.isoformat(), datetime.time.fromisoformat),
    "datetime": (lambda value: value.isoformat(), datetime.datetime.fromisoformat),
    "timedelta": (
        lambda value: f"{value.days} {value.seconds} {value.microseconds}",
        lambda text: datetime.timedelta(*map(int, text.split())),
    ),
}
_NAMES: dict[type, str] = {
    kind: kind.__name__
    for kind in (
        list, tuple, set, frozenset, collections.deque, dict, collections.OrderedDict, collections.Counter,
        collections.defaultdict, int, bytes, bytearray, complex, decimal.Decimal, fractions.Fraction,
        datetime.date, datetime.time, datetime.datetime, datetime.timedelta,
    )
}  # fmt: skip
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
ITERATORS = tuple(
    type(one) for one in (map(str, ""), filter(None, ""), zip(), enumerate(""), reversed([]), iter([]), iter(()), iter(""))
)


PLAIN: frozenset[type] = frozenset((*_NAMES, bool, float, str, range, slice, map, filter, zip, enumerate, reversed))
"""The types whose values cross; an iterator only to the program; reversed: of a list alone."""
MUTABLE = (list, set, bytearray, collections.deque, *(kind for kind in _NAMES if issubclass(kind, dict)))


def to_wire(value: Any, other: Other, known: Mapping[int, int] | None = None, *, written_out: bool = False) -> Any:
    """`value` as what json can write. `other(value)` gives the wire form of what is not plain, or raises.

    `known`: numbers of objects, by their ids, that the reader has: they are written as ["same", number], but for
    `value` itself where it is to be `written_out`.
    """
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is str:
        return value
    if kind is int:
        return value if -(1 << 53) < value < 1 << 53 else ["int", hex(value)]
    if known and not written_out and id(value) in known:
        return ["same", known[id(value)]]
    name = _NAMES.get(kind)
    if name in _SEQUENCES:
        return [name, [to_wire(item, other, known) for item in value]]
    if name in _MAPPINGS:
        return [name, [[to_wire(key, other, known), to_wire(item, other, known)] for key, item in dict.items(value)]]
    if name in _TEXTS:
        return [name, _TEXTS[name][0](value)]
    if kind is range:
        return ["range", [to_wire(number, other) for number in (value.start, value.stop, value.step)]]
    if kind is slice:
        return ["slice", [to_wire(number, other) for number in (value.start, value.stop, value.step)]]
    if kind in _VIEWS:
        return [_VIEWS[kind], [to_wire(item, other, known) for item in value]]
    return other(value)


def containers(values: Iterable[Any]) -> list[Any]:
    """Every value within plain `values` that can change, in an order that is the same on both sides."""
    found: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in MUTABLE:
            found.append(value)
        name = _NAMES.get(kind)
        if name in _SEQUENCES:
            found += containers(value)
        elif name in _MAPPINGS:
            found += containers(dict.values(value))
    return found


def refill(old: Any, new: Any) -> None:
    """Give `old` the content of `new`, when both are of the same type that can change."""
    if type(old) is not type(new):
        return
    if type(old) in (list, bytearray):
        old[:] = new
    elif type(old) in MUTABLE:
        old.clear()
        (old.extend if type(old) is collections.deque else old.update)(new)


def from_wire(wire: Any, other: Other) -> Any:
    """The value again. `other(wire)` reads what `to_wire`'s `other` wrote. ValueError, TypeError: not of this form."""
    if type(wire) is not list:
        if type(wire) is dict:
            raise ValueError("expected a plain value, found an object")
        return wire
    name, content = wire
    if name in _SEQUENCES:
        return _SEQUENCES[name]([from_wire(item, other) for item in content])
    if name in _MAPPINGS:
        return _MAPPINGS[name]([(from_wire(key, other), from_wire(item, other)) for key, item in content])
    if name in _TEXTS:
        return _TEXTS[name][1](content)
    if name == "range":
        return range(*(from_wire(number, other) for number in content))
    if name == "slice":
        return slice(*(from_wire(number, other) for number in content))
    if name == "keys":
        return dict.fromkeys(from_wire(item, other) for item in content).keys()
    if name == "values":
        return dict(enumerate(from_wire(item, other) for item in content)).values()
    if name == "items":
        return dict(from_wire(item, other) for item in content).items()
    if name == "iterator":
        return iter([from_wire(item, other) for item in content])
    return other(wire)

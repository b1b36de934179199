"""Plain values between two processes that do not trust each other: what the judging pair speaks (`judging.py`).

    wire = to_wire([1, (2.5, "x")], other=refuse)      # JSON-able; `other` answers for every value that is not plain
    value = from_wire(wire, other=refuse)              # exactly the same types

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
from collections.abc import Callable
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
}
_NAMES: dict[type, str] = {
    kind: kind.__name__
    for kind in (
        list, tuple, set, frozenset, collections.deque, dict, collections.OrderedDict, collections.Counter,
        collections.defaultdict, int, bytes, bytearray, complex, decimal.Decimal, fractions.Fraction,
        datetime.date, datetime.time, datetime.datetime,
    )
}  # fmt: skip
_ITERATORS = tuple(
    type(one) for one in (map(str, ""), filter(None, ""), zip(), enumerate(""), reversed([]), iter([]), iter(()), iter(""))
)


def to_wire(value: Any, other: Other) -> Any:
    """`value` as what json can write. `other(value)` gives the wire form of what is not plain, or raises."""
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is str:
        return value
    if kind is int:
        return value if -(1 << 53) < value < 1 << 53 else ["int", hex(value)]
    name = _NAMES.get(kind)
    if name in _SEQUENCES:
        return [name, [to_wire(item, other) for item in value]]
    if name in _MAPPINGS:
        return [name, [[to_wire(key, other), to_wire(item, other)] for key, item in dict.items(value)]]
    if name in _TEXTS:
        return [name, _TEXTS[name][0](value)]
    if kind is range:
        return ["range", [to_wire(number, other) for number in (value.start, value.stop, value.step)]]
    if kind is type({}.keys()):
        return ["keys", [to_wire(item, other) for item in value]]
    if kind in _ITERATORS:
        return ["iterator", [to_wire(item, other) for item in value]]
    return other(value)


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
    if name == "keys":
        return dict.fromkeys(from_wire(item, other) for item in content).keys()
    if name == "iterator":
        return iter([from_wire(item, other) for item in content])
    return other(wire)

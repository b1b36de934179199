r"""When two answers to a MATH problem are the same: the official comparison of strings, and a reading as numbers.

    is_equiv(r"\frac12", r"\dfrac{1}{2}")     True: the release's own rule, exactly
    latex_number(r"\frac{3}{4}")              Fraction(3, 4)
    last_boxed(r"so \boxed{x = \boxed{3}}")   "x = \boxed{3}"

The official comparison brings both sides to a normal form and compares texts; what its form cannot handle (a `\frac`
or `\sqrt` with nothing after it, two units) is compared as it stands. Its steps, in its order, are in `normal_form`.

Source: Hendrycks et al. 2021 (arXiv 2103.03874), the release's `math_equivalence.py`, `dataset/util.py`; written anew
from their behaviour. Left out: symbolic equality (that is `math-verify`'s).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Final

Number = Fraction | Decimal
"""Exact, or (roots, pi) to `_DIGITS` digits."""

_FIRST: Final = (
    ("\n", ""),
    (r"\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    (r"\left", ""),
    (r"\right", ""),
    (r"^{\circ}", ""),
    (r"^\circ", ""),
    (r"\$", ""),
)
_UNIT: Final = r"\text{ "
_SECOND: Final = ((r"\%", ""), (" .", " 0."), ("{.", "{0."))
_MAX_NUMBER: Final = 400
_DIGITS: Final = 60
_LARGEST: Final = Fraction(10) ** 300
_PI: Final = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


class Shapeless(ValueError):
    """The official rules fail on this text; it is then compared as it stands."""


def is_equiv(one: str, other: str) -> bool:
    """Whether the official comparison takes two answers for the same."""
    try:
        return normal_form(one) == normal_form(other)
    except Shapeless:
        return one == other


def normal_form(text: str) -> str:
    r"""The official normal form. Raises Shapeless where the official code fails.

    In order: line breaks and negative spaces go, double backslashes become single, tfrac and dfrac become frac, \left
    and \right, degrees and \$ go; a unit on the right (`\text{ ` and what follows) goes; percent signs go; a decimal
    point that begins a number gets its 0; a name of at most two characters before one = goes; \sqrt3 becomes \sqrt{3};
    spaces go; \frac12, \frac1{72} get their braces; 0.5 is \frac{1}{2}, and so is a/b of plain integers."""
    for old, new in _FIRST:
        text = text.replace(old, new)
    if text.count(_UNIT) > 1:
        raise Shapeless(text)
    text = text.partition(_UNIT)[0]
    for old, new in _SECOND:
        text = text.replace(old, new)
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = _brace(text, r"\sqrt", _root).replace(" ", "")
    text = _fractions(text)
    if text == "0.5":
        return r"\frac{1}{2}"
    return _slash(text)


def _brace(text: str, command: str, braced: Callable[[str], str]) -> str:
    """`braced` of what follows each `command`."""
    head, *tails = text.split(command)
    return head + "".join(command + braced(tail) for tail in tails)


def _root(tail: str) -> str:
    if not tail:
        raise Shapeless(tail)
    return tail if tail[0] == "{" else f"{{{tail[0]}}}{tail[1:]}"


def _fractions(text: str) -> str:
    """Braces for `\\frac` followed by two characters, or by one and a brace; one character alone leaves all as it was."""
    tails = text.split(r"\frac")[1:]
    for tail in tails:
        if not tail:
            raise Shapeless(text)
        if tail[0] != "{" and len(tail) < 2:
            return text

    def braced(tail: str) -> str:
        if tail[0] == "{":
            return tail
        bottom = tail[1] if tail[1] == "{" else f"{{{tail[1]}}}"
        return f"{{{tail[0]}}}{bottom}{tail[2:]}"

    return _brace(text, r"\frac", braced)


def _slash(text: str) -> str:
    found = re.fullmatch(r"(-?(?:0|[1-9][0-9]*))/(-?(?:0|[1-9][0-9]*))", text)
    if found is None or "-0" in found.groups():
        return text
    return rf"\frac{{{found[1]}}}{{{found[2]}}}"


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` (`\boxed 3` too), or else `\fbox{…}`; None for none, or one that does not end."""
    start = text.rfind(r"\boxed")
    start = text.rfind(r"\fbox") if start < 0 else start  # MATH's own order
    if start < 0:
        return None
    opening = text.find("{", start)
    word = text[start:].partition("{")[0]
    if opening < 0 or word not in (r"\boxed", r"\fbox"):
        bare = re.match(r"\\boxed ([^$]+)", text[start:])
        return bare[1].strip() if bare else None
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[opening + 1 : index]
    return None


def latex_number(text: str) -> Number | None:
    r"""The value of an answer that is one number: digits with `,` between thousands, decimals, `a/b`, `\frac`, `\sqrt`,
    `\pi`, powers, products, sums, degrees and percent signs (left out), a unit in `\text{…}` at the end (likewise).

    None for anything else (variables, tuples, bases, infinity)."""
    text = re.sub(r"\\(?:!|,|;| |left|right|displaystyle)", "", text.strip().strip("$")).strip().rstrip(".")
    text = re.sub(r"\\(?:text|mbox|mathrm)\{[^{}]*\}(?:\^\{?[23]\}?)?\s*$", "", text)
    text = re.sub(r"\^\{?\\circ\}?|\\?%|\\\$", "", text).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    if not text.strip() or len(text) > _MAX_NUMBER:
        return None
    with localcontext(Context(prec=_DIGITS)):
        try:
            value = _Reader(text).whole()
        except (ValueError, ArithmeticError, RecursionError):
            return None
        return value if abs(_decimal(value)) < _decimal(_LARGEST) else None


def same_value(value: Number, wanted: Number, *, rounded: bool) -> bool:
    """Whether two numbers are the same. rounded: one of them is written as a decimal, which may stand for another number:
    it must meet it within 1e-6, and within 1e-4 of its size (0 is no 1/100000), floats' own errors aside. Otherwise
    integers and fractions must be equal, and roots agree to 40 digits."""
    if isinstance(value, Fraction) and isinstance(wanted, Fraction) and (value == wanted or not rounded):
        return value == wanted
    with localcontext(Context(prec=_DIGITS)):
        gap, size = abs(_decimal(value) - _decimal(wanted)), abs(_decimal(wanted))
        if not rounded:
            return gap <= Decimal("1e-40") * max(size, Decimal(1))
        allowed = max(min(Decimal("1e-6"), Decimal("1e-4") * size), Decimal("1e-12"))
        if isinstance(wanted, Decimal):  # a float of a large root has few places; integers must be met as they are
            allowed = max(allowed, Decimal("1e-12") * size)
        return gap <= allowed


def _decimal(value: Number) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator) if isinstance(value, Fraction) else value


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > 60:
        raise ValueError(exponent)
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            if max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent) > 5_000:
                raise ValueError(exponent)
            return base ** int(exponent)
        return _root_of(base, exponent.denominator) ** exponent.numerator
    return _decimal(base) ** _decimal(exponent)


def _root_of(base: Number, degree: int) -> Number:
    if base < 0 or degree < 1:
        raise ValueError(base)
    if isinstance(base, Fraction):
        top, bottom = (round(Decimal(part) ** (1 / Decimal(degree))) for part in (base.numerator, base.denominator))
        if Fraction(top**degree, bottom**degree) == base:
            return Fraction(top, bottom)
    return _decimal(base) ** (1 / Decimal(degree)) if base else Fraction(0)


_TOKEN: Final = re.compile(
    r"\s*(?:(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)|(\\[a-z]+)|([-+*/^(){}\[\]]))", re.ASCII
)


def _sum(one: Number, other: Number) -> Number:
    return one + other if isinstance(one, Fraction) and isinstance(other, Fraction) else _decimal(one) + _decimal(other)


def _times(one: Number, other: Number) -> Number:
    return one * other if isinstance(one, Fraction) and isinstance(other, Fraction) else _decimal(one) * _decimal(other)


def _over(one: Number, other: Number) -> Number:
    return one / other if isinstance(one, Fraction) and isinstance(other, Fraction) else _decimal(one) / _decimal(other)


class _Reader:
    """Recursive descent over a few hundred characters. ValueError: not one number."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        while text[position:].strip():
            found = _TOKEN.match(text, position)
            if found is None:
                raise ValueError(text)
            self.tokens.append(found[0].strip())
            position = found.end()
        self.at = 0

    def whole(self) -> Number:
        value = self.sum()
        if self.at < len(self.tokens):
            raise ValueError(self.tokens[self.at])
        return value

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.next()
        if not token or (wanted and token != wanted):
            raise ValueError(token)
        self.at += 1
        return token

    def sum(self) -> Number:
        sign = -1 if self.next() == "-" else 1
        if self.next() in ("-", "+"):
            self.take()
        value = _times(Fraction(sign), self.product())
        while self.next() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = _sum(value, _times(Fraction(sign), self.product()))
        return value

    def product(self) -> Number:
        value, first = self.power()
        while True:
            if self.next() in ("*", r"\cdot", r"\times"):
                self.take()
                value = _times(value, self.power()[0])
            elif self.next() in ("/", r"\div"):
                self.take()
                value = _over(value, self.power()[0])
            elif self.next() == r"\frac" and first:  # 1\frac{1}{2} is a mixed number
                value = _sum(value, self.power()[0])
            elif self.next() in (r"\frac", r"\sqrt", r"\pi", "("):
                value = _times(value, self.power()[0])
            else:
                return value
            first = False

    def power(self) -> tuple[Number, bool]:
        """A factor, and whether it was a plain integer."""
        plain = self.next().isdigit()
        value = self.factor()
        if self.next() == "^":
            self.take()
            exponent = self.group() if self.next() == "{" else self.factor()
            value, plain = _power(value, exponent), False
        return value, plain

    def factor(self) -> Number:
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token.replace(",", ""))
        if token == r"\pi":
            return +_PI
        if token == r"\frac":
            top = self.argument()
            return _over(top, self.argument())
        if token == r"\sqrt":
            degree: Number = Fraction(2)
            if self.next() == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            if not isinstance(degree, Fraction) or degree.denominator != 1 or degree > 60:
                raise ValueError(degree)
            return _root_of(self.argument(), int(degree))
        if token == "(":
            value = self.sum()
            self.take(")")
            return value
        raise ValueError(token)

    def argument(self) -> Number:
        r"""`{…}`, or one digit as in `\frac12`: of longer runs the rest stays."""
        if self.next() == "{":
            return self.group()
        token = self.next()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.factor()

    def group(self) -> Number:
        self.take("{")
        value = self.sum()
        self.take("}")
        return value

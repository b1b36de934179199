"""What counts as a number on a printed line, and how foreign text is shown in feedback.

    parse_number("$1,234.50")      Fraction(2469, 2)
    parse_number("Total: 8 cups")  Fraction(8, 1)
    parse_number("8 or 9")         None: which one?

A line must hold exactly one number: an optional sign, digits with commas between thousands, decimals, an exponent, or
a fraction `3/4`; a currency or percent sign and words around it are passed over (50 % is 50). Full-width and other
decimal digits and the minus sign U+2212 count as theirs. Not numbers: nan, infinity, what overflows a float, complex
numbers, True and False, `5kg`, `- 5` (a sign or a dash?), superscripts, and lines of more than 200 characters.
Everything is exact; nothing is evaluated.
"""

from __future__ import annotations

import math
import re
import unicodedata
from fractions import Fraction
from typing import Final

MAX_LINE: Final = 200

_PLAIN: Final = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_NUMBER: Final = re.compile(
    rf"(?<![\w.,+-])(?P<sign>[-+]?)[$€£¥]?\s?(?P<top>(?:{_PLAIN})(?:[eE][-+]?\d{{1,3}})?)(?:/(?P<bottom>\d+))?(?!\w)"
)
_BARE: Final = re.compile(r"[-+]?[$€£¥]?\s?[-+]?[\d.,]+(?:[eE][-+]?\d+)?(?:/\d+)?\s?%?\.?")
_REFUSED: Final = re.compile(r"\d[jJ]\b|\b(?:nan|inf|infinity)\b|[-+]\s+[$€£¥]?\s?[\d.]", re.IGNORECASE)


def parse_number(text: str, *, words: bool = True) -> Fraction | None:
    """The one number of a line, exactly; None when there is none, or more than one.

    words=False: nothing but the number (with its currency or percent sign) may stand there.
    """
    text = text.strip()
    if len(text) > MAX_LINE or any(unicodedata.category(char) == "No" for char in text):
        return None
    line = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    line = "".join(str(unicodedata.decimal(char, char)) for char in line)
    line = re.sub(r"([$€£¥])\s?([-+])", r"\2\1", line)
    if _REFUSED.search(line) or not (words or _BARE.fullmatch(line)):
        return None
    found = list(_NUMBER.finditer(line))
    if len(found) != 1 or re.search(r"\d", line[: found[0].start()] + line[found[0].end() :]):
        return None
    top, bottom = found[0]["top"].replace(",", ""), int(found[0]["bottom"] or 1)
    if not math.isfinite(float(top)) or bottom == 0:
        return None
    return Fraction(found[0]["sign"] + top) / bottom


def readable(text: str, longest: int) -> str:
    """`text` on one line for feedback: control characters and lone surrogates as `?`, cut at `longest` characters."""
    shown = "".join(char if char.isprintable() else "?" for char in text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def is_text(text: str) -> bool:
    """Whether it can be stored as UTF-8: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

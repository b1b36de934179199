"""Stop strings for policies whose model does not cut them itself: `cut_at_stop(text, stops)`."""

from __future__ import annotations

from collections.abc import Iterable


def cut_at_stop(text: str, stops: Iterable[str]) -> tuple[str, bool]:
    """`text` before the first stop string in it, and whether there was one. Empty stop strings are ignored.

    >>> cut_at_stop("a = 1\\n###\\nmore", ("###", "zzz"))
    ('a = 1\\n', True)
    """
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)

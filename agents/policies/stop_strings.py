"""Stop strings for policies whose model does not cut them itself: `cut_at_stop(text, stops)`."""

from __future__ import annotations

from collections.abc import Iterable


def cut_at_stop(text: str, stops: Iterable[str]) -> tuple[str, str]:
    """`text` before the first stop string in it, and that string ("" without one). Empty stop strings are ignored.

    >>> cut_at_stop("a = 1\\n###\\nmore", ("###", "zzz"))
    ('a = 1\\n', '###')
    """
    places = [(place, stop) for stop in stops if stop and (place := text.find(stop)) >= 0]
    place, stop = min(places, default=(len(text), ""))
    return text[:place], stop

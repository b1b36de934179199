"""Short answers compared as HotpotQA's official scorer compares them: exact match and F1 over words.

    exact_match("The Eiffel Tower!", "eiffel tower")   1.0
    f1("a tower in Paris", "Paris")                    0.5

Normalisation, in this order: lower case, ASCII punctuation deleted, the words a, an and the replaced by a space, runs of
white space made one space. F1 counts words that both sides have, as often as both have them; it is 0 when no word is
shared (two empty answers included, though they match exactly), and when either side is yes, no or noanswer and the two
differ. Source: Yang et al. 2018 (arXiv 1809.09600), section 5; the scorer at https://github.com/hotpotqa/hotpot.

Left out: scores of the supporting facts, and the joint scores.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Final

_CLOSED: Final = frozenset(("yes", "no", "noanswer"))
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """`text` as it is compared."""
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 when both are the same once normalised, else 0.0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def f1(prediction: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words of both, in [0, 1]."""
    said, wanted = normalize_answer(prediction), normalize_answer(gold)
    if said != wanted and (said in _CLOSED or wanted in _CLOSED):
        return 0.0
    said_words, wanted_words = said.split(), wanted.split()
    shared = sum((Counter(said_words) & Counter(wanted_words)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(said_words), shared / len(wanted_words)
    return 2 * precision * recall / (precision + recall)

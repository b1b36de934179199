"""Exact match and F1 equal an independent reference, written from the rule's words in another way."""

from __future__ import annotations

import random

import pytest

from kintsugi.sandboxes.environments.answer_match import exact_match, f1, normalize_answer

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
PIECES = (
    "the", "The", "a", "an", "An", "yes", "no", "noanswer", "Paris", "paris", "1,234", "1234", "U.S.", "us", "it's",
    "theatre", "banana", "a-b", "–", "São", "new york", "New  York", "'the'", "(a)", "1990s", "", " ", "\t", "!", "42",
)  # fmt: skip


def reference_words(text: str) -> list[str]:
    """Letter by letter: lower case, no ASCII punctuation, words apart at spaces, then the articles go.

    An article next to a letter that is no word character (such as –) stands alone for the official rule; such letters
    are set apart here by hand."""
    plain = "".join(letter for letter in text.lower() if letter not in PUNCTUATION)
    words: list[str] = []
    for chunk in plain.split():
        runs: list[str] = [""]
        for letter in chunk:
            is_word = letter.isalnum() or letter == "_"
            if runs[-1] and (runs[-1][-1].isalnum() or runs[-1][-1] == "_") != is_word:
                runs.append("")
            runs[-1] += letter
        kept = [" " if run in ("a", "an", "the") else run for run in runs]
        words += "".join(kept).split()
    return words


def reference(prediction: str, gold: str) -> tuple[float, float]:
    """(exact match, F1), counting shared words by crossing them off."""
    said, wanted = reference_words(prediction), reference_words(gold)
    match = 1.0 if said == wanted else 0.0
    if not match and any(" ".join(side) in ("yes", "no", "noanswer") for side in (said, wanted)):
        return match, 0.0
    left, shared = list(wanted), 0
    for word in said:
        if word in left:
            left.remove(word)
            shared += 1
    return match, 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def generated(number: int) -> list[tuple[str, str]]:
    rng = random.Random("answers")
    pairs = []
    while len(pairs) < number:
        gold = " ".join(rng.choices(PIECES, k=rng.randrange(1, 5)))
        said = " ".join(rng.choices(PIECES, k=rng.randrange(1, 5)))
        if rng.random() < 0.5:
            said = rng.choice((gold, gold.upper(), f"the {gold}.", f"{gold} {said}", gold[:-1], f"({gold})"))
        pairs.append((said, gold))
    return pairs


def test_metrics_equal_the_reference() -> None:
    pairs = generated(200)
    outcomes = [(exact_match(*pair), f1(*pair)) for pair in pairs]
    for pair, (match, score) in zip(pairs, outcomes, strict=True):
        assert (match, score) == (reference(*pair)[0], pytest.approx(reference(*pair)[1])), pair
    matches = sum(match for match, _ in outcomes)
    partial = sum(0 < score < 1 for _, score in outcomes)
    assert 30 < matches < 170 and partial > 30, "the pairs try both sides of the rule"


@pytest.mark.parametrize(
    ("prediction", "gold", "match", "score"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("a tower in Paris", "Paris", 0.0, 0.5),
        ("yes", "Yes.", 1.0, 1.0),
        ("yes, it is", "yes", 0.0, 0.0),
        ("no", "no man's land", 0.0, 0.0),
        ("noanswer", "answer", 0.0, 0.0),
        ("the", "a", 1.0, 0.0),
        ("Paris Paris", "Paris", 0.0, 2 / 3),
        ("1,234", "1234", 1.0, 1.0),
        ("the-end", "end", 0.0, 0.0),
    ],
)
def test_the_rule(prediction: str, gold: str, match: float, score: float) -> None:
    assert exact_match(prediction, gold) == match
    assert f1(prediction, gold) == pytest.approx(score)


def test_normalisation() -> None:
    assert normalize_answer("  A  Theatre, the (old) an-d \n") == "theatre old and"
    assert normalize_answer("the–end") == "–end", "articles end at any letter that is no word character"

"""VPEval's rules against references written anew: spatial, scale, count, object and text."""

from __future__ import annotations

import random

from kintsugi.sandboxes.environments.vpeval_skills import (
    Detection,
    count_skill,
    object_skill,
    relation_named,
    scale_named,
    scale_skill,
    spatial_skill,
    text_skill,
)


def reference_spatial(labels: list[str], found: list[tuple[str, tuple[int, int, int, int], float]], relation: str) -> bool:
    """By tables of centres: any second against any first."""
    if len(found) < 2:
        return False
    middles = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, depth) for _, box, depth in found]
    for place, (label, _, _) in enumerate(found):
        for other, (name, _, _) in enumerate(found):
            if label != labels[0] or name != labels[1]:
                continue
            (x1, y1, z1), (x2, y2, z2) = middles[place], middles[other]
            holds = {
                "left": x2 + 5 < x1, "right": x2 > x1 + 5, "above": y2 + 5 < y1, "below": y2 > y1 + 5,
                "front": z2 < z1, "behind": z2 > z1, "next": not -5 <= x2 - x1 <= 5,
            }  # fmt: skip
            if holds[relation]:
                return True
    return False


def reference_scale(labels: list[str], found: list[tuple[str, tuple[int, int, int, int], float]], scale: str) -> bool:
    if len(found) < 2:
        return False
    for name, large, _ in found:
        for label, small, _ in found:
            if name == labels[1] and label == labels[0]:
                share = ((large[2] - large[0]) * (large[3] - large[1])) / ((small[2] - small[0]) * (small[3] - small[1]))
                off = abs(1 - share)
                if (scale == "same" and off < 0.05) or (off > 0.05 and scale == ("bigger" if share > 1 else "smaller")):
                    return True
    return False


def drawn(rng: random.Random) -> list[tuple[str, tuple[int, int, int, int], float]]:
    """Detections that are often near each other, so that thresholds matter."""
    found = []
    for _ in range(rng.randrange(5)):
        x, y = rng.choice([100, 104, 105, 106, 200]), rng.choice([50, 54, 55, 56, 90])
        w, h = rng.choice([40, 41, 42, 60]), rng.choice([40, 41, 60])
        found.append((rng.choice(["dog", "car", "cat"]), (x, y, x + w, y + h), float(rng.randrange(3))))
    return found


def test_spatial_and_scale_equal_an_independent_reference() -> None:
    rng = random.Random(12)
    outcomes = {True: 0, False: 0}
    for _ in range(600):
        found = drawn(rng)
        labels = rng.choice([["dog", "car"], ["car", "dog"], ["dog", "dog"]])
        detections = [Detection(*one) for one in found]
        for relation in ("left", "right", "above", "below", "front", "behind", "next"):
            wanted = reference_spatial(labels, found, relation)
            assert spatial_skill(labels, detections, relation) is wanted
            outcomes[wanted] += 1
        for scale in ("bigger", "smaller", "same"):
            assert scale_skill(labels, detections, scale) is reference_scale(labels, found, scale)
    assert min(outcomes.values()) > 400


def reference_count(number: int, target: str) -> bool:
    """What Python says of the text that VPEval makes; the texts are this test's own."""
    for word, digit in {"one": 1, "two": 2, "three": 3, "four": 4}.items():
        target = target.replace(word, str(digit))
    if "=" in target and "==" not in target and not (">" in target and "<" in target):
        target = f"={target}"
    try:
        return bool(eval(f"{number}{target}"))
    except (SyntaxError, NameError, TypeError):
        return False


def test_counts_equal_what_python_says() -> None:
    signs = ("==", "=", ">", "<", ">=", "<=", "!=", "", "== ", " ==", " =", " ", " >")
    targets = [
        *(f"{sign}{number}" for sign in signs for number in range(6)),
        *("2 or more", "or more", ">-1", "1-3", "==0x2", " and 0", "*0", "//2==1", ",", "or x", ">'a'", " if 1 else 0"),
        *("three", "==two", ">one", "four ", "none", "many", "==03", "03", "==00", "00", "0", "", "=", "two to four"),
    ]  # fmt: skip
    pairs = [(number, target) for number in range(5) for target in targets]
    assert len(pairs) >= 200
    five = [Detection("dog", (0, 0, 1, 1))] * 5
    assert count_skill(five, ">1;") and not count_skill(five, ">9; y = 1") and not count_skill(five, "\nx = 0")
    assert not count_skill(five, "**9**9**9") and not count_skill(five, "*9" * 90) and not count_skill(five, "(" * 999)
    for number, target in pairs:
        found = [Detection("dog", (0, 0, 1, 1))] * number
        assert count_skill(found, target) is reference_count(number, target), (number, target)


def test_objects_texts_and_names_of_relations() -> None:
    rng = random.Random(4)
    assert not object_skill([]) and object_skill([Detection("dog", (0, 0, 1, 1))])
    for _ in range(200):
        word = "".join(rng.choices("abcAB", k=4))
        read = ["".join(rng.choices("abcAB.,!?* é", k=6)) for _ in range(2)] + ([f" {word}! "] if rng.random() < 0.5 else [])
        cleaned = []
        for one in read:
            text = one.strip()
            for char in (".", ",", "?", "!", "*"):
                text = text.replace(char, "")
            cleaned.append(text.lower().encode("ascii", "ignore").decode())
        assert text_skill(read, word) is (word.lower() in cleaned)
    assert not text_skill(["stop sign"], "stop")
    assert [relation_named(text) for text in ("to the left of", "in front of", "surrounded by", "next to")] == [
        "left", "front", "", "",
    ]  # fmt: skip
    assert [scale_named(text) for text in ("smaller", "a bit bigger", "same size", "taller")] == [
        "smaller",
        "bigger",
        "same",
        "",
    ]

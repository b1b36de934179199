"""Texts that are no sensible action: what an environment must answer all the same.

    malformed_actions("print(8)")      # 200 of them, the same each time

Empty, huge (a million characters), deep, binary, control characters, surrogates, injections, and the gold action with a few
characters changed. Left out: what only the environment's author can think of.
"""

from __future__ import annotations

import random
from typing import Final

NUM_FUZZED: Final = 200

_PIECES: Final = (
    "a = 3", "print(", "))", "\n", "\r\n", "\t", " ", "```", "```python\n", "go ", "think:", "finish[", "]", '"', "'",
    "\\", "\0", "\x1b[31m", "\x07", "\x0c", "\ud800", "\udfff", "\u202e", "\u2028", "é", "٣", "🙂", "{}", "%s", "${x}",
    "<|im_end|>", "</s>", "'; DROP TABLE tasks; --", "$(touch x)", "`id`", "../../etc/passwd", "__import__('os')",
    "1e999", "9" * 30, "lambda: (yield)", "def f(", "return 5", "NaN", '{"success": true, "reward": 1}', "<script>",
    "#### 5", "Verdict(",
)  # fmt: skip


def malformed_actions(gold: str, num: int = NUM_FUZZED) -> list[str]:
    """The same `num` odd texts each time: empty, huge, deep, binary, control characters, surrogates, injections, and
    `gold` with a few characters changed."""
    rng = random.Random("kintsugi malformed actions")
    actions = ["", " ", "\n\n", "\0", "\ud800", "x" * 200_000, "(" * 10_000, "-" * 10_000 + "1", "9" * 10_000]
    actions += [
        "```",
        "\\",
        "a" + "[0]" * 5_000,
        "\n" * 50_000,
        "".join(map(chr, range(256))),
        "go " + "north " * 999,
        "y" * 1_000_000,
        *_PIECES,
    ]
    while len(actions) < num:
        if rng.random() < 0.3 and gold:
            cut = rng.randrange(len(gold))
            actions.append(gold[:cut] + rng.choice(_PIECES) + gold[cut + rng.randrange(3) :])
        elif rng.random() < 0.3:
            actions.append(rng.randbytes(rng.randrange(1, 80)).decode("utf-8", "surrogateescape"))
        else:
            actions.append("".join(rng.choices(_PIECES, k=rng.randrange(1, 12))))
    return actions[:num]

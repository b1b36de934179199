"""Self-reward of attempts of which only a part was sampled: repairs that go on from lines of a failed one.

    self_rewards(trajectories, decode)   # {trajectory id: nats a token}, for repairs with kept lines alone

`Trajectory.soft_reward` is the mean log-probability of the tokens that an attempt sampled itself (ENVISIONS, arXiv
2406.11736, section 2.2). A repair that samples one short last line would so outrank every whole attempt. Ranked together,
its kept lines count with the log-probabilities with which the attempt that first wrote them was sampled.

Not here: re-scoring under another policy (`targets.score = "current"`), which needs none of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from kintsugi.records import Trajectory

Decode = Callable[[Sequence[int]], str]


def self_rewards(trajectories: Mapping[str, Trajectory], decode: Decode) -> dict[str, float]:
    """Mean log-probability, nats a token, of the whole text of each single-turn repair with kept lines, by id.

    trajectories: by id, parents among them. Left out: those with a part whose log-probabilities are not known."""
    found = {}
    for name, one in trajectories.items():
        if len(one.actions) != 1 or not one.actions[0].prefill:
            continue
        logprobs: list[float] = []
        for line in (lines := sampled_lines(one, trajectories, decode)):
            logprobs += line or ()
        if logprobs and None not in lines:
            found[name] = math.fsum(logprobs) / len(logprobs)
    return found


def sampled_lines(
    one: Trajectory, known: Mapping[str, Trajectory], decode: Decode | None
) -> list[list[float] | None]:
    """Log-probabilities of the tokens of each line of a single action, None for a line of which none are known.

    known: earlier attempts by id; lines that a repair kept have what its parent sampled them with. A token that ends one
    line and begins the next counts for the first. An end of turn after a last newline is a line of its own."""
    action = one.actions[0]
    tokens = action.tokens
    if decode is None or tokens is None or len(tokens.logprobs) != len(tokens.completion_ids):
        return [None] * max(1, len(action.text.splitlines()))
    num_kept = len(action.prefill.splitlines())
    parent = known.get(one.parent_id or "")
    kept = sampled_lines(parent, known, decode)[:num_kept] if num_kept and parent is not None and parent.actions else []
    own: list[list[float] | None] = []
    line: list[float] = []
    for number, logprob in zip(tokens.completion_ids, tokens.logprobs, strict=True):
        line.append(logprob)
        if newlines := decode([number]).count("\n"):
            own += [line, *([] for _ in range(newlines - 1))]
            line = []
    return [*kept, *[None] * (num_kept - len(kept)), *own, *([line] if line else [])]

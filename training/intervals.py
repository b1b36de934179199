"""How sure a number is: intervals and paired tests, as pure functions over plain numbers (numpy only).

Used by the gate (outcomes of two policies on the same tasks), by the reports (differences over seeds) and by the
benchmarks (rates over clusters of attempts). Every test here is *paired* where the data are: arms share seeds, policies
share tasks. Not here: corrections for many comparisons; say how many were looked at.

Worked example, two arms over three seeds::

    paired_t([56.0, 61.0, 48.0], [39.0, 44.0, 36.0])   # Difference(difference=15.33, low=8.16, high=22.5, …)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

Interval = tuple[float, float]
"""Lower and upper end, in the units of what was measured."""

Alternative = Literal["two_sided", "greater", "less"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second: the mean difference, its interval, a two-sided p-value, and how many pairs it rests on.

    low, high: -inf and inf, and p_value 1.0, when there are too few pairs to tell."""

    difference: float
    low: float
    high: float
    p_value: float
    num: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A ratio of two rates and its interval. inf when the second rate is 0, nan when both are."""

    ratio: float
    low: float
    high: float
    num_clusters: int


def mean_sd(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1). nan mean for no values, nan deviation for fewer than two."""
    array = np.asarray(list(values), dtype=float)
    if array.size == 0:
        return math.nan, math.nan
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


def normal_quantile(p: float) -> float:
    """The z with P(Z <= z) = p, 0 < p < 1."""
    return NormalDist().inv_cdf(p)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion, in [0, 1]; (0, 1) for no trials.

    Source: Wilson (1927), JASA 22, 209-212. Unlike p ± z·SE it stays sensible near 0 and 1 and for few trials."""
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, found {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    z = normal_quantile(0.5 + confidence / 2)
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def t_cdf(x: float, df: float) -> float:
    """P(T <= x) of Student's t with `df` degrees of freedom, through the regularised incomplete beta function."""
    if df <= 0:
        raise ValueError(f"expected degrees of freedom above 0, found {df}")
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + x * x))
    return 1 - tail if x > 0 else tail


def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, 0 < p < 1, by bisection of `t_cdf` (good to 1e-10)."""
    if not 0 < p < 1:
        raise ValueError(f"expected a probability strictly between 0 and 1, found {p}")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        high *= 2
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def paired_t(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Difference:
    """Mean of `first[i] - second[i]` over seeds with Student's t interval. Source: Student (1908), Biometrika 6, 1-25.

    The right one for few seeds (3 to 30), whose differences are roughly normal."""
    gaps = _gaps(first, second)
    mean, sd = mean_sd(gaps)
    num = len(gaps)
    if num < 2:
        return Difference(difference=mean, low=-math.inf, high=math.inf, p_value=1.0, num=num)
    error = sd / math.sqrt(num)
    if error == 0:
        return Difference(difference=mean, low=mean, high=mean, p_value=0.0 if mean else 1.0, num=num)
    half = t_quantile(0.5 + confidence / 2, num - 1) * error
    p_value = 2 * (1 - t_cdf(abs(mean) / error, num - 1))
    return Difference(difference=mean, low=mean - half, high=mean + half, p_value=p_value, num=num)


def sign_test(wins: int, losses: int, alternative: Alternative = "two_sided") -> float:
    """Exact p-value of `wins` against `losses` when either is as likely; ties are left out before.

    On 0/1 outcomes this is McNemar's exact test. Source: McNemar (1947), Psychometrika 12, 153-157."""
    total = wins + losses
    if total == 0:
        return 1.0

    def at_least(count: int) -> float:
        ways = term = math.comb(total, count)
        for i in range(count, total):
            term = term * (total - i) // (i + 1)
            ways += term
        return ways / (1 << total)

    if alternative == "greater":
        return at_least(wins)
    if alternative == "less":
        return at_least(losses)
    return min(1.0, 2 * at_least(max(wins, losses)))


def paired_outcomes(first: Mapping[str, int], second: Mapping[str, int], confidence: float = 0.95) -> Difference:
    """Success of `first` minus that of `second` (fractions) on the same tasks: exact McNemar p, Bonett-Price interval.

    first, second: task id → 0/1, with the same ids (ValueError otherwise). Source of the interval: Bonett & Price
    (2012), J. Educ. Behav. Stat. 37, 479-488 (adjusted Wald: one more win and one more loss)."""
    if first.keys() != second.keys():
        unmatched = len(first.keys() ^ second.keys())
        raise ValueError(f"expected the same task ids on both sides, found {unmatched} on one side only")
    wins = sum(1 for task in first if first[task] and not second[task])
    losses = sum(1 for task in first if second[task] and not first[task])
    num = len(first)
    if num == 0:
        return Difference(difference=0.0, low=-1.0, high=1.0, p_value=1.0, num=0)
    p_win, p_loss = (wins + 1) / (num + 2), (losses + 1) / (num + 2)
    spread = math.sqrt((p_win + p_loss - (p_win - p_loss) ** 2) / (num + 2))
    half = normal_quantile(0.5 + confidence / 2) * spread
    centre = p_win - p_loss
    return Difference(
        difference=(wins - losses) / num,
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        p_value=sign_test(wins, losses),
        num=num,
    )


def rate_ratio(
    successes: Sequence[float],
    attempts: Sequence[float],
    base_successes: Sequence[float],
    base_attempts: Sequence[float],
    *,
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Ratio:
    """(Σ successes / Σ attempts) ÷ (Σ base_successes / Σ base_attempts), interval by resampling whole clusters.

    One entry a cluster: everything tried on one task (of one seed), because attempts at the same task are not
    independent. groups: the seed of each cluster; then seeds are drawn first and tasks within each drawn seed.
    Source: Davison & Hinkley (1997), Bootstrap Methods and their Application, section 3.8. Resamples whose ratio is
    0/0 are left out.

    Example: repairs that rescued, repairs tried, fresh samples that rescued, fresh samples tried, by (seed, task)."""
    columns = np.asarray([successes, attempts, base_successes, base_attempts], dtype=float).T
    num = len(columns)
    if num == 0:
        return Ratio(ratio=math.nan, low=math.nan, high=math.nan, num_clusters=0)
    rng = np.random.default_rng(seed)
    if groups is None:
        sums = np.concatenate([chunk @ columns for chunk in _bootstrap_counts(num, resamples, rng)])
    else:
        sums = _two_stage_sums(columns, groups, resamples, rng)
    ratios = _ratios(sums)
    ratios = ratios[~np.isnan(ratios)]
    ratio = float(_ratios(columns.sum(axis=0, keepdims=True))[0])
    if ratios.size == 0:
        return Ratio(ratio=ratio, low=math.nan, high=math.nan, num_clusters=num)
    tail = (1 - confidence) / 2
    ranked = np.sort(ratios)  # by rank, not np.quantile: interpolating between inf and inf gives nan
    low, high = ranked[math.floor(tail * (ranked.size - 1))], ranked[math.ceil((1 - tail) * (ranked.size - 1))]
    return Ratio(ratio=ratio, low=float(low), high=float(high), num_clusters=num)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples is right, unbiased, from `correct` right ones of `samples`.

    1 - C(samples - correct, k) / C(samples, k). Source: Chen et al. (2021), arXiv 2107.03374, section 2.1."""
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"expected 0 <= correct <= samples and 1 <= k <= samples, found {correct}, {samples}, k={k}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def _gaps(first: Sequence[float], second: Sequence[float]) -> list[float]:
    if len(first) != len(second):
        raise ValueError(f"expected pairs, found {len(first)} values against {len(second)}")
    return [float(a) - float(b) for a, b in zip(first, second, strict=True)]


def _bootstrap_counts(num: int, resamples: int, rng: np.random.Generator) -> Iterable[np.ndarray]:
    """How often each of `num` units is drawn, (chunk, num) at a time: at most about 16 MB."""
    chunk = max(1, 2_000_000 // num)
    for start in range(0, resamples, chunk):
        yield rng.multinomial(num, np.full(num, 1 / num), size=min(chunk, resamples - start)).astype(float)


def _two_stage_sums(
    columns: np.ndarray, groups: Sequence[object], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Column sums, (resamples, 4), of groups drawn with replacement and clusters drawn within each drawn group."""
    if len(groups) != len(columns):
        raise ValueError(f"expected one group for each of {len(columns)} clusters, found {len(groups)}")
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    drawn = np.concatenate([chunk for chunk in _bootstrap_counts(len(members), resamples, rng)]).astype(int)
    sums = np.zeros((resamples, columns.shape[1]))
    for position, indices in enumerate(members.values()):
        size = len(indices)
        # A group drawn c times is resampled c times: together one multinomial of c·size draws.
        counts = rng.multinomial(drawn[:, position] * size, np.full(size, 1 / size))
        sums += counts @ columns[indices]
    return sums


def _ratios(sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta I_x(a, b) by its continued fraction (Abramowitz & Stegun 26.5.8; Lentz's method)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return math.exp(log_front) * fraction / a

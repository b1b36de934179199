"""Against tables and closed forms; against scipy where it is installed; coverage by simulation."""

import math

import numpy as np
import pytest

from kintsugi.training import intervals as st


@pytest.mark.parametrize(
    ("p", "df", "expected"),  # printed tables of Student's t
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 7, 2.365),
        (0.975, 30, 2.042),
        (0.95, 5, 2.015),
        (0.995, 10, 3.169),
        (0.9995, 1, 636.619),
        (0.975, 100_000, 1.960),
    ],
)
def test_t_quantiles_match_the_table(p: float, df: int, expected: float) -> None:
    assert st.t_quantile(p, df) == pytest.approx(expected, rel=3e-4)
    assert st.t_quantile(1 - p, df) == pytest.approx(-expected, rel=3e-4)


def test_t_matches_scipy() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for df in (1, 2, 3.5, 9, 50, 1000):
        for x in (-30, -2.5, -0.1, 0, 0.7, 4, 100):
            assert st.t_cdf(x, df) == pytest.approx(scipy.t.cdf(x, df), abs=1e-12)
        for p in (0.001, 0.3, 0.5, 0.9, 0.9999):
            assert st.t_quantile(p, df) == pytest.approx(scipy.t.ppf(p, df), rel=1e-7, abs=1e-7)


def test_wilson_known_values_and_edges() -> None:
    low, high = st.wilson_interval(81, 263)  # Newcombe (1998), table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert st.wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))  # the same table
    assert st.wilson_interval(20, 20)[1] == 1.0
    assert st.wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="expected 0 <= successes"):
        st.wilson_interval(3, 2)


def test_paired_t_by_hand_and_scipy() -> None:
    first, second = [56.0, 61.0, 48.0], [39.0, 44.0, 36.0]
    gap = st.paired_t(first, second)
    assert gap.difference == pytest.approx(46 / 3)
    half = 4.30265 * math.sqrt(25 / 3) / math.sqrt(3)
    assert (gap.low, gap.high) == (pytest.approx(46 / 3 - half, abs=1e-3), pytest.approx(46 / 3 + half, abs=1e-3))
    scipy = pytest.importorskip("scipy.stats")
    assert gap.p_value == pytest.approx(scipy.ttest_rel(first, second).pvalue, rel=1e-9)


def test_too_few_pairs_claim_nothing() -> None:
    gap = st.paired_t([1.0], [0.0])
    assert (gap.low, gap.high, gap.p_value) == (-math.inf, math.inf, 1.0)
    with pytest.raises(ValueError, match="expected pairs"):
        st.paired_t([1.0, 2.0], [1.0])


def test_mean_sd() -> None:
    assert st.mean_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert st.mean_sd([4.0])[0] == 4.0 and math.isnan(st.mean_sd([4.0])[1])
    assert math.isnan(st.mean_sd([])[0])


def test_sign_test_exact() -> None:
    assert st.sign_test(0, 0) == 1.0
    assert st.sign_test(10, 0) == pytest.approx(2 / 1024)
    assert st.sign_test(8, 2, "greater") == pytest.approx((45 + 10 + 1) / 1024)
    assert st.sign_test(2, 8, "less") == pytest.approx((45 + 10 + 1) / 1024)
    assert st.sign_test(5, 5) == 1.0
    assert 0 < st.sign_test(1100, 900) < 1e-4  # large counts stay exact
    scipy = pytest.importorskip("scipy.stats")
    assert st.sign_test(14, 9) == pytest.approx(scipy.binomtest(14, 23).pvalue, rel=1e-12)


def test_paired_outcomes_counts_pairs() -> None:
    second = {f"t{i}": int(i < 40) for i in range(100)}
    first = {f"t{i}": int(i < 30 or 60 <= i < 85) for i in range(100)}
    gap = st.paired_outcomes(first, second)
    assert gap.difference == pytest.approx(0.15)  # 25 won, 10 lost
    assert gap.p_value == pytest.approx(st.sign_test(25, 10))
    assert 0 < gap.low < 0.15 < gap.high < 0.30
    with pytest.raises(ValueError, match="same task ids"):
        st.paired_outcomes(first, {"t0": 1})


def test_paired_outcomes_interval_covers() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        joint = rng.choice(4, size=120, p=[0.4, 0.15, 0.09, 0.36])  # both wrong, only first, only second, both right
        first = {str(i): int(v in (1, 3)) for i, v in enumerate(joint)}
        second = {str(i): int(v in (2, 3)) for i, v in enumerate(joint)}
        gap = st.paired_outcomes(first, second)
        covered += gap.low <= 0.06 <= gap.high
    assert 925 <= covered <= 980


def test_rate_ratio_value_and_coverage() -> None:
    exact = st.rate_ratio([1, 0, 1], [2, 2, 2], [0, 1, 0], [3, 3, 4])
    assert exact.ratio == pytest.approx((2 / 6) / (1 / 10)) and exact.num_clusters == 3
    rng = np.random.default_rng(3)
    easy = rng.beta(0.5, 8, size=1_000_000)
    expected = np.minimum(1, 2 * easy).mean() / easy.mean()
    covered = 0
    for trial in range(200):
        ease = rng.beta(0.5, 8, size=150)  # tasks differ: attempts at one task go together
        fresh, repair = rng.binomial(4, ease), rng.binomial(4, np.minimum(1, 2 * ease))
        result = st.rate_ratio(repair.tolist(), [4] * 150, fresh.tolist(), [4] * 150, resamples=400, seed=trial)
        covered += result.low <= expected <= result.high
    assert 178 <= covered <= 199


def test_rate_ratio_by_seed_is_wider_when_seeds_differ() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(6), 100)
    factor = np.asarray([0.5, 1, 1.5, 2, 3, 4])[groups]
    base = rng.binomial(3, 0.15, size=600)
    repair = rng.binomial(3, np.minimum(1, 0.1 * factor))
    columns = (repair.tolist(), [3] * 600, base.tolist(), [3] * 600)
    flat = st.rate_ratio(*columns, resamples=2000)
    nested = st.rate_ratio(*columns, groups=groups.tolist(), resamples=2000)
    assert nested.ratio == flat.ratio
    assert nested.high - nested.low > 1.5 * (flat.high - flat.low)


def test_rate_ratio_with_nothing_rescued() -> None:
    assert math.isnan(st.rate_ratio([0, 0], [1, 1], [0, 0], [1, 1]).ratio)
    nothing_fresh = st.rate_ratio([1, 1], [1, 1], [0, 0], [1, 1])
    assert nothing_fresh.ratio == math.inf and nothing_fresh.low == math.inf
    assert math.isnan(st.rate_ratio([], [], [], []).low)


def test_pass_at_k_is_the_mean_over_subsets() -> None:
    assert st.pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert st.pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)
    assert st.pass_at_k(5, 4, 2) == 1.0
    with pytest.raises(ValueError, match="k <= samples"):
        st.pass_at_k(5, 2, 6)

"""Intervals, paired differences and corrections against hand-computed values and scipy."""

import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from analysis.statistics import holm, mean_interval, paired_difference, sign_flip_p, t_test_p

scores = st.floats(-1000, 1000).map(lambda x: round(x, 3))


def test_three_seeds_by_hand() -> None:
    """Of the 27 resamples one is all-smallest: 3.7%, more than the 2.5% that may lie below the interval."""
    interval = mean_interval([3.0, 1.0, 2.0])
    assert (interval.mean, interval.low, interval.high, interval.n) == (2.0, 1.0, 3.0, 3)


def test_narrow_level_by_hand() -> None:
    """Means of the resamples of (0, 3): 0, 1.5, 1.5, 3; the middle half of them."""
    interval = mean_interval([0.0, 3.0], level=0.5)
    assert (interval.low, interval.high) == (0.0, 3.0)  # a quarter of the means is 0, a quarter 3
    interval = mean_interval([0.0, 3.0], level=0.49)
    assert (interval.low, interval.high) == (1.5, 1.5)


def test_one_seed_has_no_interval() -> None:
    interval = mean_interval([4.5])
    assert (interval.mean, interval.low, interval.high, interval.n) == (4.5, None, None, 1)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_values_that_are_no_scores(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        mean_interval(values)


@pytest.mark.parametrize("n", [5, 8, 20])
def test_agrees_with_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(50, 5, n)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    interval = mean_interval(list(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(expected.low, abs=0.15)
    assert interval.high == pytest.approx(expected.high, abs=0.15)


@given(st.lists(scores, min_size=2, max_size=8))
def test_interval_properties(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.low is not None
    assert interval.high is not None
    slack = 1e-9
    assert min(values) - slack <= interval.low <= interval.mean + slack
    assert interval.mean - slack <= interval.high <= max(values) + slack
    shuffled = random.Random(0).sample(values, len(values))
    assert mean_interval(shuffled) == interval  # the order of the seeds does not matter
    shifted = mean_interval([value + 7 for value in values])
    assert shifted.low == pytest.approx(interval.low + 7)
    if len(values) <= 6:  # all resamples: a mirror image has a mirrored interval
        mirrored = mean_interval([-value for value in values])
        assert mirrored.low == pytest.approx(-interval.high)
        assert mirrored.high == pytest.approx(-interval.low)


def test_many_seeds_are_resampled_by_a_seed() -> None:
    values = [i**0.5 for i in range(9)]
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


@pytest.mark.parametrize(
    ("first", "second", "mean", "verdict"),
    [
        ([3.0, 5.0, 9.0], [1.0, 4.0, 8.0], 4 / 3, "higher"),
        ([1.0, 4.0, 8.0], [3.0, 5.0, 9.0], -4 / 3, "lower"),
        ([3.0, 5.0, 9.0], [1.0, 6.0, 8.0], 2 / 3, "undecided"),  # one seed disagrees
        ([3.0, 5.0, 9.0], [1.0, 5.0, 8.0], 1.0, "undecided"),  # the interval reaches zero
        ([2.0, 2.0], [2.0, 2.0], 0.0, "undecided"),
        ([5.0], [1.0], 4.0, "undecided"),  # one seed decides nothing
    ],
)
def test_paired_difference(first: list[float], second: list[float], mean: float, verdict: str) -> None:
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(mean)
    assert difference.verdict == verdict
    assert difference.n == len(first)


def test_pairing_matters() -> None:
    """Seeds that differ by far more than the rows do: unpaired this would be undecided."""
    difference = paired_difference([11.0, 51.0, 91.0], [10.0, 50.0, 90.0])
    assert (difference.mean, difference.low, difference.high) == (1.0, 1.0, 1.0)
    assert difference.verdict == "higher"


def test_missing_seeds_are_left_out_in_pairs() -> None:
    difference = paired_difference([1.0, None, 5.0, 9.0], [0.0, 100.0, None, 7.0])
    assert (difference.mean, difference.n) == (1.5, 2)
    with pytest.raises(ValueError, match="no seed"):
        paired_difference([1.0, None], [None, 2.0])
    with pytest.raises(ValueError, match="argument 2"):
        paired_difference([1.0], [1.0, 2.0])


def test_sign_flip_by_hand() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8  # only all plus and all minus reach 6
    assert sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8  # |sum| >= 4: (+++), (-++) and their mirrors
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([5.0]) == 1.0


@pytest.mark.parametrize("n", [6, 40])
def test_sign_flip_agrees_with_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(0.3, 1, n)
    expected = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert sign_flip_p(list(values)) == pytest.approx(expected.pvalue, abs=1e-9 if n == 6 else 0.015)


def test_t_test_by_hand() -> None:
    """Of 1, 2 and 3: t = 2 / (1 / sqrt(3)); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    assert t_test_p([1.0, 2.0, 3.0]) == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-12)
    assert t_test_p([-1.0, -2.0, -3.0]) == t_test_p([1.0, 2.0, 3.0])
    assert t_test_p([5.0]) == 1.0
    assert t_test_p([0.0, 0.0]) == 1.0
    assert t_test_p([0.1, 0.1, 0.1]) == 0.0
    assert t_test_p([1.0, -1.0]) == 1.0


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 10, 11, 40])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_t_test_agrees_with_scipy(n: int, shift: float) -> None:
    values = np.random.default_rng(n).normal(shift, 1, n)
    expected = scipy.stats.ttest_1samp(values, 0).pvalue
    assert t_test_p(list(values)) == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_difference_has_both_p_values() -> None:
    difference = paired_difference([3.0, 5.0, 9.0], [2.0, 3.0, 6.0])
    assert difference.p_value == sign_flip_p([1.0, 2.0, 3.0])
    assert difference.t_p == t_test_p([1.0, 2.0, 3.0])


def test_holm_by_hand() -> None:
    # Sorted: .01 * 4 = .04; .02 * 3 = .06; .03 * 2 = .06; .5 * 1 = .5
    assert holm([0.02, 0.01, 0.5, 0.03]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.5])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, a in zip(p_values, adjusted, strict=True):
        assert p <= a <= min(1.0, len(p_values) * p) or a == max(adjusted)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)

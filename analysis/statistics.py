"""Means over seeds, their bootstrap intervals, paired differences and Holm's correction.

What an interval over a few seeds is worth: the bootstrap resamples the seeds there are, so with 3 seeds the
95% interval runs from the worst seed to the best (a resample of three times the same seed has a chance of
1/27, more than 2.5%). Were the seeds' scores normal, such an interval would hold the true mean three times in
four, not nineteen times in twenty; with 5 seeds some 88% of the time, with 10 some 91%. It says how far seeds
scatter, and nothing about evaluation images or questions: those are the same for all seeds. A verdict of
:func:`paired_difference` on 3 seeds therefore means that all three agree on the sign, which chance alone
brings about once in four times.

Of the two p values here only one can be small with few seeds. The sign-flip test asks for nothing but
symmetry, and with 5 seeds cannot go below 0.0625: no correction for several comparisons would leave anything
of it. The paired t test asks that the differences be roughly normal; a seed's score is a mean over hundreds
of images or questions, so this is reasonable, but not where some seeds collapse and others do not (look at
the dots). The t test knows how few seeds there are, the bootstrap does not; where something is decided, both
must agree.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

RESAMPLES = 10_000
_EXACT_RESAMPLES = 6**6  # up to 6 seeds every resample is looked at, and nothing is left to chance

Verdict = Literal["higher", "lower", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds; ``low`` and ``high`` are None where there is but one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of the differences over the ``n`` seeds that both sides have, with its interval.

    Attributes:
        low, high: None where there is but one such seed.
        verdict: "higher" or "lower" (the first than the second) if the interval does not hold zero.
        p_value: of the two-sided sign-flip test (:func:`sign_flip_p`).
        t_p: of the two-sided paired t test (:func:`t_test_p`).
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    verdict: Verdict
    p_value: float
    t_p: float


def mean_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """Mean and percentile bootstrap interval over seeds.

    Args:
        values: one value a seed.
        level: share of the resamples' means that lie in the interval.
        seed: of the resampling, where there are too many seeds to go through all resamples.

    Raises:
        ValueError: no values, or one that is not a finite number.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0 or not np.isfinite(scores).all():
        raise ValueError(f"values must be one or more finite numbers, got {list(values)!r}")
    mean = math.fsum(scores) / scores.size
    if scores.size == 1:
        return Interval(mean, None, None, 1)
    means = _resampled_means(scores, seed)
    tail = (1 - level) / 2
    # The smallest mean that has more than ``tail`` of all means at or below it, and its mirror image.
    low = float(np.quantile(means, tail, method="inverted_cdf"))
    high = 0.0 - float(np.quantile(-means, tail, method="inverted_cdf"))
    return Interval(mean, low, high, int(scores.size))


def _resampled_means(scores: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Means of the resamples with replacement, (resamples,)."""
    n = scores.size
    if n**n <= _EXACT_RESAMPLES:
        index = _all_resamples(n)
    else:
        index = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    return np.sort(scores)[index].mean(axis=1)  # sorted: the order of the seeds must not matter


@functools.cache
def _all_resamples(n: int) -> npt.NDArray[np.int64]:
    """All ways to draw n of n with replacement, (n**n, n)."""
    return np.array(list(itertools.product(range(n), repeat=n)))


def paired_difference(
    first: Sequence[float | None], second: Sequence[float | None], level: float = 0.95, seed: int = 0
) -> Difference:
    """``first - second``, seed by seed.

    Args:
        first, second: one value a seed, seeds in the same order; None where a seed is missing. A seed that
            either side lacks is left out.

    Raises:
        ValueError: different numbers of seeds, or none that both have.
    """
    differences = [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not differences:
        raise ValueError("no seed that both sides have")
    interval = mean_interval(differences, level, seed)
    verdict: Verdict = "undecided"
    if interval.low is not None and interval.low > 0:
        verdict = "higher"
    elif interval.high is not None and interval.high < 0:
        verdict = "lower"
    return Difference(
        interval.mean,
        interval.low,
        interval.high,
        interval.n,
        verdict,
        p_value=sign_flip_p(differences, seed),
        t_p=t_test_p(differences),
    )


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the sign-flip (paired randomization) test that the mean difference is zero.

    Share of all ways to flip the signs that give a mean at least as far from zero. With n seeds it cannot be
    below 2 / 2**n: 0.25 for 3 seeds, 0.0625 for 5. With more than 13 seeds the flips are drawn at random.
    """
    if len(differences) < 2:
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.sum,
        permutation_type="samples",
        n_resamples=RESAMPLES,  # all flips where there are no more than that
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def t_test_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test that the mean difference is zero; 1 where there is but one.

    Differences that are all alike have no spread: p is 0, or 1 if they are zero.
    """
    n = len(differences)
    if n < 2:
        return 1.0
    mean = math.fsum(differences) / n
    variance = math.fsum((value - mean) ** 2 for value in differences) / (n - 1)
    if mean == 0:
        return 1.0
    if variance <= (1e-12 * mean) ** 2:  # what rounding leaves of none at all
        return 0.0
    return float(2 * stats.t.sf(abs(mean) / math.sqrt(variance / n), n - 1))


def mean_of(values: Iterable[float | None]) -> float:
    """Mean of those that are not None, summed without rounding errors; nan where there are none."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else math.nan


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation over the same runs; nan with fewer than three, or without spread."""
    if len(first) < 3 or min(np.ptp(first), np.ptp(second)) == 0:
        return math.nan
    return float(stats.pearsonr(first, second).statistic)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p values must lie in [0, 1], got {list(p_values)!r}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted

"""Time-to-quality: what a method costs until it first reaches a given score.

"Five times faster" is a ratio of such costs: that at which one method reaches the final score of another,
over what the other one cost. The points are whole trainings of several budgets, each with its own complete
schedule of learning rates; a point halfway through a longer schedule would be worse than what its cost
buys.

Between two budgets the score is taken for linear in the logarithm of the cost, as learning curves roughly
are. Outside of the budgets nothing is guessed: a target that the smallest budget already reaches was
reached at *at most* its cost, one that the largest does not reach needs *at least* its cost. A curve of
noisy points first reaches a target somewhat earlier than the curve without noise would; this favours
whoever has more points, so read the ratio of the mean curves beside the mean of the ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.statistics import mean_interval

Bound = Literal["exact", "at most", "at least"]


@dataclass(frozen=True)
class Reached:
    """The cost at which a target is first reached, in the unit of the costs, or a bound of it."""

    cost: float
    bound: Bound = "exact"


def time_to_quality(costs: Sequence[float], scores: Sequence[float], target: float) -> Reached:
    """Cost at which ``scores`` first reach ``target``.

    Args:
        costs: of each training, in any unit, in any order; positive and all different.
        scores: at its end, the more the better.
        target: counts as reached by a score that is equal to it.

    Raises:
        ValueError: no points, not as many scores as costs, a cost that is not positive or there twice, or
            anything that is not a finite number.
    """
    points = sorted(zip(costs, scores, strict=True))
    if not points:
        raise ValueError("no points")
    if not all(map(math.isfinite, (target, *costs, *scores))) or points[0][0] <= 0:
        raise ValueError(f"costs must be positive and all numbers finite, got {points} and target {target}")
    if len({cost for cost, _ in points}) < len(points):
        raise ValueError(f"costs must differ, got {sorted(costs)}")
    before, below = points[0]
    if below >= target:
        return Reached(before, "at most")
    for cost, score in points[1:]:
        if score >= target:
            share = (target - below) / (score - below)
            return Reached(before * (cost / before) ** share)
        before, below = cost, score
    return Reached(before, "at least")


@dataclass(frozen=True)
class CostRatio:
    """Costs of one method over those of another, one ratio a seed.

    Attributes:
        ratios: one a seed; where a cost is a bound, so is the ratio.
        bounds: what each ratio is.
        mean: geometric mean.
        low, high: its 95% bootstrap interval over seeds (of the mean of logarithms); None with one seed.
    """

    ratios: tuple[float, ...]
    bounds: tuple[Bound, ...]
    mean: float
    low: float | None
    high: float | None

    @property
    def bound(self) -> Bound | None:
        """What mean and interval are; None where some seeds are bounds from above and others from below."""
        kinds = set(self.bounds) - {"exact"}
        if len(kinds) > 1:
            return None
        return kinds.pop() if kinds else "exact"


def cost_ratio(reached: Sequence[Reached], whole: Sequence[float]) -> CostRatio:
    """Costs to reach a target over the whole costs of the method that set it, seed by seed.

    Raises:
        ValueError: no seeds, or not as many on both sides.
    """
    ratios = tuple(one.cost / cost for one, cost in zip(reached, whole, strict=True))
    interval = mean_interval([math.log(ratio) for ratio in ratios])
    low, high = (None if end is None else math.exp(end) for end in (interval.low, interval.high))
    return CostRatio(ratios, tuple(one.bound for one in reached), math.exp(interval.mean), low, high)

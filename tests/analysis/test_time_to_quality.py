"""Time-to-quality by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.time_to_quality import Reached, cost_ratio, time_to_quality


def test_between_two_budgets_in_log_cost() -> None:
    """From 10 to 40 seconds the score rises by 4 points: half of them are there at 20 s, not at 25."""
    reached = time_to_quality([10.0, 40.0], [1.0, 5.0], 3.0)
    assert reached == Reached(pytest.approx(20.0), "exact")
    assert time_to_quality([10.0, 1000.0], [0.0, 4.0], 1.0).cost == pytest.approx(10 * 100**0.25)


def test_first_of_several_crossings() -> None:
    """Budgets 1, 2, 4, 8 score 0, 6, 2, 8; 4 is first reached two thirds of the way from 1 to 2 (in log)."""
    reached = time_to_quality([8.0, 1.0, 4.0, 2.0], [8.0, 0.0, 2.0, 6.0], 4.0)  # in any order
    assert reached == Reached(pytest.approx(2 ** (2 / 3)), "exact")


def test_bounds() -> None:
    assert time_to_quality([10.0, 40.0], [3.0, 5.0], 3.0) == Reached(10.0, "at most")
    assert time_to_quality([10.0, 40.0], [1.0, 5.0], 5.0) == Reached(pytest.approx(40.0), "exact")
    assert time_to_quality([10.0, 40.0], [1.0, 5.0], 5.1) == Reached(40.0, "at least")
    assert time_to_quality([10.0], [1.0], 2.0) == Reached(10.0, "at least")


@pytest.mark.parametrize(
    ("costs", "scores", "target", "message"),
    [
        ([], [], 1.0, "no points"),
        ([1.0], [1.0, 2.0], 1.0, "argument 2"),
        ([0.0, 1.0], [1.0, 2.0], 1.0, "positive"),
        ([1.0, 2.0], [1.0, math.nan], 1.0, "finite"),
        ([1.0, 2.0], [1.0, 2.0], math.inf, "finite"),
        ([2.0, 2.0], [1.0, 2.0], 1.0, "differ"),
    ],
)
def test_what_is_no_curve(costs: list[float], scores: list[float], target: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_to_quality(costs, scores, target)


@given(
    st.lists(
        st.tuples(st.integers(1, 1000), st.floats(0, 100)), min_size=1, max_size=6, unique_by=lambda p: p[0]
    ),
    st.floats(0, 100),
    st.floats(0.01, 100),
)
def test_properties(points: list[tuple[int, float]], target: float, unit: float) -> None:
    costs, scores = [float(cost) for cost, _ in points], [score for _, score in points]
    reached = time_to_quality(costs, scores, target)
    assert min(costs) * (1 - 1e-9) <= reached.cost <= max(costs) * (1 + 1e-9)
    assert (reached.bound == "at least") == (max(scores) < target)
    in_other_unit = time_to_quality([cost * unit for cost in costs], scores, target)
    assert in_other_unit.cost == pytest.approx(reached.cost * unit)
    assert in_other_unit.bound == reached.bound


def test_ratio_by_hand() -> None:
    """Ratios 1/2, 1/8 and 1/4: geometric mean 1/4; with three seeds the interval runs from least to most."""
    ratio = cost_ratio([Reached(50.0), Reached(25.0), Reached(25.0)], [100.0, 200.0, 100.0])
    assert ratio.ratios == (0.5, 0.125, 0.25)
    assert ratio.mean == pytest.approx(0.25)
    assert (ratio.low, ratio.high) == (pytest.approx(0.125), pytest.approx(0.5))
    assert ratio.bound == "exact"


def test_bounds_of_a_ratio() -> None:
    exact, most, least = Reached(1.0), Reached(1.0, "at most"), Reached(1.0, "at least")
    assert cost_ratio([exact, most], [2.0, 2.0]).bound == "at most"
    assert cost_ratio([least, exact], [2.0, 2.0]).bound == "at least"
    assert cost_ratio([least, most], [2.0, 2.0]).bound is None
    assert cost_ratio([exact], [2.0]) == cost_ratio([exact], [2.0])
    assert cost_ratio([exact], [2.0]).low is None
    with pytest.raises(ValueError, match="argument 2"):
        cost_ratio([exact], [1.0, 2.0])

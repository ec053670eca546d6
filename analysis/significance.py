"""What differences over seeds show, corrected for how many are looked at.

**Scores.** A row is compared with another seed by seed, each metric in percent of the other row's mean; the
*overall* difference is the mean over the metrics. It decides, since a claim is about quality and not about
one set, and since single sets scatter by more than the paper's differences. A single metric cannot decide
alone, but it can veto: what is shown to be worse there keeps a claim from holding.

**Shown.** A difference is shown to lie above (below) a value if its 95% bootstrap interval over seeds lies
wholly above (below) it, and the p of the paired t test against it is at most 0.05 after Holm's correction
over its family. A claim has two families: the differences that decide, and those that can veto. Why the t
test and why both: `analysis.statistics`. A verdict needs 5 paired seeds; what can only make it more careful
needs 3. All else is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.results import Results
from analysis.statistics import Interval, holm, mean_interval, mean_of, t_test_p
from analysis.tables import LEVEL, count_text
from evlgen.evaluation.metrics import metric

DECIDING, VETOING = 5, 3  # seeds

Side = Literal["above", "below", "open"]


@dataclass(frozen=True)
class Comparison:
    """Does the mean of ``differences``, one a paired seed, lie above or below ``against``?

    Attributes:
        text: what is compared.
        unit, digits: behind a number, and its decimals.
    """

    text: str
    differences: tuple[float, ...]
    against: float = 0.0
    unit: str = "%"
    digits: int = 1


@dataclass(frozen=True)
class Finding:
    """What a comparison shows; ``side`` is where the difference is shown to lie.

    Attributes:
        interval: None if there are no seeds.
        corrected: p after Holm's correction.
    """

    comparison: Comparison
    interval: Interval | None
    corrected: float
    side: Side

    def __str__(self) -> str:
        asked, interval = self.comparison, self.interval
        if interval is None:
            return f"{asked.text}: no seed has both"
        mean, low, high = (
            "" if value is None else f"{value:+.{asked.digits}f}"
            for value in (interval.mean, interval.low, interval.high)
        )
        ends = f" [{low}, {high}]" if low else ""
        where = "not shown on either side of" if self.side == "open" else f"shown {self.side}"
        return (
            f"{asked.text}: {mean}{asked.unit}{ends} over {count_text(interval.n, 'seed')}, "
            f"corrected p {self.corrected:.2g}, {where} {asked.against:g}{asked.unit}"
        )


def settle(comparisons: Sequence[Comparison], seeds: int) -> list[Finding]:
    """What one family of comparisons shows, by the rule in the head of this module.

    Args:
        seeds: with fewer of them a comparison stays open.
    """
    corrected = holm([t_test_p([d - one.against for d in one.differences]) for one in comparisons])
    return [_finding(comparison, p, seeds) for comparison, p in zip(comparisons, corrected, strict=True)]


def _finding(comparison: Comparison, corrected: float, seeds: int) -> Finding:
    if not comparison.differences:
        return Finding(comparison, None, corrected, "open")
    interval = mean_interval(comparison.differences)
    side: Side = "open"
    if interval.n >= seeds and corrected <= LEVEL:
        if interval.low is not None and interval.low > comparison.against:
            side = "above"
        elif interval.high is not None and interval.high < comparison.against:
            side = "below"
    return Finding(comparison, interval, corrected, side)


def differences(
    results: Results, first: str, second: str, metrics: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """``first`` less ``second`` in percent of the mean of ``second``, by seed, for each metric and
    ``overall``.

    Only seeds count where both rows have all metrics. A metric in which the second row's mean is not
    positive has no percentages and is left out.
    """
    one = [results.values(first, name) for name in metrics]
    other = [results.values(second, name) for name in metrics]
    whole = [seed for seed, values in enumerate(zip(*one, *other, strict=True)) if None not in values]
    found: dict[str, tuple[float, ...]] = {}
    for name, ours, theirs in zip(metrics, one, other, strict=True):
        pairs = [(ours[seed] or 0.0, theirs[seed] or 0.0) for seed in whole]
        base = mean_of(b for _, b in pairs)
        if base > 0:
            found[name] = tuple(100 * (a - b) / base for a, b in pairs)
    return {"overall": tuple(map(mean_of, zip(*found.values(), strict=True))), **found}


def compare(
    results: Results,
    first: str,
    second: str,
    metrics: Sequence[str],
    against: float = 0.0,
    against_in_one: float = 0.0,
) -> tuple[Comparison, list[Comparison]]:
    """Comparisons of ``first`` less ``second``: the overall one, which decides, and those that can veto.

    Args:
        against, against_in_one: percent, for the overall difference and for a single metric's.
    """
    found = differences(results, first, second, metrics)
    names = ", ".join(metric(name).title for name in metrics)
    overall = Comparison(f"{first} minus {second}, overall ({names})", found.pop("overall"), against)
    single = []
    for name, values in found.items():
        ours, theirs = (mean_of(results.values(label, name)) for label in (first, second))
        text = f"{first} minus {second}, {metric(name).title} ({ours:.1f} against {theirs:.1f})"
        single.append(Comparison(text, values, against_in_one))
    return overall, single

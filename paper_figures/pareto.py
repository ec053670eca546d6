"""What merging costs and what it is worth: quality against the MACs of an update, and rules at equal MACs.

Left and middle: merge schedules, their Pareto front as a line (no other schedule is at least as good for at
most its cost). The cost is that of connector and language model, forward and backward: what is merged late
or not at all makes the language model's input longer. Right: what is compared to find similar tokens, and
what becomes of those merged, all at the largest constant r and so at the same cost.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.results import Run, read_all_seeds, values_of
from analysis.statistics import mean_of
from evlgen.config import TomeFormerConfig
from evlgen.cost import run_cost
from paper_figures import script, style

SCHEDULES = ("constant", "inflection", "one-shot")
RULES = ("rule", "reduce")


def draw(scale: str) -> list[Path]:
    """The figure.

    Raises:
        UserError: there are no runs.
    """
    found = read_all_seeds("merge_schedules", scale)
    style.apply()
    figure, axes = plt.subplots(
        1, 3, figsize=(style.PAGE, 2.9), gridspec_kw={"width_ratios": (1.15, 1.15, 0.8)}
    )
    rows = found.runs
    for axis, metric, lower in zip(axes[:2], ("coco/CIDEr", "val_loss"), (False, True), strict=True):
        _schedules(axis, rows, metric, lower)
    _rules(axes[2], rows)
    style.legend_below(figure, axes[0], 4)
    return style.save(figure, "pareto", scale, found.complete(), found.missing())


def update_gmacs(run: Run) -> float:
    """MACs of an update for one pair in connector and language model, forward and backward, in 10^9."""
    cost = run_cost(run.config)
    return (cost.trained_macs + cost.language_macs) / 1e9


def pareto_front(points: Sequence[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """Those points (cost, score) that none is better than in one and at least as good as in the other."""
    sign = 1.0 if lower else -1.0
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * score < sign * front[-1][1]:
            front.append((cost, score))
    return front


def _schedules(axis: Axes, rows: Mapping[str, Sequence[Run]], metric: str, lower: bool) -> None:
    costs = {label: update_gmacs(row[0]) for label, row in rows.items()}
    unit, letter = (1.0, "G") if max(costs.values(), default=1.0) >= 1 else (1e-3, "M")
    means = []
    others = 0
    for label, row in rows.items():
        kind = str(row[0].row.values["kind"])
        others += kind in SCHEDULES[1:]  # also where it is missing: a schedule keeps its colour
        seeds = values_of(row, metric)
        if kind not in SCHEDULES or not seeds:
            continue
        means.append((costs[label] / unit, mean_of(seeds)))
        if kind == "constant":
            style.point(axis, means[-1][0], seeds, style.PALETTE[0], "o")
            axis.annotate(
                f"{row[0].row.values['r']:g}" if "r" in row[0].row.values else "",
                (means[-1][0], max(seeds)),  # above all of its seeds: beside the mean others' intervals pass
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=style.SMALL,
                color=style.PALETTE[0],
                bbox={"fc": "white", "ec": "none", "pad": 0.2},  # the front passes behind it
            )
        else:
            colour, mark = style.PALETTE[others], style.SHAPES[others]
            style.point(axis, means[-1][0], seeds, colour, mark)
            axis.plot([], [], mark, color=colour, label=label.rpartition(", ")[2])
    axis.plot([], [], "o", color=style.PALETTE[0], label="constant r (the number above)")
    front = pareto_front(means, lower)
    if front:
        xs, ys = [x for x, _ in front], [y for _, y in front]
        xs, ys = [*xs, max(x for x, _ in means)], [*ys, ys[-1]]
        axis.plot(xs, ys, color=style.GREY, lw=0.8, ds="steps-post", zorder=1, label="Pareto front")
    axis.set(xlabel=f"connector and LLM, MACs a pair ({letter})", ylabel=style.label(metric))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.margins(x=0.1)


def _rules(axis: Axes, rows: Mapping[str, Sequence[Run]]) -> None:
    # One that is spread over layers which it does not divide into evenly is called constant, but has no r.
    constants = [
        row for row in rows.values() if row[0].row.values["kind"] == "constant" and "r" in row[0].row.values
    ]
    base = max(constants, key=lambda row: float(row[0].row.values["r"]))
    lines = [("by keys, mean\n(the paper's)", values_of(base, "coco/CIDEr"), style.PALETTE[0], "o")]
    for row in rows.values():
        config, kind = row[0].config.connector, row[0].row.values["kind"]
        if kind not in RULES or not isinstance(config, TomeFormerConfig):
            continue
        text = row[0].row.label.partition(", ")[2].replace("mean, prop", "mean,\nprop").replace(" (", "\n(")
        index = 1 + RULES.index(str(kind))
        lines.append((text, values_of(row, "coco/CIDEr"), style.PALETTE[index], style.SHAPES[index]))
    style.dots(axis, lines, style.label("coco/CIDEr"))
    axis.set_title("rules at equal MACs")


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

"""Quality against the cost of training, the headline: who is how good after how many seconds or operations.

``quality_cost`` has seconds, stage 1 included, and beside them the paper's own hours; ``quality_cost_macs``
the multiply-accumulates of all training steps, both stages, counted, those of image encoder and language
model among them. The overall score is that of claim C1: the mean over the four sets of what share of BLIP-2's
score is reached. A dashed line is BLIP-2's score at the end of its two stages; where the mean curve of a
connector first reaches it (`analysis.time_to_quality`), the share of BLIP-2's cost is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from analysis import gates
from analysis.claims.claim import QUALITY
from analysis.results import Run, by_row, read_several, values_of
from analysis.statistics import mean_of
from analysis.time_to_quality import Reached, time_to_quality
from evlgen.connectors import look_of
from evlgen.cost import run_cost
from experiments import table1
from paper_figures import script, style

CONNECTORS = ("EVLGen", "BLIP-2, single stage", "BLIP-2, two stages")
TARGET = "BLIP-2, two stages"
LOWER_IS_BETTER = ("val_loss",)
LESS_DATA = "EVLGen, 11M, 150K"  # row of table 1
LESS_COLOUR = "#009E73"
PANELS = ("coco/CIDEr", "vqav2", "gqa", "okvqa")
OVERALL = "overall"
NOT_LEARNED = "BLIP-2's stage 1 did not learn"


def draw(scale: str) -> list[Path]:
    """Both figures.

    Raises:
        UserError: there are no runs.
    """
    found, missing = read_several(("budgets", "table1"), scale)
    missing = [line for line in missing if not line.startswith("table1: ") or LESS_DATA in line]
    style.apply()
    of_budgets = found["budgets"].all_runs if "budgets" in found else []
    less_data = found["table1"].complete(LESS_DATA) if "table1" in found else []
    drawn = [run for run in of_budgets if run.record is not None] + less_data

    figure, axes = plt.subplots(2, 3, figsize=(style.PAGE, 4.3))
    for axis, metric in zip(axes.flat[:5], (OVERALL, *PANELS), strict=True):
        quality(axis, of_budgets, less_data, metric, seconds)
        axis.set_ylabel(label_of(metric))
    for axis in (axes[0, 2], *axes[1, :2]):
        axis.set_xlabel(style.label("total_seconds"))
    of_paper(axes.flat[5])
    has_learned = "budgets" not in found or not gates.stage1_notes(found["budgets"])
    if not has_learned:
        axes.flat[0].plot([], [], " ", label=NOT_LEARNED)
    style.legend_below(figure, axes.flat[0], 3)
    paths = style.save(figure, "quality_cost", scale, drawn, missing)

    figure, axes = plt.subplots(1, 3, figsize=(style.PAGE, 2.6))
    for axis, metric in zip(axes, (OVERALL, "coco/CIDEr", "val_loss"), strict=True):
        quality(axis, of_budgets, less_data, metric, training_tmacs)
        axis.set(xlabel="MACs of whole training steps (T)", ylabel=label_of(metric))
    if not has_learned:
        axes[0].plot([], [], " ", label=NOT_LEARNED)
    style.legend_below(figure, axes[0], 3)
    return paths + style.save(figure, "quality_cost_macs", scale, drawn, missing)


def quality(
    axis: Axes,
    budgets: Sequence[Run],
    less_data: Sequence[Run],
    metric: str,
    cost: Callable[[Run], float | None],
) -> None:
    """One panel: a line a connector over its budgets, BLIP-2's final score, and where it is reached."""
    style.log_axis(axis)
    means: dict[str, list[tuple[float, float]]] = {}
    for connector in CONNECTORS:
        points, means[connector] = [], []
        own = [run for run in budgets if run.row.values["connector"] == connector]
        for row in by_row(own).values():
            seeds = scores(budgets, row, metric)
            costs = [one for one in map(cost, row) if one is not None]
            if seeds and costs:
                at = mean_of(costs)
                points.append((at, seeds))
                means[connector].append((at, mean_of(seeds)))
        style.series(axis, points, style.colour(connector), style.marker(connector), connector)
    seeds = scores(budgets, less_data, metric)
    costs = [one for one in map(cost, less_data) if one is not None]
    if seeds and costs:
        at = mean_of(costs)
        style.point(axis, at, seeds, LESS_COLOUR, "*")
        mean = mean_of(seeds)
        axis.plot([at], [mean], "*", color=LESS_COLOUR, ms=8, mec="white", mew=0.5, zorder=6)
        axis.plot([], [], "*", color=LESS_COLOUR, ms=6, label="EVLGen, 11M pairs")
    final = final_point(budgets, metric, cost)
    if final is None:
        return
    axis.axhline(
        final[1], color=style.colour(TARGET), ls="--", lw=0.8, zorder=1, label="BLIP-2's final score"
    )
    lower = metric in LOWER_IS_BETTER
    reached = {
        connector: found
        for connector in CONNECTORS
        if connector != TARGET and means[connector]
        if (found := _reached(means[connector], final[1], lower)).bound != "at least"
    }
    ends = axis.get_ylim()  # as they are before there are lines to the edge
    for connector, found in reached.items():
        at, colour = found.cost, style.colour(connector)
        axis.plot([at, at], [final[1], ends[1 if lower else 0]], ":", color=colour, lw=0.9, zorder=1)
        is_left = len(reached) > 1 and at == min(one.cost for one in reached.values())
        axis.annotate(
            f"{'≤ ' if found.bound == 'at most' else ''}{at / final[0]:.2f}×",
            (at, 0.95 if lower else 0.03),
            xycoords=axis.get_xaxis_transform(),
            xytext=(-2 if is_left else 2, 0),
            textcoords="offset points",
            ha="right" if is_left else "left",
            fontsize=style.SMALL,
            color=colour,
            bbox={"fc": "white", "ec": "none", "pad": 0.6},  # where the score is near the edge
        )
    axis.set_ylim(ends)
    axis.plot([], [], ":", color=style.GREY, lw=0.9, label="is reached at ... × BLIP-2's cost")


def label_of(metric: str) -> str:
    """At an axis."""
    return "all four (% of BLIP-2's)" if metric == OVERALL else style.label(metric)


def scores(budgets: Sequence[Run], row: Sequence[Run], metric: str) -> list[float]:
    """A metric of the runs of a row that have it, or the overall score in percent of BLIP-2's."""
    if metric != OVERALL:
        return values_of(row, metric)
    whole = _whole(budgets)
    scales = [values_of(whole, one) for one in QUALITY]
    if not all(scales):
        return []
    means = [mean_of(one) for one in scales]
    found = [[run.metric(one) for one in QUALITY] for run in row]
    return [
        100 * mean_of((one or 0.0) / mean for one, mean in zip(of_run, means, strict=True))
        for of_run in found
        if None not in of_run
    ]


def _whole(budgets: Sequence[Run]) -> list[Run]:
    """The complete runs of BLIP-2's two stages with their whole budget."""
    own = [run for run in budgets if run.row.values["connector"] == TARGET]
    whole = max((float(run.row.values["budget"]) for run in own), default=0.0)
    return [run for run in own if run.record is not None and run.row.values["budget"] == whole]


def final_point(
    budgets: Sequence[Run], metric: str, cost: Callable[[Run], float | None]
) -> tuple[float, float] | None:
    """BLIP-2's cost and mean score with its whole budget; None as long as no run of it is complete."""
    row = _whole(budgets)
    seeds, costs = scores(budgets, row, metric), [one for one in map(cost, row) if one is not None]
    if not seeds or not costs:
        return None
    return mean_of(costs), mean_of(seeds)


def _reached(points: Sequence[tuple[float, float]], target: float, lower: bool) -> Reached:
    """The cost at which the mean curve first reaches the target."""
    sign = -1.0 if lower else 1.0
    return time_to_quality([cost for cost, _ in points], [sign * score for _, score in points], sign * target)


def seconds(run: Run) -> float | None:
    """Of training, stage 1 included."""
    return run.metric("total_seconds")


def training_tmacs(run: Run) -> float | None:
    """Multiply-accumulates of all training steps, forward and backward, stage 1 included, in 10^12."""
    total, stage = 0.0, run.config
    while True:
        total += run_cost(stage).step_flop / 2 * stage.optim.steps * stage.optim.batch_size
        if stage.init_from is None:
            break
        stage = stage.init_from
    return total / 1e12


def of_paper(axis: Axes) -> None:
    """The paper's own table 1: hours on 8 A100s."""
    rows = [row for row in table1.build("paper").rows if "hours" in row.paper]
    for row in rows:
        connector = look_of(row.config).name
        hours, score = float(row.paper["hours"]), float(row.paper["coco/CIDEr"])
        colour, mark, size = style.colour(connector), style.marker(connector), 5
        if row.label == LESS_DATA:
            colour, mark, size = LESS_COLOUR, "*", 7
        axis.plot([hours], [score], mark, color=colour, mfc="white", ms=size)
        if connector == TARGET:
            axis.axhline(score, color=style.colour(connector), ls="--", lw=0.8, zorder=1)
    axis.set_xscale("log")
    axis.set(xlabel="hours on 8 A100, the paper's", ylabel="COCO CIDEr, the paper's")
    axis.set_xticks([80, 133, 234], ["80", "133", "234"])
    axis.minorticks_off()
    axis.set_xlim(60, 300)
    style.note(axis, "the paper's own numbers", 0.7, 0.1)


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

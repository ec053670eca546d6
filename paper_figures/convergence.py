"""Convergence of the rows of table 1: validation loss and loss gap over updates and over seconds.

BLIP-2's two stages begin where their stage 1 ends (shaded): its updates and its seconds count. What is drawn
are the validations in ``metrics.jsonl``: the mean over seeds, and faintly each of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from paper_figures import runs, style
from paper_figures.runs import Run

METRICS = ("val_loss", "gap")
DASHES = ("-", "--", ":")  # rows of one connector


def draw(scale: str) -> list[Path]:
    """The figure.

    Raises:
        UserError: there are no runs.
    """
    found = runs.load("table1", scale)
    style.apply()
    figure, axes = plt.subplots(2, 2, figsize=(style.PAGE, 4.2), sharex="col", sharey="row")
    rows = runs.by_row(runs.complete(found))
    count: dict[str, int] = {}
    for label, row in rows.items():
        connector = runs.connector(row[0].config)
        dash = DASHES[count.get(connector, 0) % len(DASHES)]
        count[connector] = count.get(connector, 0) + 1
        for axes_of_metric, metric in zip(axes, METRICS, strict=True):
            courses = [runs.validations(run.folder, metric) for run in row]
            courses = [course for course in courses if course[0]]
            if courses:
                label_now = label if metric == METRICS[0] else None
                _panels(axes_of_metric, row, courses, style.colour(connector), dash, label_now)
    for axis, metric in zip(axes[:, 0], METRICS, strict=True):
        axis.set_ylabel(style.LABELS[metric])
    axes[1, 0].set_xlabel("updates, stage 1 included")
    axes[1, 1].set_xlabel(style.LABELS["total_seconds"])
    for axis in axes.flat:
        axis.set_xlim(left=0)
    style.legend_below(figure, axes[0, 0], 3)
    drawn = [run for row in rows.values() for run in row]
    return style.save(figure, "convergence", scale, drawn, runs.missing(found))


def _panels(
    axes: Sequence[Axes],
    row: Sequence[Run],
    courses: Sequence[tuple[list[int], list[float]]],
    colour: str,
    dash: str,
    label: str | None,
) -> None:
    """One row in the panels of a metric: over updates, over seconds."""
    steps = courses[0][0]
    lines = [values for own, values in courses if own == steps]  # the same in all seeds of a row
    config = row[0].config
    before = 0 if config.init_from is None else config.init_from.optim.steps
    training = _mean(runs.values(row, "train_seconds"))
    seconds_before = _mean(runs.values(row, "total_seconds")) - training
    for axis, pace, start in (
        (axes[0], 1.0, before),
        (axes[1], training / config.optim.steps, seconds_before),
    ):
        xs = [start + step * pace for step in steps]
        style.band(axis, xs, lines, colour, ls=dash, label=label)
        if before:
            axis.axvspan(0, start, color=colour, alpha=0.08, lw=0, zorder=0)
            axis.text(
                start / 2,
                0.97,
                "stage 1 of BLIP-2",  # there is no loss of captions in it, and no gap
                transform=axis.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=style.SMALL,
                color=colour,
            )


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


if __name__ == "__main__":
    sys.exit(runs.main(draw, __doc__))

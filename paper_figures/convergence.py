"""Convergence of the rows of table 1: validation loss and loss gap over updates and over seconds.

BLIP-2's two stages begin where their stage 1 ends (shaded): its updates and its seconds count. What is drawn
are the validations in ``metrics.jsonl``: the mean over seeds, and faintly each of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from analysis.results import Run, by_row, read_all_seeds, values_of
from analysis.statistics import mean_of
from evlgen.connectors import look_of
from paper_figures import script, style

METRICS = ("val_loss", "gap")
DASHES = ("-", "--", ":")  # rows of one connector


def draw(scale: str) -> list[Path]:
    """The figure.

    Raises:
        UserError: there are no runs.
    """
    found = read_all_seeds("table1", scale)
    style.apply()
    figure, axes = plt.subplots(2, 2, figsize=(style.PAGE, 4.2), sharex="col", sharey="row")
    rows = by_row(found.complete())
    count: dict[str, int] = {}
    for label, row in rows.items():
        connector = look_of(row[0].config).name
        dash = DASHES[count.get(connector, 0) % len(DASHES)]
        count[connector] = count.get(connector, 0) + 1
        for axes_of_metric, metric in zip(axes, METRICS, strict=True):
            histories = [history for run in row if (history := run.history(metric))[0]]
            if histories:
                label_now = label if metric == METRICS[0] else None
                _panels(axes_of_metric, row, histories, style.colour(connector), dash, label_now)
    for axis, metric in zip(axes[:, 0], METRICS, strict=True):
        axis.set_ylabel(style.label(metric))
    axes[1, 0].set_xlabel("updates, stage 1 included")
    axes[1, 1].set_xlabel(style.label("total_seconds"))
    for axis in axes.flat:
        axis.set_xlim(left=0)
    style.legend_below(figure, axes[0, 0], 3)
    drawn = [run for row in rows.values() for run in row]
    return style.save(figure, "convergence", scale, drawn, found.missing())


def _panels(
    axes: Sequence[Axes],
    row: Sequence[Run],
    histories: Sequence[tuple[list[int], list[float]]],
    colour: str,
    dash: str,
    label: str | None,
) -> None:
    """One row in the panels of a metric: over updates, over seconds."""
    steps = histories[0][0]
    lines = [values for own, values in histories if own == steps]  # the same in all seeds of a row
    config = row[0].config
    before = 0 if config.init_from is None else config.init_from.optim.steps
    training = mean_of(values_of(row, "train_seconds"))
    seconds_before = mean_of(values_of(row, "total_seconds")) - training
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


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

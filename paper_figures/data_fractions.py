"""Quality over the fraction of the data, at equal updates and at equal epochs, for both connectors.

A hollow mark is a row of which no run uses its images at the end: its training was too short. The star is
EVLGen with the cleaner pools alone, whole: less data of a better kind.
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
from experiments import table1
from paper_figures import script, style

CONNECTORS = ("EVLGen", "BLIP-2, single stage")
CLEANER, CLEANER_COLOUR = "steps, cleaner", "#009E73"
TITLES = {"steps": "equal updates", "epochs": "equal epochs (fewer updates)"}


def draw(scale: str) -> list[Path]:
    """The figure.

    Raises:
        UserError: there are no runs.
    """
    found = read_all_seeds("data_fractions", scale)
    style.apply()
    figure, axes = plt.subplots(2, 2, figsize=(style.PAGE, 4.0), sharex=True, sharey="row")
    rows = list(by_row(found.complete()).values())
    for line, metric in zip(axes, ("coco/CIDEr", "val_loss"), strict=True):
        for axis, equal in zip(line, TITLES, strict=True):
            for connector in CONNECTORS:
                points = [
                    (float(values["fraction"]), values_of(row, metric))
                    for row in rows
                    for values in [row[0].row.values]
                    # all of the data: the same run
                    if values["connector"] == connector
                    and (values["equal"] == equal or values["fraction"] == 1)
                ]
                style.series(axis, points, style.colour(connector), style.marker(connector), connector)
            _unused(axis, [row for row in rows if row[0].row.values["equal"] == equal], metric)
        for row in rows:
            if row[0].row.values["equal"] == CLEANER and (seeds := values_of(row, metric)):
                at = float(row[0].row.values["fraction"])
                style.point(line[0], at, seeds, CLEANER_COLOUR, "*")
                mean, star = mean_of(seeds), {"ms": 8, "mec": "white", "mew": 0.5, "lw": 0}
                text = "EVLGen, cleaner pools only"
                line[0].plot([at], [mean], "*", color=CLEANER_COLOUR, zorder=6, label=text, **star)
        line[0].set_ylabel(style.label(metric))
    for axis, title in zip(axes[0], TITLES.values(), strict=True):
        axis.set_title(title)
    fractions = sorted(
        {float(row.values["fraction"]) for row in found.experiment.rows if row.values["equal"] in TITLES}
    )
    for axis in axes[1]:
        axis.set_xscale("log")
        axis.set_xticks(fractions, ["1" if one == 1 else f"1/{1 / one:g}" for one in fractions])
        axis.minorticks_off()
        axis.set_xlabel("fraction of the data")
    axes[0, 0].plot([], [], "o", color=style.GREY, mfc="white", label="hollow: images not used")
    axes[0, 0].plot([], [], " ", label=_paper())
    style.legend_below(figure, axes[0, 0], 2)
    return style.save(figure, "data_fractions", scale, found.complete(), found.missing())


def _unused(axis: Axes, rows: Sequence[list[Run]], metric: str) -> None:
    """Hollow marks for the rows that do not use their images."""
    for row in rows:
        seeds = values_of(row, metric)
        used = any(run.state == "conditioned" for run in row)
        if seeds and not used:
            connector = str(row[0].row.values["connector"])
            at, mean = float(row[0].row.values["fraction"]), mean_of(seeds)
            mark = style.marker(connector)
            axis.plot([at], [mean], mark, color=style.colour(connector), mfc="white", ms=4.8, zorder=6)


def _paper() -> str:
    """What the paper says of a tenth of its data."""
    rows = {row.label: row.paper["coco/CIDEr"] for row in table1.build("paper").rows}
    whole, tenth = rows["EVLGen, 104M, 150K"], rows["EVLGen, 11M, 150K"]
    return f"the paper's CIDEr, EVLGen: {whole} with all pairs, {tenth} with about 1/10"


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

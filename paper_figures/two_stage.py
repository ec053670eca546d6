"""How BLIP-2 should divide its time between its stages, and what each loss of stage 1 is worth."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
from matplotlib.ticker import PercentFormatter

from analysis import gates
from analysis.results import read_all_seeds, values_of
from paper_figures import script, style

CONNECTOR = "BLIP-2, two stages"


def draw(scale: str) -> list[Path]:
    """The figure: two panels over stage 1's share of the cost, one with losses left out.

    Raises:
        UserError: there are no runs.
    """
    found = read_all_seeds("two_stage", scale)
    style.apply()
    rows = list(found.runs.values())
    splits = [row for row in rows if row[0].row.values["without"] == ""]
    # Not one of the splits but the setting of table 1: the paper's hours, roughly.
    defaults = {float(row[0].row.values["share"]) for row in rows if row[0].row.values["without"] != ""}
    colour, mark = style.colour(CONNECTOR), style.marker(CONNECTOR)
    figure, axes = plt.subplots(1, 3, figsize=(style.PAGE, 2.3))
    for axis, metric in zip(axes[:2], ("coco/CIDEr", "val_loss"), strict=True):
        points = [(float(row[0].row.values["share"]), values_of(row, metric)) for row in splits]
        style.series(axis, points, colour, mark)
        for share in defaults:
            axis.axvline(share, color=style.GREY, ls=":", lw=0.8, zorder=0)
            axis.annotate(
                "table 1's",
                (share, 0.02),
                xycoords=axis.get_xaxis_transform(),
                xytext=(-2, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                fontsize=style.SMALL,
                color=style.GREY,
            )
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set(xlabel="stage 1's share of the cost", ylabel=style.label(metric))
    lines = [
        ("all losses", values_of(row, "coco/CIDEr"), colour, mark)
        for row in splits
        if float(row[0].row.values["share"]) in defaults
    ]
    lines += [
        (f"without {str(row[0].row.values['without']).upper()}", values_of(row, "coco/CIDEr"), colour, "D")
        for row in rows
        if row[0].row.values["without"] != ""
    ]
    style.dots(axes[2], lines, style.label("coco/CIDEr"))
    learned = not gates.stage1_notes(found)
    axes[2].set_title("losses of stage 1" + ("" if learned else "\n(it did not learn)"))
    return style.save(figure, "two_stage", scale, found.complete(), found.missing())


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

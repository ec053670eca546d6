"""Quality over the number of soft tokens, for both connectors; the default number is marked."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt

from analysis.results import by_row, read_all_seeds, values_of
from experiments.scales import get
from paper_figures import script, style

CONNECTORS = ("EVLGen", "BLIP-2, single stage")


def draw(scale: str) -> list[Path]:
    """The figure.

    Raises:
        UserError: there are no runs.
    """
    found = read_all_seeds("soft_tokens", scale)
    style.apply()
    rows = list(by_row(found.complete()).values())
    chosen = get(scale)
    merged = chosen.tomeformer.r
    assert isinstance(merged, int)
    defaults = {
        "EVLGen": chosen.tokens - merged * chosen.tomeformer.num_layers,
        "BLIP-2, single stage": chosen.qformer.num_queries,
    }
    figure, axes = plt.subplots(1, 3, figsize=(style.PAGE, 2.3))
    for axis, metric in zip(axes, ("coco/CIDEr", "vqav2", "val_loss"), strict=True):
        axis.set_xscale("log", base=2)
        for connector in CONNECTORS:
            own = [row for row in rows if row[0].row.values["connector"] == connector]
            points = [(float(row[0].row.values["tokens"]), values_of(row, metric)) for row in own]
            style.series(axis, points, style.colour(connector), style.marker(connector), connector)
            axis.axvline(
                defaults[connector],
                color=style.colour(connector),
                ls=":",
                lw=0.8,
                zorder=0,
                label=f"{connector}, default",
            )
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set(xlabel="soft tokens", ylabel=style.label(metric))
    style.legend_below(figure, axes[0], 4)
    return style.save(figure, "soft_tokens", scale, found.complete(), found.missing())


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

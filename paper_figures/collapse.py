"""Measures of collapse over training, a factor a column, for EVLGen and for the Q-Former in a single stage.

``collapse_evlgen`` and ``collapse_qformer`` show, over the updates, the loss gap (validation loss with
shuffled images less that with the right ones), the cosine of soft prompts of different images, and their
effective rank. A gap above the dashed line means that the image is used. The grey line is the setting of
table 1 (default); the last column has three times the updates, and faintly the same setting with one
budget.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.results import Results, Run, by_row, read_all_seeds
from evlgen.collapse import CollapseThresholds
from paper_figures import script, style

METRICS = {"gap": "loss gap (nats)", "cosine": "cosine over\nimages", "effective_rank": "effective\nrank"}
FACTORS = {
    "lr": "peak learning rate",
    "warmup": "share of warm-up",
    "queries": "soft tokens",
    "init": "initial weights",
    "depth": "layers",
    "budget": "3x the updates",
}
FIGURES = {"EVLGen": "collapse_evlgen", "BLIP-2, single stage": "collapse_qformer"}
Dash = str | tuple[int, tuple[float, ...]]
LONGER = "budget"  # the factor of the last column
THRESHOLD = {"color": "black", "ls": "--", "lw": 0.5}
FAINT = 0.35
LEVELS = style.PALETTE[:6]
DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 0.6)))


def draw(scale: str) -> list[Path]:
    """Both figures.

    Raises:
        UserError: there are no runs.
    """
    found = read_all_seeds("collapse", scale)
    style.apply()
    paths = []
    for connector, name in FIGURES.items():
        paths += _figure(name, found.of_rows(connector=connector))
    return paths


def _figure(name: str, found: Results) -> list[Path]:
    by_label = by_row(found.complete())
    rows = list(by_label.values())
    figure, axes = plt.subplots(3, len(FACTORS), figsize=(style.PAGE, 4.3), sharex="col", sharey="row")
    for column, (factor, title) in enumerate(FACTORS.items()):
        base = [row for row in rows if row[0].row.values["factor"] == "" and factor != LONGER]
        levels = [row for row in rows if row[0].row.values["factor"] == factor]
        assert len(levels) <= len(LEVELS), f"{factor}: more levels than colours"
        for axis, metric in zip(axes[:, column], METRICS, strict=True):
            for row in base:
                _history(axis, row, metric, style.GREY, "-", "default")
            for row, colour, dash in zip(levels, LEVELS, DASHES, strict=False):
                level = row[0].row.values["level"]
                text = level if isinstance(level, str) else f"{level:g}"
                if factor == LONGER:
                    short = by_label.get(f"{row[0].row.values['connector']}, {level}", [])
                    _history(axis, short[:1], metric, colour, "-", None, alpha=FAINT)
                _history(axis, row, metric, colour, dash, text)
            if not levels:
                style.note(axis, "missing")
        axes[0, column].axhline(CollapseThresholds().conditioned, **THRESHOLD, zorder=0)
        axes[0, column].set_title(title, fontsize=7)
        bottom = axes[2, column]
        bottom.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        bottom.set_xlim(left=0)
        bottom.set_xlabel("updates")
        if bottom.get_legend_handles_labels()[0]:
            if column == 0:
                bottom.plot([], [], **THRESHOLD, label="above: image used")
            if factor == LONGER:
                bottom.plot([], [], color=style.GREY, alpha=FAINT, label="faint: one budget")
            below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.5), "borderaxespad": 0}
            bottom.legend(**below, handlelength=1.8, fontsize=6)
    for axis, label in zip(axes[:, 0], METRICS.values(), strict=True):
        axis.set_ylabel(label)
    return style.save(figure, name, found.scale, found.complete(), found.missing())


def _history(
    axis: Axes, row: list[Run], metric: str, colour: str, dash: Dash, label: str | None, alpha: float = 1.0
) -> None:
    histories = [history for run in row if (history := run.history(metric))[0]]
    if histories:
        steps = histories[0][0]
        alike = [ys for xs, ys in histories if xs == steps]
        style.band(axis, steps, alike, colour, ls=dash, lw=0.9, label=label, alpha=alpha)


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

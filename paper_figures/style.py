"""The one look of all figures: colours, sizes, type, and how a figure is written.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; a connector has the same colour and
the same mark in every figure. Text is as large as in the print: widths are those of a column and of a page
with two of them.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.results import Run, warnings_of
from analysis.statistics import Interval, mean_interval, mean_of
from evlgen.connectors import LOOKS
from evlgen.evaluation.metrics import metric
from evlgen.runtime.files import write_atomic
from evlgen.runtime.paths import results_folder

COLUMN, PAGE = 3.3, 6.9  # inches: a column of a paper with two, and both
SMALL = 6.5  # points: legends, notes and other small print
PALETTE = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
GREY, MISSING = "#6E6E6E", "#B00000"
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "*")  # beside colour, for print in grey
_NOTE_LINES = 4


def apply() -> None:
    """Set matplotlib's and seaborn's settings."""
    sns.set_theme(context="paper", style="ticks", palette=PALETTE)
    plt.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.03,
            "figure.constrained_layout.w_pad": 0.03,
            "figure.figsize": (COLUMN, 2.4),
            "figure.max_open_warning": 0,
            "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
            "font.size": 7.5,
            "axes.titlesize": 8,
            "axes.labelsize": 7.5,
            "axes.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.minor.width": 0.4,
            "ytick.minor.width": 0.4,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "xtick.minor.size": 1.5,
            "ytick.minor.size": 1.5,
            "legend.fontsize": SMALL,
            "legend.frameon": False,
            "legend.handlelength": 1.6,
            "legend.borderaxespad": 0.2,
            "lines.linewidth": 1.1,
            "lines.markersize": 4,
            "pdf.fonttype": 42,
            "pdf.compression": 9,
            "svg.hashsalt": "evlgen",
            "savefig.dpi": 300,
        }
    )


def colour(connector: str) -> str:
    """Of a connector; grey for one that has none of its own."""
    return LOOKS[connector].colour if connector in LOOKS else GREY


def marker(connector: str) -> str:
    """As `colour`, for marks."""
    return LOOKS[connector].marker if connector in LOOKS else "*"


def label(name: str) -> str:
    """What stands at an axis for a metric."""
    return metric(name).label


def interval(numbers: Sequence[float]) -> Interval | None:
    """Mean and 95% bootstrap interval over seeds; None without numbers."""
    return mean_interval(numbers) if numbers else None


def point(axis: Axes, x: float, seeds: Sequence[float], colour: str, mark: str, flat: bool = False) -> None:
    """A mean over seeds with its interval, and each seed as a ring: averages hide outcomes of two kinds.

    Args:
        x: where; with ``flat`` the height, and the seeds lie along the x axis.
    """
    found = interval(seeds)
    if found is None:
        return

    def plot(across: list[float], along: Sequence[float], *args: Any, **others: Any) -> None:
        axis.plot(*((along, across) if flat else (across, along)), *args, color=colour, **others)

    if found.low is not None and found.high is not None:
        plot([x, x], [found.low, found.high], lw=1, solid_capstyle="butt", zorder=3)
    plot([x], [found.mean], mark, ms=4.8, mec="white", mew=0.5, zorder=4)
    plot([x] * len(seeds), seeds, "o", ms=1.8, mfc="white", mew=0.5, zorder=5)


def series(
    axis: Axes,
    points: Sequence[tuple[float, Sequence[float]]],
    colour: str,
    mark: str,
    label: str | None = None,
    **line: Any,
) -> None:
    """Points with their intervals and seeds, joined by a line through the means.

    Args:
        points: x and the values of the seeds there; points without values are left out.
    """
    there = sorted(((x, seeds) for x, seeds in points if seeds), key=lambda one: one[0])
    if not there:
        return
    xs = [x for x, _ in there]
    means = [mean_interval(seeds).mean for _, seeds in there]
    axis.plot(xs, means, color=colour, marker=mark, ms=4, mec="white", mew=0.5, label=label, **line)
    for x, seeds in there:
        point(axis, x, seeds, colour, mark)


def band(axis: Axes, xs: Sequence[float], lines: Sequence[Sequence[float]], colour: str, **line: Any) -> None:
    """Curves of several seeds over the same ``xs``: their mean, and faintly each of them."""
    if len(lines) > 1:
        for one in lines:
            axis.plot(xs, one, color=colour, lw=0.4, alpha=0.45, ls=line.get("ls", "-"))
    axis.plot(xs, [mean_of(at) for at in zip(*lines, strict=True)], color=colour, **line)


def dots(
    axis: Axes, rows: Sequence[tuple[str, Sequence[float], str, str]], title: str, labelled: bool = True
) -> None:
    """A plot of dots, a row each from top to bottom: label, values of the seeds, colour, mark."""
    for height, (_, seeds, colour, mark) in enumerate(rows):
        axis.axhline(height, color="#E4E4E4", lw=0.5, zorder=0)
        point(axis, height, seeds, colour, mark, flat=True)
        if not seeds:
            there = axis.get_yaxis_transform()
            axis.text(0.5, height, "missing", transform=there, ha="center", va="center", color=MISSING)
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=title)
    axis.set_yticks(range(len(rows)), [label for label, *_ in rows] if labelled else [])
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.08)


def log_axis(axis: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2 and 5, which do not run into each other."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def note(axis: Axes, text: str, x: float = 0.5, y: float = 0.5) -> None:
    """Small grey print inside a panel, at a place between 0 and 1: what is missing there, whose numbers."""
    axis.text(x, y, text, transform=axis.transAxes, ha="center", va="center", fontsize=SMALL, color=GREY)


def legend_below(figure: Figure, axis: Axes, columns: int = 3, **others: Any) -> None:
    """The legend of one panel, once for the figure, under all panels and so never on data."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2, **others)


def save(figure: Figure, name: str, scale: str, runs: Sequence[Run], missing: Sequence[str]) -> list[Path]:
    """Write a figure as PDF and PNG, and beside it as JSON from which runs it was drawn, what is missing, and
    what has changed in the code since the runs were recorded.

    Equal runs give equal bytes: no dates. The figure has a constrained layout (`apply` comes before
    it) and no title of its own: what is missing or has changed stands there.

    Args:
        runs: those whose numbers are in the figure; those that are not complete are left out.
        missing: what should be in the figure and is not; it is said in the figure, too.

    Returns:
        The paths of PDF and PNG, in ``results/figures/SCALE/``.

    Raises:
        UserError: a file cannot be written.
    """
    changed = warnings_of(runs, marks=False)
    if notes := [*([f"missing: {'; '.join(missing)}"] if missing else []), *changed]:
        _write_notes(figure, notes, len(missing))
    folder = results_folder() / "figures" / scale
    paths = write(figure, folder / name)
    drawn = {run.id: {"id": run.id, "row": run.row.label, "seed": run.seed} for run in runs if run.record}
    about: dict[str, Any] = {"figure": name, "scale": scale, "runs": list(drawn.values())}
    about |= {"missing": list(missing), **({"changed": changed} if changed else {})}
    write_atomic(folder / f"{name}.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
    return paths


def write(figure: Figure, path: Path) -> list[Path]:
    """A figure as ``path`` with .pdf and .png, whole or not at all, without dates; it is closed then.

    Raises:
        UserError: a file cannot be written.
    """
    paths = []
    for kind, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
        picture = io.BytesIO()
        figure.savefig(picture, format=kind, metadata=metadata)
        paths.append(path.with_name(f"{path.name}.{kind}"))
        write_atomic(paths[-1], picture.getvalue())
    plt.close(figure)
    return paths


def _write_notes(figure: Figure, notes: Sequence[str], missing: int) -> None:
    """Lines above the figure, which grows by their height; a long list is cut, the JSON file has it all.

    Args:
        missing: how many things are missing.
    """
    width, height = figure.get_size_inches()
    lines = [line for note in notes for line in textwrap.wrap(note, int(width * 19))]
    if len(lines) > _NOTE_LINES:
        lines = [*lines[: _NOTE_LINES - 1], f"... ({missing} in all, listed in the JSON file)"]
    figure.set_size_inches(width, height + 0.07 + 0.112 * len(lines))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=SMALL, color=MISSING)

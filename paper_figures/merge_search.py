"""Figures of the searches: Pareto front, importance, history, learning rates.

``python paper_figures/merge_search.py`` draws what ``sweeps/merge_search.py`` has left in
``results/merge_search/NAME/SCALE/``, from these files alone, into the same folders as PDF and PNG, and the
fronts of all merge spaces together into ``results/merge_search/pareto-SCALE.pdf``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evlgen.errors import UserError, exit_code
from evlgen.runtime.paths import results_folder
from paper_figures import style
from paper_figures.style import COLUMN, PALETTE
from paper_figures.style import SHAPES as MARKERS

LABELS = {"val_loss": style.label("val_loss"), "macs": "connector MACs (M)"}


@dataclass(frozen=True)
class Arguments:
    """Draw the figures of the searches."""

    results: Path | None = None
    """folder of the results; default: the project's, or EVLGEN_RESULTS"""
    scale: str = ""
    """smoke, mini or paper; default: each that has results"""


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 if there is nothing to draw."""
    arguments = tyro.cli(Arguments, args=argv, prog="paper_figures/merge_search.py", description=__doc__)

    def act() -> None:
        draw(arguments.scale, arguments.results)

    return exit_code(act)


def draw(scale: str, results: Path | None = None) -> list[Path]:
    """All figures of the searches at a scale, or at each where it is empty.

    Args:
        results: their folder; None: where results are written.

    Raises:
        UserError: there are no searches.
    """
    root = (results or results_folder()) / "merge_search"
    tables = sorted(root.glob(f"*/{scale or '*'}/trials.csv"))
    if not tables:
        place = root / "*" / (scale or "*") / "trials.csv"
        raise UserError(f"{place}: none there; make them with `python sweeps/merge_search.py`")
    style.apply()
    paths = []
    for scale in dict.fromkeys(path.parent.name for path in tables):
        fronts = {}
        for path in tables:
            name = path.parent.parent.name
            if path.parent.name != scale:
                continue
            front, drawn = draw_search(path.parent)
            paths += drawn
            if front is not None and "-changed" not in name:  # its runs answer another question
                fronts[name] = front
        if len(fronts) > 1:
            paths += style.write(pareto(fronts), root / f"pareto-{scale}")
    return paths


def draw_search(folder: Path) -> tuple[tuple[pd.DataFrame, pd.DataFrame] | None, list[Path]]:
    """Draw the figures of one search; its trials and its front if it looked at MACs, and the files."""
    trials, front = pd.read_csv(folder / "trials.csv"), pd.read_csv(folder / "pareto.csv")
    is_merge = "lr" not in trials
    if is_merge:
        paths = style.write(pareto({folder.parent.name: (trials, front)}), folder / "pareto")
    else:
        paths = style.write(learning_rates(trials), folder / "learning_rates")
    paths += style.write(history(trials), folder / "history")
    importance = pd.read_csv(folder / "importance.csv")
    if len(importance):
        paths += style.write(importances(importance), folder / "importance")
    return (trials, front) if is_merge else None, paths


def pareto(searches: dict[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Figure:
    """Loss against MACs: complete trials, the front of each search as a line, the default ringed."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.5))
    for color, marker, (name, (trials, front)) in zip(PALETTE, MARKERS, searches.items(), strict=False):
        done = trials[trials["state"] == "complete"]
        axis.scatter(done["macs"] / 1e6, done["val_loss"], s=12, color=color, marker=marker, alpha=0.55, lw=0)
        front = front.sort_values("macs")
        axis.plot(
            front["macs"] / 1e6,
            front["val_loss"],
            color=color,
            marker=marker,
            ms=4,
            lw=1,
            drawstyle="steps-post",
            label=name,
        )
        default = done[done["in_force"] == "yes"]
        axis.scatter(
            default["macs"] / 1e6, default["val_loss"], s=60, facecolors="none", edgecolors="black", lw=0.8
        )
    axis.scatter([], [], s=60, facecolors="none", edgecolors="black", lw=0.8, label="default")
    return _finished(figure, axis, LABELS["macs"], LABELS["val_loss"])


def importances(importance: pd.DataFrame) -> Figure:
    """Bars, one panel an objective; one colour a part where there are several."""
    objectives = list(dict.fromkeys(importance["objective"]))
    rows = importance["parameter"].nunique() * max(1, importance["part"].nunique() / 2)
    size = (COLUMN, 0.7 + 0.22 * rows * (1 if len(objectives) > 1 else 1.2))
    figure, axes = plt.subplots(1, len(objectives), figsize=size, sharey=True, squeeze=False)
    several = importance["part"].nunique() > 1
    for axis, objective in zip(axes[0], objectives, strict=True):
        sns.barplot(
            importance[importance["objective"] == objective],
            x="importance",
            y="parameter",
            hue="part" if several else None,
            order=sorted(set(importance["parameter"])),
            legend=several and objective == objectives[-1],
            ax=axis,
        )
        axis.set(xlim=(0, 1), ylabel="", xlabel="importance", title=LABELS[objective].split(" (")[0])
        if legend := axis.get_legend():
            legend.set_title("")
    sns.despine(figure)
    return figure


def history(trials: pd.DataFrame) -> Figure:
    """Loss of each trial, where a pruned one stood when it ended, and the best so far."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.2))
    parts = list(dict.fromkeys(trials["part"]))
    for color, marker, part in zip(PALETTE, MARKERS, parts, strict=False):
        own = trials[trials["part"] == part]
        done, pruned = own[own["state"] == "complete"], own[own["state"] == "pruned"]
        axis.scatter(done["trial"], done["val_loss"], s=12, color=color, marker=marker, alpha=0.55, lw=0)
        axis.scatter(
            pruned["trial"],
            pruned["last_loss"],
            s=14,
            facecolors="none",
            edgecolors=color,
            marker=marker,
            lw=0.6,
        )
        axis.plot(
            done["trial"], done["val_loss"].cummin(), color=color, lw=1, drawstyle="steps-post", label=part
        )
    axis.scatter([], [], s=14, facecolors="none", edgecolors="grey", lw=0.6, label="pruned")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finished(figure, axis, "trial", LABELS["val_loss"])


def learning_rates(trials: pd.DataFrame) -> Figure:
    """Loss against the peak learning rate, one colour and mark a part; the default rate ringed."""
    figure, axis = plt.subplots(figsize=(COLUMN, 2.5))
    parts = list(dict.fromkeys(trials["part"]))
    for color, marker, part in zip(PALETTE, MARKERS, parts, strict=False):
        done = trials[(trials["part"] == part) & (trials["state"] == "complete")].sort_values("lr")
        axis.plot(done["lr"], done["val_loss"], color=color, marker=marker, ms=3, lw=0.8, label=part)
        default = done[done["in_force"] == "yes"]
        axis.scatter(default["lr"], default["val_loss"], s=60, facecolors="none", edgecolors="black", lw=0.8)
    axis.scatter([], [], s=60, facecolors="none", edgecolors="black", lw=0.8, label="default")
    axis.set_xscale("log")
    return _finished(figure, axis, "peak learning rate", LABELS["val_loss"])


def _finished(figure: Figure, axis: Axes, x: str, y: str) -> Figure:
    axis.set(xlabel=x, ylabel=y)
    axis.legend(handlelength=1.2)
    sns.despine(figure)
    return figure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Geometry of soft prompts: by connector, how those of 128 validation images lie (runs of table 1).

Above, the mean soft token of each image on its first two principal components, in the colour of the image's
largest object and with a mark for each colour; one run a connector. Below, over all seeds: the spectrum of
the soft prompts, whose entropy is the effective rank; how much of the variance of the mean soft tokens main
colour and main shape explain; and the norms of the soft tokens beside those of the language model's word
embeddings.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.results import command, read_all_seeds
from evlgen.errors import UserError
from evlgen.miniworld import COLOURS
from evlgen.runs.folder import SOFT_PROMPTS
from experiments.scales import evlgen
from paper_figures import script, style

ROWS = {
    "BLIP-2, single stage": "BLIP-2, stage 2 only, 104M",
    "BLIP-2, two stages": "BLIP-2, two stages, 104M, 250K + 80K",
    "EVLGen": "EVLGen, 104M, 250K",
}
ARRAYS = ("mean", "singular_values", "token_norms", "word_norms", "word_norm_quantiles", "shape", "colour")
MARKS = dict(zip(COLOURS, style.SHAPES, strict=True))  # colour of a thing -> its mark
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Prompts = Mapping[str, np.ndarray]


def draw(scale: str) -> list[Path]:
    """The figure.

    Raises:
        UserError: there are no runs, or they have images of which nobody knows shapes and colours.
    """
    if (world := evlgen(scale).data.world) != "miniworld":
        raise UserError(
            f"soft_prompts: only of the miniworld, whose objects are known; scale {scale} has {world}"
        )
    results = read_all_seeds("table1", scale)
    found = results.complete(*ROWS.values())
    arrays = {run.id: run.arrays(SOFT_PROMPTS, ARRAYS) for run in found}
    drawn = [run for run in found if arrays[run.id] is not None]
    lacking = [run for run in found if arrays[run.id] is None]
    missing = results.missing(labels=list(ROWS.values())) + [
        f"{run.row.label}: no soft prompts (seed {run.seed})" for run in lacking
    ]
    prompts = {
        name: [one for run in drawn if run.row.label == row and (one := arrays[run.id]) is not None]
        for name, row in ROWS.items()
    }
    if not any(prompts.values()):
        raise UserError(
            f"no run of table1 at scale {scale} has soft prompts; make them with `{command('table1', scale)}`"
        )
    style.apply()
    figure = plt.figure(figsize=(style.PAGE, 4.5))
    halves: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    above, below = halves
    for axis, (name, some) in zip(above.subplots(1, len(ROWS)), prompts.items(), strict=True):
        axis.set_title(name)
        scatter(axis, some[0] if some else None)
    above.legend(
        handles=[
            Line2D([], [], color=colour_of(name), marker=mark, ls="", ms=4, mec="black", mew=0.3, label=name)
            for name, mark in MARKS.items()
        ],
        loc="outside lower center",
        ncols=len(COLOURS),
        columnspacing=0.8,
        handletextpad=0.1,
        title="colour of the image's largest object",
        title_fontsize=style.SMALL,
    )
    for axis, panel in zip(below.subplots(1, 3), (spectra, explained, norms), strict=True):
        panel(axis, prompts)
    return style.save(figure, "soft_prompts", scale, drawn, missing)


def colour_of(name: str) -> tuple[float, float, float]:
    """The miniworld's own colour, in 0..1."""
    red, green, blue = COLOURS[name]
    return red / 255, green / 255, blue / 255


def components(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components (M, 2) of (M, D), and the shares of the variance that they have (2,).

    Each is turned so that the row farthest from 0 lies on its positive side.
    """
    left, values, _ = np.linalg.svd(mean - mean.mean(0, dtype=np.float64), full_matrices=False)
    places = left[:, :2] * values[:2]
    places = places * np.sign(places[np.abs(places).argmax(0), np.arange(places.shape[1])])
    return places, values[:2] ** 2 / max((values**2).sum(), np.finfo(float).tiny)


def explained_share(mean: np.ndarray, labels: Sequence[str] | np.ndarray) -> float:
    """Share of the variance of (M, D) that M labels explain, 0 on average for labels by chance.

    This is epsilon squared (Kelley, 1935), eta squared corrected for the number of labels.
    """
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    centred = mean - mean.mean(0, dtype=np.float64)
    total = float((centred**2).sum())
    if total == 0 or len(names) == len(mean):
        return 0.0
    parts = [centred[index == number] for number in range(len(names))]
    within = sum(float(((part - part.mean(0)) ** 2).sum()) for part in parts)
    return 1 - within / total * (len(mean) - 1) / (len(mean) - len(names))


def scatter(axis: Axes, prompts: Prompts | None) -> None:
    """Mean soft tokens of a run, each in the colour of its image's largest object."""
    if prompts is None:
        style.note(axis, "missing")
        axis.set(xticks=[], yticks=[])
        return
    places, shares = components(prompts["mean"])
    for name, mark in MARKS.items():
        own = places[prompts["colour"].astype(str) == name]
        axis.scatter(
            own[:, 0], own[:, 1], color=colour_of(name), marker=mark, s=11, edgecolors="black", linewidths=0.3
        )
    axis.set(
        xlabel=f"component 1 ({100 * shares[0]:.0f}% of variance)",
        ylabel=f"component 2 ({100 * shares[1]:.0f}%)",
    )
    axis.locator_params(nbins=4)


def spectra(axis: Axes, prompts: Mapping[str, Sequence[Prompts]]) -> None:
    """Singular values as shares of their sum, one line a connector, seeds faintly."""
    for name, some in prompts.items():
        lines = [one["singular_values"] / one["singular_values"].sum() for one in some]
        if lines:
            length = min(map(len, lines))
            shares = [line[:length].tolist() for line in lines]
            style.band(axis, list(range(1, length + 1)), shares, style.colour(name), label=name)
    axis.set(xscale="log", yscale="log", xlabel="number of the singular value", ylabel="share of their sum")
    axis.legend(loc="lower left")


def explained(axis: Axes, prompts: Mapping[str, Sequence[Prompts]]) -> None:
    """How much of the variance main colour and main shape explain, by connector."""
    rows = [
        (
            f"{label}\n" if number == 1 else "",
            [explained_share(one["mean"], one[key]) for one in prompts[name]],
            style.colour(name),
            style.marker(name),
        )
        for key, label in (("colour", "main colour"), ("shape", "main shape"))
        for number, name in enumerate(ROWS)
    ]
    style.dots(axis, rows, "variance explained")
    axis.axvline(0, color=style.GREY, lw=0.6, ls=":")


def norms(axis: Axes, prompts: Mapping[str, Sequence[Prompts]]) -> None:
    """Quantiles of the norms: line 5 to 95%, thick 25 to 75%, mark the median."""
    rows: list[tuple[str, np.ndarray, str, str]] = []
    first = next(one for some in prompts.values() for one in some)
    words = np.interp(QUANTILES, first["word_norm_quantiles"], first["word_norms"])
    rows.append(("word embeddings", words, style.GREY, "D"))
    for name, some in prompts.items():
        if some:
            together = np.concatenate([one["token_norms"].ravel() for one in some])
            rows.append((name, np.quantile(together, QUANTILES), style.colour(name), style.marker(name)))
    for height, (_, (lowest, low, middle, high, highest), colour, mark) in enumerate(rows):
        axis.plot([lowest, highest], [height, height], color=colour, lw=1)
        axis.plot([low, high], [height, height], color=colour, lw=3.5, solid_capstyle="butt", alpha=0.6)
        axis.plot([middle], [height], mark, color=colour, ms=5, mec="white", mew=0.6)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="norm (median; 50%, 90% of all)", ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), [label.replace(", ", ",\n").replace(" e", "\ne") for label, *_ in rows])
    axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

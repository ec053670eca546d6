"""Merge maps: which patches end in one soft token, before and after training, and how pure these groups are.

The images are the first of the validation set, not chosen, and the maps those of one run of table 1 (EVLGen,
250K). The bars are means over its seeds of the measures of `evlgen.evaluation.merge_maps`, on 128 images.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis.results import Run, command, read_all_seeds, values_of
from evlgen import miniworld
from evlgen.errors import UserError
from evlgen.evaluation import merge_maps
from evlgen.runs.folder import MERGE_MAPS
from experiments.scales import evlgen
from paper_figures import script, style

ROW = "EVLGen, 104M, 250K"
IMAGES = 7
ARRAYS = ("pool", "indices", "labels", "trained", "untrained")
MEASURES = {"purity": "purity, all tokens", "purity_objects": "purity, tokens of objects"}
# What stands beside a measure's name -> what a reader needs, and its colour.
KINDS = {
    "_untrained_random": ("random groups", style.GREY),
    "_untrained_grid": ("grid", style.PALETTE[3]),
    "_untrained": ("before training", style.PALETTE[5]),
    "": ("after training", style.colour("EVLGen")),
}
# Strong and pale by turns, without the greys; the largest groups get the pale ones.
_PAIRED = np.delete(plt.get_cmap("tab20")(np.arange(20))[:, :3], (14, 15), axis=0)  # (18, 3)
_TINTS = np.concatenate([_PAIRED[1::2], _PAIRED[::2]])


def draw(scale: str) -> list[Path]:
    """The figure.

    Raises:
        UserError: there is no run of this row, or it has images whose objects nobody knows.
    """
    if (world := evlgen(scale).data.world) != "miniworld":
        raise UserError(
            f"merge_maps: only of the miniworld, whose objects are known; scale {scale} has {world}"
        )
    results = read_all_seeds("table1", scale)
    done = [run for run in results.complete(ROW) if run.metric("merge_ari") is not None]
    if not done:
        raise UserError(
            f"no complete run of {ROW!r} with merge maps; make them with `{command('table1', scale)}`"
        )
    maps = first_maps(done)
    missing = results.missing(labels=[ROW]) + ([] if maps else ["merge maps of all runs"])
    style.apply()
    return style.save(figure_of(maps, done), "merge_maps", scale, done, missing)


def first_maps(found: Sequence[Run]) -> dict[str, Any] | None:
    """Arrays of the first run that has kept its merge maps, or None."""
    return next((maps for run in found if (maps := run.arrays(MERGE_MAPS, ARRAYS)) is not None), None)


def figure_of(maps: dict[str, Any] | None, found: Sequence[Run]) -> Figure:
    """Above the images and their maps, below the measures."""
    figure = plt.figure(figsize=(style.PAGE, 5.4 if maps else 1.4))
    if maps is None:
        bars(figure, found)
        return figure
    halves: Any = figure.subfigures(2, 1, height_ratios=[4, 1.35])
    above, below = halves
    bars(below, found)
    count = min(IMAGES, len(maps["indices"]))
    axes = above.subplots(4, count, squeeze=False)
    side = math.isqrt(maps["labels"].shape[1])
    trained, untrained = (merge_maps.groups_of(maps[name]) for name in ("trained", "untrained"))
    rows = {
        "image and objects": None,
        "before training": untrained,
        "after training": trained,
        "grid": merge_maps.grids_like(trained),
    }
    for (name, groups), line in zip(rows.items(), axes, strict=True):
        for column, axis in enumerate(line):
            scene = miniworld.pool(str(maps["pool"])).scene(int(maps["indices"][column]))
            image = miniworld.render(scene)
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            axis.imshow(
                image if groups is None else tinted(image, groups[column].reshape(side, side)),
                interpolation="nearest",
                extent=(0, side, side, 0),
            )
            outline(axis, scene, side)
            if groups is not None:
                boundaries(axis, groups[column].reshape(side, side))
        line[0].set_ylabel(name, fontsize=style.SMALL + 0.5)
    legend = (
        "one tint: the patches of one soft token; none: a patch of its own; black: true outlines of objects"
    )
    above.supxlabel(legend, fontsize=style.SMALL, color=style.GREY)
    return figure


def tinted(image: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The image in grey, (H, W, 3) in 0..1, the patches of each group of two or more in one tint.

    Args:
        image: (H, W, 3) uint8.
        groups: (side, side), which group each patch is in.
    """
    grey = np.repeat(image.mean(2, keepdims=True) / 255, 3, axis=2) * 0.5 + 0.5
    pixels = np.arange(len(image)) * len(groups) // len(image)  # pixel -> patch
    names, counts = np.unique(groups, return_counts=True)
    shared = names[counts >= 2]
    for number, name in enumerate(shared[np.argsort(-counts[counts >= 2], kind="stable")]):
        there = (groups == name)[np.ix_(pixels, pixels)]
        grey[there] = 0.35 * grey[there] + 0.65 * _TINTS[number % len(_TINTS)]
    return grey


def outline(axis: Axes, scene: miniworld.Scene, side: int) -> None:
    """The true outlines of the scene's objects."""
    place = (np.arange(miniworld.SIZE) + 0.5) * side / miniworld.SIZE
    for mask in miniworld.object_masks(scene):
        axis.contour(place, place, mask.astype(float), [0.5], colors="black", linewidths=0.7)


def boundaries(axis: Axes, groups: np.ndarray) -> None:
    """White lines between patches of different groups."""
    upright = [[(x + 1, y), (x + 1, y + 1)] for y, x in np.argwhere(groups[:, 1:] != groups[:, :-1])]
    level = [[(x, y + 1), (x + 1, y + 1)] for y, x in np.argwhere(groups[1:] != groups[:-1])]
    axis.add_collection(
        LineCollection(upright + level, colors="white", linewidths=0.9, capstyle="projecting")
    )


def bars(figure: Any, found: Sequence[Run]) -> None:
    """A panel a measure: bars of the means, each seed as a ring."""
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for height, (suffix, (_, colour)) in enumerate(KINDS.items()):
            numbers = values_of(found, measure + suffix)
            interval = style.interval(numbers)
            if interval is None:
                axis.text(0.02, height, "missing", va="center", color=style.MISSING)
                continue
            axis.barh(height, interval.mean, color=colour, alpha=0.3, height=0.72)
            style.point(axis, height, numbers, colour, "o", flat=True)
            axis.text(1.02, height, f"{interval.mean:.2f}", va="center", fontsize=style.SMALL)
        axis.set(xlim=(0, 1), ylim=(len(KINDS) - 0.5, -0.5), xlabel=title)
        axis.set_yticks(range(len(KINDS)), [name for name, _ in KINDS.values()])
        axis.tick_params(axis="y", length=0)


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

"""Images of the COCO test set with one person's caption and those of two trained EVLGens, not chosen.

Drawn are the first images of the set, the miniworld's or the real one as the runs have it, and what the runs
of table 2 with seed 0 say of them, with both language models. The picture of the scale ``mini`` is
the one of docs/FINDINGS.md, too: ``docs/captions.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import textwrap

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.results import command, read_all_seeds
from evlgen.connectors import look_of
from evlgen.data import worlds
from evlgen.data.base import World
from evlgen.data.images import UnreadableImage
from evlgen.errors import UserError
from evlgen.runtime.files import write_atomic
from evlgen.runtime.paths import ROOT, results_folder
from experiments.base import Row
from paper_figures import script, style

ROWS, COLUMNS = 2, 6
WHO = {"a person": "black", "EVLGen, OPT": "#0050C8", "EVLGen, LLaMA": "#007A3D"}
FINDINGS = ROOT / "docs" / "captions.png"
LINE = 0.105  # inches


def draw(scale: str) -> list[Path]:
    """The figure, and that of docs/FINDINGS.md where results go to the project's own folder.

    Raises:
        UserError: there are no runs, or their images are not there.
    """
    found = [run for run in read_all_seeds("table2", scale).all_runs if run.seed == 0 and is_evlgen(run.row)]
    captions = [run.predictions("captions", "coco") for run in found]
    missing = [f"{run.row.label} (seed 0)" for run, one in zip(found, captions, strict=True) if not one]
    if len(missing) == len(found):
        raise UserError(f"no captions of EVLGen; make them with `{command('table2', scale)}`")
    style.apply()
    paths = style.save(
        figure_of(captions, worlds.of(found[0].config.data)), "sample_captions", scale, found, missing
    )
    if scale == "mini" and not missing and results_folder() == ROOT / "results":
        write_atomic(FINDINGS, paths[1].read_bytes())
        paths.append(FINDINGS)
    return paths


def is_evlgen(row: Row) -> bool:
    """Whether a row's captions are shown."""
    return look_of(row.config).name == "EVLGen"


def figure_of(captions: list[dict[str, str]], world: World) -> Figure:
    """Images 0, 1, ... of the set ``coco``, each above a person's caption and those of the models.

    Raises:
        UserError: an image is not there or cannot be read.
    """
    pool = world.pool_of("coco")
    drawn = range(min(ROWS * COLUMNS, world.count(pool)))
    try:
        images = [world.image(pool, index) for index in drawn]
    except UnreadableImage as error:
        raise UserError(f"{error}; fetch this image again") from error
    figure, axes = plt.subplots(2 * ROWS, COLUMNS, figsize=(style.PAGE, 6.1), height_ratios=[1, 1.6] * ROWS)
    for axis in axes.flat:
        axis.axis("off")
    for index in drawn:
        image, text = axes[2 * (index // COLUMNS) : 2 * (index // COLUMNS) + 2, index % COLUMNS]
        # A photograph has more pixels than its place here.
        image.imshow(images[index], interpolation="nearest" if world.name == "miniworld" else "antialiased")
        lines = 0.0
        for caption, colour in zip(
            (world.references(pool, index)[0], *(one.get(str(index), "") for one in captions)),
            WHO.values(),
            strict=True,
        ):
            wrapped = textwrap.wrap(caption, 22)
            text.annotate(
                "\n".join(wrapped),
                (0, 1),
                xytext=(0, -72 * LINE * lines),
                xycoords="axes fraction",
                textcoords="offset points",
                va="top",
                fontsize=6,
                color=colour,
                in_layout=False,
            )
            lines += len(wrapped) + (0.4 if wrapped else 0)
    handles = [Line2D([], [], color=colour, lw=3, label=who) for who, colour in WHO.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

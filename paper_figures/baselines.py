"""Other connectors, image encoders and initial weights: a row of dots for each, with intervals over seeds."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt

from analysis.results import Run, read_several, values_of
from paper_figures import script, style

TITLES = {
    "baselines": "connectors (soft tokens)",
    "encoders": "image encoder",
    "initialisation": "initial weights",
}
METRICS = ("coco/CIDEr", "vqav2", "gap")
Line = tuple[str, Sequence[Run], str, str]


def draw(scale: str) -> list[Path]:
    """The figure: three blocks of rows, as many as have runs.

    Raises:
        UserError: there are no runs.
    """
    found, missing = read_several(tuple(TITLES), scale)
    style.apply()
    blocks = {name: [_line(name, row) for row in own.runs.values()] for name, own in found.items()}
    heights = [len(block) for block in blocks.values()]
    figure, axes = plt.subplots(
        *(len(blocks), len(METRICS)),
        figsize=(style.PAGE, 0.19 * sum(heights) + 0.65 * len(blocks)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for line, (name, block) in zip(axes, blocks.items(), strict=True):
        for axis, metric in zip(line, METRICS, strict=True):
            rows = [(text, values_of(row, metric), colour, mark) for text, row, colour, mark in block]
            style.dots(axis, rows, style.label(metric), labelled=axis is line[0])
        line[0].set_title(TITLES[name], loc="left")
    drawn = [run for own in found.values() for run in own.complete()]
    return style.save(figure, "baselines", scale, drawn, missing)


def _line(experiment: str, row: Sequence[Run]) -> Line:
    values: Mapping[str, float | str] = row[0].row.values
    connector = str(values["connector"])
    if experiment == "baselines":
        text = f"{connector} ({values['tokens']:g})" if "tokens" in values else connector
    else:
        text = f"{connector}, {values['encoder' if experiment == 'encoders' else 'init']}"
    return text, row, style.colour(connector), style.marker(connector)


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

"""Images of the miniworld's test set with one person's caption and those of two trained EVLGens, not chosen.

``python paper_figures/sample_captions.py`` draws the first images of ``coco_test`` into ``docs/captions.png``
from the run store (seed 0, both language models); ``python sweeps/run.py table2`` makes the runs.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from evlgen.data import miniworld  # noqa: E402
from experiments.scales import evlgen  # noqa: E402
from sweeps import store  # noqa: E402

COLOURS = ("black", "#0050c8", "#007a3d")  # a person, EVLGen with OPT, EVLGen with LLaMA


def draw(captions: list[dict[str, str]], out: Path, rows: int = 2, columns: int = 6) -> None:
    """Images 0, 1, ... of ``coco_test``, each above a person's caption and those of the models."""
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 3.9 * rows))
    pool = miniworld.pool("coco_test")
    for index, axis in enumerate(axes.flat):
        axis.imshow(pool.image(index), interpolation="nearest")
        axis.axis("off")
        place = 67.0
        texts = [pool.captions(index)[0], *(one[str(index)] for one in captions)]
        for text, colour in zip(texts, COLOURS, strict=True):
            wrapped = textwrap.fill(text, 30)
            axis.text(0, place, wrapped, va="top", fontsize=7, color=colour)
            place += 2 + 5.2 * (wrapped.count("\n") + 1)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.27, wspace=0.08, hspace=0.95)
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    found = []
    for run in (evlgen("mini"), evlgen("mini", language="vicuna")):
        predictions = store.run_folder(run) / "predictions.json"
        if not predictions.exists():
            print(f"{predictions}: not there; make it with `python sweeps/run.py table2`", file=sys.stderr)
            raise SystemExit(2)
        found.append(json.loads(predictions.read_text())["captions"]["coco"])
    draw(found, ROOT / "docs" / "captions.png")

"""Images of the miniworld's test set with one person's caption and a trained EVLGen's, seed 0, not chosen.

``python paper_figures/sample_captions.py`` draws the first images of ``coco_test`` into ``docs/captions.png``
from the run store; ``python sweeps/run.py table1`` makes the run.
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


def draw(captions: dict[str, str], out: Path, rows: int = 2, columns: int = 6) -> None:
    """Images 0, 1, ... of ``coco_test``, each above a person's caption (black) and the model's (blue)."""
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 3.5 * rows))
    pool = miniworld.pool("coco_test")
    for index, axis in enumerate(axes.flat):
        axis.imshow(pool.image(index), interpolation="nearest")
        axis.axis("off")
        person = textwrap.fill(pool.captions(index)[0], 30)
        model = textwrap.fill(captions[str(index)], 30)
        axis.text(0, 67, person, va="top", fontsize=7, color="black")
        axis.text(0, 69 + 5.2 * (person.count("\n") + 1), model, va="top", fontsize=7, color="#0050c8")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.2, wspace=0.08, hspace=0.62)
    out.parent.mkdir(exist_ok=True)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    folder = store.run_folder(evlgen("mini"))
    predictions = folder / "predictions.json"
    if not predictions.exists():
        print(f"{predictions}: not there; make it with `python sweeps/run.py table1`", file=sys.stderr)
        raise SystemExit(2)
    draw(json.loads(predictions.read_text())["captions"]["coco"], ROOT / "docs" / "captions.png")

"""Has a run collapsed? The thresholds, and the verdict on a run from its history. No torch.

`evlgen.diagnostics` measures, and training writes the measurements into ``metrics.jsonl``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

State = Literal["conditioned", "plateau", "collapsed", "undecided"]


@dataclass(frozen=True)
class CollapseThresholds:
    """Thresholds of `classify`, in nats a token. Fixed before any run was looked at.

    Attributes:
        conditioned: a gap from which on the image is used.
        unused: a gap below which it is not.
        rise: growth of the gap over the last third from which on it counts as rising.
        flat: fall of the validation loss over the last third up to which it has stopped falling.
        blind: distance to the blind level up to which the loss is at this level.
        points: validations needed in the last third to speak of a trend.
    """

    conditioned: float = 0.1
    unused: float = 0.02
    rise: float = 0.005
    flat: float = 0.01
    blind: float = 0.02
    points: int = 3


def classify(
    history: Sequence[Mapping[str, Any]], thresholds: CollapseThresholds = CollapseThresholds()
) -> State:
    """Whether a run uses its images, by the validations in its history.

    Before a connector is of use there is a plateau: the language model has learned the style of the captions
    and nothing of the image. A run that is stopped there looks collapsed without being so. The rules, in
    this order, on the validations of ``history`` (lines of ``metrics.jsonl`` that have a ``gap``):

    1. ``conditioned``: the last gap is at least 0.1.
    2. ``undecided``: there are fewer than three validations in the last third, so there is no trend to see.
    3. ``plateau``: the gap rises over the last third, by at least 0.005 on its least-squares line and by more
       than twice the scatter around it.
    4. ``plateau``: the validation loss still falls over the last third, by more than 0.01.
    5. ``collapsed``: the last gap is below 0.02, and the validation loss is no more than 0.02 better than the
       blind level: all that is left to see is a loss that neither falls nor needs the image.
    6. ``undecided``: anything else, such as a gap between 0.02 and 0.1 that has stopped rising.
    """
    points = [line for line in history if "gap" in line]
    if not points:
        return "undecided"
    last = points[-1]
    if last["gap"] >= thresholds.conditioned:
        return "conditioned"
    late = points[-(len(points) // 3) :] if len(points) >= 3 else []
    if len(late) < thresholds.points:
        return "undecided"
    gap_change, gap_scatter = _line([line["step"] for line in late], [line["gap"] for line in late])
    loss_change, _ = _line([line["step"] for line in late], [line["val_loss"] for line in late])
    if gap_change >= thresholds.rise and gap_change > 2 * gap_scatter:
        return "plateau"
    if loss_change < -thresholds.flat:
        return "plateau"
    if last["gap"] < thresholds.unused and last["val_loss"] >= last["blind_loss"] - thresholds.blind:
        return "collapsed"
    return "undecided"


def _line(steps: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Change along the least-squares line from the first step to the last, and the scatter around it."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    slope, intercept = np.polyfit(x, y, 1)
    around = y - (slope * x + intercept)
    return float(slope * (x[-1] - x[0])), float(np.sqrt((around**2).sum() / max(len(x) - 2, 1)))

"""Quality against the cost of training: each row at several budgets, each with its own complete schedule.

From these the time is read at which EVLGen first reaches what BLIP-2 reaches in its two stages (C1): the
paper says a fifth.
"""

from __future__ import annotations

from experiments.base import Experiment, Row
from experiments.scales import blip2, blip2_single_stage, evlgen, get

METRICS = ("vqav2", "gqa", "okvqa", "coco/CIDEr", "val_loss", "total_seconds")
# Thousand updates of the paper, of either single stage: each point is a chance to reach a score early.
SINGLE_STAGE = (50, 100, 150, 250, 400)
TWO_STAGES = (0.5, 1.0)  # of 250K + 80K


def build(scale: str) -> Experiment:
    """Rows that tables 1 and 2 have as well are the same runs."""
    rows = [
        Row(
            f"{connector}, {steps}K",
            make(scale, steps=steps),
            values={"connector": connector, "budget": steps},
            against=_two_stages(1) if connector == "EVLGen" else f"EVLGen, {steps}K",
        )
        for connector, make in (("EVLGen", evlgen), ("BLIP-2, single stage", blip2_single_stage))
        for steps in SINGLE_STAGE
    ]
    rows += [
        Row(
            _two_stages(share),
            blip2(scale, stage1_steps=250 * share, stage2_steps=80 * share),
            values={"connector": "BLIP-2, two stages", "budget": share},
            against=_two_stages(1),
        )
        for share in TWO_STAGES
    ]
    title = "Quality against the cost of training"
    return Experiment("budgets", title, tuple(rows), METRICS, get(scale).seeds, claimed=True)


def _two_stages(share: float) -> str:
    return f"BLIP-2, two stages, {250 * share:g}K + {80 * share:g}K"

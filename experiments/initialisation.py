"""Does a connector need BERT's weights to start from? The paper's has them; random ones beside."""

from __future__ import annotations

from experiments.base import Experiment, Row
from experiments.merge_schedules import with_connector
from experiments.scales import ABLATION_STEPS, ablation, blip2_single_stage, evlgen, get

METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap")


def build(scale: str) -> Experiment:
    """Both connectors from both."""
    rows = []
    for connector, make in (("EVLGen", evlgen), ("BLIP-2, single stage", blip2_single_stage)):
        for init in ("random", get(scale).bert):
            config = with_connector(ablation(make(scale, steps=ABLATION_STEPS)), init=init)
            values = {"connector": connector, "init": init}
            rows.append(Row(f"{connector}, from {init}", config, values=values))
    return Experiment("initialisation", "Initial weights", tuple(rows), METRICS, get(scale).seeds)

"""Does a connector need BERT's weights to start from, as in the paper, or do random ones do as well?

Both have the learning rate and the warm-up that were found for them: at one rate for both, the weights that
it was not found for would look worse than they are.
"""

from __future__ import annotations

from experiments.base import Experiment, Row
from experiments.changes import with_setting
from experiments.scales import ABLATION_STEPS, ablation, blip2_single_stage, evlgen, get

METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap")


def build(scale: str) -> Experiment:
    """Both connectors, each from both."""
    chosen = get(scale)
    rows = []
    for connector, make in (("EVLGen", evlgen), ("BLIP-2, single stage", blip2_single_stage)):
        usual = ablation(make(scale, steps=ABLATION_STEPS))
        for init in ("random", chosen.bert):
            config = usual
            if init != usual.connector.init:
                config = with_setting(usual, init, chosen.other_lr, chosen.other_warmup)
            values = {"connector": connector, "init": init}
            against = f"{connector}, from random"
            rows.append(Row(f"{connector}, from {init}", config, values=values, against=against))
    return Experiment("initialisation", "Initial weights", tuple(rows), METRICS, chosen.seeds)

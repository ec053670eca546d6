"""How BLIP-2 should divide its time between its two stages, and what each loss of stage 1 is worth."""

from __future__ import annotations

import dataclasses
from typing import Literal

from evlgen.config import RunConfig
from experiments.base import Experiment, Row
from experiments.scales import ablation, blip2, blip2_split, get, stage_costs

AS_IN_TABLE_1 = "as in table 1"
METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap", "total_seconds")
SPLITS = ((0, 1), (1, 3), (1, 1), (3, 1))  # stage 1 : stage 2
Loss = Literal["itc", "itm", "lm"]
LOSSES: tuple[Loss, ...] = ("itc", "itm", "lm")


def build(scale: str) -> Experiment:
    """All rows cost the same in total; a stage 1 without one of its losses has more updates instead."""
    chosen = get(scale)
    first, second = stage_costs(scale)
    usual = first / (first + second)
    rows = []
    for one, two in SPLITS:
        share = one / (one + two)
        config = blip2_split(scale, share)
        if share == 0:
            config = dataclasses.replace(config, init_from=None)
        values: dict[str, float | str] = {"share": share, "without": ""}
        label = f"stage 1 : stage 2 = {one} : {two}"
        rows.append(Row(label, ablation(config), values=values, against=AS_IN_TABLE_1))
    values = {"share": usual, "without": ""}
    rows.append(Row(AS_IN_TABLE_1, ablation(blip2(scale)), values=values, against=AS_IN_TABLE_1))
    for loss in LOSSES:
        values = {"share": usual, "without": loss}
        config = ablation(without(scale, loss))
        rows.append(Row(f"without {loss.upper()} in stage 1", config, values=values, against=AS_IN_TABLE_1))
    return Experiment("two_stage", "BLIP-2's two stages", tuple(rows), METRICS, chosen.seeds)


def without(scale: str, loss: Loss) -> RunConfig:
    """BLIP-2 with a stage 1 that lacks one of its losses and has as many more updates as that saves.

    ITM, with its three passes for a pair, is more than half of the miniature's stage 1: without it, the same
    number of updates would cost less than half.
    """
    objectives = tuple(one for one in LOSSES if one != loss)
    config = blip2(scale, stage1_steps=250 / get(scale).without_loss[loss])
    assert config.init_from is not None
    return dataclasses.replace(config, init_from=dataclasses.replace(config.init_from, objectives=objectives))

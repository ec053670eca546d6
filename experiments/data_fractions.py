"""How much data both connectors need: fractions of all pools, at equal updates and at equal epochs."""

from __future__ import annotations

import dataclasses

from evlgen.config import RunConfig
from experiments.base import Experiment, Row
from experiments.scales import ABLATION_STEPS, ablation, blip2_single_stage, evlgen, get

METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap")
FRACTIONS = (1.0, 1 / 2, 1 / 5, 1 / 10, 1 / 20, 1 / 50)


def build(scale: str) -> Experiment:
    """At equal epochs a tenth of the data gets a tenth of the updates."""
    rows = []
    for connector, make in (("EVLGen", evlgen), ("BLIP-2, single stage", blip2_single_stage)):
        for equal in ("steps", "epochs"):
            for fraction in FRACTIONS:
                if equal == "epochs" and fraction == 1:
                    continue  # the same run
                steps = ABLATION_STEPS * (fraction if equal == "epochs" else 1)
                rows.append(
                    Row(
                        f"{connector}, 1/{1 / fraction:g} of the data, equal {equal}",
                        with_fraction(ablation(make(scale, steps=steps)), fraction),
                        values={"connector": connector, "fraction": fraction, "equal": equal},
                        against=f"{connector}, 1/1 of the data, equal steps",
                    )
                )
    return Experiment("data_fractions", "Fractions of the data", tuple(rows), METRICS, get(scale).seeds)


def with_fraction(config: RunConfig, fraction: float) -> RunConfig:
    """The run with the first images of each pool, in the same proportions; at least one of each."""
    pools = tuple((name, max(1, round(size * fraction))) for name, size in config.data.pools)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, pools=pools))

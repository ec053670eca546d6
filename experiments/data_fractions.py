"""How much data both connectors need: fractions of all pools, at equal updates and at equal epochs."""

from __future__ import annotations

import dataclasses

from evlgen.config import RunConfig
from experiments.base import Experiment, Row
from experiments.scales import ABLATION_STEPS, ablation, blip2_single_stage, evlgen, get

METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap")
FRACTIONS = (1.0, 1 / 2, 1 / 5, 1 / 10, 1 / 20, 1 / 50)
NOTES = (
    "At equal epochs a fraction of the data also gets only that fraction of the updates: the small ones end "
    "before they use their images, and say nothing about how much data is needed once they do."
)


def build(scale: str) -> Experiment:
    """At equal epochs, a tenth of the data gets a tenth of the updates."""
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
        if connector == "EVLGen":
            rows.append(_cleaner(scale))
    title = "Fractions of the data"
    return Experiment("data_fractions", title, tuple(rows), METRICS, get(scale).seeds, NOTES)


def _cleaner(scale: str) -> Row:
    """All pools but the noisiest, whole: what less data is worth if it is the better part.

    The paper's 11M pairs are both fewer and cleaner; the fractions of all pools are only fewer.
    """
    config = ablation(evlgen(scale, steps=ABLATION_STEPS))
    _, *others = config.data.pools
    fraction = sum(size for _, size in others) / sum(size for _, size in config.data.pools)
    values: dict[str, float | str] = {"connector": "EVLGen", "fraction": fraction, "equal": "steps, cleaner"}
    return Row(
        f"EVLGen, all but the noisiest pool (1/{1 / fraction:g} of the data), equal steps",
        dataclasses.replace(config, data=dataclasses.replace(config.data, pools=tuple(others))),
        values=values,
        against="EVLGen, 1/1 of the data, equal steps",
    )


def with_fraction(config: RunConfig, fraction: float) -> RunConfig:
    """The run with the first images of each pool, in the same proportions; at least one of each."""
    pools = tuple((name, max(1, round(size * fraction))) for name, size in config.data.pools)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, pools=pools))

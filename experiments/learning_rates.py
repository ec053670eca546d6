"""The search of peak learning rates, the same grid for every part, by validation loss.

What it found is written down in CALIBRATION.md and in force in ``experiments/scales.py``. The rates of the
miniature were chosen from this table once; no test set was looked at.
"""

from __future__ import annotations

import dataclasses

from evlgen.config import EvalConfig, RunConfig
from experiments.base import Experiment, Row
from experiments.scales import blip2, blip2_single_stage, evlgen

GRID = (3e-4, 1e-3, 3e-3, 1e-2)
METRICS = ("val_loss", "gap")


def build(scale: str) -> Experiment:
    """Each part at each rate; the two stages of BLIP-2 one after the other, the other stage as in force."""
    rows = []
    for rate in GRID:
        two = blip2(scale)
        assert two.init_from is not None
        scaled = {
            "EVLGen": with_lr(evlgen(scale), rate),
            "BLIP-2, single stage": with_lr(blip2_single_stage(scale), rate),
            "BLIP-2, stage 2 of two": with_lr(two, rate),
            "BLIP-2, stage 1 of two": dataclasses.replace(two, init_from=with_lr(two.init_from, rate)),
        }
        rows += [Row(f"{part}, lr {rate:g}", _unscored(config), {}) for part, config in scaled.items()]
    return Experiment("learning_rates", "Search of the peak learning rates", tuple(rows), METRICS, 1)


def with_lr(config: RunConfig, lr: float) -> RunConfig:
    """The run with another peak learning rate, the ends of its schedule in proportion."""
    optim = dataclasses.replace(config.optim, lr=lr, warmup_lr=lr / 100, min_lr=lr / 10)
    return dataclasses.replace(config, optim=optim)


def _unscored(config: RunConfig) -> RunConfig:
    """Only the validation loss counts here: no captions, no questions."""
    return dataclasses.replace(config, evaluation=EvalConfig(validation=config.evaluation.validation))

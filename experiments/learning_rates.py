"""The search of peak learning rates and warm-ups, the same grid for every part, by validation loss.

What it found is written down in CALIBRATION.md and in force in ``experiments/scales.py``. The settings of the
miniature were chosen from this table once; no test set was looked at.
"""

from __future__ import annotations

import dataclasses
import itertools

from evlgen.config import EvalConfig, RunConfig
from experiments.base import Experiment, Row
from experiments.scales import blip2, blip2_single_stage, evlgen

RATES = (1e-3, 3e-3)
WARMUPS = (0.05, 0.15, 0.3)  # shares of the updates
METRICS = ("val_loss", "gap")


def build(scale: str) -> Experiment:
    """Each part at each setting; of BLIP-2's two stages one changes, the other is as in force."""
    rows = []
    for rate, warmup in itertools.product(RATES, WARMUPS):
        two = blip2(scale)
        assert two.init_from is not None
        changed = {
            "EVLGen": with_rate(evlgen(scale), rate, warmup),
            "BLIP-2, single stage": with_rate(blip2_single_stage(scale), rate, warmup),
            "BLIP-2, stage 2 of two": with_rate(two, rate, warmup),
            "BLIP-2, stage 1 of two": dataclasses.replace(
                two, init_from=with_rate(two.init_from, rate, warmup)
            ),
        }
        rows += [
            Row(f"{part}, lr {rate:g}, warm-up {warmup:.0%}", _unscored(config), {})
            for part, config in changed.items()
        ]
    return Experiment("learning_rates", "Search of learning rates and warm-ups", tuple(rows), METRICS, 1)


def with_rate(config: RunConfig, lr: float, warmup: float) -> RunConfig:
    """The run with another peak learning rate, its schedule's ends in proportion, and another warm-up."""
    optim = dataclasses.replace(
        config.optim,
        lr=lr,
        warmup_lr=lr / 100,
        min_lr=lr / 10,
        warmup_steps=max(1, round(config.optim.steps * warmup)),
    )
    return dataclasses.replace(config, optim=optim)


def _unscored(config: RunConfig) -> RunConfig:
    """Only the validation loss counts here: no captions, no questions."""
    return dataclasses.replace(config, evaluation=EvalConfig(validation=config.evaluation.validation))

"""The search of peak learning rates and initial scales, the same grid for every part, by validation loss.

What it found is written down in CALIBRATION.md and in force in ``experiments/scales.py``. The rates of the
miniature were chosen from this table once; no test set was looked at.
"""

from __future__ import annotations

import dataclasses

from evlgen.config import EvalConfig, RunConfig
from experiments.base import Experiment, Row
from experiments.scales import blip2, blip2_single_stage, evlgen

GRID = (0.3, 1.0, 3.0)  # times the rate in force
METRICS = ("val_loss", "gap")


def build(scale: str) -> Experiment:
    """Each part at each rate; the two stages of BLIP-2 one after the other, the other stage as in force."""
    rows = []
    for factor in GRID:
        two = blip2(scale)
        assert two.init_from is not None
        scaled = {
            "EVLGen": scale_lr(evlgen(scale), factor),
            "BLIP-2, single stage": scale_lr(blip2_single_stage(scale), factor),
            "BLIP-2, stage 2 of two": scale_lr(two, factor),
            "BLIP-2, stage 1 of two": dataclasses.replace(two, init_from=scale_lr(two.init_from, factor)),
        }
        rows += [
            Row(f"{part}, lr {_rate(part, config):g}", _unscored(config), {})
            for part, config in scaled.items()
        ]
    return Experiment("learning_rates", "Search of the peak learning rates", tuple(rows), METRICS, 1)


def scale_lr(config: RunConfig, factor: float) -> RunConfig:
    """The run with its whole learning-rate schedule times ``factor``."""
    optim = config.optim
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(
            optim, lr=optim.lr * factor, warmup_lr=optim.warmup_lr * factor, min_lr=optim.min_lr * factor
        ),
    )


def _rate(part: str, config: RunConfig) -> float:
    stage = config.init_from if part == "BLIP-2, stage 1 of two" else config
    assert stage is not None
    return stage.optim.lr


def _unscored(config: RunConfig) -> RunConfig:
    """Only the validation loss counts here: no captions, no questions."""
    return dataclasses.replace(config, evaluation=EvalConfig(validation=config.evaluation.validation))

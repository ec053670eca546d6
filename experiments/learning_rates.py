"""The search of peak learning rates, warm-ups and initial weights, by validation loss.

Every part gets the same settings. What was found is written down in CALIBRATION.md and used in
``experiments/scales/mini.py``: the miniature's settings were chosen once, from this table, without a look at
any test set.
"""

from __future__ import annotations

import dataclasses

from evlgen.config import EvalConfig, RunConfig
from experiments.base import Experiment, Row
from experiments.changes import with_setting
from experiments.scales import (
    blip2,
    blip2_single_stage,
    blip2_stage1,
    evlgen,
    get,
    linear,
    mlp,
    perceiver,
    pooled,
)

# Initial weights, peak learning rate in multiples of EVLGen's default, share of warm-up
SETTINGS = (
    ("random", 1 / 3, 0.15),
    ("random", 1.0, 0.05),
    ("random", 1.0, 0.15),
    ("random", 1.0, 0.30),
    ("random", 10 / 3, 0.15),
    ("bert", 1 / 10, 0.15),
    ("bert", 1 / 3, 0.15),
    ("bert", 1.0, 0.15),
)
# Further settings of parts whose best lay at the edge of these
FURTHER = {
    "BLIP-2, single stage": ((1.0, 0.50),),
    "linear": ((10.0, 0.15),),
    "MLP": ((10.0, 0.15), (100 / 3, 0.15)),
    "average pooling": ((10.0, 0.15), (100 / 3, 0.15)),
    "perceiver": ((1 / 10, 0.15), (1 / 3, 0.30)),
    "BLIP-2, stage 1 of two": ((1 / 10, 0.15), (1 / 3, 0.30)),
}
METRICS = ("val_loss", "gap")


def build(scale: str) -> Experiment:
    """Each part at each setting.

    Of BLIP-2's two stages one changes while the other keeps its default settings, and the loss after both
    counts; stage 2 starts from what stage 1 has learned. The baselines have no BERT in them.
    """
    baselines = {"linear": linear, "MLP": mlp, "average pooling": pooled, "perceiver": perceiver}
    chosen = get(scale)
    rows = []
    for weights, factor, warmup in SETTINGS:
        init = chosen.bert if weights == "bert" else weights
        rate = _rate(scale, factor)
        two = blip2(scale)
        first = with_setting(blip2_stage1(scale), init, rate, warmup)
        parts = {
            "EVLGen": with_setting(evlgen(scale), init, rate, warmup),
            "BLIP-2, single stage": with_setting(blip2_single_stage(scale), init, rate, warmup),
            "BLIP-2, stage 1 of two": dataclasses.replace(two, init_from=first),
        }
        if init == "random":
            parts["BLIP-2, stage 2 of two"] = with_setting(two, init, rate, warmup)
            for name, baseline in baselines.items():
                parts[name] = with_setting(baseline(scale), init, rate, warmup)
        rows += [(part, _row(part, config, init, rate, warmup)) for part, config in parts.items()]
    varied = baselines | {"BLIP-2, single stage": blip2_single_stage, "BLIP-2, stage 1 of two": blip2_stage1}
    for part, settings in FURTHER.items():
        for factor, warmup in settings:
            rate = _rate(scale, factor)
            config = with_setting(varied[part](scale), "random", rate, warmup)
            if varied[part] is blip2_stage1:
                config = dataclasses.replace(blip2(scale), init_from=config)
            rows.append((part, _row(part, config, "random", rate, warmup)))
    rows.sort(key=lambda row: row[0])
    title = "Search of learning rates, warm-ups and initial weights"
    return Experiment("learning_rates", title, tuple(row for _, row in rows), METRICS, 1, in_all=False)


def _rate(scale: str, factor: float) -> float:
    """``factor`` times EVLGen's default learning rate, rounded to one digit."""
    return float(f"{evlgen(scale).optim.lr * factor:.1g}")


def _row(part: str, config: RunConfig, init: str, rate: float, warmup: float) -> Row:
    """Only the validation loss counts here: no captions, no questions."""
    evaluation = EvalConfig(validation=config.evaluation.validation)
    label = f"{part}, {init}, lr {rate:g}, warm-up {warmup:.0%}"
    return Row(label, dataclasses.replace(config, evaluation=evaluation))

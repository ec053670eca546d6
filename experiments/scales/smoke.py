"""The miniature in seconds, for tests: 250K updates of the paper become 30, and 80K of stage 2 become 10."""

from __future__ import annotations

import dataclasses

from evlgen.config import DataConfig, EvalConfig, RunConfig
from experiments.scales import mini
from experiments.scales.base import optim

PAIRS = DataConfig(pools=(("web", 120), ("ccs", 32), ("coco", 8)))
REDUCED = (("ccs", 14), ("coco", 3))
EVALUATION = EvalConfig(
    sets=(
        ("coco", 16),
        ("nocaps_in", 8),
        ("nocaps_near", 8),
        ("nocaps_out", 8),
        ("flickr", 8),
        ("vqav2", 16),
        ("gqa", 16),
        ("okvqa", 16),
    ),
    validation=32,
    beams=2,
    max_length=16,
)


def evlgen(steps: float = 250) -> RunConfig:
    """EVLGen."""
    return _tiny(mini.evlgen(), 0.12 * steps)


def blip2_single_stage(steps: float = 250) -> RunConfig:
    """BLIP-2's Q-Former tied to the language model from the start."""
    return _tiny(mini.blip2_single_stage(), 0.12 * steps, warmup=0.3)


def blip2_stage1(steps: float = 250) -> RunConfig:
    """BLIP-2's stage 1."""
    config = _tiny(mini.blip2_stage1(), 0.12 * steps)
    return dataclasses.replace(config, evaluation=EvalConfig(validation=32))


def blip2_stage2(steps: float = 80) -> RunConfig:
    """BLIP-2's stage 2."""
    return _tiny(mini.blip2_stage2(), 0.125 * steps)


def linear(steps: float = 250) -> RunConfig:
    """LLaVA's single linear layer."""
    return _tiny(mini.linear(), 0.12 * steps)


def mlp(steps: float = 250) -> RunConfig:
    """The MLP of LLaVA-1.5."""
    return _tiny(mini.mlp(), 0.12 * steps)


def pooled(steps: float = 250) -> RunConfig:
    """Average pooling."""
    return _tiny(mini.pooled(), 0.12 * steps)


def perceiver(steps: float = 250) -> RunConfig:
    """Flamingo's perceiver resampler."""
    return _tiny(mini.perceiver(), 0.12 * steps, warmup=0.3)


def _tiny(config: RunConfig, updates: float, warmup: float = 0.15) -> RunConfig:
    """The miniature's run, at its learning rate, with few and small updates, and little to be scored by."""
    training = optim(updates, batch_size=16, lr=config.optim.lr, warmup=warmup, checkpoints=2)
    return dataclasses.replace(config, data=PAIRS, optim=training, evaluation=EVALUATION)


SCALE = dataclasses.replace(
    mini.SCALE,
    name="smoke",
    seeds=1,
    claim_seeds=1,
    reduced=REDUCED,
    evlgen=evlgen,
    blip2_single_stage=blip2_single_stage,
    blip2_stage1=blip2_stage1,
    blip2_stage2=blip2_stage2,
    linear=linear,
    mlp=mlp,
    pooled=pooled,
    perceiver=perceiver,
)

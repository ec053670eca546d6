"""Small real models on the miniworld: SmolLM2-135M, connectors that start from a six-layer BERT (MiniLM).

Image features and pairs are the miniature's; budgets are what a CPU can do in under an hour, three fifths of
the miniature's updates. All runs have the paper's learning rate, nothing was searched; see CALIBRATION.md.
"""

from __future__ import annotations

import dataclasses

from evlgen.config import (
    ConnectorConfig,
    EvalConfig,
    LinearConfig,
    PerceiverConfig,
    PoolConfig,
    QFormerConfig,
    RunConfig,
    TomeFormerConfig,
)
from experiments.scales import mini
from experiments.scales.base import Language, Scale, optim

LANGUAGES = (Language("smollm2-135m", width=576),)  # there is but one
REDUCED = (("ccs", 1600), ("coco", 400))  # all of the cleaner pairs: many more updates than at mini
EVALUATION = EvalConfig(sets=(("coco", 100), ("vqav2", 100)), validation=64, batch_size=32)
QFORMER = QFormerConfig(
    encoder_width=96,
    width=384,
    num_layers=6,
    num_heads=12,
    intermediate=1536,
    max_positions=512,
    num_queries=12,  # to TomeFormer's 11 tokens as the paper's 32 to its 29
    dropout=0.0,  # no pair is seen twice
    init="minilm-l6",
)


def evlgen(steps: float = 250) -> RunConfig:
    """EVLGen: TomeFormer, one stage."""
    return RunConfig(
        connector=TomeFormerConfig(
            input_width=96,
            width=384,
            num_layers=6,
            num_heads=12,
            intermediate=1536,
            max_positions=512,
            # 65 -> 56 -> 47 -> 38 -> 29 -> 20 -> 11 tokens: the most that all of 6 layers can merge of 65
            # tokens, as the paper's 19 of 257 in 12
            r=9,
            dropout=0.0,  # no pair is seen twice
            init="minilm-l6",
        ),
        vision="mini-vit",
        language=LANGUAGES[0].name,
        data=mini.PAIRS,
        optim=optim(
            1.2 * steps,  # 250K -> 300
            batch_size=16,
            lr=1e-4,
            warmup=0.15,
            precision="bf16",  # the language model takes two thirds of an update's time in it
            checkpoints=4,
        ),
        evaluation=EVALUATION,
    )


def blip2_single_stage(steps: float = 250) -> RunConfig:
    """BLIP-2's Q-Former tied to the language model from the start, trained as EVLGen is."""
    return dataclasses.replace(evlgen(steps), connector=QFORMER)


def blip2_stage1(steps: float = 250) -> RunConfig:
    """BLIP-2's stage 1: the Q-Former learns from images and texts alone (ITC, ITM, LM)."""
    return RunConfig(
        stage="represent",
        connector=QFORMER,
        vision="mini-vit",
        language="minilm-l6",  # whose words the Q-Former reads
        data=mini.PAIRS,
        optim=optim(  # 250K -> 180
            0.72 * steps, batch_size=16, lr=1e-4, warmup=0.15, precision="bf16", checkpoints=4
        ),
        evaluation=EvalConfig(validation=64),
    )


def blip2_stage2(steps: float = 80) -> RunConfig:
    """BLIP-2's stage 2: as its single stage, but behind stage 1."""
    return RunConfig(
        connector=QFORMER,
        vision="mini-vit",
        language=LANGUAGES[0].name,
        data=mini.PAIRS,
        optim=optim(  # 80K -> 300
            3.75 * steps, batch_size=16, lr=1e-4, warmup=0.15, precision="bf16", checkpoints=4
        ),
        evaluation=EVALUATION,
    )


def linear(steps: float = 250) -> RunConfig:
    """LLaVA's single linear layer."""
    return _baseline(LinearConfig(input_width=96, width=96), steps)


def mlp(steps: float = 250) -> RunConfig:
    """The MLP of LLaVA-1.5."""
    return _baseline(LinearConfig(input_width=96, width=LANGUAGES[0].width, num_layers=2), steps)


def pooled(steps: float = 250) -> RunConfig:
    """Average pooling: 8 x 8 patches -> 11 tokens with the class token, as many as TomeFormer's."""
    return _baseline(PoolConfig(input_width=96, rows=2, columns=5), steps)


def perceiver(steps: float = 250) -> RunConfig:
    """Flamingo's perceiver resampler, of TomeFormer's size."""
    connector = PerceiverConfig(
        input_width=96,
        width=384,
        num_layers=6,
        num_heads=12,
        intermediate=1536,
        max_positions=512,
        num_latents=11,
    )
    return _baseline(connector, steps)


def _baseline(connector: ConnectorConfig, steps: float) -> RunConfig:
    return dataclasses.replace(evlgen(steps), connector=connector)


SCALE = Scale(
    name="bridge",
    seeds=1,
    claim_seeds=1,
    languages=LANGUAGES,
    reduced=REDUCED,
    evlgen=evlgen,
    blip2_single_stage=blip2_single_stage,
    blip2_stage1=blip2_stage1,
    blip2_stage2=blip2_stage2,
    linear=linear,
    mlp=mlp,
    pooled=pooled,
    perceiver=perceiver,
    tokens=65,
    other_vision=("mini-clip", 64),
    bert="minilm-l6",
    other_lr=1e-4,
    other_warmup=0.15,
    stage1_cost=3.0,
    without_loss={"itc": 0.875163, "itm": 0.470212, "lm": 0.711845},
)

"""What the models and budgets of the paper are at each scale: the one place where they are written down.

An experiment says ``evlgen(scale, pairs="11M", steps=150)`` in the paper's words and gets the run that plays
this part at ``scale``. At ``paper`` these are the authors' settings. At ``mini`` a thousand updates of the
paper become two, batches of 1,600 become 32, and 104M pairs become 8,000, in the same proportions. BLIP-2's
two stages divide their time otherwise: a stage 2 in proportion would end before it uses the image at all.
At ``bridge`` the language model and the connectors' BERT are real ones, of the smallest, and budgets are what
a CPU can do in under an hour.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from evlgen.config import (
    ConnectorConfig,
    DataConfig,
    EvalConfig,
    LinearConfig,
    OptimConfig,
    PerceiverConfig,
    PoolConfig,
    QFormerConfig,
    RunConfig,
    TomeFormerConfig,
)
from evlgen.errors import UserError

Pairs = Literal["104M", "11M"]
Language = Literal["opt", "vicuna"]
Precision = Literal["fp32", "bf16", "fp16"]
ABLATION_SETS = ("coco", "vqav2")
ABLATION_STEPS = 150  # thousand updates of the paper: its shorter setting
BASELINES = ("linear", "mlp", "pool", "perceiver")  # none of them has a BERT in it
PARTS = ("tomeformer", "qformer", "stage1", "stage2", *BASELINES)


@dataclass(frozen=True)
class Scale:
    """Everything that differs between scales.

    Attributes:
        seeds: seeds of a run by default.
        updates: number of updates that stand for a thousand of the paper's, by part: ``tomeformer``,
            ``qformer`` (in a single stage), ``stage1``, ``stage2``, and the baselines, which have one stage.
        lr, warmup, init: peak learning rate, share of the updates that warm up to it, initial weights of the
            connector, by part; see CALIBRATION.md for how the miniature's were found.
        precision: autocast in training.
        warmup_steps: updates of every warm-up, however long the run, in the place of a share; at most half of
            the run. 0: the share.
        other_lr, other_warmup: the same for a connector that starts from the other initial weights: from
            ``bert`` where ``init`` says random, from random ones where it says ``bert``. A warm-up of None is
            that of the run.
        language_width: width of each language model, which the hidden layer of LLaVA-1.5's MLP has.
        stage1_cost: seconds of an update of stage 1 in those of an update of stage 2.
        without_loss: MACs of an update of stage 1 without one of its losses in those with all, as
            `evlgen.cost` counts them; without the image encoder's where its features are cached.
        tokens: of an image, the class token among them.
        other_vision: another image encoder, and the width of its features.
        bert: weights of a BERT of the connectors' shape.
        data, reduced: pools in the roles of the 104M and the 11M pairs.
        vicuna_steps: thousand updates of the paper that EVLGen has with Vicuna by default.
        vicuna_warmup_steps: ``warmup_steps`` with Vicuna.
        vicuna: pools in the role of the 104M pairs with Vicuna; empty: those of ``data``.
        claim_seeds: seeds of the experiments that claims rest on, where everything is run.
    """

    name: str
    seeds: int
    claim_seeds: int
    updates: dict[str, float]
    batch_size: int
    lr: dict[str, float]
    warmup: dict[str, float]
    init: dict[str, str]
    other_lr: float
    other_warmup: float | None
    stage1_cost: float
    without_loss: dict[str, float]
    tokens: int
    tomeformer: TomeFormerConfig
    qformer: QFormerConfig
    pool: PoolConfig
    perceiver: PerceiverConfig
    vision: str
    other_vision: tuple[str, int]
    bert: str
    language: dict[Language, str]
    language_width: dict[Language, int]
    data: DataConfig
    reduced: tuple[tuple[str, int], ...]
    evaluation: EvalConfig
    checkpoints: int  # in one run
    precision: Precision = "fp32"
    warmup_steps: int = 0
    vicuna_steps: float = 250
    vicuna_warmup_steps: int = 0
    vicuna: tuple[tuple[str, int], ...] = ()


_MINI_TOMEFORMER = TomeFormerConfig(
    input_width=96,
    width=96,
    num_layers=4,
    num_heads=4,
    intermediate=384,
    max_positions=128,
    r=12,
    dropout=0.0,
)  # 65 -> 53 -> 41 -> 29 -> 17 tokens
_MINI_QFORMER = QFormerConfig(
    encoder_width=96,
    width=96,
    num_layers=4,
    num_heads=4,
    intermediate=384,
    max_positions=128,
    num_queries=18,  # to TomeFormer's 17 as the paper's 32 to its 29
    embed_dim=64,
    dropout=0.0,
)
_MINI_PERCEIVER = PerceiverConfig(
    input_width=96,
    width=96,
    num_layers=4,
    num_heads=4,
    intermediate=384,
    max_positions=128,
    num_latents=17,
)
_MINI = Scale(
    name="mini",
    seeds=3,
    claim_seeds=5,
    updates={"tomeformer": 2.0, "qformer": 2.0, "stage1": 1.2, "stage2": 6.25}
    | dict.fromkeys(BASELINES, 2.0),
    batch_size=32,
    lr={"tomeformer": 3e-3, "qformer": 3e-3, "stage1": 1e-3, "stage2": 3e-3}
    | {"linear": 1e-2, "mlp": 3e-2, "pool": 3e-2, "perceiver": 1e-3},
    warmup=dict.fromkeys(PARTS, 0.15) | {"qformer": 0.3, "perceiver": 0.3},
    init=dict.fromkeys(PARTS, "random"),
    other_lr=1e-3,
    other_warmup=0.15,
    stage1_cost=3.0,  # measured: 0.359 s and 0.118 s; counted: 321M MACs and 107M
    without_loss={"itc": 0.875409, "itm": 0.377998, "lm": 0.846402},
    tokens=65,
    tomeformer=_MINI_TOMEFORMER,
    qformer=_MINI_QFORMER,
    pool=PoolConfig(input_width=96, rows=4, columns=4),  # 8 x 8 patches -> 17 tokens, as TomeFormer's
    perceiver=_MINI_PERCEIVER,
    vision="mini-vit",
    other_vision=("mini-clip", 64),
    bert="mini-bert",
    language={"opt": "mini-opt", "vicuna": "mini-llama"},
    language_width={"opt": 96, "vicuna": 96},
    data=DataConfig(pools=(("web", 6000), ("ccs", 1600), ("coco", 400))),
    reduced=(("ccs", 680), ("coco", 170)),  # 10.6% of the pairs, as 11M of 104M
    evaluation=EvalConfig(
        sets=(
            ("coco", 250),
            ("nocaps_in", 100),
            ("nocaps_near", 100),
            ("nocaps_out", 100),
            ("flickr", 150),
            ("vqav2", 400),
            ("gqa", 300),
            ("okvqa", 300),
        ),
        validation=256,
    ),
    checkpoints=3,
)
_SMOKE = dataclasses.replace(
    _MINI,
    name="smoke",
    seeds=1,
    claim_seeds=1,
    updates=dict.fromkeys(PARTS, 0.12),  # 250K -> 30
    batch_size=16,
    data=DataConfig(pools=(("web", 120), ("ccs", 32), ("coco", 8))),
    reduced=(("ccs", 14), ("coco", 3)),
    evaluation=EvalConfig(
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
    ),
    checkpoints=2,
)
_BRIDGE_TOMEFORMER = TomeFormerConfig(
    input_width=96,
    width=384,
    num_layers=6,
    num_heads=12,
    intermediate=1536,
    max_positions=512,
    r=9,  # the most that all of 6 layers can merge of 65 tokens, as the paper's 19 of 257 in 12
    dropout=0.0,  # no pair is seen twice
)  # 65 -> 56 -> 47 -> 38 -> 29 -> 20 -> 11 tokens
_BRIDGE = dataclasses.replace(
    _MINI,
    name="bridge",
    seeds=1,
    claim_seeds=1,
    updates={part: 0.6 * updates for part, updates in _MINI.updates.items()},  # 250K -> 300
    batch_size=16,
    reduced=(("ccs", 1600), ("coco", 400)),  # all of the cleaner pairs: many more updates than at mini
    precision="bf16",  # the language model takes two thirds of an update's time in it
    lr=dict.fromkeys(PARTS, 1e-4),  # the paper's; not searched, see CALIBRATION.md
    warmup=dict.fromkeys(PARTS, 0.15),
    init=dict.fromkeys(PARTS, "minilm-l6") | dict.fromkeys(BASELINES, "random"),
    other_lr=1e-4,
    other_warmup=0.15,
    without_loss={"itc": 0.875163, "itm": 0.470212, "lm": 0.711845},
    tomeformer=_BRIDGE_TOMEFORMER,
    qformer=QFormerConfig(
        encoder_width=96,
        width=384,
        num_layers=6,
        num_heads=12,
        intermediate=1536,
        max_positions=512,
        num_queries=12,  # to TomeFormer's 11 as the paper's 32 to its 29
        dropout=0.0,
    ),
    pool=PoolConfig(input_width=96, rows=2, columns=5),  # 8 x 8 patches -> 11 tokens, as TomeFormer's
    perceiver=PerceiverConfig(
        input_width=96,
        width=384,
        num_layers=6,
        num_heads=12,
        intermediate=1536,
        max_positions=512,
        num_latents=11,
    ),
    bert="minilm-l6",
    language=dict.fromkeys(("opt", "vicuna"), "smollm2-135m"),  # there is but one
    language_width=dict.fromkeys(("opt", "vicuna"), 576),
    evaluation=EvalConfig(sets=(("coco", 100), ("vqav2", 100)), validation=64, batch_size=32),
    checkpoints=4,
)
_PAPER = Scale(
    name="paper",
    seeds=1,
    claim_seeds=1,
    updates=dict.fromkeys(PARTS, 1000.0),
    batch_size=1600,
    precision="fp16",
    lr=dict.fromkeys(PARTS, 1e-4),
    warmup={},
    warmup_steps=5000,
    init=dict.fromkeys(PARTS, "bert-base-uncased") | dict.fromkeys(BASELINES, "random"),
    other_lr=1e-4,
    other_warmup=None,
    # Derived: 234 hours for 250K + 80K updates, if one of stage 2 takes as long as one of EVLGen's, 1.915 s
    stage1_cost=1.44,
    without_loss={"itc": 0.976834, "itm": 0.854353, "lm": 0.969663},
    tokens=257,
    tomeformer=TomeFormerConfig(),
    qformer=QFormerConfig(),
    pool=PoolConfig(),  # 16 x 16 patches -> 4 x 7, with the class token 29 tokens, as TomeFormer's
    perceiver=PerceiverConfig(),
    vision="eva-clip-g",
    other_vision=("clip-vit-l", 1024),
    bert="bert-base-uncased",
    language={"opt": "opt-2.7b", "vicuna": "vicuna-7b"},
    language_width={"opt": 2560, "vicuna": 4096},
    data=DataConfig(
        world="capfilt",
        cache=False,
        pools=(("laion-115m", 78_000_000), ("ccs-14m", 20_800_000), ("coco", 5_200_000)),
    ),
    reduced=(("ccs-14m", 8_800_000), ("coco", 2_200_000)),
    vicuna_steps=60,
    vicuna_warmup_steps=2000,
    vicuna=(("ccs-14m", 23_400_000), ("coco", 2_600_000)),  # 45 : 5; what counts is the proportion
    evaluation=EvalConfig(
        sets=(
            ("coco", 5000),
            ("nocaps_in", 648),
            ("nocaps_near", 2938),
            ("nocaps_out", 914),
            ("flickr", 1000),
            ("vqav2", 214_354),
            ("gqa", 12_578),
            ("okvqa", 5046),
        ),
        validation=2000,
    ),
    checkpoints=50,
)
_SCALES = {scale.name: scale for scale in (_SMOKE, _MINI, _BRIDGE, _PAPER)}
NAMES = tuple(_SCALES)


def get(name: str) -> Scale:
    """The scale called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in _SCALES:
        raise UserError(f"scale {name!r}: no such scale; there are: {', '.join(_SCALES)}")
    return _SCALES[name]


def evlgen(
    scale: str, *, language: Language = "opt", pairs: Pairs = "104M", steps: float | None = None
) -> RunConfig:
    """EVLGen: TomeFormer, one stage, ``steps`` thousand updates of the paper; None: its longer setting."""
    chosen = get(scale)
    if steps is None:
        steps = chosen.vicuna_steps if language == "vicuna" else 250
    return _run(chosen, "tomeformer", chosen.tomeformer, language, pairs, steps)


def blip2_single_stage(
    scale: str, *, language: Language = "opt", pairs: Pairs = "104M", steps: float = 250
) -> RunConfig:
    """BLIP-2's Q-Former tied to the LLM from the start ("stage 2 only")."""
    chosen = get(scale)
    return _run(chosen, "qformer", chosen.qformer, language, pairs, steps)


def linear(scale: str, *, language: Language = "opt", pairs: Pairs = "104M", steps: float = 250) -> RunConfig:
    """LLaVA's single linear layer: all image tokens go to the LLM."""
    chosen = get(scale)
    width = chosen.tomeformer.input_width
    return _run(chosen, "linear", LinearConfig(input_width=width, width=width), language, pairs, steps)


def mlp(scale: str, *, language: Language = "opt", pairs: Pairs = "104M", steps: float = 250) -> RunConfig:
    """The MLP of LLaVA-1.5: as `linear`, with one hidden layer of the LLM's width."""
    chosen = get(scale)
    width, hidden = chosen.tomeformer.input_width, chosen.language_width[language]
    connector = LinearConfig(input_width=width, width=hidden, num_layers=2)
    return _run(chosen, "mlp", connector, language, pairs, steps)


def pooled(scale: str, *, language: Language = "opt", pairs: Pairs = "104M", steps: float = 250) -> RunConfig:
    """Average pooling of the patches to as many soft tokens as TomeFormer's."""
    chosen = get(scale)
    return _run(chosen, "pool", chosen.pool, language, pairs, steps)


def perceiver(
    scale: str, *, language: Language = "opt", pairs: Pairs = "104M", steps: float = 250
) -> RunConfig:
    """Flamingo's perceiver resampler, of TomeFormer's size and with as many soft tokens."""
    chosen = get(scale)
    return _run(chosen, "perceiver", chosen.perceiver, language, pairs, steps)


def blip2(
    scale: str,
    *,
    language: Language = "opt",
    pairs: Pairs = "104M",
    stage1_steps: float = 250,
    stage2_steps: float = 80,
) -> RunConfig:
    """BLIP-2 in its two stages; stage 1 is a run of its own that rows may share.

    The paper does not say how long its stage 2 with Vicuna is: as long as with OPT.
    """
    chosen = get(scale)
    second = _run(chosen, "stage2", chosen.qformer, language, pairs, stage2_steps)
    return dataclasses.replace(second, init_from=blip2_stage1(scale, pairs=pairs, steps=stage1_steps))


def blip2_stage1(scale: str, *, pairs: Pairs = "104M", steps: float = 250) -> RunConfig:
    """BLIP-2's stage 1: the Q-Former learns from images and texts (ITC, ITM, LM), no LLM."""
    chosen = get(scale)
    return dataclasses.replace(
        _run(chosen, "stage1", chosen.qformer, "opt", pairs, steps),
        stage="represent",
        language="" if chosen.bert == "mini-bert" else chosen.bert,  # whose words it reads
        evaluation=EvalConfig(validation=chosen.evaluation.validation),
    )


def blip2_split(scale: str, share: float) -> RunConfig:
    """BLIP-2 at the cost of `blip2`, of which stage 1 gets ``share``; without stage 1 there is but one."""
    chosen = get(scale)
    first, second = 250 * chosen.updates["stage1"], 80 * chosen.updates["stage2"]
    total = first * chosen.stage1_cost + second  # in updates of stage 2
    return blip2(
        scale,
        stage1_steps=share * total / chosen.stage1_cost / chosen.updates["stage1"],
        stage2_steps=(1 - share) * total / chosen.updates["stage2"],
    )


def ablation(config: RunConfig) -> RunConfig:
    """The run, evaluated on what the rows of an ablation are compared by."""
    sets = tuple(one for one in config.evaluation.sets if one[0] in ABLATION_SETS)
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, sets=sets))


def _run(
    scale: Scale, part: str, connector: ConnectorConfig, language: Language, pairs: Pairs, steps: float
) -> RunConfig:
    updates, lr = max(2, round(steps * scale.updates[part])), scale.lr[part]
    vicuna = language == "vicuna"
    pools = scale.reduced if pairs == "11M" else scale.vicuna if vicuna and scale.vicuna else scale.data.pools
    fixed = scale.vicuna_warmup_steps if vicuna else scale.warmup_steps
    warmup = min(fixed, updates // 2) or round(updates * scale.warmup[part])
    return RunConfig(
        connector=dataclasses.replace(connector, init=scale.init[part]),
        vision=scale.vision,
        language=scale.language[language],
        data=dataclasses.replace(scale.data, pools=pools),
        optim=OptimConfig(
            steps=updates,
            batch_size=scale.batch_size,
            lr=lr,
            warmup_lr=lr / 100,
            min_lr=lr / 10,
            warmup_steps=max(1, warmup),
            clip_norm=0.0 if scale.name == "paper" else 1.0,
            precision=scale.precision,
            eval_every=max(1, updates // 10),
            checkpoint_every=max(1, updates // scale.checkpoints),
        ),
        evaluation=scale.evaluation,
    )

"""What the models and budgets of the paper are at each scale.

An experiment says ``evlgen(scale, pairs="11M", steps=150)`` in the paper's words and gets the run that plays
this part at ``scale``. Each scale is a file here that has these runs whole: ``paper.py`` with the authors'
settings, ``mini.py``, ``bridge.py`` with small real models, ``smoke.py`` for tests. A new scale is one more
file, named below.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from evlgen.config import LinearConfig, RunConfig
from evlgen.errors import UserError, nearest
from experiments.scales import bridge, mini, paper, smoke
from experiments.scales.base import Language, Make, Scale

_SCALES = {scale.name: scale for scale in (smoke.SCALE, mini.SCALE, bridge.SCALE, paper.SCALE)}
NAMES = tuple(_SCALES)

Pairs = Literal["104M", "11M"]
ABLATION_SETS = ("coco", "vqav2")
ABLATION_STEPS = 150  # thousand updates of the paper: its shorter setting


def get(name: str) -> Scale:
    """The scale called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in _SCALES:
        known = ", ".join(_SCALES)
        raise UserError(f"scale {name!r}: no such scale; there are: {known}{nearest(name, _SCALES)}")
    return _SCALES[name]


# Below, ``language`` is the language model (None: the scale's first); ``steps`` are thousands of the paper's
# updates.


def evlgen(
    scale: str, *, language: Language | None = None, pairs: Pairs = "104M", steps: float | None = None
) -> RunConfig:
    """EVLGen: TomeFormer, one stage; ``steps`` None: the paper's longer setting with this language model."""
    chosen = get(scale)
    if steps is None:
        steps = (language or chosen.languages[0]).steps
    return _run(chosen, chosen.evlgen, language, pairs, steps)


def blip2_single_stage(
    scale: str, *, language: Language | None = None, pairs: Pairs = "104M", steps: float = 250
) -> RunConfig:
    """BLIP-2's Q-Former tied to the LLM from the start ("stage 2 only")."""
    chosen = get(scale)
    return _run(chosen, chosen.blip2_single_stage, language, pairs, steps)


def linear(
    scale: str, *, language: Language | None = None, pairs: Pairs = "104M", steps: float = 250
) -> RunConfig:
    """LLaVA's single linear layer: all image tokens go to the LLM."""
    chosen = get(scale)
    return _run(chosen, chosen.linear, language, pairs, steps)


def mlp(
    scale: str, *, language: Language | None = None, pairs: Pairs = "104M", steps: float = 250
) -> RunConfig:
    """The MLP of LLaVA-1.5: as `linear`, with one hidden layer of the LLM's width."""
    chosen = get(scale)
    config = _run(chosen, chosen.mlp, language, pairs, steps)
    assert isinstance(config.connector, LinearConfig)
    width = (language or chosen.languages[0]).width
    return dataclasses.replace(config, connector=dataclasses.replace(config.connector, width=width))


def pooled(
    scale: str, *, language: Language | None = None, pairs: Pairs = "104M", steps: float = 250
) -> RunConfig:
    """Average pooling of the patches to as many soft tokens as TomeFormer's."""
    chosen = get(scale)
    return _run(chosen, chosen.pooled, language, pairs, steps)


def perceiver(
    scale: str, *, language: Language | None = None, pairs: Pairs = "104M", steps: float = 250
) -> RunConfig:
    """Flamingo's perceiver resampler, of TomeFormer's size and with as many soft tokens."""
    chosen = get(scale)
    return _run(chosen, chosen.perceiver, language, pairs, steps)


def blip2(
    scale: str,
    *,
    language: Language | None = None,
    pairs: Pairs = "104M",
    stage1_steps: float = 250,
    stage2_steps: float = 80,
) -> RunConfig:
    """BLIP-2 in its two stages; stage 1 is a run of its own that rows may share.

    The paper does not say how long its stage 2 with Vicuna is: as long as with OPT.
    """
    chosen = get(scale)
    second = _run(chosen, chosen.blip2_stage2, language, pairs, stage2_steps)
    return dataclasses.replace(second, init_from=blip2_stage1(scale, pairs=pairs, steps=stage1_steps))


def blip2_stage1(scale: str, *, pairs: Pairs = "104M", steps: float = 250) -> RunConfig:
    """BLIP-2's stage 1: the Q-Former learns from images and texts (ITC, ITM, LM), no LLM."""
    chosen = get(scale)
    return _with_pairs(chosen, chosen.blip2_stage1(steps), pairs)


def blip2_split(scale: str, share: float) -> RunConfig:
    """BLIP-2 at the cost of `blip2`, of which stage 1 gets ``share``; without stage 1 there is but one."""
    first, second = stage_costs(scale)
    total = first + second
    return blip2(
        scale, stage1_steps=250 * share * total / first, stage2_steps=80 * (1 - share) * total / second
    )


def stage_costs(scale: str) -> tuple[float, float]:
    """What BLIP-2's two stages cost at a scale, in updates of stage 2."""
    chosen = get(scale)
    return chosen.blip2_stage1(250).optim.steps * chosen.stage1_cost, chosen.blip2_stage2(80).optim.steps


def has_stages_in_proportion(scale: str) -> bool:
    """Whether BLIP-2's two stages divide their updates as the paper's do, 250K and 80K."""
    chosen = get(scale)
    first, second = chosen.blip2_stage1(250).optim.steps, chosen.blip2_stage2(80).optim.steps
    return second == round(first * 80 / 250)


def ablation(config: RunConfig) -> RunConfig:
    """The run, evaluated on what the rows of an ablation are compared by."""
    sets = tuple(one for one in config.evaluation.sets if one[0] in ABLATION_SETS)
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, sets=sets))


def _run(scale: Scale, make: Make, language: Language | None, pairs: Pairs, steps: float) -> RunConfig:
    """The run of a scale with a language model and the settings that differ with it, and with some pairs."""
    config = make(steps)
    if language is not None:
        config = dataclasses.replace(config, language=language.name)
        if language.pools:
            config = _with_pools(config, language.pools)
        if language.batch_size:
            optim = dataclasses.replace(config.optim, batch_size=language.batch_size)
            config = dataclasses.replace(config, optim=optim)
        if language.warmup_steps:
            warmup = max(1, min(language.warmup_steps, config.optim.steps // 2))
            config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_steps=warmup))
    return _with_pairs(scale, config, pairs)


def _with_pairs(scale: Scale, config: RunConfig, pairs: Pairs) -> RunConfig:
    return _with_pools(config, scale.reduced) if pairs == "11M" else config


def _with_pools(config: RunConfig, pools: tuple[tuple[str, int], ...]) -> RunConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, pools=pools))

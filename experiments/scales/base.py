"""What a scale consists of, and the few rules that all scales share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from evlgen.config import OptimConfig, QFormerConfig, RunConfig, TomeFormerConfig

Pools = tuple[tuple[str, int], ...]
Make = Callable[[float], RunConfig]  # thousands of the paper's updates -> a whole run


@dataclass(frozen=True)
class Language:
    """A frozen language model, and which settings differ with it.

    Attributes:
        name: as in `evlgen.config.RunConfig`: a known name, or the folder of any decoder.
        width: of its hidden states, which the hidden layer of LLaVA-1.5's MLP has as well.
        steps: EVLGen's longer training with it, in thousands of the paper's updates.
        warmup_steps: updates of every warm-up, at most half of the run; 0: the warm-up of the scale.
        pools: in the role of the paper's 104M pairs; empty: those of the scale.
        batch_size: pairs in an update that trains through it; 0: those of the scale.
    """

    name: str
    width: int
    steps: float = 250
    warmup_steps: int = 0
    pools: Pools = ()
    batch_size: int = 0


@dataclass(frozen=True)
class Scale:
    """One scale: a whole run for each part of the paper, and what experiments change in these runs.

    Attributes:
        seeds: of each row by default.
        claim_seeds: of each row of the experiments that claims rest on, where everything is run.
        languages: the first takes the part of the paper's OPT-2.7B, the second, where there is one, that of
            its Vicuna-7B.
        reduced: pools in the role of the paper's 11M pairs.
        evlgen, blip2_single_stage, blip2_stage1, blip2_stage2, linear, mlp, pooled, perceiver: whole runs,
            given thousands of the paper's updates, with the first language model and all pairs.
        tokens: of an image, the class token among them.
        other_vision: another image encoder, and the width of its features.
        bert: weights of a BERT of the connectors' shape.
        other_lr, other_warmup: peak learning rate and share of warm-up of a connector that starts from the
            other initial weights: from ``bert`` where the scale's runs start from random ones, and the other
            way round. A warm-up of None is that of the run.
        stage1_cost: seconds of an update of stage 1, in those of an update of stage 2.
        without_loss: MACs of an update of stage 1 without one of its losses, in those with all of them, as
            `evlgen.cost` counts them; without the image encoder's where its features are cached.
    """

    name: str
    seeds: int
    claim_seeds: int
    languages: tuple[Language, ...]
    reduced: Pools
    evlgen: Make
    blip2_single_stage: Make
    blip2_stage1: Make
    blip2_stage2: Make
    linear: Make
    mlp: Make
    pooled: Make
    perceiver: Make
    tokens: int
    other_vision: tuple[str, int]
    bert: str
    other_lr: float
    other_warmup: float | None
    stage1_cost: float
    without_loss: dict[str, float]

    @property
    def vision(self) -> str:
        """Name of the image encoder."""
        return self.evlgen(250).vision

    @property
    def tomeformer(self) -> TomeFormerConfig:
        """EVLGen's connector."""
        connector = self.evlgen(250).connector
        assert isinstance(connector, TomeFormerConfig)
        return connector

    @property
    def qformer(self) -> QFormerConfig:
        """BLIP-2's connector."""
        connector = self.blip2_stage2(80).connector
        assert isinstance(connector, QFormerConfig)
        return connector


def optim(
    updates: float,
    *,
    batch_size: int,
    lr: float,
    warmup: float = 0.0,
    warmup_steps: int = 0,
    clip_norm: float = 1.0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    checkpoints: int,
) -> OptimConfig:
    """The training of a run, all of whose schedules depend on how long it is.

    The learning rate starts at a hundredth of its peak and ends at a tenth (paper); the run is evaluated ten
    times.

    Args:
        updates: rounded; at least two.
        lr: peak learning rate.
        warmup: share of the updates that warm up to it; looked at only where ``warmup_steps`` is 0.
        warmup_steps: updates of the warm-up, however long the run is; at most half of it.
        checkpoints: in the whole run.
    """
    steps = max(2, round(updates))
    return OptimConfig(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_lr=lr / 100,
        min_lr=lr / 10,
        warmup_steps=max(1, min(warmup_steps, steps // 2) or round(steps * warmup)),
        clip_norm=clip_norm,
        precision=precision,
        eval_every=max(1, steps // 10),
        checkpoint_every=max(1, steps // checkpoints),
    )

"""The connectors that a reviewer would ask for, at the same budget, beside EVLGen and the Q-Former."""

from __future__ import annotations

from collections.abc import Callable

from evlgen.config import RunConfig
from experiments.base import Experiment, Row
from experiments.scales import (
    ABLATION_STEPS,
    ablation,
    blip2_single_stage,
    evlgen,
    get,
    linear,
    mlp,
    perceiver,
    pooled,
)

METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap", "connector_gmacs", "train_seconds")
NOT_SEARCHED = (
    "Learning rates, warm-ups and initial weights of projections, pooling and perceiver are TomeFormer's at "
    "this scale, not searched for them; `learning_rates` has the rows of such a search."
)


def build(scale: str) -> Experiment:
    """All in a single stage; the projections pass all image tokens on to the language model."""
    chosen = get(scale)
    r = chosen.tomeformer.r
    assert isinstance(r, int)
    merged = chosen.tokens - r * chosen.tomeformer.num_layers
    # name, label of the row, the run, its number of soft tokens
    cases: tuple[tuple[str, str, Callable[..., RunConfig], int], ...] = (
        ("EVLGen", "EVLGen", evlgen, merged),
        ("linear", "linear projection (LLaVA)", linear, chosen.tokens),
        ("MLP", "MLP projection (LLaVA-1.5)", mlp, chosen.tokens),
        ("average pooling", "average pooling, projection", pooled, merged),
        ("perceiver", "perceiver resampler (Flamingo)", perceiver, merged),
        (
            "BLIP-2, single stage",
            "Q-Former (BLIP-2), single stage",
            blip2_single_stage,
            chosen.qformer.num_queries,
        ),
    )
    rows = tuple(
        Row(
            label,
            ablation(make(scale, steps=ABLATION_STEPS)),
            values={"connector": name, "tokens": tokens},
            against="EVLGen",
        )
        for name, label, make, tokens in cases
    )
    notes = "" if scale in ("mini", "smoke") else NOT_SEARCHED
    return Experiment("baselines", "Other connectors", rows, METRICS, chosen.seeds, notes)

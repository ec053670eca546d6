"""Where a single stage collapses, for both connectors, and whether it is collapse or only slow learning.

One factor at a time is changed, from the default settings and at the paper's shorter budget. Settings chosen
before any was run, not those that turned out badly, have a row with three times the updates after a warm-up
of the same length: a run that only then uses its image was slow (`evlgen.collapse.classify`). They are the
default settings, the lowest and the highest learning rate, the longest warm-up, the fewest soft tokens and
the other initial weights. All other settings were tried at one budget only.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from evlgen.config import QFormerConfig, RunConfig, Schedule, TomeFormerConfig
from experiments.base import Experiment, Row
from experiments.changes import with_connector, with_setting
from experiments.merge_schedules import spread
from experiments.scales import ABLATION_STEPS, ablation, blip2_single_stage, evlgen, get
from experiments.scales.base import Scale

METRICS = ("gap", "val_loss", "cosine", "effective_rank", "attention_entropy", "coco/CIDEr")
RATES = (1 / 10, 1 / 3, 3.0)  # of the default rate
WARMUPS = (0.02, 0.5)
LONGER = 3
DEFAULT = "default"


def build(scale: str) -> Experiment:
    """Rows of EVLGen first, then the same of the Q-Former."""
    chosen = get(scale)
    rows = []
    for connector, make in (("EVLGen", evlgen), ("BLIP-2, single stage", blip2_single_stage)):
        base = ablation(make(scale, steps=ABLATION_STEPS))
        rate, init = base.optim.lr, base.connector.init
        other = chosen.bert if init == "random" else "random"
        from_other = (other, chosen.other_lr, chosen.other_warmup)  # each initial weights at their own rate
        cases: list[tuple[str, str, float | str, RunConfig]] = [(DEFAULT, "", "", base)]
        rates = [float(f"{rate * factor:.1g}") for factor in RATES]
        for other_rate in rates:
            changed = with_setting(base, init, other_rate)
            cases.append((f"lr {other_rate:g}", "lr", other_rate, changed))
        cases += [
            (f"warm-up {share:.0%}", "warmup", share, with_setting(base, init, rate, share))
            for share in WARMUPS
            if max(1, round(base.optim.steps * share)) != base.optim.warmup_steps
        ]
        numbers = _numbers_of_tokens(base, chosen)
        cases += [
            (f"{tokens} soft tokens", "queries", tokens, with_connector(base, **changes))
            for tokens, changes in numbers
        ]
        cases.append((f"from {other}", "init", other, with_setting(base, *from_other)))
        assert isinstance(base.connector, TomeFormerConfig | QFormerConfig)
        for layers in (base.connector.num_layers * 3 // 4, base.connector.num_layers * 2):
            schedule = _same_tokens(base, layers, chosen.tokens)
            # random weights: no BERT has that many layers
            changed = with_connector(base, num_layers=layers, init="random", **schedule)
            cases.append((f"{layers} layers", "depth", layers, changed))
        usual = {text: config for text, _, _, config in cases}
        for text in (
            DEFAULT,
            f"lr {rates[-1]:g}",
            f"lr {rates[0]:g}",
            f"warm-up {WARMUPS[-1]:.0%}",
            f"{numbers[0][0]} soft tokens",
            f"from {other}",
        ):
            cases.append((f"{text}, {LONGER}x the updates", "budget", text, _longer(usual[text])))
        for text, kind, level, config in cases:
            values: dict[str, float | str] = {"connector": connector, "factor": kind, "level": level}
            against = f"{connector}, {DEFAULT}"
            rows.append(Row(f"{connector}, {text}", config, values=values, against=against))
    return Experiment("collapse", "Where a single stage collapses", tuple(rows), METRICS, chosen.seeds)


def _longer(config: RunConfig) -> RunConfig:
    """The run with more updates, evaluated as often; its warm-up is as long as it was, in updates."""
    optim = dataclasses.replace(
        config.optim,
        steps=config.optim.steps * LONGER,
        eval_every=config.optim.eval_every * LONGER,
        checkpoint_every=config.optim.checkpoint_every * LONGER,
    )
    return dataclasses.replace(config, optim=optim)


def _numbers_of_tokens(config: RunConfig, scale: Scale) -> list[tuple[int, dict[str, Any]]]:
    """Fewer and more soft tokens than by default, and the settings that give them."""
    connector = config.connector
    if isinstance(connector, QFormerConfig):
        numbers = (max(2, connector.num_queries // 4), connector.num_queries * 2)
        return [(number, {"num_queries": number}) for number in numbers]
    assert isinstance(connector, TomeFormerConfig)
    assert isinstance(connector.r, int)
    few, half = fewest(scale.tokens, connector.num_layers), connector.r // 2
    return [
        (scale.tokens - sum(few), {"r": few}),
        (scale.tokens - half * connector.num_layers, {"r": half}),
    ]


def fewest(tokens: int, layers: int, target: int = 5) -> tuple[int, ...]:
    """Schedule that merges all it can in each layer until ``target`` tokens are left."""
    schedule = []
    for _ in range(layers):
        schedule.append(min((tokens - 1) // 2, max(0, tokens - target)))
        tokens -= schedule[-1]
    return tuple(schedule)


def _same_tokens(config: RunConfig, layers: int, tokens: int) -> dict[str, Schedule]:
    """A merge schedule for another depth that leaves as many tokens, even over the layers where it can be."""
    connector = config.connector
    if not isinstance(connector, TomeFormerConfig):
        return {}
    assert isinstance(connector.r, int)
    merged = connector.r * connector.num_layers
    even = spread(merged, [1] * layers)
    left = tokens
    for r in (even,) * layers if isinstance(even, int) else even:
        if r > (left - 1) // 2:  # more than this layer can
            return {"r": fewest(tokens, layers, tokens - merged)}
        left -= r
    return {"r": even}

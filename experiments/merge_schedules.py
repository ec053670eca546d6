"""How many tokens TomeFormer merges, in which layers, by which rule, and how merged tokens are combined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from evlgen.config import Schedule, TomeFormerConfig
from experiments.base import Experiment, Row
from experiments.changes import with_connector
from experiments.scales import ABLATION_STEPS, ablation, evlgen, get

METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap", "connector_gmacs")
_CONSTANT_POINTS = 6


def build(scale: str) -> Experiment:
    """The paper's r is the largest that its number of layers can merge; so is that of every scale."""
    chosen = get(scale)
    layers, most = chosen.tomeformer.num_layers, chosen.tomeformer.r
    assert isinstance(most, int)
    half = (chosen.tokens - 1) // 2  # the most that can be merged at once
    first, last = (half, *[0] * (layers - 1)), (*[0] * (layers - 1), half)
    constants = sorted({round(most * i / _CONSTANT_POINTS) for i in range(_CONSTANT_POINTS + 1)})
    paper, even = f"constant, r = {most}", f"{half} merged, constant"
    rows = [_row(scale, f"constant, r = {r}", "constant", paper, r=r) for r in constants]
    for kind, name, schedule in (
        ("constant", "constant", spread(half, [1] * layers)),
        ("inflection", "decreasing", spread(half, range(layers - 1, -1, -1))),
        ("inflection", "increasing", spread(half, range(layers))),
        ("one-shot", "all in the first layer", first),
        ("one-shot", "all in the last layer", last),
    ):
        rows.append(_row(scale, f"{half} merged, {name}", kind, even, r=schedule))
    for metric, name in (
        ("features", "by features"),
        ("random", "at random"),
        ("position", "neighbours (pooling)"),
    ):
        rows.append(_row(scale, f"r = {most}, {name}", "rule", paper, metric=metric))
    for reduce, proportional, name in (
        ("weighted", False, "weighted mean"),
        ("mean", True, "mean, proportional attention"),
        ("weighted", True, "weighted mean, proportional attention"),
    ):
        label = f"r = {most}, {name}"
        changes = {"reduce": reduce, "proportional_attention": proportional}
        rows.append(_row(scale, label, "reduce", paper, **changes))
    unique = {row.config: row for row in reversed(rows)}  # of two labels for one run the first stays
    label_of = {row.label: unique[row.config].label for row in rows}
    kept = tuple(
        dataclasses.replace(row, against=label_of[row.against]) for row in rows if unique[row.config] is row
    )
    return Experiment("merge_schedules", "Merge schedules and rules", kept, METRICS, chosen.seeds)


def spread(total: int, weights: Sequence[int]) -> Schedule:
    """``total`` merges over layers in proportion to ``weights``, whole numbers that add up to it exactly.

    One number where all layers have the same.
    """
    ends, done = [], 0
    for weight in weights:
        done += weight
        ends.append(round(total * done / sum(weights)))
    schedule = tuple(end - start for start, end in zip([0, *ends], ends, strict=False))
    return schedule[0] if len(set(schedule)) == 1 else schedule


def _row(scale: str, label: str, kind: str, against: str, **changes: Any) -> Row:
    config = with_connector(ablation(evlgen(scale, steps=ABLATION_STEPS)), **changes)
    connector = config.connector
    assert isinstance(connector, TomeFormerConfig)
    schedule = connector.r
    merged = sum(schedule) if isinstance(schedule, tuple) else schedule * connector.num_layers
    values: dict[str, float | str] = {"kind": kind, "tokens": get(scale).tokens - merged}
    if isinstance(schedule, int):
        values["r"] = schedule
    return Row(label, config, values=values, against=against)

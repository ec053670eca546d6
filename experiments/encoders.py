"""Another image encoder: CLIP ViT-L/14 in the place of EVA-CLIP ViT-g/14 (C6)."""

from __future__ import annotations

import dataclasses
from typing import Any

from evlgen.config import QFormerConfig, RunConfig
from experiments.base import Experiment, Row
from experiments.scales import blip2, blip2_single_stage, evlgen, get

METRICS = ("vqav2", "gqa", "okvqa", "coco/CIDEr", "gap")


def build(scale: str) -> Experiment:
    """Each connector with both encoders; the rows with the first are those of table 1."""
    chosen = get(scale)
    rows = []
    for connector, make in (
        ("BLIP-2, two stages", blip2),
        ("BLIP-2, single stage", blip2_single_stage),
        ("EVLGen", evlgen),
    ):
        for encoder, width in ((chosen.vision, None), chosen.other_vision):
            config = make(scale) if width is None else with_encoder(make(scale), encoder, width)
            values = {"connector": connector, "encoder": encoder}
            against = f"{connector}, {chosen.vision}"
            rows.append(Row(f"{connector}, {encoder}", config, values=values, against=against))
    title = "Another image encoder"
    return Experiment("encoders", title, tuple(rows), METRICS, chosen.seeds, claimed=True)


def with_encoder(config: RunConfig, encoder: str, width: int) -> RunConfig:
    """The run, and the stage that it starts from, with another image encoder of that width."""
    name = "encoder_width" if isinstance(config.connector, QFormerConfig) else "input_width"
    changes: dict[str, Any] = {name: width}
    first = None if config.init_from is None else with_encoder(config.init_from, encoder, width)
    connector = dataclasses.replace(config.connector, **changes)
    return dataclasses.replace(config, vision=encoder, connector=connector, init_from=first)

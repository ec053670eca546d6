"""Table 2 of the paper: zero-shot captioning on NoCaps and Flickr30K, with both language models."""

from __future__ import annotations

import dataclasses

from evlgen.config import RunConfig
from evlgen.data.base import PAPER_SETS
from evlgen.errors import UserError
from experiments.base import Experiment, Row
from experiments.scales import blip2, evlgen, get

METRICS = ("nocaps_in/CIDEr", "nocaps_near/CIDEr", "nocaps_out/CIDEr", "nocaps/CIDEr", "flickr/CIDEr")


def build(scale: str) -> Experiment:
    """The rows of the table. The paper's text gives two of its cells; the others are unknown here.

    Raises:
        UserError: the scale has but one language model.
    """
    chosen = get(scale)
    if len(chosen.languages) < 2:
        raise UserError(f"table2: needs two language models; scale {scale} has one")
    second = chosen.languages[1]
    rows: tuple[Row, ...] = (
        Row("BLIP-2, OPT-2.7B", blip2(scale), {}),
        Row("EVLGen, OPT-2.7B", evlgen(scale), {}),
        Row("BLIP-2, Vicuna-7B", blip2(scale, language=second), {"nocaps/CIDEr": 115.6}),
        Row("EVLGen, Vicuna-7B", evlgen(scale, language=second), {"nocaps/CIDEr": 119.0}),
    )
    if scale == "paper":  # whoever wants this table needs no files of questions; drawn sets cost nothing
        rows = tuple(dataclasses.replace(row, config=_captioning(row.config)) for row in rows)
    return Experiment(
        "table2",
        "Table 2: zero-shot captioning",
        rows,
        METRICS,
        chosen.seeds,
        claimed=True,
        pictured=1,
    )


def _captioning(config: RunConfig) -> RunConfig:
    """The run without its question sets."""
    kinds = {one.name: one.kind for one in PAPER_SETS}
    sets = tuple((name, size) for name, size in config.evaluation.sets if kinds[name] == "caption")
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, sets=sets))

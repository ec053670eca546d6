"""Table 2 of the paper: zero-shot captioning on NoCaps and Flickr30K, with both language models."""

from __future__ import annotations

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
    rows = (
        Row("BLIP-2, OPT-2.7B", blip2(scale), {}),
        Row("EVLGen, OPT-2.7B", evlgen(scale), {}),
        Row("BLIP-2, Vicuna-7B", blip2(scale, language=second), {"nocaps/CIDEr": 115.6}),
        Row("EVLGen, Vicuna-7B", evlgen(scale, language=second), {"nocaps/CIDEr": 119.0}),
    )
    return Experiment(
        "table2",
        "Table 2: zero-shot captioning",
        rows,
        METRICS,
        chosen.seeds,
        claimed=True,
        pictured=1,
    )

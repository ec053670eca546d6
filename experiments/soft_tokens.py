"""How many soft tokens the language model needs: TomeFormer's by schedule, the Q-Former's by queries."""

from __future__ import annotations

from experiments.base import Experiment, Row
from experiments.changes import with_connector
from experiments.collapse import fewest
from experiments.scales import ABLATION_STEPS, ablation, blip2_single_stage, evlgen, get

METRICS = ("coco/CIDEr", "vqav2", "val_loss", "gap", "connector_gmacs")


def build(scale: str) -> Experiment:
    """From a few to twice the default number; up to all image tokens where a connector can keep them."""
    chosen = get(scale)
    r, layers, tokens = chosen.tomeformer.r, chosen.tomeformer.num_layers, chosen.tokens
    assert isinstance(r, int)
    final = tokens - r * layers  # the default
    rows = []
    for number in (final // 3, final // 2):
        schedule = fewest(tokens, layers, number)
        rows.append(_tomeformer(scale, tokens - sum(schedule), schedule, final))
    constants = (r, 2 * r // 3, r // 3, 0)
    rows += [_tomeformer(scale, tokens - constant * layers, constant, final) for constant in constants]
    queries = chosen.qformer.num_queries
    for number in (queries // 4, queries // 2, queries, 2 * queries):
        config = ablation(blip2_single_stage(scale, steps=ABLATION_STEPS))
        values: dict[str, float | str] = {"connector": "BLIP-2, single stage", "tokens": number}
        label = f"BLIP-2, single stage, {number} soft tokens"
        against = f"BLIP-2, single stage, {queries} soft tokens"
        rows.append(Row(label, with_connector(config, num_queries=number), values=values, against=against))
    return Experiment("soft_tokens", "Number of soft tokens", tuple(rows), METRICS, chosen.seeds)


def _tomeformer(scale: str, tokens: int, schedule: int | tuple[int, ...], final: int) -> Row:
    config = with_connector(ablation(evlgen(scale, steps=ABLATION_STEPS)), r=schedule)
    return Row(
        f"EVLGen, {tokens} soft tokens",
        config,
        values={"connector": "EVLGen", "tokens": tokens},
        against=f"EVLGen, {final} soft tokens",
    )

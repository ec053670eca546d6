"""Table 5 of the paper: what the connectors cost, counted; and beside it what a whole training costs.

Nothing is trained: `experiments.table5_counts` counts on the real modules.
"""

from __future__ import annotations

from experiments.base import Experiment, Row
from experiments.cost_tables import CostTables
from experiments.scales import blip2_single_stage, blip2_stage1, evlgen, get

PAPER_STAGE1 = 36.7  # G


def build(scale: str) -> Experiment:
    """The connectors of the paper, with both language models."""
    rows = [Row("BLIP-2, stage 1", blip2_stage1(scale), {"macs": PAPER_STAGE1})]
    languages = get(scale).languages
    for label, language in (("OPT-2.7B", languages[0]), ("Vicuna-7B", languages[-1])):
        second = blip2_single_stage(scale, language=language, steps=80)
        rows.append(Row(f"BLIP-2, stage 2, {label}", second, {"macs": 6.28}))
        rows.append(Row(f"EVLGen, {label}", evlgen(scale, language=language), {"macs": 11.9}))
    title = "Table 5: cost, counted without training"
    return Experiment("table5", title, tuple(rows), ("macs",), 1, count=count)


def count(experiment: Experiment, scale: str) -> CostTables:
    """As `experiments.table5_counts.count`."""
    from experiments import table5_counts  # imports torch, for which a list of experiments need not wait

    return table5_counts.count(experiment, scale)

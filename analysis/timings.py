"""How long training took: the table of table 5 that is measured and not counted, from the runs of table 1."""

from __future__ import annotations

import math

from analysis.results import Results, read
from analysis.statistics import mean_of
from experiments.base import Row
from experiments.cost_tables import CostRow, CostTable


def training_times(scale: str) -> CostTable | None:
    """Seconds and memory of the rows of table 1, means over seeds; None if no run is complete.

    Raises:
        UserError: no such scale.
    """
    found = read("table1", scale)
    rows = [times for row in found.experiment.rows if (times := _times(found, row)) is not None]
    if not rows:
        return None
    return CostTable(
        "Training, measured",
        {
            "hours": "hours",
            "seconds": "seconds, including stage 1",
            "stage1_seconds": "stage 1 alone, seconds",
            "update_seconds": "seconds an update, without stage 1",
            "memory": "peak memory of a run, GiB",
            "seeds": "runs",
        },
        tuple(rows),
        (
            "Seconds of training as measured in the runs, without validation and the final evaluation, on "
            "the machine that results/provenance names. Image features were cached where the scale caches "
            "them. The rows are those of table 1, means over their complete runs.",
        ),
    )


def _times(found: Results, row: Row) -> CostRow | None:
    whole, last = (mean_of(found.values(row.label, name)) for name in ("total_seconds", "train_seconds"))
    if math.isnan(whole + last):
        return None
    values = {
        "hours": whole / 3600,
        "seconds": whole,
        "update_seconds": last / row.config.optim.steps,
        "seeds": float(len(found.states(row.label))),
    }
    if row.config.init_from is not None:
        values["stage1_seconds"] = whole - last
    memory = mean_of(found.values(row.label, "peak_memory_gib"))
    if not math.isnan(memory):
        values["memory"] = memory
    hours = row.paper.get("hours")
    return CostRow(row.label, values, {"hours": hours} if isinstance(hours, float | int) else {})

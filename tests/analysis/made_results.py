"""Results that are made up, without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.results import Results, Run
from evlgen.runs.results import Record
from experiments.base import Experiment, seeded

Metrics = dict[str, float | str]
LEARNED: Metrics = {"retrieval@1": 85.0, "val_itm": 0.1}  # what a stage 1 that has learned measures


def results_of(
    experiment: Experiment,
    made: Mapping[str, Sequence[Metrics | None]],
    operations: Mapping[str, float] | None = None,
    stage1: Metrics | None = LEARNED,
) -> Results:
    """Results with these metrics, one a seed; ``stage1``: those of every stage 1, None for no record."""
    runs: dict[str, tuple[Run, ...]] = {}
    for place, row in enumerate(experiment.rows):
        of_row = []
        for seed, metrics in enumerate(made[row.label]):
            config = seeded(row.config, seed)
            record = first = None
            if metrics is not None:
                name = f"{experiment.name}-{place}-{seed}"
                record = Record(name, config, Path(), dict(metrics), {})
                if config.init_from is not None and stage1 is not None:
                    first = Record(f"{name}-1", config.init_from, Path(), dict(stage1), {})
            of_row.append(Run(row, seed, config, record, first))
        runs[row.label] = tuple(of_row)
    return Results(experiment, "mini", runs, operations or {})

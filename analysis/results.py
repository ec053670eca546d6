"""What the run store has of an experiment: scores of each row by seed, and what its training cost."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.tables import Results, number
from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runtime import paths
from experiments import load
from experiments.base import Experiment, seeded, shape
from experiments.scales import get


@dataclass(frozen=True)
class Found:
    """What the store has of an experiment.

    Attributes: results: row label -> content of ``result.json`` of each wanted seed, None where it is not
        complete. operations: row label -> GFLOP of the whole training, stage 1 included; without rows not
        counted yet.
    """

    experiment: Experiment
    scale: str
    results: Results
    operations: Mapping[str, float] = field(default_factory=dict)

    def values(self, label: str, metric: str) -> list[float | None]:
        """A metric of a row, one a seed, None where it is missing or not finite."""
        runs = self.results[label]
        return [number(run["metrics"].get(metric)) if run else None for run in runs]

    def states(self, label: str) -> list[str]:
        """What `evlgen.collapse.classify` says of the complete runs of a row."""
        return [str(run["metrics"].get("state")) for run in self.results[label] if run]

    def labels(self, **values: float | str) -> list[str]:
        """Labels of the rows that have these ``values``."""
        return [
            row.label
            for row in self.experiment.rows
            if all(row.values.get(name) == value for name, value in values.items())
        ]

    def metrics(self, wanted: Sequence[str]) -> list[str]:
        """Those of ``wanted`` that are columns of the experiment."""
        return [metric for metric in wanted if metric in self.experiment.metrics]

    @property
    def command(self) -> str:
        """What makes the runs, with as many seeds as are wanted."""
        seeds = len(next(iter(self.results.values())))
        return f"python sweeps/run.py {self.experiment.name}{scale_flag(self.scale)} --seeds {seeds}"


def scale_flag(scale: str) -> str:
    """What a command needs behind it for a scale that is not the default one."""
    return "" if scale == "mini" else f" --scale {scale}"


def read(name: str, scale: str, seeds: int | None = None) -> Found:
    """What the store has of an experiment.

    A damaged result is named on stderr and counts as missing; nothing in the store is changed.

    Args:
        seeds: of each row; None takes those of `sweeps/run.py all`.

    Raises:
        UserError: no such experiment or scale.
    """
    experiment = load(name, scale)
    wanted = seeds or (get(scale).claim_seeds if experiment.claimed else experiment.seeds)
    results = {
        row.label: [_result(identity.run_folder(seeded(row.config, seed))) for seed in range(wanted)]
        for row in experiment.rows
    }
    counted = step_operations(scale)
    totals = {row.label: _training(row.config, counted) for row in experiment.rows}
    operations = {label: total for label, total in totals.items() if total is not None}
    return Found(experiment, scale, results, operations)


def _result(folder: Path) -> dict[str, Any] | None:
    path = folder / "result.json"
    try:
        result = files.read_json(path)
        if result is not None and not (isinstance(result.get("metrics"), dict) and "id" in result):
            raise UserError(f"{path}: damaged (has no metrics or no id)")
    except UserError as error:
        print(f"{error}: skipped", file=sys.stderr, flush=True)
        return None
    return result


def step_operations(scale: str) -> dict[tuple[object, ...], float]:
    """GFLOP of a whole training step for one sample by `experiments.base.shape`, from table 5's CSV.

    Empty if that table is not made; counting anew would need torch.
    """
    path = paths.results_folder() / "table5" / scale / "table.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        steps = {line["row"]: line["mean"] for line in csv.DictReader(file) if line["metric"] == "step_flop"}
    return {
        shape(row.config): float(steps[row.label])
        for row in load("table5", scale).rows
        if steps.get(row.label)
    }


def _training(config: RunConfig, counted: Mapping[tuple[object, ...], float]) -> float | None:
    """GFLOP of a run and of the stage that it starts from; None where one of them is not counted."""
    step = counted.get(shape(config))
    first = 0.0 if config.init_from is None else _training(config.init_from, counted)
    if step is None or first is None:
        return None
    return first + step * config.optim.batch_size * config.optim.steps

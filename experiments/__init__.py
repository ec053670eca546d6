"""What the paper ran: one file a table."""

from __future__ import annotations

import dataclasses
import importlib

from evlgen.errors import UserError
from experiments.base import Experiment
from experiments.changes import changed

EXPERIMENTS: dict[str, str] = {
    "table1": "experiments.table1",
    "table2": "experiments.table2",
    "table5": "experiments.table5",
    "budgets": "experiments.budgets",
    "merge_schedules": "experiments.merge_schedules",
    "data_fractions": "experiments.data_fractions",
    "two_stage": "experiments.two_stage",
    "collapse": "experiments.collapse",
    "encoders": "experiments.encoders",
    "baselines": "experiments.baselines",
    "initialisation": "experiments.initialisation",
    "soft_tokens": "experiments.soft_tokens",
    "learning_rates": "experiments.learning_rates",
    "bridge": "experiments.bridge",
}
# Experiments that train nothing: beside `build` their module has `count`, which gives the whole table.
COUNTED = ("table5",)
# The paper in order, and what its claims need beside: `sweeps/run.py all`. With those that claims rest on.
PAPER = tuple(name for name in EXPERIMENTS if name not in ("learning_rates", "bridge"))
CLAIMED = ("table1", "table2", "budgets", "encoders")
# The scale that an experiment is for, where it is another than `mini`.
DEFAULT_SCALE = {"bridge": "bridge"}


def load(name: str, scale: str, changes: tuple[str, ...] = (), rows: str = "") -> Experiment:
    """The experiment called ``name`` at a scale.

    Args:
        changes: of every run, each as ``--set`` takes them: ``optim.lr=1e-3``.
        rows: keep only rows whose label contains this, in whatever case; empty: all.

    Raises:
        UserError: unknown experiment, scale, key or value, or no such row.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"experiment {name!r}: no such experiment; there are: {', '.join(EXPERIMENTS)}")
    experiment: Experiment = importlib.import_module(EXPERIMENTS[name]).build(scale)
    kept = tuple(row for row in experiment.rows if rows.lower() in row.label.lower())
    if not kept:
        labels = "; ".join(row.label for row in experiment.rows)
        raise UserError(f"--rows {rows}: no row's label contains this; there are: {labels}")
    return dataclasses.replace(
        experiment,
        rows=tuple(dataclasses.replace(row, config=changed(row.config, changes)) for row in kept),
    )

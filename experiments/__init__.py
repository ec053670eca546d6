"""What the paper ran: one file a table, named like its experiment, with ``build(scale) -> Experiment``."""

from __future__ import annotations

import dataclasses
import importlib

from evlgen import limits
from evlgen.errors import UserError, nearest
from experiments.base import Experiment, Row
from experiments.changes import STAGE1, changed
from experiments.overrides import labelled

# In the order in which they are listed, run and reported.
EXPERIMENTS = (
    "table1",
    "table2",
    "table5",
    "budgets",
    "merge_schedules",
    "data_fractions",
    "two_stage",
    "collapse",
    "encoders",
    "baselines",
    "initialisation",
    "soft_tokens",
    "learning_rates",
    "bridge",
)


def load(name: str, scale: str = "", changes: tuple[str, ...] = (), rows: str = "") -> Experiment:
    """The experiment called ``name``; it takes milliseconds and does not import torch.

    Args:
        scale: empty: the experiment's default scale.
        changes: made to every run, each as ``--set`` takes them: ``optim.lr=1e-3``.
        rows: keep only rows whose label contains this, in either case; empty: all.

    Raises:
        UserError: unknown experiment, scale, key or value, or no such row.
    """
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise UserError(
            f"experiment {name!r}: no such experiment; there are: {known}{nearest(name, EXPERIMENTS)}"
        )
    build = importlib.import_module(f"experiments.{name}").build
    experiment: Experiment = build(scale or "mini")
    if not scale and experiment.default_scale != "mini":
        experiment = build(experiment.default_scale)
    kept = tuple(row for row in experiment.rows if rows.lower() in row.label.lower())
    if not kept:
        labels = "; ".join(row.label for row in experiment.rows)
        raise UserError(f"--rows {rows}: no row's label contains this; there are: {labels}")
    before = dataclasses.replace(experiment, rows=kept)
    experiment = dataclasses.replace(before, rows=tuple(_changed(row, changes, kept) for row in kept))
    keys = {change.partition("=")[0] for change in changes}
    if all(row.config.init_from is None for row in experiment.rows):
        for key in sorted(keys):
            if key.startswith(STAGE1):
                raise UserError(f"--set {key}: none of these rows starts from a stage 1; leave it out")
    if "data.world" in keys:
        from experiments import other_worlds  # imports numpy, which a list of experiments does not need

        experiment = other_worlds.adapt(experiment, keep_sets="evaluation.sets" in keys)
    for row in experiment.rows:
        _check(row)
    return labelled(before, experiment, changes)


def _changed(row: Row, changes: tuple[str, ...], rows: tuple[Row, ...]) -> Row:
    """A row with the changes made.

    Raises:
        UserError: one of them is wrong; of a key that other rows have, with the names of both rows.
    """
    try:
        return dataclasses.replace(row, config=changed(row.config, changes))
    except UserError as error:
        for other in rows:
            if other is not row:
                try:
                    changed(other.config, changes)
                except UserError:
                    continue
                text = str(error).replace(
                    ": no such key;",
                    f": no such key in the row {row.label!r}, only in others such as {other.label!r}: choose "
                    "them with --rows;",
                )
                raise UserError(text) from None
        raise


def _check(row: Row) -> None:
    """Refuse a row that could not be trained.

    Raises:
        UserError: see `evlgen.limits.check`; the message names the row, too.
    """
    try:
        limits.check(row.config)
    except UserError as error:
        raise UserError(f"{error} (row {row.label!r})") from None

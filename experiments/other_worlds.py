"""Experiments on other data than they were made for (``--set data.world=folder``), with that world's sets."""

from __future__ import annotations

import dataclasses

from evlgen.config import RunConfig
from evlgen.data import worlds
from evlgen.data.base import EvalSet, World
from experiments.base import Experiment, Row


def adapt(experiment: Experiment, keep_sets: bool = False) -> Experiment:
    """The experiment with evaluation sets, columns and numbers that the worlds of its rows have.

    A set of one's own takes as many examples as the largest set of its kind did, and its score a column in
    place of those that the world cannot give. A row of another world has no number of the paper.

    Args:
        keep_sets: the sets were chosen for this world: only the columns are adapted.
    """
    rows = tuple(_adapted(row, keep_sets) for row in experiment.rows)
    evaluated = [
        worlds.of(row.config.data).eval_set(name)
        for row in rows
        for name, size in row.config.evaluation.sets
        if size and name in worlds.of(row.config.data).sets
    ]
    return dataclasses.replace(experiment, rows=rows, metrics=_columns(experiment.metrics, rows, evaluated))


def _adapted(row: Row, keep_sets: bool) -> Row:
    world = worlds.of(row.config.data)
    lacking = [name for name, size in row.config.evaluation.sets if size and name not in world.sets]
    papers = [metric for metric in row.paper if _is_of_a_set(metric) and not _is_given(metric, world)]
    if not lacking and not papers:
        return row
    config = row.config if keep_sets else _with_own_sets(row.config, world)
    return dataclasses.replace(row, config=config, paper={})


def _with_own_sets(config: RunConfig, world: World) -> RunConfig:
    """The run evaluated on the sets of its world; those of questions only where there are any."""
    kinds = {one.name: one.kind for one in worlds.all_sets()}
    sets = []
    for own in world.eval_sets:
        sizes = [size for name, size in config.evaluation.sets if kinds.get(name) == own.kind]
        absent = own.kind == "question" and not world.is_there(own.pool)
        if own.pool and own.scorers and any(sizes) and not absent:
            sets.append((own.name, max(sizes)))
    evaluation = dataclasses.replace(config.evaluation, sets=tuple(sets))
    return dataclasses.replace(config, evaluation=evaluation)


def _columns(metrics: tuple[str, ...], rows: tuple[Row, ...], evaluated: list[EvalSet]) -> tuple[str, ...]:
    """The metrics that some row's world gives; scores of own sets take the places of others of their kind."""
    kinds = {one.name: one.kind for one in worlds.all_sets()}
    columns: dict[str, None] = {}
    for metric in metrics:
        if not _is_of_a_set(metric) or any(_is_given(metric, worlds.of(row.config.data)) for row in rows):
            columns[metric] = None
        else:
            kind = kinds[metric.partition("/")[0]]
            columns |= {own.metric: None for own in evaluated if own.kind == kind}
    return tuple(columns)


def _is_of_a_set(metric: str) -> bool:
    return metric.partition("/")[0] in {one.name for one in worlds.all_sets()}


def _is_given(metric: str, world: World) -> bool:
    """Whether the world has the set that the metric is measured on."""
    return metric.partition("/")[0] in {one.name for one in world.eval_sets}

"""What an experiment is: a named list of rows, each a run at some scale, beside the paper's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from evlgen.config import RunConfig
from experiments.cost_tables import CostTables


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        config: the run with seed 0; `seeded` gives the others.
        paper: metric -> the paper's number, or a word of the paper's ("collapse"); unknown ones are left out.
        values: what sets the row apart from the others of its experiment, by name ({"r": 8}): by these a
            figure places it and a claim finds it.
        against: label of the row of its experiment that it is compared with in differences; empty: the first.
    """

    label: str
    config: RunConfig
    paper: Mapping[str, float | str] = field(default_factory=dict)
    values: Mapping[str, float | str] = field(default_factory=dict)
    against: str = ""


@dataclass(frozen=True)
class Experiment:
    """A named list of rows.

    Attributes:
        metrics: the columns of the table.
        seeds: how many seeds each row gets by default.
        notes: what a reader of the table must know, below it.
        examples: how many images of each captioning set are shown with the rows' captions after a sweep.
        count: makes the tables of an experiment that trains nothing, at a scale; None: its rows are trained.
        claimed: claims rest on it: `run.py all` gives each row the scale's ``claim_seeds``.
        pictured: of how many seeds `run.py pack` keeps captions, soft prompts and merge maps.
        in_all: whether `run.py all` has it.
        default_scale: the scale at which it is run where none is named.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    metrics: tuple[str, ...]
    seeds: int
    notes: str = ""
    examples: int = 0
    count: Callable[[Experiment, str], CostTables] | None = None
    claimed: bool = False
    pictured: int = 0
    in_all: bool = True
    default_scale: str = "mini"


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """The run with another seed, the stage it starts from as well."""
    first = None if config.init_from is None else seeded(config.init_from, seed)
    return dataclasses.replace(config, seed=seed, init_from=first)


def shape(config: RunConfig) -> tuple[object, ...]:
    """What the cost of one sample in training depends on; equal for runs whose samples cost the same."""
    return config.connector, config.stage, config.objectives, config.language

"""An experiment's results: its rows and seeds, each with the record of its run, or without.

Everything under `analysis` and `paper_figures` reads records here. They come from the run store or, where a
run is not there, from the archives that are committed beside the tables (`evlgen.runs.results`).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs.identity import run_id
from evlgen.runs.results import Record, find
from evlgen.runtime import paths
from experiments import load
from experiments.base import Experiment, Row, seeded, shape
from experiments.scales import get


@dataclass(frozen=True)
class Run:
    """A run of a row, complete or not.

    Attributes:
        config: the row's, with the run's seed.
        record: None if the run is not complete, or damaged.
        first: of the stage 1 that it starts from, if it starts from one.
    """

    row: Row
    seed: int
    config: RunConfig
    record: Record | None
    first: Record | None = None

    @property
    def id(self) -> str:
        """As it was recorded; of a run that is not complete, as it will be called."""
        return run_id(self.config) if self.record is None else self.record.id

    def metric(self, name: str) -> float | None:
        """A metric as a finite number; None where it is missing or is none."""
        return None if self.record is None else number(self.record.metrics.get(name))

    @property
    def state(self) -> str | None:
        """What `evlgen.collapse.classify` says of it; None if the run is not complete."""
        return None if self.record is None else str(self.record.metrics.get("state"))

    def history(self, metric: str) -> tuple[list[int], list[float]]:
        """Updates at which a metric was measured, and its values."""
        lines = [] if self.record is None else self.record.history()
        points = [(int(line["step"]), line[metric]) for line in lines if metric in line]
        return [step for step, _ in points], [value for _, value in points]

    def predictions(self, kind: str, evaluation_set: str) -> dict[str, str]:
        """Captions or answers (``kind``) by the number of the image or question; empty if none are kept."""
        found = None if self.record is None else self.record.predictions()
        return {} if found is None else dict(found.get(kind, {}).get(evaluation_set, {}))

    def arrays(self, name: str, needed: Iterable[str]) -> dict[str, np.ndarray] | None:
        """Arrays of a file (`evlgen.runs.folder.SOFT_PROMPTS`, `MERGE_MAPS`).

        None if it is not kept, or lacks one that is needed, which is said on stderr.
        """
        arrays = None if self.record is None else self.record.arrays(name)
        if arrays is not None and (lacking := set(needed) - arrays.keys()):
            print(
                f"{self.id}/{name}: lacks {', '.join(sorted(lacking))}: skipped", file=sys.stderr, flush=True
            )
            return None
        return arrays


@dataclass(frozen=True)
class Results:
    """What there is of an experiment.

    Attributes:
        runs: label of a row -> its runs, one a seed, in the order of the seeds; as many for each row.
        operations: label of a row -> GFLOP of its whole training, stage 1 included; without rows that table 5
            has not counted.
    """

    experiment: Experiment
    scale: str
    runs: Mapping[str, Sequence[Run]]
    operations: Mapping[str, float] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        """How many seeds are wanted of each row."""
        return max(map(len, self.runs.values()), default=0)

    def values(self, label: str, metric: str) -> list[float | None]:
        """A metric of a row, one a seed, None where it is missing or not finite."""
        return [run.metric(metric) for run in self.runs[label]]

    def states(self, label: str) -> list[str]:
        """What `evlgen.collapse.classify` says of the complete runs of a row."""
        return [run.state for run in self.runs[label] if run.state is not None]

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
    def all_runs(self) -> list[Run]:
        """All runs, complete or not, row by row."""
        return [run for runs in self.runs.values() for run in runs]

    def of_rows(self, **values: float | str) -> Results:
        """The rows that have these ``values``, alone."""
        labels = self.labels(**values)
        rows = tuple(row for row in self.experiment.rows if row.label in labels)
        experiment = dataclasses.replace(self.experiment, rows=rows)
        return dataclasses.replace(
            self, experiment=experiment, runs={label: self.runs[label] for label in labels}
        )

    def complete(self, *labels: str) -> list[Run]:
        """The complete runs of these rows, of all where none are named."""
        return [run for label in labels or self.runs for run in self.runs[label] if run.record is not None]

    def missing(self, prefix: str = "", labels: Sequence[str] = ()) -> list[str]:
        """What is not complete, a line a row: ``EVLGen, 250K (seed 1, 2)``, or the label alone if all of the
        row is missing; one line if every row lacks the same seeds.

        Args:
            prefix: put in front of each line.
            labels: of these rows; of all where none are named.
        """
        lacking = {
            label: [run.seed for run in runs if run.record is None]
            for label, runs in self.runs.items()
            if label in (labels or self.runs)
        }
        texts = {
            label: "" if len(seeds) == len(self.runs[label]) else f" (seed {', '.join(map(str, seeds))})"
            for label, seeds in lacking.items()
            if seeds
        }
        if len(texts) == len(lacking) > 1 and len(set(texts.values())) == 1 and all(texts.values()):
            return [f"{prefix}every row{next(iter(texts.values()))}"]
        return [prefix + label + text for label, text in texts.items()]

    def warnings(self, labels: Sequence[str] = ()) -> list[str]:
        """A sentence for each thing that has changed in the code since the runs of rows (all, if none are
        named) were recorded or scored, and what makes them anew; and for what could not be compared."""
        remedies = {
            CHANGED: f" `{self.command}` makes this anew.",
            STALE: f" `{self.rescore}` makes this anew.",
            UNCHECKED: "",
        }
        return [line + remedies[line[0]] for line in warnings_of(self.complete(*labels))]

    def mark(self, label: str) -> str:
        """What stands behind the label of a row that `warnings` names."""
        return "".join(line[0] for line in warnings_of(self.complete(label)))

    def records(self) -> list[Record]:
        """Records of all complete runs, and of the stages 1 that they start from."""
        return [one for run in self.complete() for one in (run.first, run.record) if one is not None]

    @property
    def command(self) -> str:
        """What makes the runs, with as many seeds as are wanted."""
        return f"{command(self.experiment.name, self.scale)} --seeds {self.seeds}"

    @property
    def rescore(self) -> str:
        """What scores the kept predictions of the runs again."""
        return command(f"rescore {self.experiment.name}", self.scale)


# Behind rows of an earlier behaviour, of an earlier scorer, and compared in part only.
CHANGED, STALE, UNCHECKED = MARKS = "†", "‡", "§"


def number(value: object) -> float | None:
    """A finite number, else None: a loss that is not a number is no result."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def scale_flag(scale: str) -> str:
    """What a command needs behind it for a scale that is not the default one."""
    return "" if scale == "mini" else f" --scale {scale}"


def command(name: str, scale: str) -> str:
    """The command that makes the runs of an experiment."""
    return f"python sweeps/run.py {name}{scale_flag(scale)}"


def found_in(records: Iterable[Record]) -> str:
    """Where records were found: ``the run store runs/`` or ``results/*/mini/runs.tar.xz``, or both."""
    sources = {record.source for record in records}
    archives = sorted(one for one in sources if one.endswith(".tar.xz"))
    stores = sorted(sources - set(archives))
    named = [f"the run store {Path(one).name}/" for one in stores]
    if len(archives) > 1 and len({Path(one).parent.name for one in archives}) == 1:
        named.append(f"results/*/{Path(archives[0]).parent.name}/runs.tar.xz")
    else:
        named += [f"results/{'/'.join(Path(one).parts[-3:])}" for one in archives]
    return " and ".join(named) or "no run"


# ----------------------------------------------------------------------------------------------- reading


def collect(experiment: Experiment, scale: str, seeds: int) -> Results:
    """The records of an experiment's runs. A damaged one is named on stderr and counts as missing.

    Args:
        seeds: of each row.
    """
    runs = {row.label: tuple(_run(row, seed) for seed in range(seeds)) for row in experiment.rows}
    steps = step_operations(scale)
    totals = {row.label: training_operations(row.config, steps) for row in experiment.rows}
    operations = {label: total for label, total in totals.items() if total is not None}
    return Results(experiment, scale, runs, operations)


def _run(row: Row, seed: int) -> Run:
    config = seeded(row.config, seed)
    record = find(config)
    first = None if record is None or config.init_from is None else find(config.init_from)
    return Run(row, seed, config, record, first)


def read(name: str, scale: str, seeds: int | None = None) -> Results:
    """What there is of an experiment, with the seeds that verdicts want.

    Args:
        seeds: of each row; None takes those of `sweeps/run.py all`.

    Raises:
        UserError: no such experiment or scale.
    """
    experiment = load(name, scale)
    return collect(experiment, scale, seeds or wanted_seeds(experiment, scale))


def wanted_seeds(experiment: Experiment, scale: str) -> int:
    """How many seeds `sweeps/run.py all` makes of each row of an experiment."""
    return get(scale).claim_seeds if experiment.claimed else experiment.seeds


def read_all_seeds(name: str, scale: str, most: int = 0) -> Results:
    """What there is of an experiment, with as many seeds as it says, and more if some row has more.

    Args:
        most: how many seeds are looked for, where that is more than claims want.

    Raises:
        UserError: no such experiment or scale, or none of its runs is complete; the message has the command.
    """
    experiment = load(name, scale)
    found = collect(experiment, scale, max(experiment.seeds, get(scale).claim_seeds, most))
    there = max((run.seed + 1 for run in found.complete()), default=0)
    if not there:
        raise UserError(
            f"no complete run of {name} at scale {scale}, neither in {paths.runs_folder()} nor in an archive "
            f"of {paths.results_folder()}; make them with `{command(name, scale)}`"
        )
    seeds = max(experiment.seeds, there)
    return dataclasses.replace(found, runs={label: runs[:seeds] for label, runs in found.runs.items()})


def read_several(names: Sequence[str], scale: str) -> tuple[dict[str, Results], list[str]]:
    """Experiments that share a figure, as `read_all_seeds` gives them, and what is missing.

    Raises:
        UserError: none of them has a complete run.
    """
    found: dict[str, Results] = {}
    lacking, errors = [], []
    for name in names:
        try:
            found[name] = read_all_seeds(name, scale)
            lacking += found[name].missing(f"{name}: ")
        except UserError as error:  # noqa: PERF203 (a handful of experiments)
            errors.append(error)
            lacking.append(f"{name} (`{command(name, scale)}`)")
    if not found:
        raise errors[0]
    return found, lacking


def by_row(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Label of a row -> its runs, in the order of the experiment."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.row.label, []).append(run)
    return rows


def values_of(runs: Iterable[Run], metric: str) -> list[float]:
    """A metric of those runs that have it."""
    return [value for run in runs if (value := run.metric(metric)) is not None]


def warnings_of(runs: Iterable[Run], marks: bool = True) -> list[str]:
    """A sentence for each thing that has changed in the code since runs were recorded or scored, and for
    what could not be compared.

    Args:
        marks: put the mark in front that stands behind the labels of such rows.
    """
    rows: dict[tuple[int, str], list[str]] = {}
    for run in runs:
        for record in (run.first, run.record):
            if record is not None:
                for mark, sentence, changes in (
                    (
                        CHANGED,
                        "Recorded with an earlier behaviour of the code ({})",
                        "; ".join(record.changed),
                    ),
                    (STALE, "Scored by an earlier scorer ({})", "; ".join(record.stale_scores)),
                    (UNCHECKED, "Not compared: {} are not on this machine", " and ".join(record.unchecked)),
                ):
                    if changes:
                        labels = rows.setdefault((MARKS.index(mark), sentence.format(changes)), [])
                        labels += [] if run.row.label in labels else [run.row.label]
    return [
        f"{f'{MARKS[mark]} ' if marks else ''}{sentence}: {'; '.join(labels)}."
        for (mark, sentence), labels in sorted(rows.items())
    ]


def step_operations(scale: str) -> Mapping[tuple[object, ...], float]:
    """GFLOP of a whole training step for one sample by `experiments.base.shape`, from table 5's CSV.

    Empty if that table is not made; counting anew would need torch.
    """
    path = paths.results_folder() / "table5" / scale / "table.csv"
    return _step_operations(path, path.stat().st_mtime_ns, scale) if path.exists() else {}


@functools.lru_cache(maxsize=16)
def _step_operations(path: Path, mtime_ns: int, scale: str) -> Mapping[tuple[object, ...], float]:
    with path.open(encoding="utf-8", newline="") as file:
        steps = {line["row"]: line["mean"] for line in csv.DictReader(file) if line["metric"] == "step_flop"}
    return {
        shape(row.config): float(steps[row.label])
        for row in load("table5", scale).rows
        if steps.get(row.label)
    }


def training_operations(config: RunConfig, steps: Mapping[tuple[object, ...], float]) -> float | None:
    """GFLOP of a run and of the stage that it starts from; None where one of them is not counted."""
    step = steps.get(shape(config))
    first = 0.0 if config.init_from is None else training_operations(config.init_from, steps)
    if step is None or first is None:
        return None
    return first + step * config.optim.batch_size * config.optim.steps

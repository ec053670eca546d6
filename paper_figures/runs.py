"""What the figures read: the runs of an experiment in the run store, complete or not, and their courses."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.statistics import Interval, mean_interval
from evlgen.config import RunConfig
from evlgen.connectors import look_of
from evlgen.errors import UserError, exit_code
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runs.folder import read_metrics
from evlgen.runtime import paths
from experiments import load as load_experiment
from experiments.base import Row, seeded
from experiments.scales import NAMES as SCALES
from experiments.scales import get


@dataclass(frozen=True)
class Run:
    """A run of the store, whether it was made yet or not.

    Attributes:
        row: of the experiment.
        id, folder: in the store; the folder need not exist.
        config: the row's, with the run's seed.
        metrics: of ``result.json``; None if the run is not complete or its folder is damaged.
    """

    row: Row
    seed: int
    id: str
    folder: Path
    config: RunConfig
    metrics: dict[str, Any] | None


def load(experiment: str, scale: str, seeds: int | None = None) -> list[Run]:
    """All runs of an experiment, row by row, the seeds of a row in order.

    A damaged result is named on stderr, and its run counts as not complete. Nothing in the store is changed.

    Args:
        seeds: of each row; None takes as many as the experiment says, and more if some row has more: what
            claims rest on gets more where everything is run.

    Raises:
        UserError: no such experiment or scale, or none of its runs is complete; the message has the command.
    """
    described = load_experiment(experiment, scale)
    expected = seeds or described.seeds
    most = seeds or max(expected, get(scale).claim_seeds)
    found = [_run(row, seed) for row in described.rows for seed in range(most)]
    there = max((run.seed + 1 for run in complete(found)), default=0)
    found = [run for run in found if run.seed < max(expected, there)]
    if not there:
        raise UserError(
            f"{paths.runs_folder()}: no complete run of {experiment} at scale {scale}; "
            f"make them with `{command(experiment, scale)}`"
        )
    return found


def _run(row: Row, seed: int) -> Run:
    config = seeded(row.config, seed)
    run = identity.run_id(config)
    folder = paths.runs_folder() / run
    return Run(row, seed, run, folder, config, _metrics(folder))


def command(experiment: str, scale: str) -> str:
    """The command that makes the runs of an experiment."""
    return f"python sweeps/run.py {experiment}" + (f" --scale {scale}" if scale != "mini" else "")


def _metrics(folder: Path) -> dict[str, Any] | None:
    try:
        result = files.read_json(folder / "result.json")
        if result is not None and not isinstance(result.get("metrics"), dict):
            raise UserError(f"{folder / 'result.json'}: damaged (has no metrics)")
    except UserError as error:
        skip(error)
        return None
    return None if result is None else result["metrics"]


def skip(error: object) -> None:
    """Name what is damaged, on stderr."""
    print(f"{error}: skipped", file=sys.stderr, flush=True)


def complete(runs: Iterable[Run]) -> list[Run]:
    """Those that have a result."""
    return [run for run in runs if run.metrics is not None]


def by_row(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Label of a row -> its runs, in the order of the experiment."""
    rows: dict[str, list[Run]] = {}
    for run in runs:
        rows.setdefault(run.row.label, []).append(run)
    return rows


def missing(runs: Iterable[Run], experiment: str = "") -> list[str]:
    """What is not complete, a line a row: ``EVLGen, 250K (seed 1, 2)``, or the row alone if all of it is
    missing; one line if every row lacks the same seeds.

    Args:
        experiment: name to put in front, for a figure of several experiments.
    """
    lacking = {
        label: (len(row), [run.seed for run in row if run.metrics is None])
        for label, row in by_row(runs).items()
    }
    before = f"{experiment}: " if experiment else ""
    texts = {
        label: "" if len(seeds) == many else f" (seed {', '.join(map(str, seeds))})"
        for label, (many, seeds) in lacking.items()
        if seeds
    }
    if len(texts) == len(lacking) > 1 and len(set(texts.values())) == 1 and all(texts.values()):
        return [f"{before}every row{next(iter(texts.values()))}"]
    return [before + label + text for label, text in texts.items()]


def connector(config: RunConfig) -> str:
    """What figures call the connector of a run, and how it was trained."""
    return look_of(config).name


def value(run: Run, metric: str) -> float | None:
    """A metric of a run; None if the run is not complete, lacks it, or it is no finite number."""
    number = (run.metrics or {}).get(metric)
    if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
        return float(number)
    return None


def values(runs: Iterable[Run], metric: str) -> list[float]:
    """A metric of those runs that have it."""
    return [number for run in runs if (number := value(run, metric)) is not None]


def interval(numbers: Sequence[float]) -> Interval | None:
    """Mean and 95% bootstrap interval over seeds; None without numbers."""
    return mean_interval(numbers) if numbers else None


def either(*experiments: str, scale: str) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs of several experiments that share a figure, and what is missing.

    Raises:
        UserError: none of them has a complete run.
    """
    found: dict[str, list[Run]] = {}
    lacking, errors = [], []
    for experiment in experiments:
        try:
            found[experiment] = load(experiment, scale)
            lacking += missing(found[experiment], experiment)
        except UserError as error:  # noqa: PERF203 (a handful of experiments)
            errors.append(error)
            lacking.append(f"{experiment} (`{command(experiment, scale)}`)")
    if not found:
        raise errors[0]
    return found, lacking


def course(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's ``metrics.jsonl``, of whichever stage; empty if there is none or it is damaged."""
    try:
        lines = read_metrics(folder)
    except (UnicodeDecodeError, OSError) as error:
        skip(f"{folder / 'metrics.jsonl'}: damaged ({error})")
        return []
    if not all(isinstance(line, dict) and "step" in line for line in lines):
        skip(f"{folder / 'metrics.jsonl'}: damaged (a line without a step)")
        return []
    return lines


def validations(folder: Path, metric: str) -> tuple[list[int], list[float]]:
    """Updates at which a metric was measured, and its values, of one run."""
    points = [(int(line["step"]), line[metric]) for line in course(folder) if metric in line]
    return [step for step, _ in points], [number for _, number in points]


def main(draw: Callable[[str], list[Path]], description: str | None) -> int:
    """What every script does: draw at ``--scale``, and say what was written.

    Returns:
        The exit code: 0, or 2 where the user must do something first, which is said in one line.
    """

    def act() -> None:
        for path in draw(scale_of(sys.argv[1:], Path(sys.argv[0]).name, description)):
            print(path)

    return exit_code(act)


def scale_of(argv: Sequence[str], program: str, description: str | None) -> str:
    """The value of ``--scale``, the only flag."""
    parser = argparse.ArgumentParser(program, description=description)
    parser.add_argument("--scale", default="mini", choices=SCALES, help="default: mini")
    scale: str = parser.parse_args(argv).scale
    return scale

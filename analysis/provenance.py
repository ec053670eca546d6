"""Where the numbers under ``results/`` come from: ``python -m analysis.provenance [--scale mini]``.

What the ``provenance.json`` of all runs say is kept, in short, in ``results/provenance/SCALE/runs.json``:
commits, packages, machines, and of each run its row, seed and time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from analysis.results import collect, command
from evlgen.errors import UserError, exit_code
from evlgen.runtime import paths
from evlgen.runtime.files import write_atomic
from experiments import EXPERIMENTS, load
from experiments.scales import NAMES, get

# Of a run's provenance.json, what many runs share.
ENVIRONMENT = (
    *("git_commit", "git_dirty", "git_diff_sha256", "code_version"),
    *("python", "system", "processor", "cores", "gpus", "packages"),
)
MEASURED = ("started", "wall_seconds", "peak_memory_mib", "peak_gpu_memory_mib", "energy_joules")


@dataclass(frozen=True)
class Provenance:
    """Of all runs behind the tables of a scale.

    Attributes:
        environments: key -> the fields `ENVIRONMENT`.
        runs: id -> ``experiments`` (name -> labels of the rows), ``seed``, ``environment`` (a key above) and
            the fields `MEASURED`.
    """

    environments: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, Any]]


def summary_path(scale: str) -> Path:
    """Where the summary of a scale is kept."""
    return paths.results_folder() / "provenance" / scale / "runs.json"


def write(scale: str, seeds: Mapping[str, int]) -> Provenance:
    """Bring the summary up to the records there are; experiments that lack rows keep what it says of them.

    Args:
        seeds: experiment -> seeds of each row, where they are more than the experiment says.

    Returns:
        What the summary says now. It is not written where there is no record of a run of the scale.

    Raises:
        UserError: the summary is damaged or cannot be written. A damaged run is named on stderr and skipped.
    """
    known, found = read(scale), from_records(scale, seeds)
    if not found.runs:
        return known
    rows = {
        name: {label for run in found.runs.values() for label in run["experiments"].get(name, ())}
        for name in EXPERIMENTS
    }
    in_summary = {name for run in known.runs.values() for name in run["experiments"]}
    # A run may serve several experiments: some records do not mean that a table is from there.
    renewed = {
        name
        for name, there in rows.items()
        if there and (name not in in_summary or there >= {row.label for row in load(name, scale).rows})
    }
    runs: dict[str, dict[str, Any]] = {}
    for source, wanted in ((known, in_summary - renewed), (found, renewed)):
        for run, facts in source.runs.items():
            own = {name: labels for name, labels in facts["experiments"].items() if name in wanted}
            if own:
                runs[run] = {**facts, "experiments": {**runs.get(run, {}).get("experiments", {}), **own}}
    environments = {**known.environments, **found.environments}
    used = {facts["environment"] for facts in runs.values()}
    summary = {"environments": {key: environments[key] for key in used}, "runs": runs}
    write_atomic(summary_path(scale), (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    return read(scale)  # in the order of the file, whatever was in it before


def read(scale: str) -> Provenance:
    """The summary as it was written; empty if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = summary_path(scale)
    try:
        value = json.loads(path.read_text("utf-8"))
        found = Provenance(value["environments"], value["runs"])
        for facts in found.runs.values():
            _ = found.environments[facts["environment"]], facts["experiments"].items(), facts["seed"]
    except FileNotFoundError:
        return Provenance({}, {})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error}); restore it with `git checkout`, or delete it"
        ) from error
    return found


def from_records(scale: str, seeds: Mapping[str, int]) -> Provenance:
    """What the records of all experiments say; a damaged one is named on stderr and left out.

    Args:
        seeds: experiment -> seeds of each row, where they are more than those of claims.
    """
    environments: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    for name in EXPERIMENTS:
        experiment = load(name, scale)
        if experiment.count is not None:
            continue
        most = max(experiment.seeds, get(scale).claim_seeds, seeds.get(name, 0))
        results = collect(experiment, scale, most)
        for run in results.complete():
            for label, record in ((f"{run.row.label} (stage 1)", run.first), (run.row.label, run.record)):
                if record is None:
                    continue
                if record.id not in runs:
                    if (facts := record.provenance()) is None:
                        continue
                    environment = {field: facts.get(field) for field in ENVIRONMENT}
                    key = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:8]
                    environments[key] = environment
                    measured = {field: facts.get(field) for field in MEASURED}
                    runs[record.id] = {"experiments": {}, "seed": run.seed, "environment": key, **measured}
                labels = runs[record.id]["experiments"].setdefault(name, [])
                if label not in labels:
                    labels.append(label)
    return Provenance(environments, runs)


def seeds_of_tables(scale: str) -> dict[str, int]:
    """Experiment -> most seeds of a cell of its table; a sweep may have had more than the default."""
    found = {}
    for name in EXPERIMENTS:
        path = paths.results_folder() / name / scale / "table.csv"
        if path.exists() and load(name).count is None:
            with path.open(newline="", encoding="utf-8") as file:
                seeds = [line.get("n_seeds") or "" for line in csv.DictReader(file)]
            found[name] = max((int(number) for number in seeds if number.isdigit()), default=0)
    return found


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 where the user must do something first."""

    def arguments(scale: Annotated[str, tyro.conf.arg(help=", ".join(NAMES))] = "mini") -> str:
        return scale

    scale = tyro.cli(arguments, args=argv, prog="python -m analysis.provenance", description=__doc__)

    def act() -> None:
        found = write(scale, seeds_of_tables(scale))
        if not found.runs:
            raise UserError(
                f"no run of scale {scale}, neither in {paths.runs_folder()} nor in an archive of "
                f"{paths.results_folder()}; make them with `{command('all', scale)}`"
            )
        print(f"{len(found.runs)} runs in {summary_path(scale)}")

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

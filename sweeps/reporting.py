"""What commands show: tables, states, plans, single runs and their logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evlgen.config import RunConfig, from_json
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runtime import paths
from experiments import EXPERIMENTS
from experiments.base import Experiment, seeded
from sweeps import states
from sweeps.plan import expected_seconds, measured_rates, stages_without_weights
from sweeps.slurm import queue as slurm

console = Console()
_MOST_ROWS = 100  # of a table with a line for each run


def collect(experiment: Experiment, seeds: int) -> dict[str, list[dict[str, Any] | None]]:
    """Results of each row by seed, None where a run is not complete."""
    results: dict[str, list[dict[str, Any] | None]] = {}
    for row in experiment.rows:
        folders = [identity.run_folder(seeded(row.config, seed)) for seed in range(seeds)]
        results[row.label] = [files.read_if_whole(folder / "result.json") for folder in folders]
    return results


def write_table(experiment: Experiment, scale: str, seeds: int, name: str) -> Path:
    """Write the tables of an experiment under a name; returns their folder."""
    from analysis.tables import write_tables  # imports numpy, which a look at the state does not need

    folder = paths.results_folder() / name / scale
    write_tables(experiment, scale, collect(experiment, seeds), folder, seeds)
    return folder


def print_table(scale: str, name: str) -> None:
    """Show the table of an experiment."""
    from rich.markdown import Markdown

    path = paths.results_folder() / name / scale / "table.md"
    if not path.exists():
        raise UserError(f"{path}: not there; make it with `python sweeps/run.py {name} --scale {scale}`")
    console.print(Markdown(path.read_text()))


def show_status(
    experiment: Experiment,
    scale: str,
    seeds: int,
    runs: Mapping[str, RunConfig],
    found: Mapping[str, states.State],
) -> None:
    """State of each run of an experiment if they are few, and of all of them in a line."""
    if len(experiment.rows) * seeds <= _MOST_ROWS:
        table = Table("row", *(f"seed {seed}" for seed in range(seeds)), title=f"{experiment.name}, {scale}")
        for row in experiment.rows:
            cells = []
            for seed in range(seeds):
                run = identity.run_id(seeded(row.config, seed))
                word = found[run].name
                cells.append(f"{states.status(paths.runs_folder() / run) if word == 'done' else word}\n{run}")
            table.add_row(row.label, *cells)
        console.print(table)
    console.print(summary(experiment.name, runs, found))


def summary(name: str, runs: Mapping[str, RunConfig], found: Mapping[str, states.State]) -> str:
    """A line on a sweep: how many runs are in which state, pace, time left, and what it has cost so far."""
    counts = Counter(state.name for state in found.values())
    parts = [", ".join(f"{counts[word]:,} {word}" for word in states.STATES if counts[word])]
    running = [run for run, state in found.items() if state.name == "running"]
    if running:
        parts.append(f"{sum(found[run].samples_per_second for run in running):,.0f} samples/s")
        rates = measured_rates(runs)
        left = [
            (expected_seconds(runs[run], rates), 1 - state.share)
            for run, state in found.items()
            if state.name in ("running", "queued", "pending")
        ]
        known = [seconds * share for seconds, share in left if seconds is not None]
        bound = "at least" if len(known) < len(left) else "about"
        parts.append(f"{bound} {in_words(sum(known) / len(running))} left" if known else "time left unknown")
    spent = sum(state.device_seconds for state in found.values()) / 3600
    parts.append(f"{spent:.2f} GPU hours spent (without GPUs: process hours)")
    return f"{name}: {len(found):,} runs: " + "; ".join(parts)


def in_words(seconds: float) -> str:
    """``12 s``, ``5 min`` or ``3.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_FINISHED = ("done", "complete")  # in the words of `store.state` and of `store.status`


def show_plan(experiment: Experiment, scale: str, runs: Mapping[str, RunConfig]) -> list[str]:
    """What a sweep would do, and what it would cost by the rate of earlier runs; returns the missing runs.

    Runs that differ in the seed alone share a line where there are many. A complete stage 1 of which only the
    records are there, and from which a missing run starts, is missing as well.
    """
    root, rates = paths.runs_folder(), measured_rates(dict(runs))
    now = states.server_time(root) if root.exists() else 0.0
    many = len(runs) > _MOST_ROWS
    head = ("runs" if many else "run", "stage", "connector", "updates", "pairs", "state", "seconds")
    table = Table(*head, title=f"{experiment.title}, {scale}")
    words = {run: states.state(root / run, now).name if many else states.status(root / run) for run in runs}
    unfinished = {run: config for run, config in runs.items() if words[run] not in _FINISHED}
    for run in stages_without_weights(unfinished):
        if words.get(run) in _FINISHED:
            words[run] = "no weights"
    missing = [run for run, word in words.items() if word not in _FINISHED]
    total = 0.0
    lines: Counter[tuple[str, ...]] = Counter()
    for run, config in runs.items():
        word, seconds = words[run], expected_seconds(config, rates)
        if word not in _FINISHED:
            total += seconds or 0.0
        samples = config.optim.steps * config.optim.batch_size
        line: tuple[str, ...] = (
            config.stage,
            config.connector.kind,
            f"{config.optim.steps:,}",
            f"{samples:,}",
            word,
            "unknown" if seconds is None else f"{seconds:.0f}",
        )
        if many:
            lines[line] += 1
        else:
            table.add_row(run, *line)
    for line, count in lines.items():
        table.add_row(f"{count:,}", *line)
    console.print(table)
    console.print(
        f"{len(missing)} of {len(runs)} runs to execute; about {total:.0f} s of one process where known"
    )
    return missing


def find_run(command: str, prefix: str) -> Path:
    """Folder of the run whose id begins with ``prefix``, which may also be the path of the folder.

    Raises:
        UserError: there is none, or more than one.
    """
    root = paths.runs_folder()
    wanted = prefix.rstrip("/").rpartition("/")[2]  # of a run's folder, as it is shown, its name
    folders = sorted(root.iterdir()) if root.exists() else []
    found = [path for path in folders if path.name.startswith(wanted) and (path / "config.json").exists()]
    if len(found) != 1:
        what = f"{len(found)} runs begin so" if found else f"no run in {root}"
        hint = f", and it is no experiment; there are: {', '.join(EXPERIMENTS)}" if command != "logs" else ""
        raise UserError(f"{command} {prefix}: {what}{hint}")
    return found[0]


def show_examples(experiment: Experiment, count: int) -> None:
    """What the rows' runs (seed 0) say of the first images and questions of their sets, and what is right."""
    _show_said({row.label: identity.run_folder(row.config) for row in experiment.rows}, count)


def show_captions(prefix: str) -> None:
    """What the run whose id begins with ``prefix`` says of its first images, and what is right."""
    folder = find_run("captions", prefix)
    if not (folder / "predictions.json").exists():
        raise UserError(f"{folder}: has said nothing yet; it is {states.status(folder)}")
    _show_said({folder.name: folder}, 12)


def _show_said(folders: Mapping[str, Path], count: int) -> None:
    """Captions and answers of runs by label, set by set; those that say nothing yet are left out."""
    # These import numpy, which a look at the state does not need.
    from evlgen.data import worlds
    from evlgen.data.base import World

    said: dict[tuple[str, str], tuple[World, dict[str, Mapping[str, str]]]] = {}
    for label, folder in folders.items():
        stored, path = files.read_json(folder / "config.json"), folder / "predictions.json"
        if stored is None or not path.exists():
            continue
        world, predictions = worlds.of(from_json(stored).data), json.loads(path.read_text())
        for name, texts in [*predictions["captions"].items(), *predictions["answers"].items()]:
            if name in world.sets:  # not the answers on shuffled images
                said.setdefault((name, world.pool_of(name)), (world, {}))[1][label] = texts
    for (name, pool), (world, texts_of) in said.items():
        for index in range(min(count, *map(len, texts_of.values()))):
            if name in world.question_sets:
                asked = world.question(name, index)
                lines = {asked.text: Counter(asked.answers).most_common(1)[0][0]}
            else:
                lines = {"a person": world.references(pool, index)[0]}
            lines |= {label: texts[str(index)] for label, texts in texts_of.items()}
            width = max(map(len, lines))
            print(f"{world.name}, {name} {index}")
            print("\n".join(f"  {label:{width}}  {text}" for label, text in lines.items()))


def show_run(prefix: str) -> None:
    """Configuration, metrics and the end of the log of the run whose id begins with ``prefix``."""
    folder = find_run("show", prefix)
    console.print(f"[bold]{folder.name}[/]: {states.status(folder)}  ({folder})")
    for name in ("config.json", "result.json", "provenance.json"):
        value = files.read_json(folder / name)
        if value is not None:
            console.print(f"[bold]{name}[/]")
            console.print_json(data=value)
    log = folder / "log.txt"
    if log.exists():
        console.print("[bold]log.txt[/]")
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]))


def show_logs(prefix: str) -> None:
    """The whole log of a run, what made it fail, and the ends of the logs of the SLURM jobs that had it."""
    folder = find_run("logs", prefix)
    log = folder / "log.txt"
    print(log.read_text(errors="replace").rstrip() if log.exists() else f"{log}: not there yet")
    error = files.read_json(folder / "error.json")
    if error is not None:
        print(f"\nfailed: {str(error['error']).rstrip()}")
    for path in slurm.logs_of(folder.name):
        print(f"\n{path}:")
        print("\n".join(path.read_text(errors="replace").splitlines()[-30:]))

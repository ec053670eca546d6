"""Run an experiment: ``python sweeps/run.py table2``; see ``--help`` and ``list``."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from analysis.counts import write_counts
from analysis.tables import write_tables
from evlgen.config import RunConfig, from_json, with_value
from evlgen.data import miniworld
from evlgen.errors import UserError
from evlgen.metrics import CaptionScorer, RunPredictions, score_runs
from experiments import COUNTED, EXPERIMENTS
from experiments.base import Experiment, seeded
from experiments.scales import NAMES as SCALES
from sweeps import local, store

console = Console()


@dataclass(frozen=True)
class Arguments:
    """Run an experiment, or say what there is."""

    command: Annotated[str, tyro.conf.Positional]
    """an experiment, or: list, status, show, foundation"""
    target: Annotated[str, tyro.conf.Positional] = ""
    """for status: an experiment; for show: an experiment or the beginning of a run's id"""
    scale: str = "mini"
    """smoke, mini or paper"""
    seeds: int | None = None
    """seeds of every row; default: what the scale says"""
    executor: str = "local"
    """where runs are executed"""
    workers: int = 0
    """processes side by side; 0: one for each core"""
    dry_run: bool = False
    """say what would run and what it would cost, and stop"""
    rows: str = ""
    """only rows whose label has this in it"""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """key=value, changes a field of every run (optim.lr=1e-3); may be given again"""


def main(argv: list[str]) -> int:
    """Exit code: 0 all complete, 1 runs failed, 2 a user's mistake, 130 interrupted."""
    # A shell that starts a command in the background has it ignore Ctrl-C; this one can always be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = tyro.cli(Arguments, args=argv, prog="sweeps/run.py", description=__doc__)
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"error: {error.filename or store.store_folder()}: {error.strerror}; finished runs are kept",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
        return 130


def _dispatch(arguments: Arguments) -> int:
    if arguments.command == "list":
        return list_experiments()
    if arguments.command == "foundation":
        return build_foundation(arguments)
    if arguments.command == "show" and arguments.target and arguments.target not in EXPERIMENTS:
        return show_run(arguments.target)
    name = arguments.target if arguments.command in ("status", "show") else arguments.command
    names = [name] if name else list(EXPERIMENTS)
    if arguments.executor != "local":
        raise UserError(f"--executor {arguments.executor}: no such executor; there is: local")
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: at least 1 is needed")
    for one in names:
        experiment = load(one, arguments.scale, arguments.set, arguments.rows)
        seeds = arguments.seeds or experiment.seeds
        if one in COUNTED and arguments.command != "show":
            count(experiment, arguments)
        elif arguments.command == "status":
            show_status(experiment, arguments.scale, seeds)
        elif arguments.command == "show":
            print_table(arguments.scale, experiment.name)
        elif arguments.dry_run:
            plan(experiment, arguments.scale, seeds)
        else:
            return sweep(
                experiment,
                arguments.scale,
                seeds,
                arguments.workers or os.cpu_count() or 1,
                bool(arguments.set or arguments.rows),
            )
    return 0


def load(name: str, scale: str, changes: tuple[str, ...] = (), rows: str = "") -> Experiment:
    """The experiment at a scale, the rows that ``--rows`` names, every run changed as ``--set`` says.

    Raises:
        UserError: unknown experiment, scale, key or value.
    """
    if name not in EXPERIMENTS:
        raise UserError(f"experiment {name!r}: no such experiment; there are: {', '.join(EXPERIMENTS)}")
    if scale not in SCALES:
        raise UserError(f"scale {scale!r}: no such scale; there are: {', '.join(SCALES)}")
    experiment: Experiment = importlib.import_module(EXPERIMENTS[name]).build(scale)
    kept = tuple(row for row in experiment.rows if rows.lower() in row.label.lower())
    if not kept:
        labels = "; ".join(row.label for row in experiment.rows)
        raise UserError(f"--rows {rows}: no row's label has this in it; there are: {labels}")
    experiment = dataclasses.replace(experiment, rows=kept)
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise UserError(f"--set {change}: give key=value")
        experiment = dataclasses.replace(
            experiment,
            rows=tuple(
                dataclasses.replace(row, config=with_value(row.config, key, value)) for row in experiment.rows
            ),
        )
    return experiment


def unique_runs(experiment: Experiment, seeds: int) -> dict[str, RunConfig]:
    """Runs of an experiment by id, each once; the stages that others start from come first."""
    runs: dict[str, RunConfig] = {}
    for seed in range(seeds):
        for row in experiment.rows:
            config = seeded(row.config, seed)
            if config.init_from is not None:
                runs.setdefault(store.run_id(config.init_from), config.init_from)
            runs.setdefault(store.run_id(config), config)
    return runs


def count(experiment: Experiment, arguments: Arguments) -> None:
    """An experiment that trains nothing: make its table, or say whether it is there."""
    changed = "-changed" if arguments.set or arguments.rows else ""
    folder = store.results_folder() / (experiment.name + changed) / arguments.scale
    if arguments.command == "status" or arguments.dry_run:
        there = "is there" if (folder / "table.csv").exists() else "is not made yet; it takes half a minute"
        console.print(f"{experiment.name}, {arguments.scale}: counted, nothing to train; its table {there}")
        return
    write_counts(
        importlib.import_module(EXPERIMENTS[experiment.name]).count(experiment, arguments.scale), folder
    )
    print_table(arguments.scale, folder.parent.name)
    console.print(f"table in {os.path.relpath(folder)}/")


# -------------------------------------------------------------------------------------------- sweeping


def sweep(experiment: Experiment, scale: str, seeds: int, workers: int, changed: bool) -> int:
    """Execute what is missing, score it, write the table; 0 if every run is complete."""
    if scale == "paper":
        raise UserError(
            "--scale paper: its encoders, language models and data sets cannot be loaded yet; "
            "--dry-run shows what would run"
        )
    runs = unique_runs(experiment, seeds)
    missing = {
        run: config for run, config in runs.items() if not store.is_complete(store.store_folder() / run)
    }
    console.print(
        f"[bold]{experiment.title}[/] at scale {scale}: {len(runs)} runs, {len(runs) - len(missing)} complete"
    )
    problems: dict[str, str] = {}
    if missing:
        problems = execute(missing, workers)
    results = collect(experiment, seeds)
    # A sweep with --set answers another question: it must not take the place of the experiment's own table.
    folder = store.results_folder() / (experiment.name + ("-changed" if changed else "")) / scale
    write_tables(experiment, scale, results, folder, seeds)
    print_table(scale, folder.parent.name)
    for run, problem in problems.items():
        console.print(f"[red]{run} {problem}[/]: see {store.store_folder() / run / 'log.txt'}")
    complete = sum(store.is_complete(store.store_folder() / run) for run in runs)
    console.print(f"{complete} of {len(runs)} runs complete; table in {os.path.relpath(folder)}/")
    return 0 if complete == len(runs) else 1


def execute(runs: dict[str, RunConfig], workers: int) -> dict[str, str]:
    """Train, evaluate and score runs; returns what went wrong, by run."""
    features = sorted({need for config in runs.values() for need in feature_needs(config)})
    tasks = [
        local.Task(_feature_key(need), "sweeps.worker:cache_features", need, cost=1e9 + need[1])
        for need in features
    ]
    for run, config in runs.items():
        folder = store.prepare(run, config)
        first = None if config.init_from is None else store.run_id(config.init_from)
        needs = tuple(_feature_key(need) for need in feature_needs(config))
        tasks.append(
            local.Task(
                run,
                "sweeps.worker:execute_run",
                (str(folder), None if first is None else str(store.store_folder() / first)),
                needs if first is None or first not in runs else (*needs, first),
                expected_cost(config),
            )
        )
    return _run_tasks(tasks, runs, workers)


def _run_tasks(tasks: list[local.Task], runs: dict[str, RunConfig], workers: int) -> dict[str, str]:
    """Execute tasks under a progress display, then score; returns what went wrong, by run."""
    problems: dict[str, str] = {}
    with Display(len(tasks)) as display, CaptionScorer() as scorer:
        if any(config.evaluation.sets for config in runs.values()):
            scorer.start()  # METEOR takes its time to start: meanwhile the runs train

        def event(kind: str, key: str, detail: Any) -> None:
            display.event(kind, key, detail)
            if kind == "blocked":
                problems[key] = "blocked: what it needs has failed"
            elif kind == "failed":
                problems[key] = f"failed: {str(detail).strip().splitlines()[-1]}"
                if key in runs:
                    store.write_json(store.store_folder() / key / "error.json", {"error": str(detail)})

        local.execute(tasks, workers, event)
        finish({run: config for run, config in runs.items() if run not in problems}, scorer)
    return problems


def finish(runs: dict[str, RunConfig], scorer: CaptionScorer) -> None:
    """Score all runs that are trained in one batch and write their ``result.json``."""
    trained = {}
    for run, config in runs.items():
        folder = store.store_folder() / run
        outcome = store.read_if_whole(folder / "outcome.json")
        if outcome is not None:
            trained[run] = (config, outcome, read_predictions(folder / "predictions.json"))
    scores = score_runs([predictions for _, _, predictions in trained.values()], scorer)
    for (run, (config, outcome, _)), scored in zip(trained.items(), scores, strict=True):
        metrics = {**outcome, **scored}
        metrics["total_seconds"] = metrics["train_seconds"]
        if config.init_from is not None:  # the cost of stage 1 counts
            earlier = store.read_json(store.run_folder(config.init_from) / "outcome.json")
            assert earlier is not None  # this run has started from it
            metrics["total_seconds"] += earlier["train_seconds"]
        store.write_json(store.store_folder() / run / "result.json", {"id": run, "metrics": metrics})


def read_predictions(path: Path) -> RunPredictions:
    """What a run said; empty for one that says nothing (stage 1)."""
    if not path.exists():
        return RunPredictions()
    value = json.loads(path.read_text())
    return RunPredictions(value.get("captions", {}), value.get("answers", {}))


def feature_needs(config: RunConfig) -> list[tuple[str, int, str, int]]:
    """Which cached features a run reads: pool, number of images, encoder, views."""
    needs = [(pool, size, config.vision, config.data.views) for pool, size in config.data.pools if size]
    needs.append(("coco_val", config.evaluation.validation, config.vision, 1))
    needs += [
        (miniworld.POOL_OF_SET.get(name, name), size, config.vision, 1)
        for name, size in config.evaluation.sets
        if size
    ]
    return needs


def _feature_key(need: tuple[str, int, str, int]) -> str:
    return "features " + " ".join(map(str, need))


def expected_cost(config: RunConfig) -> float:
    """Rough cost in samples; a stage that others wait for goes first."""
    samples = config.optim.steps * config.optim.batch_size
    return samples * (3.0 if config.stage == "represent" else 1.0)


class Display:
    """Progress of a sweep: bars on a terminal, else a line now and then."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, 0.0
        self.bars: dict[str, Any] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Display:
        self.started = time.monotonic()
        if console.is_terminal:
            self.progress.start()
            self.sweep = self.progress.add_task("sweep", total=self.total, note="")
        return self

    def __exit__(self, *exc: object) -> None:
        if console.is_terminal:
            self.progress.stop()

    def event(self, kind: str, key: str, detail: Any) -> None:
        """See `local.Event`."""
        if kind in ("done", "failed", "blocked"):
            self.done += 1
            if console.is_terminal:
                self.progress.update(self.sweep, completed=self.done)
                if key in self.bars:
                    self.progress.remove_task(self.bars.pop(key))
            if kind != "done":
                console.print(f"[red]{key} {kind}[/]")
            elif not console.is_terminal:
                print(f"[{self._clock()}] {key} done ({self.done} of {self.total})", flush=True)
            return
        if console.is_terminal:
            if key not in self.bars:
                self.bars[key] = self.progress.add_task(key, total=None, note="")
            if detail is not None:
                note = f"{detail.phase}{_pace(detail)}"
                self.progress.update(self.bars[key], total=detail.steps, completed=detail.step, note=note)
        elif detail is not None and time.monotonic() - self.shown > 5:
            self.shown = time.monotonic()
            where = f"{detail.phase} {detail.step}/{detail.steps}"
            print(f"[{self._clock()}] {key} {where}{_pace(detail)}", flush=True)

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60:02d}:{seconds % 60:02d}"


def _pace(detail: Any) -> str:
    loss = "" if detail.loss is None else f", loss {detail.loss:.3f}"
    return f"{loss}, {detail.rate:.0f}/s"


# ------------------------------------------------------------------------------------------- reporting


def collect(experiment: Experiment, seeds: int) -> dict[str, list[dict[str, Any] | None]]:
    """Results of each row by seed, None where a run is not complete."""
    results: dict[str, list[dict[str, Any] | None]] = {}
    for row in experiment.rows:
        folders = [store.run_folder(seeded(row.config, seed)) for seed in range(seeds)]
        results[row.label] = [store.read_if_whole(folder / "result.json") for folder in folders]
    return results


def print_table(scale: str, name: str) -> None:
    """Show the table of an experiment."""
    path = store.results_folder() / name / scale / "table.md"
    if not path.exists():
        raise UserError(f"{path}: not there; make it with `python sweeps/run.py {name} --scale {scale}`")
    console.print(Markdown(path.read_text()))


def list_experiments() -> int:
    """Name and title of each experiment."""
    table = Table("experiment", "title", "rows")
    for name in EXPERIMENTS:
        experiment = load(name, "mini")
        table.add_row(name, experiment.title, str(len(experiment.rows)))
    console.print(table)
    console.print(f"scales: {', '.join(SCALES)}")
    return 0


def show_status(experiment: Experiment, scale: str, seeds: int) -> None:
    """State of each run of an experiment."""
    table = Table("row", *(f"seed {seed}" for seed in range(seeds)), title=f"{experiment.name}, {scale}")
    for row in experiment.rows:
        cells = []
        for seed in range(seeds):
            run = store.run_id(seeded(row.config, seed))
            cells.append(f"{store.status(store.store_folder() / run)}\n{run}")
        table.add_row(row.label, *cells)
    console.print(table)


def show_run(prefix: str) -> int:
    """Configuration, metrics and the end of the log of the run whose id begins with ``prefix``."""
    root = store.store_folder()
    found = sorted(path for path in root.glob(f"{prefix}*") if path.is_dir()) if root.exists() else []
    if len(found) != 1:
        what = f"{len(found)} runs begin so" if found else f"no run in {root}"
        raise UserError(
            f"show {prefix}: {what}, and it is no experiment; there are: {', '.join(EXPERIMENTS)}"
        )
    folder = found[0]
    console.print(f"[bold]{folder.name}[/]: {store.status(folder)}  ({folder})")
    for name in ("config.json", "result.json", "provenance.json"):
        value = store.read_json(folder / name)
        if value is not None:
            console.print(f"[bold]{name}[/]")
            console.print_json(data=value)
    log = folder / "log.txt"
    if log.exists():
        console.print("[bold]log.txt[/]")
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
    return 0


def plan(experiment: Experiment, scale: str, seeds: int) -> None:
    """What a sweep would do, and what it would cost by the rate of earlier runs."""
    runs = unique_runs(experiment, seeds)
    table = Table(
        "run",
        "stage",
        "connector",
        "updates",
        "pairs",
        "state",
        "seconds",
        title=f"{experiment.title}, {scale}",
    )
    rates = measured_rates()
    total, missing = 0.0, 0
    for run, config in runs.items():
        state = store.status(store.store_folder() / run)
        samples = config.optim.steps * config.optim.batch_size
        rate = rates.get(_shape(config))
        if state != "complete":
            missing += 1
            total += 0.0 if rate is None else samples * rate
        table.add_row(
            run,
            config.stage,
            config.connector.kind,
            f"{config.optim.steps:,}",
            f"{samples:,}",
            state,
            "unknown" if rate is None else f"{samples * rate:.0f}",
        )
    console.print(table)
    console.print(f"{missing} of {len(runs)} runs to execute; about {total:.0f} s of one process where known")


def _shape(config: RunConfig) -> tuple[object, ...]:
    """What a sample's cost depends on."""
    return config.connector, config.stage, config.language


def measured_rates() -> dict[tuple[object, ...], float]:
    """Seconds a sample by shape of run, from one complete run of each in the store."""
    rates: dict[tuple[object, ...], float] = {}
    root = store.store_folder()
    for path in sorted(root.glob("*/result.json")) if root.exists() else []:
        try:
            stored, result = store.read_json(path.with_name("config.json")), store.read_json(path)
        except UserError:
            continue
        if stored is not None and result is not None:
            metrics = result["metrics"]
            rates.setdefault(_shape(from_json(stored)), metrics["train_seconds"] / metrics["samples"])
    return rates


def build_foundation(arguments: Arguments) -> int:
    """Make the foundation models from nothing, and say whether they are the shipped ones."""
    from evlgen import foundation

    out = store.ROOT / "foundation" / arguments.scale
    with Display(0) as display:
        from evlgen.training import Progress as Step

        def report(name: str, step: int, steps: int, loss: float, rate: float) -> None:
            display.event("progress", name, Step("pre-training", step, steps, loss, rate))

        same = foundation.build(arguments.scale, out, arguments.workers or os.cpu_count() or 1, report)
    for name, equal in same.items():
        verdict = {True: "equal to the shipped weights, bit for bit", None: "none is shipped"}.get(
            equal, "not the shipped weights"
        )
        console.print(f"{name}: {verdict}")
    console.print(f"weights and model card in {os.path.relpath(out)}/")
    return 0 if arguments.scale == "smoke" or all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

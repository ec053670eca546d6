"""What commands show: tables, states, plans, single runs and their logs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from analysis.terminal import console, show_page, show_rows
from evlgen.config import RunConfig
from evlgen.errors import UserError, nearest
from evlgen.runs import folder as files
from evlgen.runs import results
from evlgen.runtime import paths
from experiments import EXPERIMENTS, load
from experiments.base import Experiment
from experiments.scales import NAMES
from sweeps import states
from sweeps.display import in_words
from sweeps.plan import Sweep, expected_seconds, measured_rates, samples, stages_without_weights
from sweeps.slurm import queue

_MOST_ROWS = 100  # of a table with a line for each run
_EXAMPLES = 12  # images whose captions are shown of one run


def show_experiments() -> None:
    """Name, title and number of rows of each experiment, and the scales."""
    loaded = [(name, load(name)) for name in EXPERIMENTS]
    rows = [(name, one.title, str(len(one.rows))) for name, one in loaded]
    show_rows("", ("experiment", "title", "rows"), rows, whole=(0,), right=(2,))
    console.print(f"scales: {', '.join(NAMES)}")


def show_table(name: str, scale: str) -> None:
    """Show the table of an experiment.

    Args:
        name: of its folder in the results.
    """
    path = paths.results_folder() / name / scale / "table.md"
    if not path.exists():
        changed = sorted(paths.results_folder().glob(f"{name}-changed*/{scale}/table.md"))
        others = "; there are " + ", ".join(f"`show {one.parts[-3]}`" for one in changed) if changed else ""
        raise UserError(
            f"{path}: not there; make it with `python sweeps/run.py {name} --scale {scale}`{others}"
        )
    show_page(path.read_text("utf-8"))


# ---------------------------------------------------------------------------------------------- states


def show_status(sweep: Sweep, now: Mapping[str, states.State]) -> None:
    """State of each run of a sweep if they are few, and of all of them in a line."""
    if len(now) <= _MOST_ROWS:
        rows = []
        by_row: dict[str, list[str]] = {}
        for run in now:
            by_row.setdefault(sweep.labels[run].rpartition(", seed ")[0], []).append(run)
        for run in (run for same in by_row.values() for run in same):
            state = now[run]
            label, _, seed = sweep.labels[run].rpartition(", seed ")
            word = states.status(paths.runs_folder() / run) if state.name == "done" else state.name
            rows.append((label, seed, word, run))
        changed = " with changes" if sweep.table != sweep.experiment.name else ""  # the rows say which
        title = f"{sweep.experiment.name}{changed}, {sweep.scale}"
        show_rows(title, ("row", "seed", "state", "run"), rows, whole=(2, 3), right=(1,))
    console.print(summary(sweep.experiment.name, sweep.runs, now), soft_wrap=True)
    _explain_records(sweep, now)


def _explain_records(sweep: Sweep, now: Mapping[str, states.State]) -> None:
    """What `states.with_records` means by ``packed`` and ``earlier``, where it says so of a run."""
    words = {state.name for state in now.values()}
    if "packed" in words:
        unpack = f"`unpack {sweep.experiment.name}` puts them into the run store"
        console.print(f"packed: their records lie beside the table; {unpack}", soft_wrap=True)
    if "earlier" in words:
        changed = "; ".join(dict.fromkeys(change for state in now.values() for change in state.changed))
        console.print(
            f"earlier: recorded with an earlier behaviour of the code ({changed}); shown until made again",
            soft_wrap=True,
        )


def summary(name: str, runs: Mapping[str, RunConfig], now: Mapping[str, states.State]) -> str:
    """A line on a sweep: how many runs are in which state, pace, time left, and what it has cost so far."""
    counts = Counter(state.name for state in now.values())
    parts = [", ".join(f"{counts[word]:,} {word}" for word in states.STATES if counts[word])]
    running = [run for run, state in now.items() if state.name == "running"]
    if running:
        parts.append(f"{sum(now[run].samples_per_second for run in running):,.0f} samples/s")
        rates = measured_rates(runs)
        left = [
            (expected_seconds(runs[run], rates), 1 - state.share)
            for run, state in now.items()
            if state.name in ("running", "queued", "pending")
        ]
        known = [seconds * share for seconds, share in left if seconds is not None]
        bound = "at least" if len(known) < len(left) else "about"
        parts.append(f"{bound} {in_words(sum(known) / len(running))} left" if known else "time left unknown")
    spent = sum(state.device_seconds for state in now.values()) / 3600
    parts.append(f"{spent:.2f} process hours spent (a process has one GPU where there are GPUs)")
    return f"{name}: {len(now):,} runs: " + "; ".join(parts)


# ----------------------------------------------------------------------------------------------- plans

_FINISHED = ("done", "complete")  # in the words of `states.state` and of `states.status`


def show_plan(sweep: Sweep) -> list[str]:
    """What a sweep would do, and what it would cost by the rate of earlier runs; returns the missing runs.

    Runs that differ in the seed alone share a line where there are many. A complete stage 1 of which only the
    records are there, and from which a missing run starts, is missing as well. No file is changed.
    """
    root, runs, rates = paths.runs_folder(), sweep.runs, measured_rates(sweep.runs)
    now = states.with_records(runs, states.of_runs(runs, None, ()))
    many = len(runs) > _MOST_ROWS
    words = {
        run: states.status(root / run) if state.name == "done" and not many else state.name
        for run, state in now.items()
    }
    unfinished = {run: config for run, config in runs.items() if words[run] not in _FINISHED}
    for run in stages_without_weights(unfinished, put_aside_damage=False):
        if words.get(run) in _FINISHED:
            words[run] = "no weights"
    missing = [run for run, word in words.items() if word not in _FINISHED]
    total = 0.0
    lines: Counter[tuple[str, ...]] = Counter()
    for run, config in runs.items():
        seconds = expected_seconds(config, rates)
        if words[run] not in _FINISHED:
            total += seconds or 0.0
        stage = ", stage 1" if config.stage == "represent" else ""
        label = f"{config.connector.kind}{stage}" if many else sweep.labels[run]
        updates, pairs = f"{config.optim.steps:,}", f"{samples(config):,}"
        lines[label, updates, pairs, words[run], "unknown" if seconds is None else f"{seconds:,.0f}"] += 1
    header = [*(["runs"] if many else []), "run", "updates", "pairs", "state", "seconds"]
    place = len(header) - 5
    show_rows(
        f"{sweep.experiment.title}, {sweep.scale}",
        header,
        [(*([f"{count:,}"] if many else []), *line) for line, count in lines.items()],
        whole=(place + 3,),
        right=(*range(place), place + 1, place + 2, place + 4),
    )
    cost = f"about {in_words(total)} of one process where known" if total or not missing else "time unknown"
    console.print(f"{len(missing)} of {len(runs)} runs to execute; {cost}", soft_wrap=True)
    _explain_records(sweep, now)
    return missing


# ------------------------------------------------------------------------------------------ single runs


def find_run(command: str, prefix: str) -> Path:
    """Folder of the run whose id begins with ``prefix``, which may also be the path of the folder.

    Raises:
        UserError: there is none, or more than one.
    """
    root = paths.runs_folder()
    wanted = prefix.rstrip("/").rpartition("/")[2]  # of a run's folder, as it is shown, its name
    folders = sorted(root.iterdir()) if root.exists() else []
    found = [path for path in folders if path.name.startswith(wanted) and (path / files.CONFIG).exists()]
    if len(found) != 1:
        what = f"{len(found)} runs begin so" if found else f"no run in {root}"
        hint = ""
        if command != "logs" and not found:
            hint = f", and it is no experiment; there are: {', '.join(EXPERIMENTS)}"
        raise UserError(f"{command} {prefix}: {what}{hint}{nearest(prefix, EXPERIMENTS) if hint else ''}")
    return found[0]


def show_run(prefix: str) -> None:
    """Configuration, metrics and the end of the log of the run whose id begins with ``prefix``."""
    folder = find_run("show", prefix)
    console.print(f"[bold]{folder.name}[/]: {states.status(folder)}  ({folder})", soft_wrap=True)
    for name in (files.CONFIG, files.IDENTITY, files.RESULT, files.PROVENANCE):
        value = files.read_json(folder / name)
        if value is not None:
            console.print(f"[bold]{name}[/]")
            console.print_json(data=value)
    log = folder / files.LOG
    if log.exists():
        console.print(f"[bold]{files.LOG}[/]")
        print("\n".join(log.read_text("utf-8", errors="replace").splitlines()[-20:]))


def show_logs(prefix: str) -> None:
    """The whole log of a run, what made it fail, and the ends of the logs of the SLURM jobs that had it."""
    folder = find_run("logs", prefix)
    log = folder / files.LOG
    print(log.read_text("utf-8", errors="replace").rstrip() if log.exists() else f"{log}: not there yet")
    error = files.read_json(folder / files.ERROR)
    if error is not None:
        print(f"\nfailed: {str(error['error']).rstrip()}")
    for path in queue.logs_of(folder.name):
        print(f"\n{path}:")
        print("\n".join(path.read_text("utf-8", errors="replace").splitlines()[-30:]))


# --------------------------------------------------------------------------------------------- captions

Predictions = Mapping[str, Mapping[str, Mapping[str, str]]]


def show_examples(experiment: Experiment, count: int) -> None:
    """What the rows' runs (seed 0) predict for the first images and questions, beside references.

    Rows recorded with an earlier behaviour of the code are marked as in tables.
    """
    # This imports numpy, which a look at the state does not need.
    from analysis.results import CHANGED, Run, warnings_of

    found: dict[str, tuple[RunConfig, Predictions]] = {}
    shown = []
    for row in experiment.rows:
        record = results.find(row.config)
        predictions = None if record is None else record.predictions()
        if predictions is not None:
            first = None if row.config.init_from is None else results.find(row.config.init_from)
            run = Run(row, row.config.seed, row.config, record, first)
            mark = CHANGED if any(line.startswith(CHANGED) for line in warnings_of([run])) else ""
            found[row.label + mark] = (row.config, predictions)
            shown.append(run)
    _show_predictions(found, count)
    for line in warnings_of(shown):
        if line.startswith(CHANGED):  # an earlier scorer changes no caption
            print(line)


def show_captions(prefix: str) -> None:
    """What the run whose id begins with ``prefix`` predicts for its first images, and references."""
    folder = find_run("captions", prefix)
    config = files.read_config(folder)
    try:
        predictions = json.loads(files.verified(folder, files.PREDICTIONS).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: has no predictions yet; it is {states.status(folder)}") from None
    assert config is not None
    _show_predictions({folder.name: (config, predictions)}, _EXAMPLES)


def _show_predictions(found: Mapping[str, tuple[RunConfig, Predictions]], count: int) -> None:
    """Captions and answers by label, set by set."""
    # These import numpy, which a look at the state does not need.
    from evlgen.data import worlds
    from evlgen.data.base import World

    texts_by_set: dict[tuple[str, str], tuple[World, dict[str, Mapping[str, str]]]] = {}
    for label, (config, predictions) in found.items():
        world = worlds.of(config.data)
        for name, texts in [*predictions["captions"].items(), *predictions["answers"].items()]:
            if name in world.sets:  # not the answers on shuffled images
                key = (name, world.pool_of(name))
                texts_by_set.setdefault(key, (world, {}))[1][label] = texts
    for (name, pool), (world, texts_of) in texts_by_set.items():
        for index in range(min(count, *map(len, texts_of.values()))):
            if name in world.question_sets:
                asked = world.question(name, index)
                lines = {asked.text: next(iter(Counter(asked.answers)), "?")}
            else:
                lines = {"a person": next(iter(world.references(pool, index)), "?")}
            lines |= {label: texts[str(index)] for label, texts in texts_of.items()}
            width = max(map(len, lines))
            print(f"{world.name}, {name} {index}")
            print("\n".join(f"  {label:{width}}  {text}" for label, text in lines.items()))

"""Run an experiment: ``python sweeps/run.py table2``; see ``--help`` and ``list``."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

from evlgen.errors import UserError, exit_code
from evlgen.runs import archive
from evlgen.runtime import paths
from experiments import EXPERIMENTS, load
from experiments.scales import NAMES as SCALES
from experiments.scales import get
from sweeps import records, reporting, requirements
from sweeps.plan import unique_runs
from sweeps.slurm import queue as slurm
from sweeps.sweep import QUEUED, Sweep, plan_phases, run_here, run_queued, states_of, table_seeds, wait

console = Console()

EXAMPLES = 8  # images whose captions are shown
ALL = "all"  # every experiment of the paper, and the claims that they decide
# That take an experiment
COMMANDS = ("status", "show", "captions", "retry", "wait", "cancel", "pack", "unpack")


@dataclass(frozen=True)
class Arguments:
    """Run an experiment, or say what there is."""

    command: Annotated[str, tyro.conf.Positional]
    """an experiment, or: all, list, status, show, captions, logs, retry, wait, cancel, pack, unpack,
    foundation"""
    target: Annotated[str, tyro.conf.Positional] = ""
    """an experiment or all, or for show, captions and logs the beginning of a run's id"""
    scale: str = ""
    """smoke, mini, bridge or paper; default: mini, of the experiment bridge: bridge"""
    seeds: int | None = None
    """seeds of every row; default: what the scale says (all: more for what claims rest on)"""
    executor: str = "local"
    """where runs are executed: local or slurm"""
    workers: int = 0
    """processes side by side; 0: one for each core, or what the cluster's profile says"""
    dry_run: bool = False
    """say what would run and what it would cost, and stop"""
    rows: str = ""
    """only rows whose label contains this"""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """key=value, changes a field of every run (optim.lr=1e-3); may be given again; data, vision, batch size,
    precision, accumulate and gradient_checkpointing also of the stage that it starts from"""
    cluster: str = ""
    """TOML profile of a SLURM cluster, see clusters/example.toml; the next flags go before it"""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    """limit of a job: D-HH:MM:SS, HH:MM:SS or minutes"""
    memory_gb: float | None = None
    """of a node"""
    gpus: int | None = None
    """on each node"""
    nodes: int | None = None
    """of one run"""

    def profile(self) -> slurm.Profile:
        """What to ask a cluster for: the file's values under those of the flags."""
        names = ("partition", "account", "qos", "constraint", "time", "memory_gb", "gpus", "nodes")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.workers:
            changes["workers"] = self.workers
        return slurm.read_profile(self.cluster, changes)


def main(argv: list[str]) -> int:
    """Exit code: 0 all complete, 1 runs failed, 2 a user's mistake, 3 queued in SLURM, 130 interrupted."""
    # A shell that starts a command in the background has it ignore Ctrl-C; this one can always be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = tyro.cli(Arguments, args=argv, prog="sweeps/run.py", description=__doc__)
    return answered(lambda: _dispatch(arguments), "runs")


def answered(action: Callable[[], int], kept: str) -> int:
    """Exit code of an action; a user's mistake, a full disk and Ctrl-C get one line each.

    Args:
        kept: what is kept then, as far as it is finished.
    """
    try:
        return exit_code(action)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"error: {error.filename or paths.runs_folder()}: {error.strerror}; finished {kept} are kept",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; finished {kept} are kept, the same command goes on", file=sys.stderr)
        return 130


def _dispatch(arguments: Arguments) -> int:
    if arguments.command == "list":
        return list_experiments()
    if arguments.command == "foundation":
        return build_foundation(arguments)
    of_a_run = {"logs": reporting.show_logs, "show": reporting.show_run, "captions": reporting.show_captions}
    if arguments.command == "logs" or (
        arguments.command in of_a_run and arguments.target and arguments.target not in (*EXPERIMENTS, ALL)
    ):
        of_a_run[arguments.command](arguments.target)
        return 0
    name = arguments.target if arguments.command in COMMANDS else arguments.command
    if arguments.executor not in ("local", "slurm"):
        raise UserError(f"--executor {arguments.executor}: no such executor; there are: local, slurm")
    if arguments.seeds is not None and arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: at least 1 is needed")
    if not name and arguments.command not in ("status", "show"):
        raise UserError(f"{arguments.command}: of what? There are: {', '.join((*EXPERIMENTS, ALL))}")
    names = _of_all() if name == ALL else (name,) if name else EXPERIMENTS
    if not name:
        names = tuple(one for one in names if (one, arguments.scale) != ("table2", "bridge"))  # it refuses
    # Planned before any is executed: a mistake in a flag must not show after an hour.
    sweeps = [_sweep(one, arguments, everything=name == ALL) for one in names]
    codes = [_carry_out(sweep, arguments) for sweep in sweeps]
    is_over = arguments.command == ALL or (arguments.command == "wait" and name == ALL)
    if is_over and not arguments.dry_run and QUEUED not in codes:
        judge(sweeps[0].scale, arguments)
    # 1, some runs failed, says more than 3, some are queued
    return 1 if 1 in codes else max(codes)


def _of_all() -> tuple[str, ...]:
    return tuple(name for name in EXPERIMENTS if load(name).in_all)


def judge(scale: str, arguments: Arguments) -> None:
    """Judge the paper's claims by the runs that were asked for."""
    if arguments.set or arguments.rows:
        console.print("claims not judged: they are about all rows as they stand, without --set and --rows")
        return
    from analysis import claims

    claims.write(scale, arguments.seeds)


def _sweep(name: str, arguments: Arguments, everything: bool) -> Sweep:
    scale = arguments.scale or load(name).default_scale
    experiment = load(name, scale, arguments.set, arguments.rows)
    seeds = arguments.seeds or experiment.seeds
    if everything and experiment.claimed and not arguments.seeds:
        seeds = get(scale).claim_seeds
    return Sweep(experiment, scale, seeds, bool(arguments.set or arguments.rows))


def _carry_out(sweep: Sweep, arguments: Arguments) -> int:
    """Do with one experiment what the command says; exit code."""
    experiment, command = sweep.experiment, arguments.command
    if experiment.count is not None and command != "show":
        count(sweep, arguments)
    elif command == "show":
        reporting.print_table(sweep.scale, experiment.name)
    elif command == "captions":
        reporting.show_examples(sweep.experiment, EXAMPLES)
    elif command == "status":
        reporting.show_status(experiment, sweep.scale, sweep.seeds, sweep.runs, states_of(sweep, _queue()))
    elif command == "pack":
        pack(sweep)
    elif command == "unpack":
        if arguments.target != ALL or archive.path_of(sweep.table, sweep.scale).exists():
            unpack(sweep)
    elif command == "wait":
        return wait(sweep, arguments.profile() if arguments.cluster else None)
    elif command == "cancel":
        print(f"{slurm.cancel(sweep.name)} jobs cancelled; the same command queues what is not done")
    elif arguments.dry_run:
        plan(sweep, arguments)
    elif arguments.executor == "slurm":
        profile = arguments.profile()
        if command == "retry" and not arguments.cluster:
            profile = slurm.profile_of(slurm.batches(sweep.name).values()) or profile
        return run_queued(sweep, profile, failed_only=command == "retry")
    else:
        workers = arguments.workers or os.cpu_count() or 1
        return run_here(sweep, workers, failed_only=command == "retry")
    return 0


def pack(sweep: Sweep) -> None:
    """Put the records of a table's finished runs into a file beside it."""
    experiment, path = sweep.experiment, archive.path_of(sweep.table, sweep.scale)
    seeds = table_seeds(sweep)
    runs = unique_runs(experiment, seeds)
    pictured = unique_runs(experiment, min(seeds, experiment.pictured))
    packed = archive.pack(path, list(runs), list(pictured))
    where = f"{os.path.relpath(path)}, {path.stat().st_size / 2**20:.1f} MiB" if packed else "no file"
    console.print(f"{experiment.name}: {len(packed)} of {len(runs)} runs in {where}")


def unpack(sweep: Sweep) -> None:
    """Put the finished runs that came with a table into the run store."""
    path = archive.path_of(sweep.table, sweep.scale)
    put = records.unpack(path)
    known = len(set(put) & set(unique_runs(sweep.experiment, get(sweep.scale).claim_seeds)))
    of_others = "" if known == len(put) else f"; {len(put) - known} are of other configurations or versions"
    console.print(f"{sweep.experiment.name}: {len(put)} runs put into {paths.runs_folder().name}/{of_others}")


def _queue() -> dict[str, slurm.Job] | None:
    """What is queued; None, and a word about it, where SLURM cannot be asked."""
    try:
        return slurm.queue()
    except UserError as error:
        print(f"{error} (queued and lost runs are not told apart)", file=sys.stderr)
        return None


def plan(sweep: Sweep, arguments: Arguments) -> None:
    """Say what a sweep would do; with SLURM also in how many jobs."""
    missing = reporting.show_plan(sweep.experiment, sweep.scale, sweep.runs)
    for line in requirements.missing(sweep.runs[run] for run in missing):
        print(f"missing: {line}")
    if arguments.executor == "slurm":
        profile = arguments.profile()
        phases, seconds = plan_phases({run: sweep.runs[run] for run in missing})
        jobs = [len(slurm.pack(phase, seconds, profile)) for phase in phases]
        of_runs = " + ".join(map(str, jobs[1:])) or 0
        console.print(f"SLURM jobs: {jobs[0]} for features, {of_runs} for runs, 1 to score")
        console.print(f"SLURM: {profile}")


def count(sweep: Sweep, arguments: Arguments) -> None:
    """An experiment that trains nothing: make its table, or say whether it is there."""
    experiment = sweep.experiment
    folder = paths.results_folder() / sweep.table / sweep.scale
    if arguments.command in COMMANDS or arguments.dry_run:
        there = "is there" if (folder / "table.csv").exists() else "is not made yet; it takes half a minute"
        console.print(f"{experiment.name}, {sweep.scale}: counted, nothing to train; its table {there}")
        return
    from analysis.cost_tables import write_counts
    from analysis.timings import training_times

    assert experiment.count is not None
    counted, measured = experiment.count(experiment, sweep.scale), training_times(sweep.scale)
    write_counts(counted, folder, () if measured is None else (measured,))
    reporting.print_table(sweep.scale, sweep.table)
    console.print(f"table in {os.path.relpath(folder)}/")


def list_experiments() -> int:
    """Name and title of each experiment."""
    table = Table("experiment", "title", "rows")
    for name in EXPERIMENTS:
        experiment = load(name)
        table.add_row(name, experiment.title, str(len(experiment.rows)))
    console.print(table)
    console.print(f"scales: {', '.join(SCALES)}")
    return 0


def build_foundation(arguments: Arguments) -> int:
    """Make the foundation models from nothing, and say whether they are the shipped ones."""
    from evlgen.miniworld.pretrain.build import build  # imports torch
    from sweeps.display import Display

    scale = arguments.scale or "mini"
    out = paths.ROOT / "foundation" / scale
    with Display(0) as display:
        from evlgen.training import Progress as Step

        def report(name: str, step: int, steps: int, loss: float, rate: float) -> None:
            display.event("progress", name, Step("pre-training", step, steps, loss, rate))

        same = build(scale, out, arguments.workers or os.cpu_count() or 1, report)
    for name, equal in same.items():
        verdict = {True: "equal to the shipped weights, bit for bit", None: "none is shipped"}.get(
            equal, "not the shipped weights"
        )
        console.print(f"{name}: {verdict}")
    console.print(f"weights and model card in {os.path.relpath(out)}/")
    return 0 if scale == "smoke" or all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

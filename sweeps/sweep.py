"""A sweep: an experiment with some seeds, executed here or through a queue, until its table is there."""

from __future__ import annotations

import functools
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import identity
from evlgen.runtime import paths
from experiments.base import Experiment, seeded
from experiments.scales import get
from sweeps import requirements, states
from sweeps.local import Task
from sweeps.plan import (
    expected_seconds,
    feature_tasks,
    measured_rates,
    missing_features,
    run_task,
    stages_without_weights,
    unique_runs,
)
from sweeps.reporting import print_table, show_examples, summary, write_table
from sweeps.slurm import queue as slurm

console = Console()

QUEUED = 3  # exit code: all is well, but not done yet
_POLL_SECONDS = (1.0, 20.0)  # between two looks at the queue: at first, and after a while
_SILENCE_SECONDS = 1800.0  # so long may SLURM give no answer to one who waits for a sweep
_MINI_SECONDS = (10.0, 0.02)  # of a run in the miniature that was never measured: at all, and for a sample


@dataclass(frozen=True)
class Sweep:
    """Which runs are wanted.

    Attributes:
        changed: by ``--set`` or ``--rows``: its table must not take the place of the experiment's own.
    """

    experiment: Experiment
    scale: str
    seeds: int
    changed: bool = False

    @functools.cached_property
    def runs(self) -> dict[str, RunConfig]:
        """By id; a stage that others start from comes before them."""
        return unique_runs(self.experiment, self.seeds)

    @property
    def table(self) -> str:
        """Name of the folder of its table in the results."""
        return self.experiment.name + ("-changed" if self.changed else "")

    @property
    def name(self) -> str:
        """Under which its jobs go in the queue."""
        return f"{self.table}-{self.scale}"


def states_of(sweep: Sweep, queued: dict[str, slurm.Job] | None = None) -> dict[str, states.State]:
    """State of each run; with what the queue says (None: it was not asked)."""
    root = paths.runs_folder()
    now, submitted = states.server_time(root), slurm.submitted(slurm.batches())
    known = queued or {}
    return {
        run: states.state(
            root / run,
            now,
            known[run].state if run in known else None,
            was_submitted=queued is not None and run in submitted,
        )
        for run in sweep.runs
    }


def run_here(sweep: Sweep, workers: int, failed_only: bool = False) -> int:
    """Execute what is missing, score it, write the table; 0 if every run is complete."""
    from sweeps.execute import execute

    root = paths.runs_folder()
    missing = unfinished(sweep)
    _head(sweep, len(missing))
    requirements.check(missing.values(), sweep.scale)
    if failed_only:
        failed = {run for run in missing if (root / run / "error.json").exists()}
        first_of = _first_of(missing)
        failed |= {run for run, first in first_of.items() if first in failed}  # they were blocked by it
        failed |= {first_of[run] for run in failed & first_of.keys()}
        missing = {run: config for run, config in missing.items() if run in failed}
    problems = execute(missing, workers) if missing else {}
    return conclude(sweep, problems)


def unfinished(sweep: Sweep) -> dict[str, RunConfig]:
    """The runs that are not complete, and the stages 1 before them of which only the records are there.

    The latter are trained again, to the same bits on a like machine.
    """
    root = paths.runs_folder()
    missing = {run: config for run, config in sweep.runs.items() if not files.is_complete(root / run)}
    missing |= stages_without_weights(missing)
    return {run: config for run, config in sweep.runs.items() if run in missing}


def _first_of(runs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Run -> the stage 1 that it starts from, of those that start from one."""
    return {
        run: identity.run_id(config.init_from) for run, config in runs.items() if config.init_from is not None
    }


def conclude(sweep: Sweep, problems: dict[str, str] | None = None) -> int:
    """Write and show the table of what is complete; 0 if every run is.

    Where no run is, there is nothing to write, and a table that came with the checkout stays.
    """
    complete = sum(files.is_complete(paths.runs_folder() / run) for run in sweep.runs)
    where = "no table written"
    if complete:
        folder = write_table(sweep.experiment, sweep.scale, table_seeds(sweep), sweep.table)
        print_table(sweep.scale, sweep.table)
        if sweep.experiment.examples:
            show_examples(sweep.experiment, sweep.experiment.examples)
        where = f"table in {os.path.relpath(folder)}/"
    for run, problem in (problems or {}).items():
        console.print(f"[red]{run} {problem}[/]: see {paths.runs_folder() / run / 'log.txt'}")
    console.print(f"{complete} of {len(sweep.runs)} runs complete; {where}")
    return 0 if complete == len(sweep.runs) else 1


def table_seeds(sweep: Sweep) -> int:
    """Seeds of a sweep's table: those asked for, and as many more as all rows have, up to those of claims.

    Where everything was run before, fewer would part the table from the claims and figures that rest on it.
    """
    seeds = sweep.seeds
    if sweep.changed:
        return seeds
    configs = [row.config for row in sweep.experiment.rows]
    while seeds < get(sweep.scale).claim_seeds and all(
        files.is_complete(identity.run_folder(seeded(config, seed)))
        for config in configs
        for seed in range(seeds + 1)
    ):
        seeds += 1
    return seeds


def _head(sweep: Sweep, missing: int) -> None:
    total = len(sweep.runs)
    console.print(
        f"[bold]{sweep.experiment.title}[/] at scale {sweep.scale}: {total} runs, {total - missing} complete"
    )


# -------------------------------------------------------------------------------------------- queued


def run_queued(sweep: Sweep, profile: slurm.Profile, failed_only: bool = False) -> int:
    """Queue what is missing and not queued yet; returns at once.

    Runs that have failed wait for ``retry``, which queues them and those that were lost.
    """
    missing = unfinished(sweep)
    _head(sweep, len(missing))
    requirements.check(missing.values(), sweep.scale)
    if not missing:
        return conclude(sweep)
    with slurm.launching():
        done = _submit(sweep, profile, ("failed", "lost") if failed_only else ("pending", "stopped", "lost"))
    console.print(f"{done.jobs} jobs queued in {done.arrays} arrays")
    if done.left:
        console.print(f"{done.left} tasks are left for when there is room (max_jobs): wait queues them")
    now = states_of(sweep, slurm.queue())
    console.print(summary(sweep.experiment.name, sweep.runs, now))
    if any(state.name == "failed" for state in now.values()):
        console.print("[red]runs have failed[/]: logs RUN says why, retry queues them again")
    return QUEUED


def _submit(sweep: Sweep, profile: slurm.Profile, wanted_states: tuple[str, ...]) -> slurm.Submission:
    queued = slurm.queue()
    now = states_of(sweep, queued)
    wanted = _ready_to_queue(sweep, now, queued, wanted_states)
    unscored = [run for run in sweep.runs if run in wanted or now[run].name == "trained"]
    phases, seconds = plan_phases(wanted)
    for config in wanted.values():
        files.prepare(config)
    scoring = [key for key in queued if key.startswith(f"score {sweep.name} ")]
    if wanted or (unscored and not scoring):
        key = f"score {sweep.name} {secrets.token_hex(4)}"
        also = [run for run in sweep.runs if now[run].name in ("queued", "running")]
        score = Task(key, "sweeps.execute:score", tuple(unscored + also), needs=tuple(unscored + also))
        phases.append([score])
    known = {key: job for key, job in queued.items() if key not in wanted}
    phases = [[task for task in phase if task.key not in known] for phase in phases]
    return slurm.submit(sweep.name, [phase for phase in phases if phase], seconds, profile, known)


def _ready_to_queue(
    sweep: Sweep,
    now: dict[str, states.State],
    queued: Mapping[str, slurm.Job],
    wanted_states: tuple[str, ...],
) -> dict[str, RunConfig]:
    """The runs in the wanted states and what they start from; without those whose stage 1 will not be there.

    A stage 1 that failed waits for ``retry``, one that runs outside the queue gives jobs nothing to wait for.
    """
    wanted = {run: config for run, config in sweep.runs.items() if now[run].name in wanted_states}
    weightless = stages_without_weights(wanted)
    for run, first in _first_of(wanted).items():
        state = now[first].name
        if (state in ("done", "trained") and first not in weightless) or first in queued:
            continue
        if state == "running" or (state == "failed" and "failed" not in wanted_states):
            console.print(f"{run} is left out: its stage 1, {first}, is {state}")
            del wanted[run]
        else:
            wanted[first] = sweep.runs[first]
    return {run: config for run, config in sweep.runs.items() if run in wanted}


def plan_phases(runs: dict[str, RunConfig]) -> tuple[list[list[Task]], dict[str, float]]:
    """Tasks in the phases in which they can be done, and the seconds they should take where that is known.

    First the features that are not cached, then runs, each after the one that it starts from.
    """
    rates = measured_rates(runs)
    seconds: dict[str, float] = {}
    features = missing_features(feature_tasks(runs.values()))
    for task in features:
        if "mini" in task.arguments[2]:
            seconds[task.key] = 0.01 * task.arguments[1] * task.arguments[3]
    phases: list[list[Task]] = [features]
    for run, config in runs.items():
        depth, first = 1, config.init_from
        while first is not None:
            depth, first = depth + 1, first.init_from
        while len(phases) <= depth:
            phases.append([])
        phases[depth].append(run_task(run, config))
        expected = expected_seconds(config, rates)
        if expected is None and config.vision.startswith("mini"):
            fixed, each = _MINI_SECONDS
            expected = fixed + each * config.optim.steps * config.optim.batch_size
        if expected is not None:
            seconds[run] = expected
    return phases, seconds


def wait(sweep: Sweep, profile: slurm.Profile | None) -> int:
    """Follow a queued sweep to its end, then write its table; 0 if every run is complete.

    Tasks that were left for want of room are queued as soon as there is some.

    Args:
        profile: for those; None: the one that the sweep was submitted with.
    """
    shown, pause = "", _POLL_SECONDS[0]
    answered: float | None = None
    while True:
        try:
            queued = slurm.queue()
        except UserError as error:  # a controller may be down for a while, but it was there before
            if answered is None or time.monotonic() - answered > _SILENCE_SECONDS:
                raise
            print(f"{time.strftime('%H:%M:%S')} {error}: asked again soon", flush=True)
            time.sleep(_POLL_SECONDS[1])
            continue
        answered = time.monotonic()
        now = states_of(sweep, queued)
        line = summary(sweep.experiment.name, sweep.runs, now)
        if line != shown:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
        shown, pause = line, pause * 1.2 if line == shown else _POLL_SECONDS[0]
        ours = slurm.batches(sweep.name)
        is_busy = bool(slurm.submitted(ours) & queued.keys()) or any(
            one.name == "running" for one in now.values()
        )
        latest = next(reversed(ours), None)
        if latest is not None and ours[latest]["left"] and not slurm.is_cancelled(latest):
            chosen = profile or slurm.profile_of(ours.values()) or slurm.Profile()
            is_full = len({job.id for job in queued.values()}) >= chosen.max_jobs
            if not is_full:
                with slurm.launching():
                    is_busy = _submit(sweep, chosen, ("pending", "stopped")).jobs > 0 or is_busy
            is_busy = is_busy or is_full
        if not is_busy:
            return conclude(sweep)
        time.sleep(min(pause, _POLL_SECONDS[1]))

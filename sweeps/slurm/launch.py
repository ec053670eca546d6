"""A sweep through the SLURM queue: its runs are submitted, followed, and concluded after all jobs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping

from analysis.terminal import console
from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs import folder as files
from sweeps import requirements, room, states
from sweeps.conclude import conclude, nothing_failed
from sweeps.execute import announce
from sweeps.local import Task
from sweeps.plan import (
    Sweep,
    expected_seconds,
    feature_seconds,
    feature_tasks,
    first_stages,
    measured_rates,
    missing_features,
    run_task,
    samples,
    stages_without_weights,
    unfinished,
)
from sweeps.show import summary
from sweeps.slurm import queue
from sweeps.slurm.profile import Profile, profile_of
from sweeps.slurm.queue import QUEUED
from sweeps.slurm.submit import Submission, submit

_POLL_SECONDS = (1.0, 20.0)  # between two looks at the queue: at first, and after a while
_SILENCE_SECONDS = 1800.0  # so long may SLURM give no answer to one who waits for a sweep
_MINI_SECONDS = (10.0, 0.02)  # of a run in the miniature that was never measured: at all, and for a sample


def run_queued(sweep: Sweep, profile: Profile, failed_only: bool = False) -> int:
    """Queue what is missing and not queued yet; returns at once.

    Runs that have failed wait for ``retry``, which queues them and those that were lost.
    """
    missing = unfinished(sweep.runs)
    announce(sweep, len(missing))
    if failed_only:
        now = queue.states_of(sweep.runs, queue.jobs())
        if not any(state.name in ("failed", "lost") for state in now.values()):
            return nothing_failed(sweep)
    said, no_room = room.features(missing.values())
    requirements.check(missing.values(), sweep.scale, [no_room] if no_room else [])
    if said:
        console.print(said, soft_wrap=True)
    if not missing:
        return conclude(sweep)
    with queue.launching():
        done = _submit(sweep, profile, ("failed", "lost") if failed_only else ("pending", "stopped", "lost"))
    console.print(f"{done.jobs} jobs queued in {done.arrays} arrays")
    if done.left:
        console.print(f"{done.left} tasks are left for when there is room (max_jobs): wait queues them")
    now = queue.states_of(sweep.runs, queue.jobs())
    console.print(summary(sweep.experiment.name, sweep.runs, now))
    if any(state.name == "failed" for state in now.values()):
        console.print("[red]runs have failed[/]: logs RUN says why, retry queues them again")
    return QUEUED


def _submit(sweep: Sweep, profile: Profile, wanted_states: tuple[str, ...]) -> Submission:
    jobs = queue.jobs()
    now = queue.states_of(sweep.runs, jobs)
    wanted = _ready_to_queue(sweep, now, jobs, wanted_states)
    unscored = [run for run in sweep.runs if run in wanted or now[run].name == "trained"]
    phases, seconds = plan_phases(wanted)
    for config in wanted.values():
        files.prepare(config)
    scoring = [key for key in jobs if key.startswith(f"score {sweep.name} ")]
    if wanted or (unscored and not scoring):
        key = f"score {sweep.name} {secrets.token_hex(4)}"
        also = [run for run in sweep.runs if now[run].name in ("queued", "running")]
        score = Task(key, "sweeps.conclude:score", tuple(unscored + also), needs=tuple(unscored + also))
        phases.append([score])
    known = {key: job for key, job in jobs.items() if key not in wanted}
    phases = [[task for task in phase if task.key not in known] for phase in phases]
    return submit(sweep.name, [phase for phase in phases if phase], seconds, profile, known)


def _ready_to_queue(
    sweep: Sweep,
    now: Mapping[str, states.State],
    jobs: Mapping[str, queue.Job],
    wanted_states: tuple[str, ...],
) -> dict[str, RunConfig]:
    """The runs in the wanted states and what they start from; without those whose stage 1 will not be there.

    A stage 1 that failed waits for ``retry``, one that runs outside the queue gives jobs nothing to wait for.
    """
    wanted = {run: config for run, config in sweep.runs.items() if now[run].name in wanted_states}
    weightless = stages_without_weights(wanted)
    for run, first in first_stages(wanted).items():
        state = now[first].name
        if (state in ("done", "trained") and first not in weightless) or first in jobs:
            continue
        if state == "running" or (state == "failed" and "failed" not in wanted_states):
            console.print(f"{sweep.labels[run]} is left out: its stage 1, {first}, is {state}")
            del wanted[run]
        else:
            wanted[first] = sweep.runs[first]
    return {run: config for run, config in sweep.runs.items() if run in wanted}


def plan_phases(runs: Mapping[str, RunConfig]) -> tuple[list[list[Task]], dict[str, float]]:
    """Tasks in the phases in which they can be done, and the seconds they should take where that is known.

    First the features that are not cached, then runs, each after the one that it starts from.
    """
    rates = measured_rates(runs)
    seconds: dict[str, float] = {}
    features = missing_features(feature_tasks(runs.values()))
    for task in features:
        _, size, vision, views, *_ = task.arguments
        expected = feature_seconds(vision, size, views)
        if expected is not None:
            seconds[task.key] = expected
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
            expected = fixed + each * samples(config)
        if expected is not None:
            seconds[run] = expected
    return phases, seconds


def wait(sweep: Sweep, profile: Profile | None) -> int:
    """Follow a queued sweep to its end, then write its table; 0 if every run is complete.

    Tasks that were left for want of room are queued as soon as there is some.

    Args:
        profile: for those; None: the one that the sweep was submitted with.
    """
    shown, pause = "", _POLL_SECONDS[0]
    answered: float | None = None
    while True:
        try:
            jobs = queue.jobs()
        except UserError as error:  # a controller may be down for a while, but it was there before
            if answered is None or time.monotonic() - answered > _SILENCE_SECONDS:
                raise
            print(f"{time.strftime('%H:%M:%S')} {error}: asked again soon", flush=True)
            time.sleep(_POLL_SECONDS[1])
            continue
        answered = time.monotonic()
        now = queue.states_of(sweep.runs, jobs)
        line = summary(sweep.experiment.name, sweep.runs, now)
        if line != shown:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
        shown, pause = line, pause * 1.2 if line == shown else _POLL_SECONDS[0]
        ours = queue.batches(sweep.name)
        is_busy = bool(queue.submitted(ours) & jobs.keys()) or any(
            one.name == "running" for one in now.values()
        )
        latest = next(reversed(ours), None)
        if latest is not None and ours[latest]["left"] and not queue.is_cancelled(latest):
            chosen = profile or profile_of(ours.values()) or Profile()
            is_full = len({job.id for job in jobs.values()}) >= chosen.max_jobs
            if not is_full:
                with queue.launching():
                    is_busy = _submit(sweep, chosen, ("pending", "stopped")).jobs > 0 or is_busy
            is_busy = is_busy or is_full
        if not is_busy:
            return conclude(sweep)
        time.sleep(min(pause, _POLL_SECONDS[1]))

"""A search, executed here or through a SLURM queue, and what is shown of it."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import Study
from rich.markup import escape

from analysis.search import Outcome, write_search
from analysis.terminal import console, show_page, show_rows
from sweeps import leases, local, plan, requirements
from sweeps.display import Display, in_words
from sweeps.search.arguments import Arguments
from sweeps.search.secrets import hidden
from sweeps.search.spaces import Target, is_stage1
from sweeps.search.study import (
    described_in_words,
    ended,
    importances,
    is_lost,
    open_storage,
    quiet,
    to_go,
    without_password,
)
from sweeps.search.targets import study_name, targets
from sweeps.search.worker import print_ended, work
from sweeps.slurm import queue
from sweeps.slurm.profile import Profile, read_profile
from sweeps.slurm.queue import QUEUED
from sweeps.slurm.submit import submit

_WORK = "sweeps.search.worker:work"
_ROUNDS_IN_VAIN = 3


def run(arguments: Arguments) -> int:
    """Do what the command line says; exit code."""
    quiet()
    goals = targets(arguments)
    profile = read_profile(arguments.cluster, {}) if arguments.executor == "slurm" else None
    if arguments.dry_run:
        show_plan(arguments, goals)
        lines = requirements.missing(target.base for target in goals)
        for line in lines:
            print(f"missing: {line}")
        return 2 if lines else 0
    requirements.check((target.base for target in goals), arguments.scale)
    with leases.turn(arguments.folder / "turn"):  # two must not make a database's tables at once
        open_storage(arguments.place)
    if arguments.worker:
        _work_until_sigterm(arguments)
        return report(arguments, goals)
    if profile is not None:
        return queue_workers(arguments, goals, profile)
    return search(arguments, goals)


def _work_until_sigterm(arguments: Arguments) -> None:
    """Work on trials; SIGTERM ends this process with 143, and its trial is given out again at once."""
    asked: list[int] = []

    def end(number: int, frame: object) -> None:
        asked.append(number)
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    try:
        work(print_ended, dataclasses.asdict(arguments))
    except Exception:  # the exit may meet optuna at a lock, which makes an error of its own of it
        if asked:
            sys.exit(143)
        raise


def search(arguments: Arguments, goals: list[Target]) -> int:
    """Workers on this machine, until the asked number of trials has ended; then the tables."""
    missing = to_go(arguments.trials, studies(arguments, goals))
    console.print(
        f"[bold]{arguments.search}[/] search, {arguments.name} at scale {arguments.scale}: "
        f"{arguments.trials} trials of {len(goals)} parts, {missing} to go",
    )
    place = without_password(arguments.place)
    console.print(f"study: {place} (optuna-dashboard {place})", soft_wrap=True)
    broken = ""
    workers = min(arguments.workers or os.cpu_count() or 1, max(missing, 1))
    known = [expected_seconds(target, plan.measured_rates()) for target in goals]
    each = None if None in known else sum(seconds or 0.0 for seconds in known) / len(known)
    with Display({}, workers, missing, each) as display:

        def event(kind: str, key: str, detail: Any) -> None:
            nonlocal broken
            if kind == "progress":
                what, trial, news = detail
                if what == "done":
                    console.print(escape(f"{trial}, {news}"), soft_wrap=True)
                display.event(what, trial, news)
            elif kind == "failed":
                detail = hidden(str(detail))
                if "Traceback" in detail:  # no accident of one process: it would happen again
                    broken = str(detail).strip().splitlines()[-1]
                console.print(
                    f"[red]{key}: {escape(str(detail).strip().splitlines()[-1])}[/]", soft_wrap=True
                )

        settings = dataclasses.asdict(arguments)
        in_vain, handed_out = 0, -1
        while missing > 0 and not broken:  # again only if all workers were killed
            tasks = [local.Task(f"worker {index}", _WORK, (settings,)) for index in range(workers)]
            local.execute(tasks, workers, event)
            found = studies(arguments, goals)
            missing, before = to_go(arguments.trials, found), handed_out
            handed_out = sum(len(study.get_trials(deepcopy=False)) for study in found if study is not None)
            in_vain = in_vain + 1 if handed_out == before else 0
            if in_vain == _ROUNDS_IN_VAIN:
                broken = "the workers die before they begin a trial"
    if broken:
        console.print(f"[red]stopped: {escape(broken)}[/]; the same command goes on", soft_wrap=True)
    return report(arguments, goals)


def queue_workers(arguments: Arguments, goals: list[Target], profile: Profile) -> int:
    """Workers in the SLURM queue, a job each, unless there are some; then what there is so far.

    A job that is preempted or out of time writes a checkpoint and comes back, and resumes the trial that was
    interrupted.

    Returns:
        0 if all trials have ended, else `QUEUED`.
    """
    found = studies(arguments, goals)
    missing = to_go(arguments.trials, found)
    name = f"search-{arguments.name}-{arguments.scale}"
    if missing:
        with queue.launching():
            jobs = queue.jobs()
            at_work = [key for key in jobs if key.startswith(f"{name} ")]
            if not at_work:
                place = arguments.place
                settings = dataclasses.asdict(arguments) | {"worker": True, "executor": "local"}
                settings["storage"] = place if "://" in place else str(Path(place).absolute())
                batch = uuid.uuid4().hex[:8]
                at_work = [f"{name} {batch} {index}" for index in range(min(arguments.workers or 4, missing))]
                tasks = [local.Task(key, _WORK, (settings,)) for key in at_work]
                submit(name, [tasks], {}, profile, jobs)
        console.print(
            f"{missing} trials to go, {len(at_work)} workers in the queue (squeue shows them as "
            f"evlgen-{name}-...); the same command shows how far they are",
            soft_wrap=True,
        )
    if any(study is not None and ended(study) for study in found):
        report(arguments, goals)
    return QUEUED if missing else 0


def studies(arguments: Arguments, goals: list[Target]) -> list[Study | None]:
    """The study of each target, None where there is none yet."""
    place = arguments.place
    file = place.removeprefix("sqlite:///").partition("?")[0] if "://" in place else place
    is_file = "://" not in place or (place.startswith("sqlite:///") and file not in ("", ":memory:"))
    if is_file and not Path(file).exists():  # opening it would make it
        return [None for _ in goals]
    storage = open_storage(place)
    known = set(optuna.get_all_study_names(storage))
    wanted = [study_name(arguments, target) for target in goals]
    return [optuna.load_study(study_name=n, storage=storage) if n in known else None for n in wanted]


# ------------------------------------------------------------------------------------------ what is shown


def report(arguments: Arguments, goals: list[Target]) -> int:
    """Write the tables of all trials there are, and show them; 0 if it is as many as were asked for."""
    found = studies(arguments, goals)
    outcomes = []
    for target, study in zip(goals, found, strict=True):
        if study is None:
            continue
        trials = study.get_trials(deepcopy=False)
        front = [trial.number for trial in study.best_trials]
        importance = importances(study, arguments.minimised)
        lost = sum(map(is_lost, trials))
        outcomes.append(Outcome(target.part, list(target.space), ended(study), front, importance, lost))
    folder = arguments.results
    missing, asked = to_go(arguments.trials, found), arguments.trials * len(goals)
    known = sum(len(outcome.trials) for outcome in outcomes)
    if not known:  # tables that are there, perhaps with the checkout, stay
        console.print(f"0 of {asked} trials; no table written", soft_wrap=True)
        return 0 if missing == 0 else 1
    write_search(arguments.title, _ranges(goals), arguments.minimised, outcomes, folder)
    show_page((folder / "trials.md").read_text("utf-8"))
    console.print(
        f"{asked - missing} of {asked} trials; tables in {os.path.relpath(folder)}/", soft_wrap=True
    )
    return 0 if missing == 0 else 1


def show_plan(arguments: Arguments, goals: list[Target]) -> None:
    """What a search would do, and what it would cost by the rate of earlier runs; nothing is written."""
    rows = []
    rates = plan.measured_rates()
    total = 0.0
    for target, study in zip(goals, studies(arguments, goals), strict=True):
        missing = to_go(arguments.trials, [study])
        seconds = expected_seconds(target, rates)
        total += 0.0 if seconds is None else seconds * missing
        row = (
            target.part,
            "\n".join(f"{name}: {_range(axis)}" for name, axis in target.space.items()),
            "" if target.default is None else described_in_words(target.default, {}),
            str(arguments.trials),
            str(missing),
            "unknown" if seconds is None else f"{seconds:.0f}",
        )
        rows.append(row)
    header = ("part", "parameters", "first trial", "trials", "to go", "seconds a trial")
    show_rows(arguments.title, header, rows, right=(3, 4, 5))
    objectives, place = ", ".join(arguments.minimised), without_password(arguments.place)
    console.print(f"objectives: {objectives}; study: {place}", soft_wrap=True)
    console.print(
        f"about {in_words(total)} of one process at most, where known; pruning saves some of it",
        soft_wrap=True,
    )


def expected_seconds(target: Target, rates: plan.Rates) -> float | None:
    """Seconds of a trial; a stage 1 counts where each trial has its own. None if a rate is not known."""
    configs = [target.base]
    if is_stage1(target.part) and target.base.init_from is not None:
        configs.append(target.base.init_from)
    known = [plan.expected_seconds(config, rates) for config in configs]
    return None if None in known else sum(seconds for seconds in known if seconds is not None)


def _ranges(goals: Sequence[Target]) -> dict[str, str]:
    """The range of each parameter, in words; it is the same for all targets of a search."""
    return {name: _range(axis) for target in goals for name, axis in target.space.items()}


def _range(axis: BaseDistribution) -> str:
    low, high = getattr(axis, "low", "?"), getattr(axis, "high", "?")
    step = getattr(axis, "step", None)
    how = ", log-uniform" if getattr(axis, "log", False) else f", step {step:g}" if step else ""
    return f"{low:g} to {high:g}{how}"

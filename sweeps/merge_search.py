"""Search merge schedules, or learning rates, with Optuna: ``python sweeps/merge_search.py --space free``.

Every trial is an ordinary run of the run store. Workers, on this machine or elsewhere, work on one study
(`--worker`), also in a SLURM queue (`--executor slurm`); the same command goes on to the asked number of
trials. With one worker a seed gives the same trials and values each time, also after a kill; several workers
interleave: what each is given then depends on which trials had ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import optuna
except ModuleNotFoundError:
    print("error: optuna is missing: pip install -e '.[search]' (make merge_search does)", file=sys.stderr)
    raise SystemExit(2) from None

import tyro
from optuna.distributions import BaseDistribution
from optuna.study import Study
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from analysis.search import Outcome, write_search
from evlgen.config import TomeFormerConfig, to_json
from evlgen.errors import UserError
from evlgen.evaluation.caption_scores import CaptionScorer
from evlgen.runs import behaviour
from evlgen.runtime import paths
from experiments import load
from experiments.scales import NAMES as SCALES
from sweeps import leases, local, requirements
from sweeps import plan as planning
from sweeps.display import Display, console
from sweeps.plan import feature_needs, measured_rates
from sweeps.run import answered
from sweeps.search.spaces import MERGE_SPACES, Target, is_stage1, merge_target, parts, rate_targets
from sweeps.search.study import (
    Rules,
    Tell,
    ended,
    held,
    image_tokens,
    importances,
    in_words,
    is_lost,
    next_trial,
    open_storage,
    open_study,
    run_trial,
    without_password,
)
from sweeps.slurm import queue as slurm
from sweeps.sweep import QUEUED
from sweeps.worker import cache_features

SEARCHES = ("merge", "learning-rate")
OBJECTIVES = ("val_loss", "macs")
PRUNERS = ("median", "hyperband", "none")
ROUNDS_IN_VAIN = 3
WAIT_SECONDS = 1.0  # between two looks at what other workers have


@dataclass(frozen=True)
class Arguments:
    """Search merge schedules or learning rates."""

    search: str = "merge"
    """merge: a TomeFormer's merge schedule; learning-rate: peak rates of all parts of an experiment"""
    space: str = "constant"
    """of a merge search: constant, inflection, free, position, layers or joint"""
    experiment: str = "table1"
    """whose parts are searched; a merge search varies its TomeFormer"""
    scale: Annotated[str, tyro.conf.arg(help=", ".join(SCALES))] = "mini"
    trials: int = 20
    """how many trials there shall be in all (of each part); pruned ones count, lost ones do not"""
    seed: int = 0
    """of the suggestions; the runs' own is set by --set seed=1"""
    objectives: str = ""
    """val_loss,macs (a merge search's default) or val_loss alone"""
    pruner: str = "median"
    """median, none, or (one objective) hyperband"""
    warmup: bool = False
    """of a learning-rate search: search the warm-up's share of the updates too"""
    storage: str = ""
    """journal file, or a database's URL (sqlite:///study.db); default: a journal in the run store"""
    workers: int = 0
    """processes side by side, in SLURM jobs; 0: one for each core, 4 jobs"""
    worker: bool = False
    """be one worker, in this process; start as many as you like, anywhere"""
    executor: str = "local"
    """local, or slurm: put workers into the queue and return; the same command shows how far they are"""
    cluster: str = ""
    """TOML profile of a SLURM cluster, see clusters/example.toml"""
    dry_run: bool = False
    """say what would be searched and what it would cost, and stop"""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """key=value, changes a field of every run (optim.lr=1e-3); may be given again"""


def main(argv: list[str]) -> int:
    """Exit code: 0 all trials ended, 1 some did not, 2 a user's mistake, 3 queued, 130 interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell had it ignored
    arguments = tyro.cli(Arguments, args=argv, prog="sweeps/merge_search.py", description=__doc__)
    return answered(lambda: _dispatch(arguments), "trials")


def quiet() -> None:
    """Leave what is said to the launcher: Optuna reports each trial on its own otherwise."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "PedAnova", UserWarning)  # low values are what is wanted


def _dispatch(arguments: Arguments) -> int:
    quiet()
    goals = targets(arguments)
    if arguments.dry_run:
        plan(arguments, goals)
        for line in requirements.missing(target.base for target in goals):
            print(f"missing: {line}")
        return 0
    requirements.check((target.base for target in goals), arguments.scale)
    if arguments.worker:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # its trial is given out again at once
        work(_say, dataclasses.asdict(arguments))
        return report(arguments, goals)
    if arguments.executor == "slurm":
        return queue_workers(arguments, goals)
    return search(arguments, goals)


# ------------------------------------------------------------------------------------ what is searched


def targets(arguments: Arguments) -> list[Target]:
    """What is to be searched, one study each.

    Raises:
        UserError: an argument is wrong.
    """
    if arguments.search not in SEARCHES:
        raise UserError(f"--search {arguments.search}: no such search; there are: {', '.join(SEARCHES)}")
    for name, least in (("trials", 1), ("workers", 0), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} {getattr(arguments, name)}: at least {least} is needed")
    if arguments.executor not in ("local", "slurm"):
        raise UserError(f"--executor {arguments.executor}: no such executor; there are: local, slurm")
    wanted = objectives(arguments)
    if arguments.pruner not in PRUNERS:
        raise UserError(f"--pruner {arguments.pruner}: no such pruner; there are: {', '.join(PRUNERS)}")
    if arguments.pruner == "hyperband" and len(wanted) > 1:
        raise UserError("--pruner hyperband: prunes for one objective only; add --objectives val_loss")
    experiment = load(arguments.experiment, arguments.scale, arguments.set)
    if arguments.search == "learning-rate":
        return rate_targets(experiment, arguments.warmup)
    bases = [c for c in parts(experiment).values() if isinstance(c.connector, TomeFormerConfig)]
    if not bases:
        raise UserError(f"--experiment {arguments.experiment}: none of its rows has a TomeFormer")
    return [merge_target(arguments.space, bases[0], image_tokens(bases[0]))]


def objectives(arguments: Arguments) -> tuple[str, ...]:
    """What is minimised; the validation loss is always the first."""
    default = "val_loss,macs" if arguments.search == "merge" else "val_loss"
    given = tuple((arguments.objectives or default).replace("+", ",").split(","))
    for name in given:
        if name not in OBJECTIVES:
            raise UserError(f"--objectives {name}: no such objective; there are: {', '.join(OBJECTIVES)}")
    if "val_loss" not in given:
        raise UserError("--objectives: val_loss must be among them; merging everything would win")
    if arguments.search == "learning-rate" and len(given) > 1:
        raise UserError("--objectives macs: no learning rate changes it; leave it out")
    return tuple(name for name in OBJECTIVES if name in given)


def name_of(arguments: Arguments) -> str:
    """Name of the search in file and folder names."""
    if arguments.search == "learning-rate":
        return f"learning-rate-{arguments.experiment}"
    return arguments.space + ("" if len(objectives(arguments)) > 1 else "-val_loss")


def study_name(arguments: Arguments, target: Target) -> str:
    """Name of a study: what would change its trials changes its name, the behaviour of the code included."""
    identity = {
        "base": to_json(target.base),
        "space": {name: repr(axis) for name, axis in target.space.items()},
        "objectives": objectives(arguments),
        "pruner": arguments.pruner,
        "behaviour": behaviour.components_of(target.base),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    part = target.part.lower().replace(",", "").replace(" ", "-")
    return f"{arguments.search}-{part}-{arguments.scale}-seed{arguments.seed}-{digest}"


# --------------------------------------------------------------------------------------------- worker


def search_folder(arguments: Arguments) -> Path:
    """Where the workers of a search agree on who does what, and its journal is."""
    return paths.runs_folder() / "studies" / f"{name_of(arguments)}-{arguments.scale}"


def storage_place(arguments: Arguments) -> str:
    """A database's URL or the path of a journal."""
    return arguments.storage or str(search_folder(arguments) / "journal.log")


def work(tell: Tell, settings: dict[str, Any]) -> None:
    """Be a worker: trial after trial, until the asked number has ended.

    A worker of a launcher waits for the trials that others have, and takes over those of one that dies; a
    worker of its own (``--worker``) gives its place in the queue back instead.

    Args:
        settings: `Arguments` as a dict.
    """
    arguments = Arguments(**settings)
    quiet()
    folder = search_folder(arguments)
    rules = Rules(objectives(arguments), arguments.pruner, arguments.seed)
    me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with held(folder / me), CaptionScorer() as scorer:
        with leases.turn(folder / "turn"):
            storage = open_storage(storage_place(arguments))
        goals, found = targets(arguments), []
        for target in goals:
            with leases.turn(folder / "turn"):
                found.append(open_study(study_name(arguments, target), target, rules, storage))
        while True:
            for target, study in zip(goals, found, strict=True):
                for need in feature_needs(target.base):
                    cache_features(tell, *need)
                while (trial := next_trial(study, target, arguments.trials, folder, me)) is not None:
                    run_trial(study, trial, target, rules, scorer, tell)
            if arguments.worker or to_go(arguments, list(found)) == 0:
                return
            time.sleep(WAIT_SECONDS)


def _say(told: tuple[str, str, Any]) -> None:
    """A worker of its own has no launcher: it prints how its trials ended."""
    kind, key, detail = told
    if kind == "done":
        print(f"{key}, {detail}", flush=True)


# ------------------------------------------------------------------------------------------- launcher


def search(arguments: Arguments, goals: list[Target]) -> int:
    """Workers on this machine, until the asked number of trials has ended; then the tables."""
    missing = to_go(arguments, studies(arguments, goals))
    console.print(
        f"[bold]{arguments.search}[/] search, {name_of(arguments)} at scale {arguments.scale}: "
        f"{arguments.trials} trials of {len(goals)} parts, {missing} to go"
    )
    place = without_password(storage_place(arguments))
    console.print(f"study: {place} (optuna-dashboard {place})")
    broken = ""
    with Display(missing) as display:

        def event(kind: str, key: str, detail: Any) -> None:
            nonlocal broken
            if kind == "progress":
                told, trial, news = detail
                if told == "done":
                    console.print(escape(f"{trial}, {news}"))
                display.event(told, trial, news)
            elif kind == "failed":
                if "Traceback" in detail:  # no accident of one process: it would happen again
                    broken = str(detail).strip().splitlines()[-1]
                console.print(f"[red]{key}: {escape(str(detail).strip().splitlines()[-1])}[/]")

        workers = min(arguments.workers or os.cpu_count() or 1, max(missing, 1))
        settings = dataclasses.asdict(arguments)
        in_vain, handed_out = 0, -1
        while missing > 0 and not broken:  # again only if all workers were killed
            tasks = [
                local.Task(f"worker {index}", "sweeps.merge_search:work", (settings,))
                for index in range(workers)
            ]
            local.execute(tasks, workers, event)
            found = studies(arguments, goals)
            missing, before = to_go(arguments, found), handed_out
            handed_out = sum(len(study.get_trials(deepcopy=False)) for study in found if study is not None)
            in_vain = in_vain + 1 if handed_out == before else 0
            if in_vain == ROUNDS_IN_VAIN:
                broken = "the workers die before they begin a trial"
    if broken:
        console.print(f"[red]stopped: {escape(broken)}[/]; the same command goes on")
    return report(arguments, goals)


def queue_workers(arguments: Arguments, goals: list[Target]) -> int:
    """Workers in the SLURM queue, a job each, unless there are some; then what there is so far.

    A job that is preempted or out of time leaves a checkpoint and comes back, and goes on with the trial that
    was interrupted.

    Returns:
        0 if all trials have ended, else `QUEUED`.
    """
    profile = slurm.read_profile(arguments.cluster, {})
    found = studies(arguments, goals)
    missing = to_go(arguments, found)
    name = f"search-{name_of(arguments)}-{arguments.scale}"
    if missing:
        with slurm.launching():
            queued = slurm.queue()
            at_work = [key for key in queued if key.startswith(f"{name} ")]
            if not at_work:
                place = storage_place(arguments)
                settings = dataclasses.asdict(arguments) | {"worker": True, "executor": "local"}
                settings["storage"] = place if "://" in place else str(Path(place).absolute())
                batch = uuid.uuid4().hex[:8]
                at_work = [f"{name} {batch} {index}" for index in range(min(arguments.workers or 4, missing))]
                tasks = [local.Task(key, "sweeps.merge_search:work", (settings,)) for key in at_work]
                slurm.submit(name, [tasks], {}, profile, queued)
        console.print(
            f"{missing} trials to go, {len(at_work)} workers in the queue (squeue shows them as "
            f"evlgen-{name}-...); the same command shows how far they are"
        )
    if any(study is not None and ended(study) for study in found):
        report(arguments, goals)
    return QUEUED if missing else 0


def studies(arguments: Arguments, goals: list[Target]) -> list[Study | None]:
    """The study of each target, None where there is none yet."""
    place = storage_place(arguments)
    if "://" not in place and not Path(place).exists():
        return [None for _ in goals]
    storage = open_storage(place)
    known = set(optuna.get_all_study_names(storage))
    wanted = [study_name(arguments, target) for target in goals]
    return [optuna.load_study(study_name=n, storage=storage) if n in known else None for n in wanted]


def to_go(arguments: Arguments, found: list[Study | None]) -> int:
    """How many trials have not ended yet, of all studies."""
    counts = [0 if study is None else len(ended(study)) for study in found]
    return sum(max(0, arguments.trials - count) for count in counts)


def report(arguments: Arguments, goals: list[Target]) -> int:
    """Write the tables of all trials there are, and show them; 0 if it is as many as were asked for."""
    found = studies(arguments, goals)
    outcomes = []
    for target, study in zip(goals, found, strict=True):
        if study is None:
            continue
        trials = study.get_trials(deepcopy=False)
        front = [trial.number for trial in study.best_trials]
        importance = importances(study, objectives(arguments))
        lost = sum(map(is_lost, trials))
        outcomes.append(Outcome(target.part, list(target.space), ended(study), front, importance, lost))
    folder = results_of(arguments)
    write_search(title(arguments), ranges(goals), objectives(arguments), outcomes, folder)
    console.print(Markdown((folder / "trials.md").read_text()))
    missing, asked = to_go(arguments, found), arguments.trials * len(goals)
    console.print(f"{asked - missing} of {asked} trials; tables in {os.path.relpath(folder)}/")
    return 0 if missing == 0 else 1


def results_of(arguments: Arguments) -> Path:
    """Where the tables go; a search with ``--set`` must not take the place of the one without."""
    name = name_of(arguments) + ("-changed" if arguments.set else "")
    return paths.results_folder() / "merge_search" / name / arguments.scale


def title(arguments: Arguments) -> str:
    """Heading of the tables."""
    what = (
        f"merge schedules, {arguments.space}: {MERGE_SPACES[arguments.space]}"
        if arguments.search == "merge"
        else f"peak learning rates of {arguments.experiment}"
    )
    return f"Search of {what} (scale {arguments.scale}, seed {arguments.seed}, pruner {arguments.pruner})"


def ranges(goals: Sequence[Target]) -> dict[str, str]:
    """The range of each parameter, in words; it is the same for all targets of a search."""
    return {name: _range(axis) for target in goals for name, axis in target.space.items()}


def _range(axis: BaseDistribution) -> str:
    low, high = getattr(axis, "low", "?"), getattr(axis, "high", "?")
    step = getattr(axis, "step", None)
    how = ", log-uniform" if getattr(axis, "log", False) else f", step {step:g}" if step else ""
    return f"{low:g} to {high:g}{how}"


def plan(arguments: Arguments, goals: list[Target]) -> None:
    """What a search would do, and what it would cost by the rate of earlier runs; nothing is written."""
    table = Table(
        "part", "parameters", "in force", "trials", "to go", "seconds a trial", title=title(arguments)
    )
    rates = measured_rates()
    total = 0.0
    for target, study in zip(goals, studies(arguments, goals), strict=True):
        missing = to_go(arguments, [study])
        seconds = expected_seconds(target, rates)
        total += 0.0 if seconds is None else seconds * missing
        table.add_row(
            target.part,
            "\n".join(f"{name}: {_range(axis)}" for name, axis in target.space.items()),
            "" if target.in_force is None else in_words(target.in_force, {}),
            str(arguments.trials),
            str(missing),
            "unknown" if seconds is None else f"{seconds:.0f}",
        )
    console.print(table)
    console.print(
        f"objectives: {', '.join(objectives(arguments))}; study: {without_password(storage_place(arguments))}"
    )
    console.print(f"about {total:.0f} s of one process at most, where known; pruning saves some of it")


def expected_seconds(target: Target, rates: dict[tuple[object, ...], float]) -> float | None:
    """Seconds of a trial; a stage 1 counts where each trial has its own. None if a rate is not known."""
    configs = [target.base]
    if is_stage1(target.part) and target.base.init_from is not None:
        configs.append(target.base.init_from)
    known = [planning.expected_seconds(config, rates) for config in configs]
    return None if None in known else sum(seconds for seconds in known if seconds is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

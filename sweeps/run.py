"""Run an experiment: ``python sweeps/run.py table2``; see ``--help`` and ``list``."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.terminal import console
from evlgen.config import RunConfig
from evlgen.errors import UserError, exit_code
from evlgen.runs import archive, results
from evlgen.runs import folder as files
from evlgen.runtime import datasets, paths
from evlgen.runtime.progress import Progress
from experiments import EXPERIMENTS, load
from experiments.overrides import name_of
from experiments.scales import get
from sweeps import leases, records, requirements, room, show, states
from sweeps.arguments import ALL, RUN, Arguments, parse
from sweeps.display import Display
from sweeps.plan import Sweep, unique_runs
from sweeps.slurm import queue
from sweeps.slurm.profile import Profile, changed_profile, profile_of, read_profile
from sweeps.slurm.queue import QUEUED
from sweeps.surroundings import forget_ranks

# What executes, scores and concludes is imported where it is used: it imports torch or the packages that
# score, for which nobody who only looks should wait.

EXAMPLES = 8  # images whose captions are shown


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP of a terminal that was closed: end as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def stop_at_signals() -> None:
    """Ctrl-C, SIGTERM and SIGHUP end this process as an exception does, so that its workers end with it."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated(number)

    # A shell that starts a command in the background has it ignore Ctrl-C; this one can always be stopped.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, terminate)


def main(argv: list[str]) -> int:
    """Exit code: 0 all complete, 1 runs failed, 2 a user's mistake, 3 queued in SLURM, 130 interrupted."""
    stop_at_signals()
    forget_ranks()
    return answered(lambda: _dispatch(parse(argv)), "runs")


def answered(action: Callable[[], int], kept: str) -> int:
    """Exit code of an action; a user's mistake, a full disk and Ctrl-C get one line each.

    Where nobody reads the output any more, as behind ``| head``, the action ends without a word.

    Args:
        kept: what is kept then, as far as it is finished.
    """

    def act() -> int:
        paths.settle()
        leases.check_period()
        return action()

    try:
        code = exit_code(act)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _is_without_reader(sys.stdout.fileno()):
            raise  # another pipe, that of a worker
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write goes nowhere
        return 1  # as rich does
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"error: {error.filename or paths.runs_folder()}: {error.strerror}; finished {kept} are kept",
            file=sys.stderr,
        )
        return 2
    except Terminated as error:
        print(f"terminated; finished {kept} are kept, the same command goes on", file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        print(f"interrupted; finished {kept} are kept, the same command goes on", file=sys.stderr)
        return 130


def _is_without_reader(output: int) -> bool:
    """Whether a file descriptor is that of a pipe whose other end is closed."""
    asked = select.poll()
    asked.register(output, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _dispatch(arguments: Arguments) -> int:
    command, targets = arguments.command, arguments.targets
    if arguments.device:
        os.environ["EVLGEN_DEVICE"] = arguments.device  # for the processes and jobs that compute
    if command == "list":
        show.show_experiments()
        return 0
    if command == "foundation":
        return build_foundation(arguments)
    of_a_run = {"logs": show.show_logs, "show": show.show_run, "captions": show.show_captions}
    runs = [word for word in targets if word not in (*EXPERIMENTS, ALL)]
    if command == "logs" and len(runs) < len(targets):
        name = next(word for word in targets if word not in runs)
        raise UserError(f"logs {name}: give the id of a run; `status {name}` lists them")
    if command in of_a_run and runs:
        if len(runs) < len(targets):
            raise UserError(f"{command} {' '.join(targets)}: give runs or experiments, not both")
        for run in runs:
            if command == "show" and "-changed" in run and not run.endswith("-changed"):
                show.show_table(run, arguments.scale or default_scale(run.partition("-changed")[0]))
            else:
                of_a_run[command](run)
        return 0
    if command in ("diff", "submit"):
        return diff(arguments) if command == "diff" else submit(arguments)
    if command == "adopt":
        return adopt(arguments)
    if command in ("check-data", "describe-data"):
        return look_at_data(arguments)
    # Planned before any is executed: a mistake in a flag must not show after an hour.
    sweeps = [_sweep(name, arguments) for name in _names(arguments)]
    profiles = [_asked_profile(sweep, arguments) for sweep in sweeps]
    codes = [_carry_out(sweep, arguments, one) for sweep, one in zip(sweeps, profiles, strict=True)]
    is_over = targets == (ALL,) and command in (RUN, "wait")
    if is_over and not arguments.dry_run and QUEUED not in codes:
        from sweeps.conclude import judge

        judge(sweeps[0].scale, arguments.seeds, changed=bool(arguments.set or arguments.rows))
    # 1, some runs failed, says more than 3, some are queued
    return 1 if 1 in codes else max(codes)


def look_at_data(arguments: Arguments) -> int:
    """Say what is there of the data that experiments need, or what it is like; 2 if something is missing."""
    from sweeps.check_data import check, describe  # imports numpy and PIL

    names = arguments.targets if arguments.target not in ("", ALL) else EXPERIMENTS
    is_other_world = any(change.startswith("data.world=") for change in arguments.set)
    configs: dict[RunConfig, None] = {}
    for name in names:
        experiment = load(name)
        if arguments.target in ("", ALL) and (experiment.count is not None or not experiment.in_all):
            continue
        if experiment.count is not None:
            print(f"{name}: trains nothing and reads no data")
            continue
        usual = experiment.default_scale
        scale = arguments.scale or (usual if is_other_world or usual != "mini" else "paper")
        for row in load(name, scale, arguments.set, arguments.rows).rows:
            first = row.config.init_from
            configs |= dict.fromkeys([row.config] if first is None else [first, row.config])
    if arguments.command == "describe-data":
        return describe(list(configs))
    return check(list(configs), " ".join(arguments.targets) or ALL, arguments.thorough)


def _names(arguments: Arguments) -> tuple[str, ...]:
    """The experiments that are meant."""
    if arguments.targets == (ALL,):
        return tuple(name for name in EXPERIMENTS if load(name).in_all)
    if arguments.targets:
        return arguments.targets
    # table2 has no rows at this scale, and says so
    return tuple(name for name in EXPERIMENTS if (name, arguments.scale) != ("table2", "bridge"))


def default_scale(name: str) -> str:
    """The scale of an experiment where none is named; ``mini`` for what is no experiment."""
    return load(name).default_scale if name in EXPERIMENTS else "mini"


def _sweep(name: str, arguments: Arguments) -> Sweep:
    scale = arguments.scale or load(name).default_scale
    experiment = load(name, scale, arguments.set, arguments.rows)
    seeds = arguments.seeds or experiment.seeds
    if arguments.targets == (ALL,) and experiment.claimed and not arguments.seeds:
        seeds = get(scale).claim_seeds
    if experiment.count is not None and arguments.targets == (name,):
        if arguments.command == "captions":
            raise UserError(
                f"captions {name}: {name} trains nothing, so there are no captions; try show {name}"
            )
        for flag in ("seeds", "executor", "workers", "device"):
            if flag in arguments.typed:
                raise UserError(f"--{flag}: {name} trains nothing, so this changes nothing; leave it out")
    is_changed = bool(arguments.set or arguments.rows)
    return Sweep(experiment, scale, seeds, is_changed, name_of(arguments.set, arguments.rows))


def _carry_out(sweep: Sweep, arguments: Arguments, profile: Profile | None) -> int:
    """Do with one experiment what the command says; exit code.

    Args:
        profile: what to ask the cluster for, where jobs may be queued.

    Raises:
        ValueError: the command says nothing about an experiment.
    """
    experiment, command = sweep.experiment, arguments.command
    if command not in (RUN, "retry", "show"):  # which say what is missing, or look for no run
        _say_if_data_is_away(sweep)
    if experiment.count is not None and command != "show":
        count(sweep, arguments)
    elif command == "show":
        show.show_table(sweep.table, sweep.scale)
    elif command == "captions":
        show.show_examples(sweep.experiment, EXAMPLES)
    elif command == "status":
        status(sweep)
    elif command == "pack":
        return pack(sweep)
    elif command == "unpack":
        return unpack(sweep, is_one_of_all=arguments.targets == (ALL,))
    elif command == "rescore":
        return rescore(sweep, arguments.everything)
    elif command == "wait":
        from sweeps.slurm.launch import wait

        return wait(sweep, profile)
    elif command == "cancel":
        number = queue.cancel(sweep.name, sweep.runs.keys() if arguments.seeds else None)
        print(f"{number} jobs cancelled; the same command queues what is not done")
    elif command not in (RUN, "retry"):  # below it trains, which must never be what is left over
        raise ValueError(f"{command}: not a command for an experiment")
    elif arguments.dry_run:
        return dry_run(sweep, arguments, profile)
    elif arguments.executor == "slurm":
        from sweeps.slurm.launch import run_queued

        assert profile is not None
        return run_queued(sweep, profile, failed_only=command == "retry")
    else:
        from sweeps.conclude import conclude, nothing_failed
        from sweeps.execute import run_here

        workers = arguments.workers or os.cpu_count() or 1
        done = run_here(sweep, workers, failed_only=command == "retry")
        return nothing_failed(sweep) if done is None else conclude(sweep, done)
    return 0


def _asked_profile(sweep: Sweep, arguments: Arguments) -> Profile | None:
    """What to ask the cluster for: values of the file or of the jobs before, replaced by those of flags."""
    if arguments.executor != "slurm" and not arguments.asks_a_cluster:
        return None
    if arguments.cluster or arguments.command == RUN:
        return read_profile(arguments.cluster, arguments.profile_changes)
    before = profile_of(queue.batches(sweep.name).values())
    return changed_profile(before or Profile(), arguments.profile_changes)


def _say_if_data_is_away(sweep: Sweep) -> None:
    """Ids know the data that runs have read: where it is not told, finished runs look as if never made."""
    worlds = {row.config.data.world for row in sweep.experiment.rows}
    if sweep.experiment.count is None and worlds & {"capfilt", "folder"}:
        try:
            datasets.data_folder()
        except UserError as error:
            print(
                f"note: {error}. Runs that have read it have other ids than those looked for here",
                file=sys.stderr,
            )


def status(sweep: Sweep) -> None:
    """Say which runs of a sweep are in which state."""
    try:
        jobs = queue.jobs()
    except UserError as error:
        print(f"{error} (queued and lost runs look like pending ones)", file=sys.stderr)
        jobs = None
    show.show_status(sweep, states.with_records(sweep.runs, queue.states_of(sweep.runs, jobs)))


def pack(sweep: Sweep) -> int:
    """Put the records of a table's finished runs into an archive beside it; 1 if one is damaged."""
    from sweeps.conclude import table_seeds

    experiment, path = sweep.experiment, archive.path_of(sweep.table, sweep.scale)
    seeds = table_seeds(sweep)
    runs = unique_runs(experiment, seeds)
    pictured = unique_runs(experiment, min(seeds, experiment.pictured))
    packed = archive.pack(path, list(runs), list(pictured))
    where = f"{os.path.relpath(path)}, {path.stat().st_size / 2**20:.1f} MiB" if packed else "no file"
    console.print(f"{experiment.name}: {len(packed)} of {len(runs)} runs in {where}")
    left_out = [run for run in runs.keys() - packed if (paths.runs_folder() / run / files.RESULT).exists()]
    return 1 if left_out else 0


def unpack(sweep: Sweep, is_one_of_all: bool) -> int:
    """Put the finished runs of the archive beside a table into the run store; 1 if some are damaged.

    Args:
        is_one_of_all: go on where there is no archive, or where it is damaged.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = archive.path_of(sweep.table, sweep.scale)
    if is_one_of_all and not path.exists():
        return 0
    try:
        done = records.unpack(path)
    except files.Damaged as error:
        if not is_one_of_all:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    known = len(set(done.put) & set(unique_runs(sweep.experiment, get(sweep.scale).claim_seeds)))
    number = len(done.put)
    of_others = "" if known == number else f"; {number - known} have other ids than this checkout gives them"
    console.print(f"{sweep.experiment.name}: {number} runs put into {paths.runs_folder().name}/{of_others}")
    return 1 if done.damaged else 0


def rescore(sweep: Sweep, everything: bool) -> int:
    """Score the kept predictions of a sweep again and write its table; 1 if some could not be scored."""
    from sweeps.conclude import table_seeds, write_table
    from sweeps.rescore import rescore as score_again

    runs = unique_runs(sweep.experiment, table_seeds(sweep))
    done = score_again(runs, everything)
    name, current = sweep.experiment.name, len(done.current)
    line = f"{name}: {len(done.again)} runs scored again, {current} have today's scores"
    if done.unscored:
        line += f", of {len(done.unscored)} the predictions are gone or damaged"
    known = states.with_records(runs, states.of_runs(runs, None, ()))
    words = [state.name for state in known.values()]
    if "done" in words:  # even if none is scored again: the last command may have been interrupted
        line += f"; table in {os.path.relpath(write_table(sweep))}/"
    if packed := words.count("packed"):
        line += f"; {packed} packed, `unpack {name}` puts them into the run store"
    console.print(line, soft_wrap=True)
    return 1 if done.unscored else 0


def adopt(arguments: Arguments) -> int:
    """Give records with earlier ids those of today; 1 if some could not be adopted. One at a time."""
    waiting = "another adopt is at this run store: waiting for it"
    with leases.turn(paths.runs_folder() / ".adopt", lambda: print(waiting, file=sys.stderr, flush=True)):
        return _adopt(arguments)


def _adopt(arguments: Arguments) -> int:
    refused = 0
    # All are those that have an archive: also of experiments that `run.py all` leaves out.
    is_all = arguments.targets == (ALL,)
    for name in EXPERIMENTS if is_all else arguments.targets:
        path = archive.path_of(name, arguments.scale or load(name).default_scale)
        if path.exists() or not is_all:
            done = records.adopt_archive(path)
            records.report(done, os.path.relpath(path))
            refused += len(done.refused)
    done = records.adopt_store()
    records.report(done, str(paths.runs_folder()))
    return 1 if refused or done.refused else 0


def dry_run(sweep: Sweep, arguments: Arguments, profile: Profile | None) -> int:
    """Say what a sweep would do, and what is missing for it; with SLURM also in how many jobs.

    Returns:
        2 if something is missing, without which the sweep would be refused.
    """
    missing = show.show_plan(sweep)
    lines = requirements.missing(sweep.runs[run] for run in missing)
    said, no_room = room.features(sweep.runs[run] for run in missing)
    lines += [no_room] if no_room else []
    if said:
        console.print(said, soft_wrap=True)
    for line in lines:
        print(f"missing: {line}")
    if arguments.executor == "local":  # a plan is often made on another machine than will train
        for line in requirements.of_this_machine(sweep.runs[run] for run in missing):
            print(f"note: {line}")
    else:
        from sweeps.slurm.launch import plan_phases
        from sweeps.slurm.submit import pack as pack_tasks

        assert profile is not None
        phases, seconds = plan_phases({run: sweep.runs[run] for run in missing})
        jobs = [len(pack_tasks(phase, seconds, profile)) for phase in phases]
        of_runs = " + ".join(map(str, jobs[1:])) or 0
        console.print(f"SLURM jobs: {jobs[0]} for features, {of_runs} for runs, 1 to score")
        console.print(f"SLURM: {profile}")
    return 2 if lines else 0


def count(sweep: Sweep, arguments: Arguments) -> None:
    """An experiment that trains nothing: make its table, or say whether it is there."""
    experiment = sweep.experiment
    folder = paths.results_folder() / sweep.table / sweep.scale
    if arguments.command != RUN or arguments.dry_run:
        there = "is there" if (folder / "table.csv").exists() else "is not made yet; it takes half a minute"
        console.print(f"{experiment.name}, {sweep.scale}: counted, nothing to train; its table {there}")
        return
    from analysis.cost_tables import write_cost_tables
    from analysis.timings import training_times

    assert experiment.count is not None
    counted, measured = experiment.count(experiment, sweep.scale), training_times(sweep.scale)
    write_cost_tables(counted, folder, () if measured is None else (measured,))
    show.show_table(sweep.table, sweep.scale)
    console.print(f"table in {os.path.relpath(folder)}/")


def diff(arguments: Arguments) -> int:
    """Write the page of what two runs say differently, and its summary."""
    from analysis import compare  # imports numpy and what scores

    found = (results.with_id(arguments.target), results.with_id(arguments.second))
    if found[0].folder == found[1].folder:
        raise UserError(f"diff {arguments.target} {arguments.second}: both are the run {found[0].id}")
    differences = compare.compare(*found)
    print("\n".join(compare.summary(found, differences)))
    path = compare.write(found, differences, Path(arguments.out).expanduser() if arguments.out else None)
    print(f"page: {os.path.relpath(path)}")
    return 0


def submit(arguments: Arguments) -> int:
    """Write a run's predictions as the makers of a data set want them."""
    from sweeps.submit import submit as write  # imports numpy

    path = write(
        arguments.target, arguments.second, Path(arguments.out).expanduser() if arguments.out else None
    )
    print(f"file: {os.path.relpath(path)}")
    return 0


def build_foundation(arguments: Arguments) -> int:
    """Make the foundation models from nothing, and say whether they are the shipped ones."""
    from evlgen.miniworld.pretrain.build import build  # imports torch

    scale = arguments.scale or "mini"
    out = paths.ROOT / "foundation" / scale
    with Display({}) as display:

        def report(name: str, step: int, steps: int, loss: float, rate: float) -> None:
            display.event("progress", name, Progress("pre-training", step, steps, loss, rate))

        same = build(scale, out, arguments.workers or os.cpu_count() or 1, report)
    for name, equal in same.items():
        verdict = {True: "equal to the shipped weights, bit for bit", None: "none is shipped"}.get(
            equal, "not the shipped weights"
        )
        console.print(f"{name}: {verdict}")
    console.print(f"weights and model card in {os.path.relpath(out)}/")
    return 0 if scale == "smoke" or all(same.values()) else 1


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of a second's loading of weights
    sys.exit(main(sys.argv[1:]))

"""Sweeps through a SLURM queue: what is submitted, what is queued, what became of it.

A *batch* is one array of jobs; the file ``.slurm/BATCH.json`` in the run store says what each job of it (a
*chunk* of tasks) has to do, and is written before the array is submitted. The jobs carry the batch's name, so
squeue and these files tell which runs are queued, even if the launcher died in between. That a run is done is
never taken from the queue, but from the run's own folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import math
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps import leases
from sweeps.local import Task

_PREFIX = "evlgen-"  # of our jobs' names
_ATTEMPTS = 4  # of a command that a busy controller does not answer
_GPU_CPUS = 8  # cores of a process with a GPU: one for it, the others decode images, see docs/DATA.md
_MAX_DECODERS = 16  # as of `evlgen.data.stream.decoders`
_NEVER = 1_000_000  # time-outs after which submitit gives up: `sweeps.slurm.job` counts better
_FOLDERS = ("EVLGEN_CACHE", "EVLGEN_DATA", "EVLGEN_RESULTS", "EVLGEN_WEIGHTS")  # jobs run in another one
# Tasks that one process does: more of them would wait for it, or do the same again.
_FOR_ONE = {"sweeps.worker:cache_features", "sweeps.execute:score", "sweeps.merge_search:work"}


@dataclass(frozen=True)
class Profile:
    """What to ask a cluster for; a TOML file has these names (``clusters/example.toml``).

    Attributes:
        partition, account, qos, constraint: as for sbatch; empty: the cluster's default.
        time: limit of a job, ``D-HH:MM:SS``, ``HH:MM:SS`` or minutes.
        memory_gb: of a node; 0: the cluster's default.
        gpus: on each node.
        nodes, tasks_per_node: over how many nodes one run goes, and with how many processes on each; 0: one
            for each GPU if a run has its job for itself, one otherwise.
        cpus: of a process, for its workers together; 0: enough to decode images if there are GPUs, else 1.
        workers: runs side by side in one job; they share its GPUs.
        pack_minutes: small runs are packed into a job until it should take this long.
        max_array: jobs in one array; 0: what the cluster allows.
        max_jobs: jobs in the queue at the same time; the rest is submitted later.
        parallel: jobs of an array that run at the same time.
        max_requeues: times that a job may go back to the queue, after preemptions and time-outs together,
            without a new checkpoint or a finished run.
        signal_seconds: before its end a job is told to write checkpoints.
        setup: shell lines before the job's command.
        sbatch: further options of sbatch, by their long names.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = "4:00:00"
    memory_gb: float = 0.0
    gpus: int = 0
    nodes: int = 1
    tasks_per_node: int = 0
    cpus: int = 0
    workers: int = 1
    pack_minutes: float = 30.0
    max_array: int = 0
    max_jobs: int = 1000
    parallel: int = 256
    max_requeues: int = 20
    signal_seconds: int = 120
    setup: tuple[str, ...] = ()
    sbatch: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Of a job on each node."""
        return self.tasks_per_node or (max(1, self.gpus) if self.workers == 1 else 1)

    @property
    def tasks(self) -> int:
        """Processes that one run is spread over."""
        return self.nodes * self.processes

    @property
    def cores(self) -> int:
        """Of each process; a worker has one at least."""
        cpus = self.cpus or (_GPU_CPUS if self.gpus and self.workers == 1 else 1)
        return max(cpus, self.workers)

    @property
    def decoders(self) -> int:
        """Processes that decode images for a worker: its share of the cores, less its own."""
        return min(_MAX_DECODERS, self.cores // self.workers - 1)

    def __str__(self) -> str:
        """What a run gets."""
        where = _count(self.nodes, "node")
        if self.gpus:
            where = f"{_count(self.nodes * self.gpus, 'GPU')} of {where}"
        if self.workers > 1:
            return f"{self.workers} runs at a time share {where}, each has 1 process"
        return f"each run has {_count(self.tasks, 'process', 'processes')} on {where}"

    @property
    def minutes(self) -> int:
        """Time limit in minutes."""
        days, _, clock = self.time.rpartition("-")
        parts = clock.split(":")
        # SLURM takes two parts for minutes and seconds; many mean hours and minutes.
        is_clear = len(parts) <= 3 if days else len(parts) in (1, 3)
        if not is_clear or not all(re.fullmatch(r"\d+", part) for part in (days or "0", *parts)):
            raise UserError(f"time {self.time!r}: give D-HH:MM:SS, HH:MM:SS or minutes")
        if len(parts) == 1 and not days:
            return max(1, int(clock))
        hours, minutes, seconds = (*(int(part) for part in parts), 0, 0)[:3]
        return max(1, int(days or 0) * 1440 + hours * 60 + minutes + math.ceil(seconds / 60))


def read_profile(path: str, changes: Mapping[str, Any]) -> Profile:
    """The profile in a TOML file (none: defaults), some of its values replaced by those of flags.

    Raises:
        UserError: the file cannot be read, or a name or value in it is wrong.
    """
    values: dict[str, Any] = {}
    if path:
        try:
            values = tomllib.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster {path}: {getattr(error, 'strerror', None) or error}") from error
    return make_profile({**values, **changes}, path or "the flags")


def make_profile(values: Mapping[str, Any], source: str) -> Profile:
    """A profile from names and values.

    Raises:
        UserError: a name or a value is wrong; the message says which, and of what ``source``.
    """
    kept: dict[str, Any] = {}
    defaults = {f.name: getattr(Profile(), f.name) for f in dataclasses.fields(Profile)}
    for name, value in values.items():
        if name not in defaults:
            raise UserError(f"{source}: {name}: no such key; there are: {', '.join(defaults)}")
        wanted = type(defaults[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if wanted is tuple and isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = tuple(value)
        if type(value) is not wanted:
            raise UserError(f"{source}: {name} is {value!r}, but must be of the kind of {defaults[name]!r}")
        if isinstance(value, int | float) and value < (name in _AT_LEAST_ONE):
            raise UserError(f"{source}: {name} is {value}, but must be {int(name in _AT_LEAST_ONE)} or more")
        kept[name] = value
    profile = Profile(**kept)
    if profile.tasks > 1 and profile.workers > 1:
        raise UserError(f"{source}: workers: a job has several runs or one run several processes, not both")
    _check_gpus(profile, source)
    assert profile.minutes
    return profile


_AT_LEAST_ONE = {"nodes", "workers", "max_jobs", "parallel", "signal_seconds"}


def _check_gpus(profile: Profile, source: str) -> None:
    """Every GPU has a process, and every process of a run a GPU, or there are none."""
    gpus, processes, workers = profile.gpus, profile.processes, profile.workers
    if not gpus:
        return
    if workers > 1 and gpus > workers:
        raise UserError(
            f"{source}: workers is {workers}, but gpus is {gpus}: {gpus - workers} would have no run; "
            f"give workers {gpus} or gpus {workers}"
        )
    if workers == 1 and gpus != processes:
        raise UserError(
            f"{source}: tasks_per_node is {processes}, but gpus is {gpus}: a run has one process for "
            f"each GPU; leave tasks_per_node out or give gpus {processes}"
        )


# ------------------------------------------------------------------------------------------- packing


def pack(tasks: Sequence[Task], seconds: Mapping[str, float], profile: Profile) -> list[list[Task]]:
    """Tasks put together into jobs that should take ``pack_minutes``, and half of the time limit at most.

    Args:
        seconds: expected, by key of task; one that has none gets a job of its own.
    """
    room = 60 * min(profile.pack_minutes, profile.minutes / 2) * profile.workers
    chunks: list[list[Task]] = [[task] for task in tasks if task.key not in seconds]
    filled = math.inf
    for task in sorted((t for t in tasks if t.key in seconds), key=lambda t: -seconds[t.key]):
        if filled + seconds[task.key] > room:
            chunks.append([])
            filled = 0.0
        chunks[-1].append(task)
        filled += seconds[task.key]
    return chunks


def arrays(chunks: Sequence[list[Task]], largest: int) -> Iterator[list[list[Task]]]:
    """The chunks in arrays of at most ``largest`` jobs."""
    for first in range(0, len(chunks), largest):
        yield list(chunks[first : first + largest])


# ---------------------------------------------------------------------------------------- submission


@dataclass(frozen=True)
class Submission:
    """What `submit` has done.

    Attributes:
        jobs: how many jobs were queued, in ``arrays`` arrays.
        left: tasks for which there was no room under ``max_jobs``.
    """

    jobs: int
    arrays: int
    left: int


def submit(
    sweep: str,
    phases: Sequence[Sequence[Task]],
    seconds: Mapping[str, float],
    profile: Profile,
    queued: Mapping[str, Job],
) -> Submission:
    """Queue the tasks of each phase; a phase begins when all jobs of those before it have ended, well or not.

    A job whose prerequisites have failed says so in its runs' folders and ends at once.

    Args:
        sweep: name under which `sweeps.slurm.queue` commands find the jobs again.
        queued: what is in the queue already, from `queue`; tasks that need a task in it wait for its job.

    Raises:
        UserError: submitit or SLURM is not installed, or SLURM refuses.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError("--executor slurm: needs submitit; pip install 'evlgen[slurm]'") from error
    if shutil.which("sbatch") is None:
        raise UserError("--executor slurm: there is no sbatch here; type this on a login node of the cluster")
    largest = profile.max_array or _max_array()
    room = profile.max_jobs - len({job.id for job in queued.values()})
    packed = []
    for tasks in phases:
        chunks = pack(tasks, seconds, profile)
        packed.append((chunks[: max(0, room)], chunks[max(0, room) :]))
        room -= len(chunks)
    left = sum(len(chunk) for _, rest in packed for chunk in rest)
    count = number = 0
    before: list[str] = []
    for chunks, _ in packed:
        ids: list[str] = []
        for array in arrays(chunks, largest):
            needs = {need for chunk in array for task in chunk for need in task.needs}
            others = sorted({queued[need].id for need in needs if need in queued})
            ids.append(_submit_array(sweep, array, profile, [*before, *others], left))
            count, number = count + len(array), number + 1
        before = before + ids
    return Submission(count, number, left)


def _submit_array(sweep: str, array: list[list[Task]], profile: Profile, after: list[str], left: int) -> str:
    """Queue an array of jobs; returns its id."""
    from submitit import SlurmExecutor

    from sweeps.slurm.job import Chunk

    batch = secrets.token_hex(4)
    path = _folder() / f"{batch}.json"
    record = {
        "sweep": sweep,
        "chunks": [[dataclasses.asdict(task) for task in chunk] for chunk in array],
        "profile": dataclasses.asdict(profile),
        "environment": {
            **{
                name: str(Path(value).expanduser().absolute()) if value and name in _FOLDERS else value
                for name, value in os.environ.items()
                if name.startswith("EVLGEN_")
            },
            "EVLGEN_RUNS": str(paths.runs_folder()),
        },
        "left": left,
        "submitted": time.time(),
        "job": None,
    }
    files.write_json(path, record)
    python = shlex.join([sys.executable, str(paths.ROOT / "sweeps" / "slurm_start.py")])
    executor = SlurmExecutor(_folder() / "jobs", max_num_timeout=_NEVER, python=python)
    asked = _narrowed(profile, array)
    name = f"{_PREFIX}{sweep}-{batch}"
    executor.update_parameters(**_parameters(name, asked, after))
    chunks = [Chunk(str(path.resolve()), index) for index in range(len(array))]

    def take_back() -> None:
        with contextlib.suppress(UserError):  # a controller that is down has taken nothing
            _slurm("scancel", f"--name={name}")

    ids = _patiently(lambda: _submitted(executor, chunks), take_back, lambda: path.unlink())
    files.write_json(path, {**record, "job": ids})
    return ids


def _submitted(executor: Any, chunks: list[Any]) -> str:
    with executor.batch():
        jobs = [executor.submit(chunk) for chunk in chunks]
    return str(jobs[0].job_id).split("_")[0]


def _narrowed(profile: Profile, array: list[list[Task]]) -> Profile:
    """What jobs need that train nothing: one process, not all of a run's."""
    if profile.workers > 1 or any(task.function not in _FOR_ONE for chunk in array for task in chunk):
        return profile
    return dataclasses.replace(profile, nodes=1, tasks_per_node=1, gpus=min(1, profile.gpus))


def _parameters(name: str, profile: Profile, after: list[str]) -> dict[str, Any]:
    """Of submitit's executor."""
    cpus = profile.cores
    root = shlex.quote(str(paths.ROOT))
    found: dict[str, Any] = {
        "job_name": name,
        "time": profile.minutes,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.processes,
        "cpus_per_task": cpus,
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": profile.parallel,
        "stderr_to_stdout": True,
        "setup": [
            *profile.setup,
            f"cd {root} || {{ echo 'error: the checkout '{root}' is gone' >&2; exit 2; }}",
            f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",
        ],
        # Steps do not inherit the number of cores (SLURM 22.05 and later). A process that dies takes all of
        # its run's with it, which would wait for it for ever.
        "srun_args": [f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **profile.sbatch},
    }
    if profile.memory_gb:
        found["additional_parameters"]["mem"] = f"{math.ceil(profile.memory_gb * 1024)}M"
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(profile, key):
            found[key] = getattr(profile, key)
    if profile.gpus:
        found["gpus_per_node"] = profile.gpus
    if after:
        found["dependency"] = "afterany:" + ":".join(after)
    return found


def _patiently(attempt: Callable[[], str], undo: Callable[[], None], give_up: Callable[[], None]) -> str:
    """What ``attempt`` returns; a controller that is busy is asked again, ever more slowly.

    Args:
        undo: done after each attempt without an answer: the controller may have taken the jobs all the same.
    """
    for pause in (2.0, 4.0, 8.0, 0.0):
        done, error = _tried(attempt)
        if error is None:
            return done
        busy = re.search(r"timed out|temporarily|try again|[Uu]nable to contact|refused", str(error))
        if not busy or not pause:
            break
        time.sleep(pause)
        undo()
    undo()
    give_up()
    reason = (str(error).strip().splitlines() or [repr(error)])[-1]
    raise UserError(f"sbatch: {reason}; what was queued before stays queued") from error


def _tried(attempt: Callable[[], str]) -> tuple[str, Exception | None]:
    try:
        return attempt(), None
    except (RuntimeError, OSError) as error:  # submitit's own are RuntimeErrors
        return "", error


def _max_array() -> int:
    """Jobs that the cluster allows in one array."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _slurm("scontrol", "show", "config"))
    return max(1, int(found.group(1))) if found else 1000


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """Only one launcher at a time looks at the queue and submits; one that died is not waited for long."""
    waiting = "another launcher is submitting to this store: waiting for it"
    with leases.turn(_folder(), lambda: print(waiting, flush=True)):
        yield


# --------------------------------------------------------------------------------------------- queue


@dataclass(frozen=True)
class Job:
    """A job in the queue: its id (``17_3`` in an array) and SLURM's word for its state."""

    id: str
    state: str
    reason: str = ""


def queue() -> dict[str, Job]:
    """Jobs in the queue by key of the tasks that they are to do; empty where nothing was ever submitted.

    Raises:
        UserError: SLURM does not answer.
    """
    found = {}
    names = batches()
    for job, batch, index in _listed() if names else []:
        if batch in names:
            for task in names[batch]["chunks"][index]:
                found[task["key"]] = job
    return found


def batches(sweep: str | None = None) -> dict[str, dict[str, Any]]:
    """Batches of this store, or of one sweep, by name, the oldest first; damaged files are left out."""
    found = {}
    for path in _folder().glob("*.json") if _folder().exists() else []:
        if re.fullmatch(r"[0-9a-f]{8}", path.stem):
            with contextlib.suppress(UserError):
                record = files.read_json(path)
                if record is not None and sweep in (None, record["sweep"]):
                    found[path.stem] = record
    return dict(sorted(found.items(), key=lambda item: item[1]["submitted"]))


def is_cancelled(batch: str) -> bool:
    """Whether `cancel` was called on a batch."""
    return (_folder() / f"{batch}.cancelled").exists()


def submitted(found: Mapping[str, dict[str, Any]]) -> set[str]:
    """Keys of all tasks of batches that nobody has cancelled."""
    return {
        task["key"]
        for batch, record in found.items()
        if not is_cancelled(batch)
        for chunk in record["chunks"]
        for task in chunk
    }


def cancel(sweep: str) -> int:
    """Take the jobs of a sweep from the queue, running ones as well; returns how many.

    Runs write a checkpoint and end.
    """
    names = batches(sweep)
    jobs = [job for job, batch, _ in _listed() if batch in names] if names else []
    for batch in names:
        (_folder() / f"{batch}.cancelled").touch()
    for first in range(0, len(jobs), 100):
        _slurm("scancel", *(job.id for job in jobs[first : first + 100]))
    return len(jobs)


def logs_of(key: str) -> list[Path]:
    """Logs of the SLURM jobs that had a task, the oldest first."""
    paths = []
    for record in batches().values():
        for index, chunk in enumerate(record["chunks"]):
            if record["job"] and any(task["key"] == key for task in chunk):
                name = record["job"] if len(record["chunks"]) == 1 else f"{record['job']}_{index}"
                paths += sorted((_folder() / "jobs").glob(f"{name}_*_log.out"))
    return paths


def _listed() -> Iterator[tuple[Job, str, int]]:
    """Our jobs in the queue: job, batch, and index of the chunk."""
    form = "%i|%T|%r|%j"
    for line in _slurm("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", form).splitlines():
        job, state, reason, name = line.split("|", 3)
        if name.startswith(_PREFIX) and state not in _ENDED:
            index = job.split("_")[1] if "_" in job else "0"
            yield Job(job, state, reason), name.rsplit("-", 1)[1], int(index)


_ENDED = {
    "CANCELLED",
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
    "BOOT_FAIL",
}


def _slurm(*command: str) -> str:
    """Output of one of SLURM's commands; a controller that is busy is asked again."""
    problem = ""
    for number in range(_ATTEMPTS):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            raise UserError(f"{command[0]}: not installed here; type this on a login node") from None
        except subprocess.TimeoutExpired:
            problem = "no answer within a minute"
        else:
            if done.returncode == 0:
                return done.stdout
            problem = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "failed"
        if number < _ATTEMPTS - 1:
            time.sleep(1.0 * 2**number)
    raise UserError(f"{command[0]}: {problem}; is the SLURM controller up?")


def _folder() -> Path:
    return paths.runs_folder() / ".slurm"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def profile_of(found: Iterable[dict[str, Any]]) -> Profile | None:
    """The profile that the latest of some batches was submitted with."""
    latest = None
    for record in found:
        latest = record["profile"]
    return None if latest is None else make_profile(latest, "the batch's profile")

"""Tasks submitted to a SLURM queue, packed into jobs and arrays of jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps.local import Task
from sweeps.search.secrets import PASSWORD
from sweeps.slurm import queue
from sweeps.slurm.job import Chunk
from sweeps.slurm.profile import Profile
from sweeps.surroundings import as_for_slurm, with_defaults

_NEVER = 1_000_000  # time-outs after which submitit gives up: `sweeps.slurm.job` counts better
_FOLDERS = ("EVLGEN_CACHE", "EVLGEN_DATA", "EVLGEN_RESULTS", "EVLGEN_WEIGHTS")  # jobs run in another one
_SECRET = (PASSWORD,)  # jobs have it from sbatch; no file does
# Tasks that one process does: more of them would wait for it, or do the same again.
_FOR_ONE = {"sweeps.worker:cache_features", "sweeps.conclude:score", "sweeps.search.worker:work"}


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
    queued: Mapping[str, queue.Job],
) -> Submission:
    """Queue the tasks of each phase; a phase begins when all jobs of those before it have ended, well or not.

    A job whose prerequisites have failed says so in its runs' folders and ends at once.

    Args:
        sweep: name under which `sweeps.slurm.queue` finds the jobs again.
        queued: what is in the queue already, from `queue.jobs`; tasks that need one of its tasks wait for it.

    Raises:
        UserError: submitit or SLURM is not installed, or SLURM refuses.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError("--executor slurm: needs submitit; pip install 'evlgen[slurm]'") from error
    if shutil.which("sbatch") is None:
        raise UserError("--executor slurm: there is no sbatch here; type this on a login node of the cluster")
    profile = with_defaults(profile, os.environ)
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

    batch = secrets.token_hex(4)
    path = queue.folder() / f"{batch}.json"
    record = {
        "sweep": sweep,
        "chunks": [[dataclasses.asdict(task) for task in chunk] for chunk in array],
        "profile": dataclasses.asdict(profile),
        "environment": {
            **{
                name: str(Path(value).expanduser().absolute()) if value and name in _FOLDERS else value
                for name, value in os.environ.items()
                if name.startswith("EVLGEN_") and name not in _SECRET
            },
            "EVLGEN_RUNS": str(paths.runs_folder()),
        },
        "left": left,
        "submitted": time.time(),
        "job": None,
    }
    files.write_json(path, record)
    python = shlex.join([sys.executable, str(paths.ROOT / "sweeps" / "slurm" / "start.py")])
    executor = SlurmExecutor(queue.folder() / "jobs", max_num_timeout=_NEVER, python=python)
    asked = _narrowed(profile, array)
    name = f"{queue.PREFIX}{sweep}-{batch}"
    executor.update_parameters(**_parameters(name, asked, after))
    chunks = [Chunk(str(path.resolve()), index) for index in range(len(array))]

    where = profile.sbatch.get("clusters")

    def take_back() -> None:
        with contextlib.suppress(UserError):  # a controller that is down has taken nothing
            queue.run_slurm("scancel", *(("-M", where) if where else ()), f"--name={name}")

    ids = _patiently(lambda: _submitted(executor, chunks), take_back, lambda: path.unlink())
    files.write_json(path, {**record, "job": ids})
    return ids


def _submitted(executor: Any, chunks: list[Any]) -> str:
    with as_for_slurm(), executor.batch():
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
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", queue.run_slurm("scontrol", "show", "config"))
    return max(1, int(found.group(1))) if found else 1000

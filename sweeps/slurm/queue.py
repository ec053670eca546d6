"""What is in the SLURM queue, and what was submitted to it.

A *batch* is one array of jobs; the file ``.slurm/BATCH.json`` in the run store says what each job of it (a
*chunk* of tasks) has to do, and is written before the array is submitted. The jobs carry the batch's name, so
squeue and these files tell which runs are queued, even if the launcher died in between. Whether a run is
done follows from the run's own folder, never from the queue.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps import leases, states

QUEUED = 3  # exit code of a command that has put work into the queue: all is well, but not done yet
PREFIX = "evlgen-"  # of our jobs' names
_ATTEMPTS = 4  # of a command that a busy controller does not answer


@dataclass(frozen=True)
class Job:
    """A job in the queue: its id (``17_3`` in an array) and SLURM's word for its state."""

    id: str
    state: str
    reason: str = ""


def jobs() -> dict[str, Job]:
    """Jobs in the queue by key of the tasks that they are to do; empty where nothing was ever submitted.

    Raises:
        UserError: SLURM does not answer.
    """
    found = {}
    names = batches()
    for job, batch, index in listed() if names else []:
        if batch in names:
            for task in names[batch]["chunks"][index]:
                found[task["key"]] = job
    return found


def states_of(runs: Iterable[str], jobs: Mapping[str, Job] | None) -> dict[str, states.State]:
    """State of each run, with the jobs in the queue (None: SLURM was not asked)."""
    words = None if jobs is None else {key: job.state for key, job in jobs.items()}
    return states.of_runs(runs, words, submitted(batches()))


def batches(sweep: str | None = None) -> dict[str, dict[str, Any]]:
    """Batches of this store, or of one sweep, by name, the oldest first; damaged files are left out."""
    found = {}
    for path in folder().glob("*.json") if folder().exists() else []:
        if re.fullmatch(r"[0-9a-f]{8}", path.stem):
            with contextlib.suppress(UserError):
                record = files.read_json(path)
                if record is not None and sweep in (None, record["sweep"]):
                    found[path.stem] = record
    return dict(sorted(found.items(), key=lambda item: item[1]["submitted"]))


def is_cancelled(batch: str) -> bool:
    """Whether `cancel` was called on a batch."""
    return (folder() / f"{batch}.cancelled").exists()


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
    jobs = [job for job, batch, _ in listed() if batch in names] if names else []
    for batch in names:
        (folder() / f"{batch}.cancelled").touch()
    for first in range(0, len(jobs), 100):
        run_slurm("scancel", *(job.id for job in jobs[first : first + 100]))
    return len(jobs)


def logs_of(key: str) -> list[Path]:
    """Logs of the SLURM jobs that had a task, the oldest first."""
    paths = []
    for record in batches().values():
        for index, chunk in enumerate(record["chunks"]):
            if record["job"] and any(task["key"] == key for task in chunk):
                name = record["job"] if len(record["chunks"]) == 1 else f"{record['job']}_{index}"
                paths += sorted((folder() / "jobs").glob(f"{name}_*_log.out"))
    return paths


def listed() -> Iterator[tuple[Job, str, int]]:
    """Our jobs in the queue: job, batch, and index of the chunk."""
    form = "%i|%T|%r|%j"
    for line in run_slurm("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", form).splitlines():
        job, state, reason, name = line.split("|", 3)
        if name.startswith(PREFIX) and state not in _ENDED:
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


def run_slurm(*command: str) -> str:
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


def folder() -> Path:
    """Where batches are written."""
    return paths.runs_folder() / ".slurm"


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """One launcher at a time looks at the queue and submits; a dead one is not waited for long."""
    waiting = "another launcher is submitting to this store: waiting for it"
    with leases.turn(folder(), lambda: print(waiting, flush=True)):
        yield

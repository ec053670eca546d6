"""What is in the SLURM queue, and what was submitted to it.

A *batch* is one array of jobs; the file ``.slurm/BATCH.json`` in the run store says what each job of it (a
*chunk* of tasks) has to do, and is written before the array is submitted. The jobs carry the batch's name, so
squeue and these files tell which runs are queued, even if the launcher died in between. Whether a run is
done follows from the run's own folder, never from the queue.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps import leases, states
from sweeps.surroundings import environment_of_slurm

QUEUED = 3  # exit code of a command that has put work into the queue: all is well, but not done yet
PREFIX = "evlgen-"  # of our jobs' names
_ATTEMPTS = 4  # of a command that a busy controller does not answer


@dataclass(frozen=True)
class Job:
    """A job in the queue: its id (``17_3`` in an array) and SLURM's word for its state.

    Attributes:
        cluster: as for ``-M``; empty: the one that SLURM's commands speak to by themselves.
    """

    id: str
    state: str
    reason: str = ""
    cluster: str = ""


def jobs() -> dict[str, Job]:
    """Jobs in the queue by key of the tasks that they are to do; empty where nothing was ever submitted.

    Raises:
        UserError: SLURM does not answer.
    """
    found = {}
    names = batches()
    for job, batch, index in listed(names) if names else []:
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


def cancel(sweep: str, runs: Collection[str] | None = None) -> int:
    """Take the jobs of a sweep from the queue, running ones as well; returns how many.

    Runs write a checkpoint and end.

    Args:
        runs: only the jobs that do one of these; those that prepare or score go with the last of the others.
    """
    names = batches(sweep)
    found = list(listed(names)) if names else []
    chosen = found if runs is None else _of_runs(found, names, runs)
    kept = {batch for job, batch, index in found if (job, batch, index) not in chosen}
    for batch in names.keys() - kept if runs is None else {batch for _, batch, _ in chosen} - kept:
        (folder() / f"{batch}.cancelled").touch()
    by_place: dict[tuple[str, str], list[str]] = {}
    for job, batch, _ in chosen:
        # Of several clusters two may have jobs of the same id: then the name tells whose it is.
        name = f"{PREFIX}{sweep}-{batch}" if "," in job.cluster else ""
        by_place.setdefault((job.cluster, name), []).append(job.id)
    for (cluster, name), ids in by_place.items():
        place = (*(("-M", cluster) if cluster else ()), *((f"--name={name}",) if name else ()))
        for first in range(0, len(ids), 100):
            run_slurm("scancel", *place, *ids[first : first + 100])
    return len(chosen)


_Listed = tuple[Job, str, int]


def _of_runs(
    found: list[_Listed], names: Mapping[str, dict[str, Any]], runs: Collection[str]
) -> list[_Listed]:
    """Those of the jobs that do one of the runs, or that do no run at all and no other job is left."""

    def keys(one: _Listed) -> set[str]:
        return {task["key"] for task in names[one[1]]["chunks"][one[2]] if task["function"] == _RUN}

    chosen = [one for one in found if keys(one) & set(runs)]
    return found if all(one in chosen or not keys(one) for one in found) else chosen


def logs_of(key: str) -> list[Path]:
    """Logs of the SLURM jobs that had a task, the oldest first."""
    paths = []
    for record in batches().values():
        for index, chunk in enumerate(record["chunks"]):
            if record["job"] and any(task["key"] == key for task in chunk):
                name = record["job"] if len(record["chunks"]) == 1 else f"{record['job']}_{index}"
                paths += sorted((folder() / "jobs").glob(f"{name}_*_log.out"))
    return paths


def listed(names: Mapping[str, dict[str, Any]] | None = None) -> Iterator[_Listed]:
    """Our jobs in the queues: job, batch, and index of the chunk.

    Args:
        names: batches to look for, from `batches`; None: all of this store.
    """
    names = batches() if names is None else names
    for cluster in _clusters(names):
        # By number: a container's user may have no name, and $USER may be another's.
        # In a federation a job may run on another member than the one that took it.
        place = ("-M", cluster) if cluster else ("--federation",)
        asked = ("squeue", *place, "-h", "-r", "-u", str(os.getuid()), "-o", "%i|%T|%r|%j")
        here = cluster
        for line in run_slurm(*asked).splitlines():
            if (header := re.fullmatch(r"\s*CLUSTER:\s*(\S+)\s*", line)) and cluster:
                here = header.group(1)
            for job, batch, index in _read(line, here):
                if batch in names and index < len(names[batch]["chunks"]):
                    yield job, batch, index


# Sites put notices between the jobs; other programs' jobs have other names.
_LINE = re.compile(rf"\s*(\d+)(?:\+\d+)?(?:_(\S+))?\|([A-Z_]+)[^|]*\|(.*)\|{PREFIX}.+-([0-9a-f]{{8}})\s*")


def _read(line: str, cluster: str) -> Iterator[_Listed]:
    """The jobs in a line of squeue, of an array perhaps several; none if it is not about jobs of ours."""
    found = _LINE.fullmatch(line)
    if found is None or found.group(3) in _ENDED:
        return
    array, places, state, reason, batch = found.groups()
    for index in [0] if places is None else _indices(places):
        yield Job(array if places is None else f"{array}_{index}", state, reason, cluster), batch, index


def _indices(places: str) -> Iterator[int]:
    """Indices of an array's jobs: ``3``, ``[2-5%3]``, ``[0,4-8:2]``; without what is cut off (``...``)."""
    for part in places.strip("[]").partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip("[]"))
        if found is not None:
            first, last, step = found.groups()
            yield from range(int(first), int(last or first) + 1, int(step or 1) or 1)


def _clusters(names: Mapping[str, dict[str, Any]]) -> list[str]:
    """Where jobs of the batches may be; another cluster is asked only while runs there are not complete."""
    root = paths.runs_folder()
    found = [""]
    for record in names.values():
        cluster = str(record["profile"].get("sbatch", {}).get("clusters", ""))
        keys = [task["key"] for chunk in record["chunks"] for task in chunk]
        if cluster not in found and not all((root / key / files.RESULT).exists() for key in keys):
            found.append(cluster)
    return found


_RUN = "sweeps.worker:execute_run"
_ENDED = {
    *("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"),
    *("PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
}


def run_slurm(*command: str) -> str:
    """Output of one of SLURM's commands; a controller that is busy is asked again."""
    problem = ""
    for number in range(_ATTEMPTS):
        try:
            done = subprocess.run(
                command,
                env={**environment_of_slurm(), "SLURM_BITSTR_LEN": "0"},  # no list of an array is cut off
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=60,
            )
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

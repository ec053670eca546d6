"""What state a run is in, by the files of its folder and by what the queue says."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runs import results
from evlgen.runtime.paths import runs_folder
from sweeps import leases

STATES = (
    *("done", "packed", "earlier", "trained", "running", "queued", "pending", "stopped", "lost", "failed"),
)


@dataclass(frozen=True)
class State:
    """Where a run is, by the files of its folder and by what the queue says.

    Attributes:
        name: ``done``; ``running``; ``queued`` in SLURM; ``failed``; ``lost``, its process or job is gone and
            has left no reason; ``stopped`` on purpose, with a checkpoint; ``trained``, only its scores are
            missing; ``pending``, not begun. Of those that are not begun, `with_records` tells apart
            ``packed``, complete in the archive beside a table, and ``earlier``, complete with an earlier
            behaviour of the code.
        device_seconds: what it has cost so far, over all attempts.
        samples_per_second, share: pace and progress of one that runs.
        changed: what has changed since one that is ``earlier`` was recorded: ``merging 1, now 2``.
    """

    name: str
    device_seconds: float = 0.0
    samples_per_second: float = 0.0
    share: float = 0.0
    changed: tuple[str, ...] = ()


def state(folder: Path | str, now: float, queued: str | None = None, was_submitted: bool = False) -> State:
    """State of a run. Reads the names of its files and at most one of them, so ten thousand take a moment.

    Args:
        now: from `server_time`.
        queued: what SLURM says of its job, None if there is none.
        was_submitted: it was given to SLURM at some time.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        names = []
    number = leases.last_claim(names)
    beat = leases.read_beat(folder, number) if number else None
    spent = float((beat or {}).get("device_seconds", 0.0))
    if files.RESULT in names:
        return State("done", spent)
    silent = number and (beat is None or beat["ended"] is None)
    if silent and leases.seems_alive(folder, number, now):
        steps = (beat or {}).get("steps") or 1
        return State("running", spent, (beat or {}).get("rate", 0.0), (beat or {}).get("step", 0) / steps)
    if files.ERROR in names:
        return State("failed", spent)
    if files.OUTCOME in names:
        return State("trained", spent)
    if queued is not None:
        return State("queued", spent)
    if silent or was_submitted:
        return State("lost", spent)
    return State("stopped" if files.CHECKPOINT in names else "pending", spent)


def of_runs(
    runs: Iterable[str], queued: Mapping[str, str] | None, submitted: Collection[str]
) -> dict[str, State]:
    """State of each of several runs.

    Args:
        queued: what SLURM says of the jobs of runs; None: it was not asked.
        submitted: runs that were given to SLURM at some time.
    """
    root = runs_folder()
    now = server_time(root) if root.exists() else 0.0
    words = queued or {}
    return {
        run: state(root / run, now, words.get(run), queued is not None and run in submitted) for run in runs
    }


def with_records(runs: Mapping[str, RunConfig], found: Mapping[str, State]) -> dict[str, State]:
    """The states, those of pending runs of which there is a record elsewhere or of an earlier behaviour said.

    Args:
        runs: by id.
    """
    known = dict(found)
    for run, one in found.items():
        if one.name == "pending":
            record = results.find(runs[run])
            if record is not None:
                name = "earlier" if record.changed else "packed"
                known[run] = dataclasses.replace(one, name=name, changed=record.changed)
    return known


def server_time(root: Path) -> float:
    """The time by the clock of the file server that holds ``root``: that of a file written this moment.

    Where none can be written, that of this machine.
    """
    probe = root / f".now.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        return probe.stat().st_mtime
    except OSError:  # a store that may only be read, or a full disk: looking must work there
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def status(folder: Path) -> str:
    """State of one run as a word; a result is read, and ``damaged`` if it is not whole."""
    try:
        if files.read_result(folder) is not None:
            return "complete"
    except UserError:
        return "damaged"
    return state(folder, time.time()).name

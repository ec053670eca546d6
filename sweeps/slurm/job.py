"""What a SLURM job does: the tasks of one chunk of a batch, by a pool of processes, until all are done.

A job is given the name of a file and a number, nothing else, so it runs with whatever the checkout holds by
then. It refuses the runs whose ids the checkout no longer gives: what they stand for has changed since they
were queued. When SLURM announces that it takes the node away, the runs write their checkpoints and the job
goes back to the queue, as often as it takes; only one that comes back without progress is given up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evlgen.errors import UserError
from evlgen.runs import folder as files
from evlgen.runtime import paths
from sweeps import local
from sweeps.search.secrets import hidden
from sweeps.slurm.profile import make_profile
from sweeps.surroundings import forget_ranks

_PATIENCE = 120.0  # seconds that a job with its checkpoints in place waits for SLURM to end it


@dataclass(frozen=True)
class Chunk:
    """Some tasks of a batch; what submitit pickles.

    Attributes:
        batch: path of the batch's file, see `sweeps.slurm.submit.submit`.
        index: which of its chunks.
    """

    batch: str
    index: int

    def __call__(self) -> None:
        """Do the tasks.

        Raises:
            UserError: the job was requeued too often, or tasks have failed.
        """
        batch = files.read_json(Path(self.batch))
        if batch is None:
            raise UserError(f"{self.batch}: not there, but this job was queued to do what it says")
        forget_ranks()  # of whoever submitted
        os.environ.update(batch["environment"])
        tasks = [read_task(entry) for entry in batch["chunks"][self.index]]
        self._note_progress(batch)
        if self._idle_restarts(batch) > batch["profile"]["max_requeues"]:
            self._refuse(self._too_often(batch))
        _export_ranks()
        # Where SLURM binds processes to cores, each sees its own alone, which must not be divided once more.
        decoders = make_profile(batch["profile"], self.batch).decoders
        os.environ.setdefault("EVLGEN_DECODERS", str(decoders))
        # submitit minds SIGUSR2 alone, and only in the first process. To the others it must not look like a
        # failure of their run that the first one leaves it.
        for number in (signal.SIGTERM,) if os.environ.get("RANK", "0") == "0" else local.STOP_SIGNALS:
            signal.signal(number, self._terminate)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, local.STOP_SIGNALS)  # what came meanwhile comes now
        outcome = _execute(tasks, batch["profile"]["workers"])
        if "stopped" in outcome.values():
            self._await_end()
        failed = [key for key, how in outcome.items() if how != "done"]
        if failed:
            raise UserError(f"{len(failed)} of {len(tasks)} tasks failed: {', '.join(failed)}")

    def checkpoint(self) -> Any:
        """Called by submitit before it puts the job back into the queue: wait until the runs are safe."""
        from submitit.helpers import DelayedSubmission

        batch = files.read_json(Path(self.batch))
        assert batch is not None
        _stop_workers(batch["profile"]["signal_seconds"] * 0.8)
        if self._idle_restarts(batch) >= batch["profile"]["max_requeues"]:
            self._fail(self._too_often(batch))
            return None
        return DelayedSubmission(self)

    def _terminate(self, *_: Any) -> None:
        """SIGTERM comes before a preemption, at the time limit, and with scancel."""
        _stop_workers(_PATIENCE)
        self._await_end()

    def _await_end(self) -> None:
        """Wait for SLURM's next move: a job that ends by itself now would not be requeued."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            if Path(self.batch).with_suffix(".cancelled").exists():
                raise SystemExit("cancelled")
            time.sleep(0.5)
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True, timeout=60)
        raise SystemExit("requeued")

    def _note_progress(self, batch: dict[str, Any]) -> None:
        """If there is any since the job's last start, restarts are counted from this one on.

        All processes of a job may do this at once: they write the same.
        """
        newest = self._newest(batch)
        if newest > self._noted()["newest"]:
            files.write_json(self._record, {"newest": newest, "restarts": _restarts()})

    def _idle_restarts(self, batch: dict[str, Any]) -> int:
        """Restarts since there was progress."""
        noted = self._noted()
        return 0 if self._newest(batch) > noted["newest"] else _restarts() - int(noted["restarts"])

    def _too_often(self, batch: dict[str, Any]) -> str:
        return (
            f"requeued {self._idle_restarts(batch)} times without a new checkpoint, max_requeues is "
            f"{batch['profile']['max_requeues']}; the last checkpoint is kept: retry goes on from it, with "
            "another --time if a job's was too short"
        )

    def _newest(self, batch: dict[str, Any]) -> float:
        """When the file system got the newest checkpoint or finished run of the chunk; 0: there is none."""
        times = [0.0]
        for entry in batch["chunks"][self.index]:
            for name in (files.CHECKPOINT, files.OUTCOME):
                with contextlib.suppress(FileNotFoundError):
                    times.append((paths.runs_folder() / entry["key"] / name).stat().st_mtime)
        return max(times)

    def _noted(self) -> dict[str, float]:
        return files.read_if_whole(self._record) or {"newest": 0.0, "restarts": 0}

    @property
    def _record(self) -> Path:
        path = Path(self.batch)
        return path.with_name(f"{path.stem}-{self.index}.json")

    def _refuse(self, reason: str) -> None:
        self._fail(reason)
        raise UserError(reason)

    def _fail(self, reason: str) -> None:
        """Write the reason into the folders of the chunk's unfinished runs."""
        print(f"error: {reason}", file=sys.stderr, flush=True)
        batch = files.read_json(Path(self.batch))
        assert batch is not None
        for entry in batch["chunks"][self.index]:
            if not (paths.runs_folder() / entry["key"] / files.OUTCOME).exists():
                _note("failed", entry["key"], reason)


def _execute(tasks: list[local.Task], workers: int) -> dict[str, str]:
    """What became of each task; runs whose ids the checkout no longer gives are refused."""
    outcome = {}
    for task in tasks:
        folder = paths.runs_folder() / task.key
        config = files.read_config(folder)
        if config is not None:
            try:
                files.check_id(folder, config)
            except UserError as error:
                _note("failed", task.key, str(error))
                outcome[task.key] = "failed"
    possible = [task for task in tasks if task.key not in outcome]
    return outcome | local.execute(possible, workers, _note)


def read_task(entry: dict[str, Any]) -> local.Task:
    """A task from its JSON form, without its needs: the queue has seen to them."""
    return local.Task(entry["key"], entry["function"], tuple(entry["arguments"]), cost=entry["cost"])


def _note(kind: str, key: str, detail: Any) -> None:
    """Write an event to the job's log, and a failure to the run's folder."""
    if kind == "progress":
        return
    print(f"{time.strftime('%H:%M:%S')} {key}: {kind}", flush=True)
    if kind == "failed":
        detail = hidden(str(detail))
        print(detail, file=sys.stderr, flush=True)
        if (paths.runs_folder() / key / files.CONFIG).exists():
            files.write_json(paths.runs_folder() / key / files.ERROR, {"error": str(detail)})


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _stop_workers(seconds: float) -> None:
    """Ask the processes of the pool to stop, and wait until their checkpoints are written."""
    end = time.monotonic() + seconds
    children = multiprocessing.active_children()
    for child in children:
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGUSR2)
    for child in children:
        child.join(max(0.0, end - time.monotonic()))


def _export_ranks() -> None:
    """Tell torch.distributed who is who in a job of several processes: RANK, WORLD_SIZE, MASTER_ADDR, ..."""
    from submitit.helpers import TorchDistributedEnvironment

    if int(os.environ.get("SLURM_NTASKS", "1")) < 2:
        return
    # A port of its own for every start of a job, on which all its processes agree without talking.
    start = f"{os.environ['SLURM_JOB_ID']} {_restarts()}"
    os.environ["MASTER_PORT"] = str(random.Random(start).randint(20_000, 60_000))
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)

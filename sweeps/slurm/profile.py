"""What to ask a SLURM cluster for."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from evlgen.errors import UserError, nearest
from evlgen.runtime.text import decode_text

_GPU_CPUS = 8  # cores of a process with a GPU: one for it, the others decode images, see docs/DATA.md
_MAX_DECODERS = 16  # the limit of `evlgen.data.stream.decoders`


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
        signal_seconds: before its end a job is asked to write checkpoints.
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
        if not any(int(part) for part in (days or "0", *parts)):
            raise UserError(
                f"time {self.time!r}: is no time at all; give what a job may take, such as 4:00:00"
            )
        if len(parts) == 1 and not days:
            return int(clock)
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
            text = decode_text(Path(path).read_bytes(), f"--cluster {path}")
            values = tomllib.loads(text.replace("\r\n", "\n"))
        except (OSError, ValueError) as error:
            raise UserError(f"--cluster {path}: {getattr(error, 'strerror', None) or error}") from error
    return make_profile({**values, **changes}, path or "the flags")


def changed_profile(profile: Profile, changes: Mapping[str, Any]) -> Profile:
    """A profile with some of its values replaced by those of flags.

    Raises:
        UserError: a value is wrong, or does not go with the others.
    """
    return make_profile({**dataclasses.asdict(profile), **changes}, "the flags")


def make_profile(values: Mapping[str, Any], source: str) -> Profile:
    """A profile from names and values.

    Raises:
        UserError: a name or a value is wrong; the message says which, and of what ``source``.
    """
    kept: dict[str, Any] = {}
    defaults = {f.name: getattr(Profile(), f.name) for f in dataclasses.fields(Profile)}
    for name, value in values.items():
        if name not in defaults:
            raise UserError(
                f"{source}: {name}: no such key; there are: {', '.join(defaults)}{nearest(name, defaults)}"
            )
        wanted = type(defaults[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if name == "time" and type(value) is int:  # minutes, as a number
            value = str(value)
        if wanted is tuple and isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = tuple(value)
        if type(value) is not wanted:
            raise UserError(f"{source}: {name} is {value!r}, but must be of the kind of {defaults[name]!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{source}: {name} is {value}, but must be a number")
        if isinstance(value, int | float) and value < (name in _AT_LEAST_ONE):
            raise UserError(f"{source}: {name} is {value}, but must be {int(name in _AT_LEAST_ONE)} or more")
        kept[name] = _sbatch_options(value, source) if name == "sbatch" else value
        for text in value if wanted is tuple else (value,):
            if isinstance(text, str):
                _refuse_control(text, f"{source}: {name}")
    profile = Profile(**kept)
    if profile.tasks > 1 and profile.workers > 1:
        raise UserError(f"{source}: workers: a job has several runs or one run several processes, not both")
    _check_gpus(profile, source)
    assert profile.minutes
    return profile


# Options that a sweep sets itself, or that would leave it without its jobs.
_OURS = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "time", "nodes"), "a field of the profile"),
    "mem": "the field memory_gb",
    "ntasks-per-node": "the field tasks_per_node",
    "chdir": "",
    "cpus-per-task": "the field cpus",
    "gpus-per-node": "the field gpus",
    "ntasks": "tasks_per_node",
    "signal": "the field signal_seconds",
    "dependency": "",
    "job-name": "",
    "array": "",
    "output": "",
    "error": "",
    "open-mode": "",
    "wrap": "",
    "wait": "",
    "test-only": "",
    "parsable": "",
    "requeue": "the field max_requeues",
    "no-requeue": "the field max_requeues",
}


def _sbatch_options(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Further options of sbatch, by their long names as sbatch spells them.

    Raises:
        UserError: a name is none, a value is no text, number or truth value, or a sweep sets it itself.
    """
    kept = {}
    for key, value in options.items():
        name = key.replace("_", "-")
        where = f"{source}: sbatch.{key}"
        if re.fullmatch(r"clusters?", name):  # sbatch takes the beginning of a name as well
            name = "clusters"
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]+", name):
            raise UserError(f"{where!r}: no long name of an option of sbatch")
        if not isinstance(value, str | int | float) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise UserError(f"{where} is {value!r}, but must be text, a number, or true")
        if name in _OURS:
            instead = _OURS[name]
            raise UserError(
                f"{where}: is set by the sweep; " + (f"use {instead}" if instead else "leave it out")
            )
        if name == "gres" and "gpu" in str(value):
            raise UserError(f"{where} is {value!r}: GPUs are given by the field gpus")
        _refuse_control(str(value), where)
        if name == "clusters" and not re.fullmatch(r"[\w.-]+(,[\w.-]+)*", str(value)):
            raise UserError(
                f"{where} is {value!r}, but must be the name of a cluster, or several with commas"
            )
        if value is not False:
            kept[name] = value
    return kept


def _refuse_control(text: str, where: str) -> None:
    """Refuse what would begin a line of its own in a job's script."""
    if any(
        ord(letter) < 32 or ord(letter) in (127, 0x85, 0x2028, 0x2029) for letter in text if letter != "\t"
    ):
        raise UserError(f"{where} is {text!r}: has a line break or another control character; give one line")


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


def profile_of(found: Iterable[dict[str, Any]]) -> Profile | None:
    """The profile that the latest of some batches was submitted with."""
    latest = None
    for record in found:
        latest = record["profile"]
    return None if latest is None else make_profile(latest, "the batch's profile")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"

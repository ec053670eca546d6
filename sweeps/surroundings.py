"""What a command inherits from where it is typed, and must not pass on or obey.

A shell within an allocation (salloc, srun --pty, a notebook in a job) has the variables of the job around it;
a pod, or a torchrun before, has left ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping

from sweeps.slurm.profile import Profile, changed_profile

_RANKS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
# Of a job, or options by which a user's shell changes what SLURM's commands do and show.
_OF_SLURM = (
    *("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SCANCEL_", "SCONTROL_"),
    *("SUBMITIT_", "PMI_", "PMIX_", "OMPI_", "TORCHELASTIC_"),
)
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")  # where SLURM is
_OF_A_NOTEBOOK = ("MPLBACKEND",)
# A user's own defaults, which may stand in a shell's start-up file: field of the profile -> variables.
_DEFAULTS = {
    "partition": ("SBATCH_PARTITION",),
    "account": ("SBATCH_ACCOUNT",),
    "qos": ("SBATCH_QOS",),
    "constraint": ("SBATCH_CONSTRAINT",),
}
_MORE_DEFAULTS = {"clusters": ("SBATCH_CLUSTERS", "SLURM_CLUSTERS"), "reservation": ("SBATCH_RESERVATION",)}


def forget_ranks() -> None:
    """Take the ranks of other programs out of the environment: the processes of a sweep are not theirs."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        print(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment is not for sweeps: ignored "
            "(several GPUs for one run: --executor slurm --gpus)",
            file=sys.stderr,
        )
    for name in list(os.environ):
        if name in _RANKS or name.startswith("TORCHELASTIC_"):
            del os.environ[name]


def environment_of_slurm() -> dict[str, str]:
    """The environment for SLURM's commands, and so for jobs: without that of the job around."""
    return {name: value for name, value in os.environ.items() if not _is_of_elsewhere(name)}


@contextlib.contextmanager
def as_for_slurm() -> Iterator[None]:
    """Within it this process has the environment of `environment_of_slurm`."""
    before = dict(os.environ)
    for name in before.keys() - environment_of_slurm().keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def _is_of_elsewhere(name: str) -> bool:
    if name in _KEPT:
        return False
    return name in (*_RANKS, *_OF_A_NOTEBOOK) or name.startswith(_OF_SLURM)


def with_defaults(profile: Profile, variables: Mapping[str, str]) -> Profile:
    """The profile, empty fields of which take the user's defaults from the environment (``SBATCH_ACCOUNT``).

    sbatch itself would let them replace what the profile says.
    """
    changes = {
        field: value
        for field, names in _DEFAULTS.items()
        if not getattr(profile, field) and (value := _first(variables, names))
    }
    more = {
        option: value
        for option, names in _MORE_DEFAULTS.items()
        if option not in profile.sbatch and (value := _first(variables, names))
    }
    if not changes and not more:
        return profile
    return changed_profile(dataclasses.replace(profile, sbatch={**profile.sbatch, **more}), changes)


def _first(variables: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((variables[name] for name in names if variables.get(name)), "")

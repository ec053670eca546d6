"""Where a result comes from (code, packages, machine, data, weights) and what it took."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pynvml

from evlgen.config import RunConfig
from evlgen.runs import folder as files
from evlgen.runs.checkout import code_state, within
from evlgen.runs.identity import Identity
from evlgen.runtime.cpu import peak_memory_mib
from evlgen.runtime.files import sha256_of, write_atomic

DIFF = "diff.patch"
_POWERCAP = Path("/sys/class/powercap")
_DIFF_BYTES = 2**23  # of a larger difference the first files are kept, beside the hash of all of it


@functools.cache
def provenance() -> dict[str, Any]:
    """What does not change while this process runs; what git cannot tell is null."""
    code = code_state()
    return {
        "git_commit": code.commit,
        "git_dirty": None if code.difference is None else bool(code.difference),
        "git_diff_sha256": hashlib.sha256(code.difference).hexdigest() if code.difference else None,
        "packages": _packages(),
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "host": platform.node(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": _gpus(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def write_provenance(
    folder: Path, config: RunConfig, identity: Identity, data: str, measured: dict[str, Any]
) -> None:
    """Write a trained run's ``provenance.json``, and ``diff.patch`` if the checkout was not clean.

    Args:
        identity: of the run: versions of data, weights and components.
        data: fingerprint of the training data as it was read.
        measured: from `Meter.read`.
    """
    weights = {**identity.weights, "connector": sha256_of(folder / files.CONNECTOR)}
    kept, left_out = within(_difference(), _DIFF_BYTES)
    (folder / DIFF).unlink(missing_ok=True)  # of an attempt with other code
    if kept:
        write_atomic(folder / DIFF, kept)
    what = {
        **({"git_diff_left_out": left_out} if left_out else {}),
        "seed": config.seed,
        "data_sha256": data,
        "weights_sha256": weights,
        "components": identity.components,
    }
    files.write_json(folder / files.PROVENANCE, provenance() | what | measured)


class Meter:
    """Measures from its creation on."""

    def __init__(self) -> None:
        self._started, self._clock = time.time(), time.perf_counter()
        self._energy = energy_counters()
        if cuda := _cuda():
            cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, Any]:
        """Wall time, peak memory, and energy in joules, null where no device tells it.

        Energy is all that the device has used meanwhile, also for other processes. Memory of the host is the
        most that this process has held in its life.
        """
        now = energy_counters()
        energy = {
            name: (value - self._energy[name][0]) % now[name][1]
            for name, (value, _) in now.items()
            if name in self._energy
        }
        cuda = _cuda()
        return {
            "started": self._started,
            "wall_seconds": time.perf_counter() - self._clock,
            "peak_memory_mib": peak_memory_mib(),
            "peak_gpu_memory_mib": cuda.max_memory_allocated() / 2**20 if cuda else None,
            "energy_joules": energy or None,
        }


def over_attempts(earlier: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """What a run has cost in all: of the attempts that were stopped before and of this one.

    Of an attempt that was killed nothing is known; `sweeps.leases` has its time.
    """
    if earlier is None:
        return {**now, "attempts": 1}
    total = {**earlier, "attempts": earlier["attempts"] + 1}
    total["wall_seconds"] += now["wall_seconds"]
    for name in ("peak_memory_mib", "peak_gpu_memory_mib"):
        total[name] = max((x for x in (earlier[name], now[name]) if x is not None), default=None)
    joules = [x["energy_joules"] or {} for x in (earlier, now)]
    names = sorted({name for one in joules for name in one})
    total["energy_joules"] = {name: sum(one.get(name, 0.0) for one in joules) for name in names} or None
    return total


def energy_counters() -> dict[str, tuple[float, float]]:
    """Joules counted so far by each device that counts them, and the number at which it starts again from 0.

    NVIDIA GPUs tell through NVML (Volta and later), packages of processors through RAPL (usually readable by
    root alone).
    """
    counters = _gpu_counters()
    for zone in sorted(_POWERCAP.glob("intel-rapl:*")):
        if zone.name.count(":") == 1:  # a package; its parts are in it
            with contextlib.suppress(OSError, ValueError):
                value, limit = (
                    float((zone / name).read_text("utf-8")) / 1e6
                    for name in ("energy_uj", "max_energy_range_uj")
                )
                counters[f"cpu{zone.name.split(':')[1]}"] = (value, limit)
    return counters


def _gpu_counters() -> dict[str, tuple[float, float]]:
    cuda, counters = _cuda(), {}
    if cuda is None:
        return {}
    with contextlib.suppress(pynvml.NVMLError):  # no driver, or a GPU that does not count
        pynvml.nvmlInit()
        for index in range(cuda.device_count()):
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{cuda.get_device_properties(index).uuid}")
            millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            counters[f"gpu{index}"] = (millijoules / 1e3, 2**64 / 1e3)
    return counters


def _cuda() -> Any:
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def _gpus() -> list[dict[str, Any]]:
    cuda = _cuda()
    found = [cuda.get_device_properties(i) for i in range(cuda.device_count())] if cuda else []
    return [{"name": gpu.name, "memory_mib": gpu.total_memory // 2**20} for gpu in found]


def _packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _difference() -> bytes:
    """What the checkout has that its commit has not; empty where there is nothing, or it is unknown."""
    return code_state().difference or b""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()

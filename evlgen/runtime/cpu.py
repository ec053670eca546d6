"""A worker process on a CPU: one thread, the same bits each time, no page faults for buffers; its memory."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

from evlgen.runtime.device import same_bits

# Parameters of glibc's mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def prepare_worker(threads: int = 1) -> None:
    """Call once, first thing, in a process that trains.

    One-thread processes side by side make the most of a few cores, and the number of threads changes the
    order of sums, hence the bits. glibc returns every large buffer to the kernel as soon as it is freed and
    requests it again, page by page, a moment later: half of the time of a small model's step. The settings
    here make it keep its memory.
    """
    torch.set_num_threads(threads)
    same_bits()
    if sys.platform.startswith("linux"):
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(_M_TOP_PAD, 64 * 2**20)
        except (OSError, AttributeError):
            pass  # another C library: slower, not wrong


def peak_memory_mib() -> float:
    """The most memory that this process has held in its life."""
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss starts at what its parent had in memory: VmHWM is its own
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

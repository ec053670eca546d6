"""The machine: its name, its measured GEMM peak, clocks and memory."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from evlgen.runtime import cpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def describe(device: torch.device) -> dict[str, Any]:
    """What a reader needs to know to compare figures of two machines."""
    return {
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # before the benchmark: above 1, others were at work
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def now(device: torch.device) -> float:
    """Seconds, when all work given to the device so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def gemm_peak(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of the best of many square matrix products, two a multiply-accumulate."""
    size = 8192 if device.type == "cuda" else 1536
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    a @ b
    best, end = float("inf"), now(device) + seconds
    while now(device) < end:
        started = now(device)
        a @ b
        best = min(best, now(device) - started)
    return 2 * size**3 / best


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far: of the device's allocator on CUDA, else of this process."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else cpu.peak_memory_mib()

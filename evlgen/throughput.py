"""How fast devices compute, and how much of it a training uses: model FLOPs utilisation (MFU).

MFU (Chowdhery et al., "PaLM", 2022) takes the operations that a step needs (`evlgen.cost`), without those
that are done twice to save memory, and divides by the peak that the maker states for dense matrix products.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from evlgen.errors import UserError

STATED = "EVLGEN_PEAK_TFLOPS"

# Dense fp16 and bf16 matrix products with sums in fp32, FLOP/s, from NVIDIA's data sheets. The first entry
# whose words occur in the device's name counts.
_PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "H800": 989e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "V100": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX A6000": 154.8e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a device: what the environment variable ``EVLGEN_PEAK_TFLOPS`` states, else what is
    known of a GPU in half precision, else None.

    Raises:
        UserError: what the variable states is no number above 0.
    """
    stated = os.environ.get(STATED)
    if stated:
        try:
            peak = float(stated) * 1e12
        except ValueError:
            peak = 0.0
        if not 0 < peak < float("inf"):
            raise UserError(f"{STATED}={stated}: wanted the device's peak in TFLOP/s, a number above 0")
        return peak
    if device.type != "cuda" or precision == "fp32":
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """Half-precision peak of the GPU with this name, or None."""
    words = f" {name.replace('-', ' ')} "
    return next((peak for part, peak in _PEAKS.items() if f" {part} " in words), None)


@dataclass(frozen=True)
class Devices:
    """Accelerators that share a batch.

    Attributes:
        peak: operations a second of one of them, as its maker states it.
    """

    name: str
    number: int
    peak: float


A100S = Devices("A100", 8, _PEAKS["A100"])  # PAPER: 8 x A100-80G; dense fp16 on tensor cores


def utilisation(flop: float, seconds: float, devices: Devices) -> float:
    """Share of the peak that is used where ``flop`` operations take ``seconds`` (MFU)."""
    return flop / (seconds * devices.number * devices.peak)


def step_seconds(flop: float, devices: Devices, used: float) -> float:
    """Seconds of a step of ``flop`` operations at a share ``used`` of the peak."""
    return flop / (devices.number * devices.peak * used)


def training_hours(steps: int, seconds: float) -> float:
    """Hours of ``steps`` steps of ``seconds`` each."""
    return steps * seconds / 3600

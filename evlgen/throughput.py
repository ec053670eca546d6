"""How much of a GPU's arithmetic a training uses: model FLOPs utilisation (MFU).

MFU (Chowdhery et al., "PaLM", 2022) counts what the mathematics of a step needs, not what is computed twice
to save memory, and divides by the peak that the maker states for dense matrix products.
"""

from __future__ import annotations

import os

import torch
from torch.utils.flop_counter import FlopCounterMode

from evlgen.data.pairs import Batch
from evlgen.errors import UserError
from evlgen.model import CaptionModel, Model, evaluating

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


def training_flops(model: Model, batch: Batch) -> float:
    """FLOPs that training on one pair of this batch needs, from a forward pass of its own over the batch.

    The backward pass of what is trained takes twice its forward pass, that of the frozen language model once,
    for it has gradients of its inputs only. The frozen image encoder is not counted.
    """
    trained, frozen = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with evaluating(model):
        if isinstance(model, CaptionModel):
            features = model.encode(batch.images)
            with trained:
                prompt = model.soft_prompt(features)
            with frozen:
                model.token_losses(prompt, batch.text_ids, batch.text_mask)
        else:
            features = model.encode(batch.images)
            with trained:
                model.losses(features, batch.text_ids, batch.text_mask)
    return (3 * trained.get_total_flops() + 2 * frozen.get_total_flops()) / len(batch.text_ids)

"""What the parts of ``benchmarks/gpu_check.py`` are asked for and what they give back."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from evlgen.runtime.device import device_called

GIB = 2**30
Row = dict[str, Any]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Settings:
    """What the parts are asked for.

    Attributes:
        device: ``cuda`` or ``cpu``.
        tiny: the smallest shapes, at which speed and memory mean nothing.
        batch: samples of a step in the paper's shapes.
        work: folder for runs and caches.
        seconds: how long the part may take.
    """

    device: str
    tiny: bool
    batch: int
    work: str
    seconds: float

    @property
    def on(self) -> torch.device:
        return device_called(self.device)

    @property
    def scale(self) -> Literal["tiny", "paper"]:
        return "tiny" if self.tiny else "paper"

    @property
    def half(self) -> Precision:
        """fp16, the paper's, where the device trains in it."""
        return "bf16" if self.device == "cpu" else "fp16"


@dataclass
class Found:
    """What a part has found.

    Attributes:
        line: the outcome, for people.
        rows: a table; the keys of the first row are its columns.
        notes: what one must know to read it.
    """

    line: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Failed(Exception):
    """A part has found something wrong.

    Args:
        found: what, with the table as far as it got.
    """

    def __init__(self, found: Found) -> None:
        super().__init__(found.line)
        self.found = found


def judged(wrong: list[str], found: Found) -> Found:
    """What was found, if nothing is wrong with it.

    Raises:
        Failed: something is.
    """
    if wrong:
        raise Failed(dataclasses.replace(found, line="; ".join(wrong)))
    return found


def release(device: torch.device) -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

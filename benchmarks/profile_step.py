"""Where the time of a training step goes, by operator: ``python benchmarks/profile_step.py --help``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe, now
from benchmarks.steps import BATCHES, Case, build, pick_device, stepper


@dataclass(frozen=True)
class Arguments:
    """Profile a training step of a connector."""

    connector: Literal["tomeformer", "qformer"] = "tomeformer"
    scale: Literal["mini", "paper"] = "mini"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch: int = 0
    """samples in a step; 0: what fits"""
    steps: int = 5
    reference: bool = False
    """profile the plain reference instead"""
    rows: int = 20
    shapes: bool = False
    """tell operators apart by the shapes of their inputs"""
    trace: str = ""
    """also write a trace for chrome://tracing or Perfetto into this file"""


def main(argv: list[str]) -> int:
    """Exit code 0."""
    arguments = tyro.cli(Arguments, args=argv, prog="benchmarks/profile_step.py", description=__doc__)
    device = pick_device(arguments.device)
    batch = arguments.batch or BATCHES[arguments.scale, device.type]
    case = Case(arguments.connector, arguments.scale, batch, arguments.precision)
    model = build(case, device)[int(arguments.reference)]
    step = stepper(model, case.features(device), case.precision)
    for _ in range(2):
        step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, record_shapes=arguments.shapes) as profiler:
        for _ in range(arguments.steps):
            step()
        now(device)
    print(", ".join(f"{key} {value}" for key, value in describe(device).items()))
    print(f"{type(model).__name__}, scale {case.scale}, batch {batch}, {arguments.steps} steps")
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = profiler.key_averages(group_by_input_shape=arguments.shapes)
    print(averages.table(sort_by=order, row_limit=arguments.rows, max_name_column_width=40))
    if arguments.trace:
        profiler.export_chrome_trace(arguments.trace)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A training step of each connector beside a plain reference: ``python benchmarks/steps.py --help``.

Ours and the reference start from the same weights and take turns, step by step, so that whatever else the
machine does hits both alike. Memory is measured in a process for each.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.machine import DTYPES, describe, gemm_peak, now, peak_memory_mib
from benchmarks.reference import ReferenceQFormer, ReferenceTomeFormer
from evlgen.config import ConnectorConfig, OptimConfig, QFormerConfig, TomeFormerConfig
from evlgen.connector_base import Connector
from evlgen.connectors import build_connector
from evlgen.cost import image_features, step_cost
from evlgen.optimizer import build_optimizer
from evlgen.runtime.cpu import prepare_worker
from evlgen.runtime.device import device_called
from evlgen.runtime.files import write_atomic
from evlgen.training import autocast
from experiments.scales import get

ROOT = Path(__file__).resolve().parents[1]
TOKENS = {"paper": 257, "mini": 65, "tiny": 10}
BATCHES = {("paper", "cpu"): 4, ("paper", "cuda"): 200, ("mini", "cpu"): 32, ("mini", "cuda"): 1024}
LAYERS: Any = {"width": 32, "num_layers": 2, "num_heads": 2, "intermediate": 64, "max_positions": 16}
TINY: dict[str, ConnectorConfig] = {  # for tests: sizes at which every speed means nothing
    "tomeformer": TomeFormerConfig(input_width=16, r=3, **LAYERS),
    "qformer": QFormerConfig(encoder_width=16, num_queries=4, **LAYERS),
}


@dataclass(frozen=True)
class Arguments:
    """Time a training step (forward, backward, update) of each connector."""

    scales: tuple[Literal["mini", "paper"], ...] = ("mini", "paper")
    connectors: tuple[Literal["tomeformer", "qformer"], ...] = ("tomeformer", "qformer")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """autocast, as in a run; the GEMM peak is measured in it"""
    batch: int = 0
    """samples in a step; 0: what fits (a GPU's share of the paper's batch is 200)"""
    steps: int = 10
    """timed steps of each"""
    allocator: Literal["run", "default"] = "run"
    """on a CPU, that of a run's workers (`evlgen.runtime.cpu`), which keeps buffers, or glibc's as it is"""
    out: str = ""
    """a JSON file for the results"""
    alone: Literal["", "ours", "reference"] = ""
    """only a few steps of one of them and its peak memory (used by the benchmark itself)"""


@dataclass(frozen=True)
class Case:
    """A connector at a scale."""

    name: Literal["tomeformer", "qformer"]
    scale: Literal["tiny", "mini", "paper"]
    batch: int
    precision: Literal["fp32", "bf16", "fp16"]

    @property
    def config(self) -> ConnectorConfig:
        if self.scale == "tiny":
            return TINY[self.name]
        config: ConnectorConfig = getattr(get(self.scale), self.name)
        return dataclasses.replace(config, init="random")

    def flop(self) -> int:
        """Operations of one step's matrix products, forward and backward."""
        connector = build_connector(self.config).train()
        image = image_features(self.config, TOKENS[self.scale])
        return 2 * self.batch * step_cost(connector, image).training_macs

    def features(self, device: torch.device) -> Tensor:
        """(batch, N, D_in) of noise."""
        _, tokens, width = image_features(self.config, TOKENS[self.scale]).shape
        return torch.randn(self.batch, tokens, width, device=device)


def build(case: Case, device: torch.device) -> tuple[Connector, nn.Module]:
    """The connector and its reference, with the same weights, in training mode."""
    torch.manual_seed(0)
    ours = build_connector(case.config)
    reference = reference_of(case.config)
    reference.load(ours)  # type: ignore[arg-type]  # the one of its kind
    return ours.to(device).train(), reference.to(device).train()


def reference_of(config: ConnectorConfig) -> ReferenceTomeFormer | ReferenceQFormer:
    """The reference of a connector, with weights of its own."""
    if isinstance(config, TomeFormerConfig):
        return ReferenceTomeFormer(config)
    assert isinstance(config, QFormerConfig)
    return ReferenceQFormer(config)


def stepper(model: nn.Module, features: Tensor, precision: str) -> Callable[[], None]:
    """One training step of a connector on features."""

    def loss() -> Tensor:
        output = model(features).float()
        # of half the channels: the mean square of all is 1 behind a LayerNorm, and has no gradient
        return output[..., : output.shape[-1] // 2].square().mean()

    return training_step(model, loss, features.device, precision)


def training_step(
    model: nn.Module, loss_of_step: Callable[[], Tensor], device: torch.device, precision: str
) -> Callable[[], None]:
    """One training step of a module: forward to the loss, backward, AdamW."""
    optimizer = build_optimizer(model, OptimConfig())
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step() -> None:
        with autocast(device, precision):
            loss = loss_of_step()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def measure(case: Case, device: torch.device, steps: int) -> dict[str, Any]:
    """Seconds of ours and of the reference, taking turns, and what follows from them."""
    features = case.features(device)
    models = dict(zip(("ours", "reference"), build(case, device), strict=True))
    run = {name: stepper(model, features, case.precision) for name, model in models.items()}
    seconds = take_turns(run, device, steps)
    peak = gemm_peak(device, DTYPES[case.precision])  # after the steps: a warm machine
    flop = case.flop()
    result: dict[str, Any] = {
        **dataclasses.asdict(case),
        "steps": steps,
        "gflop": flop / 1e9,
        "gemm_gflops": peak / 1e9,
    }
    for name, times in seconds.items():
        median = statistics.median(times)
        result[name] = {
            "seconds": median,
            "fastest_seconds": min(times),
            "samples_per_second": case.batch / median,
            "share_of_gemm_peak": flop / median / peak,
        }
    result["speedup"] = result["reference"]["seconds"] / result["ours"]["seconds"]
    return result


def take_turns(
    run: Mapping[str, Callable[[], None]], device: torch.device, steps: int
) -> dict[str, list[float]]:
    """Seconds of each of the steps, which are done one after the other, again and again."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for turn in range(steps + 1):
        for name, step in run.items():
            started = now(device)
            step()
            if turn:  # the first one makes optimiser states and fills caches
                seconds[name].append(now(device) - started)
    return seconds


def measure_memory(case: Case, device: torch.device, which: str) -> float:
    """Peak memory in MiB of a few steps, for a process that does nothing else."""
    ours, reference = build(case, torch.device("cpu"))
    model = (ours if which == "ours" else reference).to(device)
    del ours, reference
    step = stepper(model, case.features(device), case.precision)
    for _ in range(2):
        step()
    return peak_memory_mib(device)


def memory_of_child(case: Case, device: torch.device, which: str, allocator: str) -> float:
    """`measure_memory` in a fresh process."""
    command = [sys.executable, __file__, "--alone", which, "--device", device.type, "--scales", case.scale]
    command += ["--connectors", case.name, "--batch", str(case.batch), "--precision", case.precision]
    command += ["--allocator", allocator]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return float(output.splitlines()[-1])


def main(argv: list[str]) -> int:
    """Exit code 0."""
    arguments = tyro.cli(Arguments, args=argv, prog="benchmarks/steps.py", description=__doc__)
    device = pick_device(arguments.device)
    if device.type == "cpu" and arguments.allocator == "run":
        prepare_worker(torch.get_num_threads())
    cases = [
        Case(name, scale, arguments.batch or BATCHES[scale, device.type], arguments.precision)
        for scale in arguments.scales
        for name in arguments.connectors
    ]
    if arguments.alone:
        print(measure_memory(cases[0], device, arguments.alone))
        return 0
    machine = describe(device) | {"allocator": arguments.allocator}
    results = []
    for case in cases:
        result = measure(case, device, arguments.steps)
        for which in ("ours", "reference"):
            result[which]["peak_memory_mib"] = memory_of_child(case, device, which, arguments.allocator)
        results.append(result)
    show(machine, results)
    if arguments.out:
        write_atomic(
            Path(arguments.out), json.dumps({"machine": machine, "results": results}, indent=1).encode()
        )
    return 0


def pick_device(name: str) -> torch.device:
    """The device by name; ``auto`` takes a GPU where there is one."""
    return device_called(name)


def show(machine: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Print the results as a table."""
    names = ", ".join(f"{key} {value}" for key, value in machine.items())
    table = Table(
        "connector", "scale", "batch", "", "samples/s", "of GEMM peak", "peak MiB", "speed-up", title=names
    )
    for result in results:
        for which in ("ours", "reference"):
            line = result[which]
            table.add_row(
                result["name"],
                result["scale"],
                str(result["batch"]),
                which,
                f"{line['samples_per_second']:.2f}",
                f"{line['share_of_gemm_peak']:.0%} of {result['gemm_gflops']:.0f} G",
                f"{line['peak_memory_mib']:.0f}",
                f"{result['speedup']:.2f}" if which == "ours" else "",
            )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a GPU asks of a training step, watched on a CPU.

No operation that the CPU would wait for, and none that sums in no fixed order there, which PyTorch refuses in
a process whose bits are to be the same each time.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evlgen import training
from evlgen.config import ConnectorConfig, LinearConfig, PerceiverConfig, RunConfig, TomeFormerConfig
from evlgen.connectors import build_connector
from evlgen.data.batches import StepBatches
from evlgen.data.pairs import draw_batch
from evlgen.errors import UserError
from evlgen.evaluation.decoding import as_many_as_fit
from evlgen.merging import bipartite_soft_matching, position_matching, random_matching
from evlgen.runs.folder import read_metrics
from evlgen.runtime.device import chosen, device_called, enough_memory
from evlgen.runtime.distributed import ALONE
from evlgen.runtime.paths import ROOT
from tests.evlgen import tiny

CPU = torch.device("cpu")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "multinomial", "_unique2", "unique_dim", "equal"}
# of torch.use_deterministic_algorithms: those that it refuses on a GPU
UNORDERED = {
    *("_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "nll_loss2d_forward", "put_", "histc"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward"),
    *("grid_sampler_2d_backward", "reflection_pad1d_backward", "reflection_pad2d_backward", "median"),
}
SIZES: Any = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 32, "max_positions": 16}
CONNECTORS: dict[str, ConnectorConfig] = {
    "keys": tiny.TOMEFORMER,
    "random": TomeFormerConfig(input_width=tiny.WIDTH, r=2, metric="random", dropout=0.1, **SIZES),
    "position": TomeFormerConfig(input_width=tiny.WIDTH, r=2, metric="position", **SIZES),
    "weighted": TomeFormerConfig(
        input_width=tiny.WIDTH, r=2, reduce="weighted", proportional_attention=True, **SIZES
    ),
    "qformer": tiny.QFORMER,
    "perceiver": PerceiverConfig(input_width=tiny.WIDTH, num_latents=3, **SIZES),
    "linear": LinearConfig(input_width=tiny.WIDTH, width=tiny.WIDTH),
}


class Watched(TorchDispatchMode):
    """Notes operations that a GPU is waited for, or whose bits are not fixed on one."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        is_float = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()
        if name in WAITS | UNORDERED or by_mask or (name == "cumsum" and is_float):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def watched_update(config: RunConfig, architecture: Literal["opt", "llama"] = "opt") -> list[str]:
    model = (
        tiny.caption_model(config.connector, architecture)
        if config.stage == "caption"
        else tiny.model_of(config)
    )
    state = training._begin(config, model, CPU, None, ALONE)
    data = tiny.training_data()
    pools = data.source.pools  # type: ignore[attr-defined]
    batch = draw_batch(pools, config.seed, 0, config.optim.batch_size)
    with Watched() as watched:
        training._update(state, StepBatches([batch.to(CPU)], None), config, CPU, ALONE, wants_norm=True)
    return watched.found


@pytest.mark.parametrize("connector", CONNECTORS.values(), ids=CONNECTORS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_neither_waits_nor_sums_in_any_order(connector: ConnectorConfig, precision: str) -> None:
    assert watched_update(tiny.run_config(connector=connector, precision=precision)) == []


def test_so_does_stage_1() -> None:
    config = tiny.run_config(connector=tiny.QFORMER, stage="represent")
    assert watched_update(config) == []


def test_llama_waits_once_a_pass() -> None:
    """transformers looks whether several texts are packed into one row."""
    found = watched_update(tiny.run_config(), "llama")
    assert len(found) <= 1


def test_watching_finds_what_it_is_for() -> None:
    x = torch.tensor([1.0, 2.0])
    with Watched() as watched:
        x[x > 1].sum().item()
        x.cumsum(0)
    assert watched.found == ["aten.index.Tensor", "aten._local_scalar_dense.default", "aten.cumsum.default"]


# --------------------------------------------------------------------------------------- whole graphs


@pytest.mark.parametrize("matching", [bipartite_soft_matching, random_matching, position_matching])
def test_matching_and_merging_are_one_graph(matching: Any) -> None:
    def merged(x: Tensor, metric: Tensor) -> Tensor:
        found = matching(metric, 3)
        out: Tensor = found.merge(x) + found.merge(x, torch.ones_like(x[..., :1]))
        return out

    torch.manual_seed(0)
    x, metric = torch.randn(2, 9, 4, requires_grad=True), torch.randn(2, 9, 6)
    compiled = torch.compile(merged, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    expected = merged(x, metric)
    torch.manual_seed(1)
    found = compiled(x, metric)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x), wanted)


@pytest.mark.parametrize("name", ["keys", "random", "qformer"])
def test_a_connector_is_one_graph(name: str) -> None:
    """In training mode, with its dropout and its random matchings."""
    torch.manual_seed(0)
    connector = build_connector(CONNECTORS[name]).train()
    features = tiny.features(3)
    compiled = torch.compile(connector, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    expected = connector(features)
    torch.manual_seed(1)
    torch.testing.assert_close(compiled(features), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_run_trains(tmp_path: Path) -> None:
    """Its loss follows that of the run without."""
    losses = {}
    for name in (False, True):
        config = tiny.run_config(compile=name, steps=4, eval_every=4, checkpoint_every=4)
        training.train(config, tmp_path / str(name), tiny.training_data(), model=tiny.model_of(config))
        losses[name] = [line["loss"] for line in read_metrics(tmp_path / str(name))]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_compiling_does_not_go_with_recomputing(tmp_path: Path) -> None:
    config = tiny.run_config(compile=True, gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"^optim.compile: not together with optim.gradient_checkpointing"):
        training.train(config, tmp_path, tiny.training_data(), model=tiny.model_of(config))


# ------------------------------------------------------------------------------------ device and memory


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_called("cpu") == CPU
    with pytest.raises(UserError, match=r"^--device gpu: no such device; there are: auto, cpu, cuda, mps$"):
        device_called("gpu")
    monkeypatch.setenv("EVLGEN_DEVICE", "cpu")
    assert chosen() == CPU
    monkeypatch.setenv("EVLGEN_DEVICE", "tpu")
    with pytest.raises(UserError, match=r"^--device \(EVLGEN_DEVICE\) tpu: no such device"):
        chosen()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu() -> None:
    with pytest.raises(UserError, match=r"^--device cuda: .*; choose cpu or auto$"):
        device_called("cuda")
    assert device_called("auto") == CPU


def test_a_process_of_fixed_bits_may_use_cublas() -> None:
    """Else PyTorch refuses the first product on a GPU."""
    code = (
        "import os, torch; from evlgen.runtime.cpu import prepare_worker; prepare_worker(); "
        "print(os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.are_deterministic_algorithms_enabled())"
    )
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":0:0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [":4096:8", "True"]


def test_too_little_memory_is_a_line_with_the_fix(tmp_path: Path) -> None:
    huge = dataclasses.replace(tiny.TOMEFORMER, max_positions=10**9, width=200_000)  # 800 TB
    config = tiny.run_config(connector=huge)
    with pytest.raises(UserError, match=r"^out of memory: .*; with --set: ") as caught:
        training.train(config, tmp_path, tiny.training_data())
    message = str(caught.value)
    assert "\n" not in message
    assert "optim.accumulate=2 computes 4 pairs at a time, not 8, with the same gradient" in message
    assert "optim.gradient_checkpointing=true" in message


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size"), enough_memory("x"):
        torch.zeros(2) @ torch.zeros(3)
    with (
        pytest.raises(UserError, match=r"^out of memory: .*; try less$"),
        enough_memory("try less"),
    ):
        torch.empty(2**55)


def test_an_evaluation_takes_what_fits() -> None:
    asked: list[int] = []

    def decode(indices: Any) -> list[str]:
        asked.append(len(indices))
        if len(indices) > 2:
            raise torch.cuda.OutOfMemoryError("too small")
        return [str(index) for index in indices]

    assert as_many_as_fit(np.arange(7), decode) == list("0123456")
    assert asked == [7, 3, 1, 2, 4, 2, 2]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        as_many_as_fit(np.arange(4), lambda indices: decode([0, 0, 0]))

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evlgen import training
from evlgen.cost import training_flops
from evlgen.data.pairs import draw_batch
from evlgen.errors import UserError
from evlgen.runs.folder import read_metrics
from evlgen.throughput import known_peak, peak_flops
from evlgen.training import train
from tests.evlgen import tiny


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA A10", 125e12),
        ("NVIDIA RTX A6000", 154.8e12),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 2080 Ti", None),
    ],
)
def test_peaks_are_of_the_right_gpu_or_unknown(name, peak):
    assert known_peak(name) == peak


def test_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu"), "bf16") is None


def test_a_peak_can_be_stated(monkeypatch):
    monkeypatch.setenv("EVLGEN_PEAK_TFLOPS", "0.2")
    assert peak_flops(torch.device("cpu"), "fp32") == 0.2e12
    for wrong in ("fast", "0", "-3", "nan", "inf"):
        monkeypatch.setenv("EVLGEN_PEAK_TFLOPS", wrong)
        with pytest.raises(UserError, match=rf"^EVLGEN_PEAK_TFLOPS={wrong}: wanted"):
            peak_flops(torch.device("cpu"), "fp32")


@pytest.mark.parametrize("stage", ["caption", "represent"])
def test_flops_are_those_of_forward_and_backward(stage):
    """Against a count of the real backward pass, which leaves out a little: inputs that need no gradient."""
    config = tiny.run_config(stage=stage, connector=tiny.QFORMER if stage == "represent" else tiny.TOMEFORMER)
    model = tiny.model_of(config)
    batch = draw_batch(tiny.training_data().source.pools, 0, 0, 8)
    with FlopCounterMode(display=False) as counter:
        model(batch.images, batch.text_ids, batch.text_mask).backward()
    assert training_flops(model, batch) * 8 == pytest.approx(counter.get_total_flops(), rel=0.08)


def test_mfu_is_in_the_log_only_where_the_peak_is_known(tmp_path, monkeypatch):
    config = tiny.run_config(accumulate=2)
    train(config, tmp_path / "unknown", tiny.training_data(), model=tiny.model_of(config))
    assert not any("mfu" in line for line in read_metrics(tmp_path / "unknown"))
    monkeypatch.setattr(training, "peak_flops", lambda *_: 1e12)
    train(config, tmp_path / "known", tiny.training_data(), model=tiny.model_of(config))
    batch = draw_batch(tiny.training_data().source.pools, 0, 0, 8, slice(4))
    flops = training_flops(tiny.model_of(config), batch)
    for line in read_metrics(tmp_path / "known"):
        assert line["mfu"] == pytest.approx(line["samples_per_second"] * flops / 1e12, rel=1e-9)
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("unknown", "known")]
    assert losses[0] == losses[1]
    assert all(math.isfinite(loss) for loss in losses[0])

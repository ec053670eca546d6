"""The benchmark runs, and its shares are those of the measured times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import profile_step, steps
from evlgen.config import TomeFormerConfig


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = TomeFormerConfig(
        input_width=8, width=16, num_layers=2, num_heads=2, intermediate=32, max_positions=65, r=3
    )
    monkeypatch.setattr(steps.Case, "config", small)


def test_measure(tiny: None) -> None:
    case = steps.Case("tomeformer", "mini", batch=3, precision="fp32")
    result = steps.measure(case, torch.device("cpu"), steps=2)
    for name in ("ours", "reference"):
        line = result[name]
        assert line["samples_per_second"] == pytest.approx(3 / line["seconds"])
        rate = line["share_of_gemm_peak"] * result["gemm_gflops"] * line["seconds"]
        assert rate == pytest.approx(result["gflop"])
    assert result["speedup"] == pytest.approx(result["reference"]["seconds"] / result["ours"]["seconds"])


def test_a_step_trains(tiny: None) -> None:
    case = steps.Case("tomeformer", "mini", batch=2, precision="bf16")
    for model in steps.build(case, torch.device("cpu")):
        before = {name: p.clone() for name, p in model.named_parameters()}
        steps.stepper(model, case.features(torch.device("cpu")), "bf16")()
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        unused = {"bert.embeddings.word_embeddings.weight"}
        # a bias of the keys shifts all scores of a query alike: its gradient is rounding
        assert {name for name in before if name not in unused and ".key.bias" not in name} <= changed


def test_command_alone(capsys: pytest.CaptureFixture[str], tiny: None) -> None:
    assert steps.main("--alone reference --connectors tomeformer --scales mini --device cpu".split()) == 0
    assert float(capsys.readouterr().out) > 100  # MiB: torch itself

    assert profile_step.main("--connector tomeformer --device cpu --batch 2 --steps 1".split()) == 0
    shown = capsys.readouterr().out
    assert "TomeFormer, scale mini, batch 2" in shown
    assert "aten::addmm" in shown


def test_results_are_json(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(steps, "memory_of_child", lambda case, device, which, allocator: 123.0)
    out = tmp_path / "steps.json"
    arguments = "--connectors tomeformer --scales mini --device cpu --batch 2 --steps 1".split()
    assert steps.main([*arguments, "--out", str(out)]) == 0
    stored = json.loads(out.read_text())
    assert stored["machine"]["torch"] == torch.__version__
    assert stored["machine"]["processor"]
    assert [result["name"] for result in stored["results"]] == ["tomeformer"]
    assert "reference" in capsys.readouterr().out

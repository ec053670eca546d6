"""Ours and transformers' BLIP-2 compute the same loss, and the benchmark runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import captioner
from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.backbones.language import mini_tokenizer
from evlgen.config import QFormerConfig, TomeFormerConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> captioner.Shapes:
    """Without dropout, which would be drawn differently."""
    layers = {"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 24, "dropout": 0.0}
    sizes = captioner.Shapes(
        EvaConfig(image_size=12, patch=4, width=8, num_layers=2, num_heads=2, intermediate=16),
        captioner._opt(16, 2, 2, len(mini_tokenizer())),
        QFormerConfig(encoder_width=8, num_queries=3, **layers),
        TomeFormerConfig(input_width=8, r=2, **layers),
    )
    monkeypatch.setattr(captioner, "shapes", lambda scale: sizes)
    return sizes


def randomise(module: torch.nn.Module) -> None:
    """Weights large enough that every term matters."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def test_loss_and_gradients_are_those_of_blip2(tiny: captioner.Shapes) -> None:
    case = captioner.Case("mini", 5, "fp32")
    torch.manual_seed(0)
    vision, language = captioner.build_frozen(case, CPU)
    assert isinstance(vision.model, EvaViT)
    model = captioner.build_captioner(tiny.qformer, vision, language)
    for module in (vision.model, language.model, model):
        randomise(module)
    reference = captioner.build_reference(case)
    reference.load(model, vision.model)
    blip = reference.blip
    for part_of_blip in (blip.vision_model, blip.qformer, blip.language_model):
        assert part_of_blip.config._attn_implementation == "eager"

    part = captioner.pairs(case)
    assert part.lengths.min() < part.lengths.max()  # there is padding
    assert mini_tokenizer().unk_token_id not in part.text_ids
    expected = captioner.reference_loss(reference, part)()
    text = torch.from_numpy(part.text_ids).long()
    is_text = torch.arange(text.shape[1]) < torch.from_numpy(part.lengths)[:, None]
    loss = model(vision.features(part.images), text, is_text)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-5)
    for make_loss in (captioner.cached_loss, captioner.streamed_loss):  # features rounded to fp16
        torch.testing.assert_close(make_loss(model, vision, part)(), expected, rtol=0, atol=1e-3)

    loss.backward()
    expected.backward()
    ours, theirs = model.projection, blip.language_projection
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-6)
    ours, theirs = (
        model.norm,
        blip.vision_model.post_layernorm,
    )  # the gradient went through all that is trained
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_train_the_same_parts(precision: captioner.Precision) -> None:
    case = captioner.Case("mini", 3, precision)
    trained = {}
    for name, (model, loss) in captioner.build_all(case, CPU).items():
        before = {key: value.clone() for key, value in model.state_dict().items()}
        captioner.training_step(model, loss, CPU, precision)()
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert not [key for key in changed if "language_model" in key or "vision_model.encoder" in key]
        trained[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained["qformer-cached"] == trained["blip2"]


def test_command_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("blip2", "tomeformer-cached", "qformer-streamed"):
        assert captioner.main(["--alone", name, *"--scales mini --device cpu --batch 2".split()]) == 0
        assert float(capsys.readouterr().out) > 100  # MiB: torch itself


def test_results_are_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(captioner, "memory_of_child", lambda case, device, name, allocator: 123.0)
    out = tmp_path / "captioner.json"
    arguments = "--scales mini --device cpu --batch 2 --steps 1".split()
    assert captioner.main([*arguments, "--out", str(out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert result["blip2"]["speedup"] == 1
    shown = capsys.readouterr().out
    for name in captioner.NAMES:
        line = result[name]
        assert line["samples_per_second"] == pytest.approx(2 / line["seconds"])
        assert line["speedup"] == pytest.approx(result["blip2"]["seconds"] / line["seconds"])
        assert name in shown

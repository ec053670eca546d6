"""Runs at the paper's scale, of the true files in small: `from_run` says what their evaluation says."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evlgen.backbones.vision import build_vision
from evlgen.config import (
    ConnectorConfig,
    Conventions,
    EvalConfig,
    LinearConfig,
    PerceiverConfig,
    PoolConfig,
    QFormerConfig,
    RunConfig,
    TomeFormerConfig,
    to_json,
)
from evlgen.interop import from_run
from evlgen.interop.describe import load
from evlgen.model import build_model, save_trained
from evlgen.runs.folder import CONFIG, CONNECTOR, write_json, write_outcome
from tests.evlgen import real_weights

WIDTH = real_weights.EVA.width
SMALL = {"width": 24, "num_layers": 2, "num_heads": 2, "intermediate": 48}
CONNECTORS: dict[str, ConnectorConfig] = {
    "tomeformer": TomeFormerConfig(input_width=WIDTH, **SMALL, r=50),
    "qformer": QFormerConfig(encoder_width=WIDTH, **SMALL, num_queries=4),
    "linear": LinearConfig(input_width=WIDTH, width=WIDTH),
    "pool": PoolConfig(input_width=WIDTH),
    "perceiver": PerceiverConfig(input_width=WIDTH, **SMALL, num_latents=4),
}
QUESTIONS = ["What colour is ball 1?", 'Is it "red"?', "a photo of..."]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return real_weights.write(
        tmp_path_factory.mktemp("weights"), ("eva-clip-g", "opt-2.7b", "vicuna-7b", "clip-vit-l")
    )


def finished(folder: Path, config: RunConfig) -> Path:
    """The folder of a run that has learnt nothing."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():  # opinions
            parameter.add_(torch.randn_like(parameter) * 0.3)
    save_trained(model, folder / CONNECTOR, {})
    write_json(folder / CONFIG, to_json(config))
    write_outcome(folder, {})
    return folder


@pytest.mark.parametrize(
    ("connector", "vision", "language", "conventions"),
    [
        ("tomeformer", "eva-clip-g", "opt-2.7b", "authors"),
        ("qformer", "eva-clip-g", "vicuna-7b", "authors"),
        ("linear", "eva-clip-g", "opt-2.7b", "plain"),
        ("pool", "clip-vit-l", "vicuna-7b", "plain"),
        ("perceiver", "eva-clip-g", "opt-2.7b", "authors"),
    ],
)
def test_from_run_says_what_the_run_says(
    connector: str,
    vision: str,
    language: str,
    conventions: Conventions,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(weights))
    key = "encoder_width" if connector == "qformer" else "input_width"
    changes: dict[str, Any] = {key: build_vision(vision).width}
    if vision == "clip-vit-l":
        changes |= {"rows": 2, "columns": 2}  # of 4 x 4 patches
    evaluation = EvalConfig(beams=3, min_length=3, max_length=12, answer_max_length=5)
    config = RunConfig(
        dataclasses.replace(CONNECTORS[connector], **changes),
        vision,
        language,
        evaluation=evaluation,
        conventions=conventions,
    )
    folder = finished(tmp_path / "run", config)
    model, processor, _ = from_run(folder)
    describer = load(folder)
    images = np.random.default_rng(0).integers(0, 256, (3, describer.side, describer.side, 3), dtype=np.uint8)
    features = describer.features(images)
    captions = describer.captions(features)
    inputs = processor(list(images), return_tensors="pt")
    with torch.no_grad():
        assert model.soft_prompt(inputs["pixel_values"]).equal(describer.model.soft_prompt(features))
    assert processor.batch_decode(model.generate(**inputs)) == captions
    answers = describer.model.answer(features, QUESTIONS, config.evaluation)
    asked = processor(list(images), text=QUESTIONS, return_tensors="pt")
    assert processor.batch_decode(model.generate(**asked)) == answers

    if conventions == "plain":
        return
    for part in (model, processor):
        part.save_pretrained(tmp_path / "whole")
    shutil.rmtree(folder)
    monkeypatch.delenv("EVLGEN_WEIGHTS")
    again = type(model).from_pretrained(tmp_path / "whole")
    processor = type(processor).from_pretrained(tmp_path / "whole")
    assert processor.batch_decode(again.generate(**processor(list(images), return_tensors="pt"))) == captions
    asked = processor(list(images), text=QUESTIONS, return_tensors="pt")
    assert processor.batch_decode(again.generate(**asked)) == answers

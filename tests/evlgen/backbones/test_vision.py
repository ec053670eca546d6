"""CLIP as an image encoder, from folders in the true format."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from evlgen.backbones import vision as subject
from evlgen.backbones.pretrained import tensors_hash
from evlgen.errors import UserError
from evlgen.runtime.sources import SOURCES

_SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}


def write(path: Path, form: str) -> CLIPVisionModel:
    """A folder of a whole CLIP or of its image encoder; returns the whole image encoder, in float64."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    whole = form == "whole CLIP"
    model = (
        CLIPModel(CLIPConfig(vision_config=_SHAPE, text_config=text | {"vocab_size": 20}))
        if whole
        else CLIPVisionModel(CLIPVisionConfig(**_SHAPE))
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return CLIPVisionModel.from_pretrained(path).double().eval()


@pytest.mark.parametrize("form", ["whole CLIP", "image encoder"])
@torch.no_grad()
def test_features_are_those_before_the_last_layer(tmp_path, form):
    reference = write(tmp_path, form)
    if form == "whole CLIP":  # the published file has these names
        assert "vision_model.encoder.layers.0.mlp.fc1.weight" in load_file(tmp_path / "model.safetensors")
    frozen = subject.build_clip(tmp_path, torch.float64)
    assert (frozen.width, frozen.tokens) == (24, 17)
    assert len(list(frozen.model.model.encoder.layers)) == 2
    pixels = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    states = reference(pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4  # embeddings, three layers
    features = frozen.model(pixels)
    torch.testing.assert_close(features, states[-2], rtol=0, atol=1e-10)
    assert (features - reference.post_layernorm(features)).abs().max() > 0.1  # no LayerNorm behind it


@torch.no_grad()
def test_a_path_is_seen_to_be_clips_and_pixels_are_normalised(tmp_path):
    reference = write(tmp_path, "whole CLIP")
    frozen = subject.build_vision(str(tmp_path))
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    normalised = (images / 255 - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    pixels = torch.from_numpy(normalised).permute(0, 3, 1, 2)
    expected = reference(pixels, output_hidden_states=True).hidden_states[-2]
    found = frozen.encode(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_whole_clip_and_image_encoder_have_one_fingerprint(tmp_path):
    reference = write(tmp_path / "whole", "whole CLIP")
    reference.float().save_pretrained(tmp_path / "part")
    whole, part = (subject.build_clip(tmp_path / name) for name in ("whole", "part"))
    assert whole.fingerprint == part.fingerprint
    changed = dict(whole.model.model.state_dict())
    key = sorted(changed)[0]
    changed[key] = changed[key] + 1
    assert tensors_hash(changed)[:16] != whole.fingerprint


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision(tmp_path, half):
    write(tmp_path, "whole CLIP")
    frozen = subject.build_clip(tmp_path, half)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    full = subject.build_clip(tmp_path)
    with torch.autocast("cpu", half):
        mixed = full.encode(images)
    for found in (frozen.encode(images), mixed):
        assert found.dtype == torch.float32
        assert (found - full.encode(images)).abs().max() < 0.1 * full.encode(images).abs().max()


def test_the_papers_clip_gives_257_features_of_width_1024(tmp_path, monkeypatch):
    """ViT-L/14's true sizes but for its depth, found by name below the folder of weights."""
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"is missing; get it from .*openai/clip-vit-large-patch14"):
        subject.build_vision("clip-vit-l")
    sizes = {"hidden_size": 1024, "intermediate_size": 64, "num_attention_heads": 16, "patch_size": 14}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=224)
    CLIPVisionModel(config).save_pretrained(tmp_path / SOURCES["clip-vit-l"].path)
    frozen = subject.build_vision("clip-vit-l")
    assert (frozen.width, frozen.tokens) == (1024, 257)
    assert frozen.encode(np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 257, 1024)
    with pytest.raises(UserError, match=r"\(64, 64\) pixels: this encoder wants \(224, 224\)"):
        frozen.encode(np.zeros((1, 64, 64, 3), np.uint8))


def test_mistakes_give_one_line(tmp_path):
    write(tmp_path / "clip", "whole CLIP")
    state = load_file(tmp_path / "clip" / "model.safetensors")
    key = "vision_model.encoder.layers.1.mlp.fc1.weight"
    for name, broken in (("shape", state | {key: torch.zeros(3, 24)}), ("missing", dict(state))):
        shutil.copytree(tmp_path / "clip", tmp_path / name)
        if name == "missing":
            del broken[key]
        save_file(broken, tmp_path / name / "model.safetensors", {"format": "pt"})
    shutil.copytree(tmp_path / "clip", tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for name, message in (
        ("shape", r"layers\.1\.mlp\.fc1\.weight has shape \(3, 24\), expected \(40, 24\)"),
        ("missing", r"layers\.1\.mlp\.fc1\.weight is missing"),
        ("bert", "is a model of type 'bert', expected clip"),
        ("nowhere", "no config.json"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            subject.build_clip(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"there are: mini-vit, mini-clip, eva-clip-g, clip-vit-l, or a path"):
        subject.build_vision("opt-2.7b")

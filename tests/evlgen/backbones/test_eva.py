import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import Blip2VisionConfig, Blip2VisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from evlgen.backbones.eva import EvaConfig, EvaViT, eva_shape, eva_state
from evlgen.backbones.pretrained import load_checked, read_state
from evlgen.backbones.vision import build_eva, build_vision
from evlgen.errors import UserError
from evlgen.runtime.sources import find_weights

TINY = EvaConfig(image_size=28, patch=7, width=24, num_layers=3, num_heads=4, intermediate=40)


def reference() -> Blip2VisionModel:
    torch.manual_seed(0)
    config = Blip2VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        layer_norm_eps=1e-6,
    )
    model = Blip2VisionModel(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3)
            if name.endswith("qkv.bias"):
                parameter[24:48] = 0  # EVA's keys have no bias
    return model


def lavis(model: Blip2VisionModel) -> dict[str, torch.Tensor]:
    """The same weights as `eva_vit_g.pth` names them, with the block and the head that are not used."""
    p = model.state_dict()
    out = {
        "cls_token": p["embeddings.class_embedding"],
        "pos_embed": p["embeddings.position_embedding"],
        "patch_embed.proj.weight": p["embeddings.patch_embedding.weight"],
        "patch_embed.proj.bias": p["embeddings.patch_embedding.bias"],
        "head.weight": torch.ones(2, 24),
    }
    for i in range(3):
        old, new = f"encoder.layers.{i}.", f"blocks.{i}."
        bias = p[old + "self_attn.qkv.bias"]
        out[new + "attn.q_bias"], out[new + "attn.v_bias"] = bias[:24].clone(), bias[48:].clone()
        out[new + "attn.qkv.weight"] = p[old + "self_attn.qkv.weight"]
        for kind in ("weight", "bias"):
            out[new + f"attn.proj.{kind}"] = p[old + f"self_attn.projection.{kind}"]
            for n in "12":
                out[new + f"norm{n}.{kind}"] = p[old + f"layer_norm{n}.{kind}"]
                out[new + f"mlp.fc{n}.{kind}"] = p[old + f"mlp.fc{n}.{kind}"]
    out |= {key.replace("blocks.2", "blocks.3"): v for key, v in out.items() if "blocks.2" in key}
    return out


def load(path: Path, config: EvaConfig = TINY) -> EvaViT:
    model = EvaViT(config).double().eval()
    load_checked(model, eva_state(read_state(path), config), path)
    return model


@pytest.mark.parametrize("size", [28, 42])
@pytest.mark.parametrize("form", ["lavis", "transformers"])
@torch.no_grad()
def test_both_forms_of_the_file_give_transformers_features(tmp_path: Path, form: str, size: int) -> None:
    model = reference()
    if form == "lavis":
        path = tmp_path / "eva_vit_g.pth"
        torch.save(lavis(model), path)
    else:
        path = tmp_path
        state = {f"vision_model.{key}": value.clone() for key, value in model.state_dict().items()}
        save_file(state | {"qformer.x": torch.ones(1)}, tmp_path / "model.safetensors")
    pixels = torch.randn(2, 3, size, size, dtype=torch.float64)
    ours = load(path, EvaConfig(size, 7, 24, 3, 4, 40))(pixels)
    theirs = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_of_a_blip2_folder_only_the_image_encoder_is_read(tmp_path: Path) -> None:
    """Two shards, as the published folder has."""
    model, language = reference(), torch.ones(1000, 1000)
    state = {f"vision_model.{key}": value.clone() for key, value in model.state_dict().items()}
    keys = sorted(state)
    save_file({key: state[key] for key in keys[:9]}, tmp_path / "model-00001-of-00002.safetensors")
    rest = {key: state[key] for key in keys[9:]} | {"language_model.x": language}
    save_file(rest, tmp_path / "model-00002-of-00002.safetensors")
    read = read_state(tmp_path, prefix="vision_model.")
    assert sorted(read) == keys
    assert all(torch.equal(read[key], state[key]) for key in keys)
    before = build_eva(tmp_path, TINY).fingerprint
    save_file(rest | {"language_model.x": language + 1}, tmp_path / "model-00002-of-00002.safetensors")
    assert build_eva(tmp_path, TINY).fingerprint == before
    save_file(rest | {keys[9]: state[keys[9]] + 1}, tmp_path / "model-00002-of-00002.safetensors")
    assert build_eva(tmp_path, TINY).fingerprint != before
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"?" * 50)
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: not a readable weights file"):
        build_eva(tmp_path, TINY)


def test_another_architecture_names_key_and_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "eva_vit_g.pth"
    torch.save(lavis(reference()), path)
    with pytest.raises(UserError, match=r"cls_token has shape \(1, 1, 24\), expected \(1, 1, 32\)"):
        load(path, EvaConfig(28, 7, 32, 3, 4, 40))


def test_missing_weights_are_named_with_their_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"eva_vit_g\.pth is missing; get it from LAVIS.*EVLGEN_WEIGHTS"):
        find_weights("eva-clip-g")
    (tmp_path / "eva_vit_g.pth").touch()
    assert find_weights("eva-clip-g") == tmp_path / "eva_vit_g.pth"


def test_a_blip2_folder_stands_in_for_lavis_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVLGEN_WEIGHTS", str(tmp_path))
    (tmp_path / "blip2-opt-2.7b").mkdir()
    assert find_weights("eva-clip-g") == tmp_path / "blip2-opt-2.7b"


def test_a_folder_of_bin_files_is_read_as_one_of_safetensors(tmp_path: Path) -> None:
    """Two shards; where there are safetensors, these count."""
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    read = read_state(tmp_path)
    assert sorted(read) == ["a", "b"]
    assert torch.equal(read["a"], torch.ones(2))
    save_file({"c": torch.ones(1)}, tmp_path / "model.safetensors")
    assert sorted(read_state(tmp_path)) == ["c"]


@pytest.mark.parametrize("name", ["eva_vit_g.pth", "model.safetensors"])
def test_what_is_there_in_the_place_of_weights_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 2026000000\n")
    with pytest.raises(UserError, match=rf"{name}: a pointer of git-lfs.*git lfs pull"):
        read_state(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name}: not a readable weights file; fetch it again"):
        read_state(path)


def test_objects_beside_the_tensors_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "eva_vit_g.pth"
    torch.save({"model": {"x": torch.ones(1)}, "arguments": Namespace(lr=1)}, path)
    with pytest.raises(UserError, match=r"eva_vit_g\.pth: holds Python objects beside its tensors"):
        read_state(path)


def test_odd_image_sizes_are_named() -> None:
    with pytest.raises(UserError, match="image_size 30"):
        EvaViT(EvaConfig(image_size=30, patch=7))
    with pytest.raises(UserError, match=r"\(21, 28\) pixels"):
        EvaViT(TINY)(torch.zeros(1, 3, 21, 28))


@torch.no_grad()
def test_frozen_encoder_normalises_as_transformers_does(tmp_path: Path) -> None:
    torch.save(lavis(reference()), tmp_path / "eva_vit_g.pth")
    frozen = build_eva(tmp_path / "eva_vit_g.pth", TINY)
    assert (frozen.width, frozen.tokens) == (24, 17)
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    # What BLIP-2's own processor does, which cannot be imported without torchvision.
    normalised = (images / 255 - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    pixels = torch.from_numpy(normalised).permute(0, 3, 1, 2).float()
    theirs = reference().float()(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(frozen.encode(images), theirs, rtol=1e-4, atol=1e-4)


def test_width_depth_and_patch_are_those_of_the_weights(tmp_path: Path) -> None:
    """LAVIS's file has a block that is not used, the folder of `transformers` has none."""
    path = tmp_path / "elsewhere.pth"
    torch.save(lavis(reference()), path)
    frozen = build_vision(str(path))
    assert (frozen.width, frozen.tokens) == (24, 1 + 32**2)  # 224 pixels in patches of 7, as always
    assert frozen.model.config == EvaConfig(224, 7, 24, num_layers=3, num_heads=1, intermediate=40)
    folder = tmp_path / "blip2"
    folder.mkdir()
    state = {f"vision_model.{key}": value.clone() for key, value in reference().state_dict().items()}
    save_file(state, folder / "model.safetensors")
    vision = {"num_attention_heads": 4, "hidden_size": 24}
    (folder / "config.json").write_text(json.dumps({"model_type": "blip-2", "vision_config": vision}))
    assert build_eva(folder).model.config == EvaConfig(224, 7, 24, 3, num_heads=4, intermediate=40)


def test_the_published_file_has_the_paper_s_shape() -> None:
    """40 blocks, or the 39 that are used."""
    for blocks in (39, 40):
        with torch.device("meta"):
            state = EvaViT(EvaConfig(num_layers=blocks)).state_dict()
        assert eva_shape(state) == EvaConfig()


def test_what_is_no_eva_is_named(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.pth"
    torch.save({"layers.0.weight": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match=r"elsewhere\.pth: no weights of EVA-CLIP: patch_embed\.proj\.weight"):
        build_vision(str(path))
    with pytest.raises(UserError, match="no such image encoder"):
        build_vision(str(tmp_path / "nowhere.pth"))


def test_the_paper_scale_says_what_weights_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVLGEN_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"eva_vit_g\.pth is needed and EVLGEN_WEIGHTS is not set"):
        build_vision("eva-clip-g")

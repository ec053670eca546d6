"""A CLIP of the smallest size, written in the format in which CLIP is published, and a stand-in for SPICE."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

SIDE = 28


def write(folder: Path) -> CLIPModel:
    """Write it and return it; its weights are those of a formula, the same everywhere."""
    folder.mkdir(parents=True)
    vocabulary = tokens()
    end = len(vocabulary) - 1
    text = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        projection_dim=8,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=7,
        projection_dim=8,
    )
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    ).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if parameter.ndim and not name.endswith(("norm.weight", "layrnorm.weight", "norm1.weight")):
                places = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_((0.4 * torch.sin(1.7 * places + number)).reshape(parameter.shape))
        model.visual_projection.weight.neg_()  # most captions then fit their images a little
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 20,
        **{f"{kind}_token": "<|endoftext|>" for kind in ("unk", "eos", "pad")},
        "bos_token": "<|startoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return model


MERGES = ("r e", "re d</w>", "c a", "ca t</w>", "d o", "do g</w>", "p h", "o t", "ph ot")


def tokens() -> dict[str, int]:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(m.replace(" ", "") for m in MERGES)]
    return {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def with_fixed_embeddings(model: CLIPModel, text: Tensor, image: Tensor) -> None:
    """Every text is embedded as ``text`` and every image as ``image``, (16,), the first 8 numbers of them."""
    with torch.no_grad():
        for norm, value in (
            (model.text_model.final_layer_norm, text),
            (model.vision_model.post_layernorm, image),
        ):
            norm.weight.zero_()
            norm.bias.copy_(value)
        for projection in (model.text_projection, model.visual_projection):
            projection.weight.copy_(torch.eye(8, 16))


def spice_in_java_s_place(folder: Path, scores: str) -> Path:
    """A program that is called as Java is for SPICE; it scores what it is given as the expression says.

    Args:
        scores: of ``entry``, with ``test`` and ``refs``.
    """
    program = folder / "java"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "words = sys.argv[sys.argv.index('edu.anu.spice.SpiceScorer') + 1:]\n"
        "given, out = words[0], words[words.index('-out') + 1]\n"
        "entries = json.load(open(given))\n"
        f"score = lambda entry: {scores}\n"
        "scored = [{'image_id': one['image_id'], 'scores': {'All': {'f': score(one)}}} for one in entries]\n"
        "json.dump(scored[::-1], open(out, 'w'))\n"
    )
    program.chmod(0o755)
    return program


def jars(folder: Path) -> None:
    """Two empty ones in the places of those that SPICE needs."""
    folder.mkdir(parents=True)
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (folder / name).touch()

"""Models and data so small that a test can train them; no shipped weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from evlgen.backbones.language import BosPosition, FrozenLanguage, word_tokenizer
from evlgen.backbones.vision import ImageEncoder
from evlgen.config import (
    ConnectorConfig,
    DataConfig,
    EvalConfig,
    Objective,
    OptimConfig,
    QFormerConfig,
    RunConfig,
    TomeFormerConfig,
)
from evlgen.connectors import build_connector
from evlgen.data.batches import CachedBatches, TrainingData
from evlgen.data.pairs import PairPool, encode_texts
from evlgen.model import CaptionModel, Model
from evlgen.stage1 import OBJECTIVES, Stage1Model

COLOURS = ("red", "blue", "green", "pink")
SHAPES = ("ball", "star", "boat", "tree")
WORDS = f"{' '.join(COLOURS)} {' '.join(SHAPES)} a on the grass question: what is it? short answer:\n"
TOKENS, WIDTH = 9, 8  # of an image's features

TOMEFORMER = TomeFormerConfig(
    input_width=WIDTH,
    width=16,
    num_layers=2,
    num_heads=2,
    intermediate=32,
    max_positions=16,
    r=2,
    dropout=0.0,
)
QFORMER = QFormerConfig(
    encoder_width=WIDTH,
    width=16,
    num_layers=2,
    num_heads=2,
    intermediate=32,
    max_positions=16,
    num_queries=4,
    embed_dim=8,
    dropout=0.0,
)


def language(
    architecture: Literal["opt", "llama"] = "opt",
    bos_position: BosPosition = "first",
    dtype: torch.dtype = torch.float32,
) -> FrozenLanguage:
    """A language model of two layers whose weights are large enough to have opinions."""
    tokenizer = word_tokenizer([WORDS])
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(1)
    if architecture == "opt":
        model = OPTForCausalLM(
            OPTConfig(
                **shape,
                **special,
                word_embed_proj_dim=16,
                ffn_dim=32,
                max_position_embeddings=64,
                dropout=0.1,  # must never be active
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(**shape, **special, intermediate_size=32, max_position_embeddings=64)
        )
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else 0.3)
    newline = tokenizer.convert_tokens_to_ids("\n")
    return FrozenLanguage(model.to(dtype), tokenizer, 16, bos_position, newline, "tiny")


def encoder() -> ImageEncoder:
    """It is never loaded: tests give features."""
    return ImageEncoder("none")


def caption_model(
    connector: ConnectorConfig = TOMEFORMER,
    architecture: Literal["opt", "llama"] = "opt",
    bos_position: BosPosition = "first",
    dtype: torch.dtype = torch.float32,
) -> CaptionModel:
    frozen = language(architecture, bos_position, dtype)
    torch.manual_seed(2)
    return CaptionModel(encoder(), build_connector(connector), frozen).to(dtype)


def stage1_model(objectives: Sequence[Objective] = OBJECTIVES) -> Stage1Model:
    vocabulary = len(word_tokenizer([WORDS]))
    torch.manual_seed(2)
    connector = build_connector(QFORMER, vocabulary + 1)
    return Stage1Model(encoder(), connector, 1, objectives)  # type: ignore[arg-type]


def model_of(config: RunConfig) -> Model:
    if config.stage == "caption":
        return caption_model(config.connector)
    return stage1_model(config.objectives)


def features(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """(count, TOKENS, WIDTH) random features."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def pairs(name: str, size: int, captions: int = 1, views: int = 1, seed: int = 0) -> PairPool:
    """Images whose features say colour and shape, with captions that tell them."""
    rng = np.random.default_rng(seed)
    colour, shape = rng.integers(4, size=size), rng.integers(4, size=size)
    stored = rng.normal(0, 0.3, (views, size, TOKENS, WIDTH))
    stored[:, np.arange(size), :, colour] += 2.0
    stored[:, np.arange(size), :, 4 + shape] += 2.0
    texts = [
        f"a {COLOURS[c]} {SHAPES[s]}" + (" on the grass" if (i + c) % 2 else "")
        for c, s in zip(colour, shape, strict=True)
        for i in range(captions)
    ]
    return pool_of(name, stored.astype(np.float16), texts, captions)


def pool_of(name: str, stored: np.ndarray, texts: Sequence[str], captions: int = 1) -> PairPool:
    tokenizer = word_tokenizer([WORDS])
    ids, lengths = encode_texts(tokenizer, texts, 12, tokenizer.convert_tokens_to_ids("\n"))
    size = len(texts) // captions
    return PairPool(name, stored, ids.reshape(size, captions, -1), lengths.reshape(size, captions))


def training_data(size: int = 48, validation: int = 24) -> TrainingData:
    pools = (pairs("web", size - 16, seed=1), pairs("coco", 16, captions=2, seed=2))
    return TrainingData(CachedBatches(pools), pairs("val", validation, seed=3), "tiny")


def run_config(**changes: object) -> RunConfig:
    """A run of 12 steps; ``changes`` are of `OptimConfig` where it has such a field, else of `RunConfig`."""
    optim: dict[str, object] = {
        "steps": 12,
        "batch_size": 8,
        "lr": 3e-3,
        "warmup_lr": 1e-5,
        "min_lr": 1e-4,
        "warmup_steps": 3,
        "clip_norm": 1.0,
        "eval_every": 6,
        "checkpoint_every": 4,
    }
    fields = set(OptimConfig.__dataclass_fields__)
    optim.update({key: value for key, value in changes.items() if key in fields})
    rest = {key: value for key, value in changes.items() if key not in fields}
    base: dict[str, object] = {
        "connector": TOMEFORMER,
        "data": DataConfig(pools=(("web", 32), ("coco", 16)), max_text_tokens=12),
        "evaluation": EvalConfig(validation=24, batch_size=16, beams=2, max_length=12),
    }
    return RunConfig(optim=OptimConfig(**optim), **{**base, **rest})  # type: ignore[arg-type]

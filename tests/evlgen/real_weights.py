"""The paper's weights in their true files, formats and places, and of the smallest size."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from evlgen.backbones.eva import EvaConfig, EvaViT
from evlgen.runtime.sources import SOURCES
from tests.evlgen.real_sets import COLOURS, caption

EVA = EvaConfig(width=32, num_layers=3, num_heads=1, intermediate=48)  # 224 x 224 pixels in patches of 14
BERT_WIDTH, BERT_INTERMEDIATE = 24, 48  # with BERT-base's 12 layers and 12 heads
# What a command at the paper's scale must say so that its connectors fit to these weights.
FIT = {
    "connector.input_width": EVA.width,
    "connector.width": BERT_WIDTH,
    "connector.intermediate": BERT_INTERMEDIATE,
}
_CORPUS = [
    *(caption(n) for n in range(40)),
    *(f"Question: What colour is ball {n}? Short answer: {colour}" for n in range(5) for colour in COLOURS),
    "a photo of",
]
_SIZE = 400  # of the vocabularies: 256 bytes, special tokens, some words


def write(
    root: Path, names: Iterable[str] = ("eva-clip-g", "opt-2.7b", "vicuna-7b", "bert-base-uncased")
) -> Path:
    """Below a folder that is to be ``EVLGEN_WEIGHTS``, what ``--scale paper`` reads."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = root / SOURCES[name].path
        kind = {"eva-clip-g": eva, "bert-base-uncased": bert, "clip-vit-l": clip}.get(name)
        (kind or (opt if name.startswith("opt") else llama))(path)
    return root


def eva(path: Path, config: EvaConfig = EVA) -> Path:
    """LAVIS's ``eva_vit_g.pth``: all blocks, the last of which is not used, and a head; half precision."""
    torch.manual_seed(0)
    model = _opinionated(EvaViT(config), 0.2)
    state = model.state_dict() | {
        "norm.weight": torch.ones(config.width),
        "norm.bias": torch.zeros(config.width),
        "head.weight": torch.zeros(8, config.width),
        "head.bias": torch.zeros(8),
    }
    torch.save({key: value.half() for key, value in state.items()}, path)
    return path


def opt(path: Path) -> Path:
    """As facebook/opt-2.7b: ``pytorch_model.bin`` in half precision, a byte-level BPE of the slow kind."""
    torch.manual_seed(1)
    shape: dict[str, Any] = {"vocab_size": _SIZE, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64}
    config = OPTConfig(**shape, num_hidden_layers=2, num_attention_heads=2, dropout=0.1)  # 2,048 positions
    _saved(OPTForCausalLM(config), path)
    level = pre_tokenizers.ByteLevel
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = level(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE, special_tokens=special, initial_alphabet=level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.model.save(str(path))
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    _settings(path, tokenizer_class="GPT2Tokenizer", add_bos_token=True, pad_token="<pad>", **ends)
    return path


def llama(path: Path) -> Path:
    """As lmsys/vicuna-7b: ``tokenizer.model`` of sentencepiece (BPE, bytes to fall back on), no other."""
    torch.manual_seed(2)
    shape: dict[str, Any] = {"vocab_size": _SIZE, "hidden_size": 32, "intermediate_size": 48}
    config = LlamaConfig(**shape, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=2048)
    _saved(LlamaForCausalLM(config), path)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=_SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (path / "tokenizer.vocab").unlink()
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (path / "special_tokens_map.json").write_text(json.dumps({**ends, "pad_token": "<unk>"}))
    _settings(
        path, tokenizer_class="LlamaTokenizer", add_bos_token=True, add_eos_token=False, legacy=True, **ends
    )
    return path


def bert(path: Path) -> Path:
    """As google-bert/bert-base-uncased: 12 layers, 12 heads, ``vocab.txt``, weights for pre-training."""
    torch.manual_seed(3)
    words = " ".join(_CORPUS).lower()
    for mark in ",.?:()":
        words = words.replace(mark, f" {mark} ")
    signs = sorted({sign for sign in words if not sign.isspace()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    tokens = list(dict.fromkeys([*tokens, *words.split()]))
    config = BertConfig(vocab_size=len(tokens), hidden_size=BERT_WIDTH, intermediate_size=BERT_INTERMEDIATE)
    _opinionated(BertForPreTraining(config), 0.1).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    BertTokenizer.from_pretrained(path).save_pretrained(path)
    return path


def clip(path: Path) -> Path:
    """As openai/clip-vit-large-patch14: image and text encoder, 224 x 224 pixels in patches of 14."""
    torch.manual_seed(4)
    shape: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
    vision = {**shape, "num_hidden_layers": 3, "image_size": 224, "patch_size": 14}
    text = {**shape, "num_hidden_layers": 1, "vocab_size": 20}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    _opinionated(model, 0.2).save_pretrained(path)
    return path


def _opinionated(model: Any, std: float) -> Any:
    """Weights large enough that inputs make a difference."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 if "emb" in name else std)
    return model


def _saved(model: Any, path: Path) -> None:
    _opinionated(model, 0.2).half().save_pretrained(path)
    state = {key: value.contiguous() for key, value in model.state_dict().items() if key != "lm_head.weight"}
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = model.lm_head.weight.detach()
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")


def _settings(path: Path, **settings: Any) -> None:
    (path / "tokenizer_config.json").write_text(json.dumps(settings))

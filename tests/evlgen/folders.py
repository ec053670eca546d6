"""Folders of tiny language models in the true file formats: config.json, weights, tokenizer files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.evlgen.tiny import WORDS

FAMILIES = ("opt", "opt-narrow", "llama", "gpt2", "t5", "flan-t5")
_CORPUS = [WORDS.replace("\n", ""), *WORDS.split(), "a red ball", "a blue boat on the grass"] * 20
_SIZE = 340  # of the vocabularies: 256 bytes, special tokens, a few words


def write(family: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model whose weights are large enough to have opinions, with the tokenizer of its family."""
    torch.manual_seed(1)
    model = {
        "opt": lambda: OPTForCausalLM(_opt(word_embed_proj_dim=16)),
        # as OPT-350m: narrow embeddings, LayerNorm behind the attention
        "opt-narrow": lambda: OPTForCausalLM(_opt(word_embed_proj_dim=8, do_layer_norm_before=False)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, intermediate_size=32)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=_SIZE, n_embd=16, n_layer=2, n_head=2)),
        "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=_SIZE, hidden_size=16, n_layer=2, n_head=2)),
        "t5": lambda: T5ForConditionalGeneration(_t5()),
        "flan-t5": lambda: T5ForConditionalGeneration(
            _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        ),
    }[family]()
    if family == "flan-t5":  # its head is not its embeddings
        model.lm_head.weight = torch.nn.Parameter(torch.empty(_SIZE, 16))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "emb" in name or "shared" in name else 0.3)
    model.to(dtype).save_pretrained(path)
    if family == "flan-t5":  # as the published folder says, where `transformers` 5 has its own way
        config = json.loads((path / "config.json").read_text())
        config |= {"tie_word_embeddings": False, "decoder_start_token_id": 0}
        config.pop("scale_decoder_outputs", None)
        (path / "config.json").write_text(json.dumps(config))
    {"opt": _opt_tokenizer, "llama": _llama_tokenizer, "t5": _t5_tokenizer}.get(
        family.removeprefix("flan-").split("-")[0], _gpt2_tokenizer
    )(path)
    return path


_SHAPE: dict[str, Any] = {
    "vocab_size": _SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def _opt(**changes: Any) -> OPTConfig:
    return OPTConfig(**_SHAPE, ffn_dim=32, dropout=0.1, **changes)  # dropout must never be active


def _t5(**changes: Any) -> T5Config:
    return T5Config(
        vocab_size=_SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1, **changes
    )


def _bytes_tokenizer(path: Path, special: list[str], **settings: Any) -> None:
    """vocab.json and merges.txt of a byte-level BPE."""
    level = pre_tokenizers.ByteLevel
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = level(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE, special_tokens=special, initial_alphabet=level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.model.save(str(path))
    _settings(path, tokenizer_class="GPT2Tokenizer", add_prefix_space=False, **settings)


def _opt_tokenizer(path: Path) -> None:
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
    _bytes_tokenizer(path, ["<s>", "<pad>", "</s>", "<unk>"], **ends, pad_token="<pad>", add_bos_token=True)


def _gpt2_tokenizer(path: Path) -> None:
    end = "<|endoftext|>"
    _bytes_tokenizer(path, [end], bos_token=end, eos_token=end, unk_token=end)


def _llama_tokenizer(path: Path) -> None:
    """As Vicuna's folder has it: tokenizer.model alone, BPE with bytes to fall back on."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=_SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    ends = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    # Vicuna's padding token is one more than there are embeddings.
    (path / "added_tokens.json").write_text(json.dumps({"<pad>": _SIZE}))
    _settings(path, tokenizer_class="LlamaTokenizer", add_bos_token=True, **ends, pad_token="<pad>")


def _t5_tokenizer(path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_prefix=str(path / "spiece"),
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    ends = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _settings(path, tokenizer_class="T5Tokenizer", extra_ids=100, **ends)


def _settings(path: Path, **settings: Any) -> None:
    (path / "tokenizer_config.json").write_text(json.dumps(settings))

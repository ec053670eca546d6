"""Frozen large language models and their tokenizers."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from evlgen.errors import UserError
from evlgen.vision import file_hash, weights_file

BosPosition = Literal["first", "after_prompt", "none"]


@dataclass(frozen=True)
class FrozenLanguage:
    """A frozen causal language model.

    Attributes:
        width: width of its token embeddings, the soft prompt's width.
        bos_position: where the beginning-of-sequence token goes: ``first`` (in front of the soft prompt),
            ``after_prompt`` (between the soft prompt and the text, as LAVIS does for OPT) or ``none``.
        newline_id: the token that ends a caption and an answer.
        fingerprint: hash of the weights.
    """

    model: Any  # a transformers causal LM: PreTrainedModel does not type generate()
    tokenizer: PreTrainedTokenizerFast
    width: int
    bos_position: BosPosition
    newline_id: int
    fingerprint: str


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the words of ``texts``: lower case, punctuation and newline are tokens.

    Ids: 0 ``<pad>``, 1 ``</s>`` (beginning and end, as in OPT), 2 ``<unk>``, then the words by alphabet.
    """
    split = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    words: set[str] = set()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(text.lower()))
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    return _finish(Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), split)


def _finish(tokenizer: Tokenizer, split: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def mini_model(name: str, vocab_size: int) -> nn.Module:
    """Untrained LLM of the miniature: ``mini-opt`` (OPT architecture) or ``mini-llama`` (LLaMA, as Vicuna).

    Raises:
        UserError: unknown name.
    """
    if name == "mini-opt":
        return OPTForCausalLM(
            OPTConfig(
                vocab_size=vocab_size,
                hidden_size=96,
                word_embed_proj_dim=96,
                ffn_dim=384,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=256,
                dropout=0.0,
                attention_dropout=0.0,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    if name == "mini-llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=96,
                intermediate_size=256,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                # slow rotations enough to compare words over a whole text (see induction_start)
                rope_parameters={"rope_type": "default", "rope_theta": 1e5},
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    raise UserError(f"language {name!r}: no such language model; there are: mini-opt, mini-llama")


MASK_ID = 2  # ``<unk>``, which no text of the miniworld needs


def mini_bert_config(vocab_size: int) -> BertConfig:
    """The miniature's bert-base-uncased, from which its connectors start: 4 layers of width 96."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,  # BERT's 0.02 is for width 768: here it needs twice the steps
        pad_token_id=0,
    )


@functools.lru_cache(maxsize=4)
def build_language(name: str) -> FrozenLanguage:
    """The frozen language model called ``name``, in eval mode, with its tokenizer.

    Raises:
        UserError: unknown name, or its weights are missing.
    """
    tokenizer = mini_tokenizer()
    model = mini_model(name, len(tokenizer))
    path = weights_file(f"{name}.safetensors")
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()}, strict=False)
    model.eval().requires_grad_(False)
    newline = tokenizer.convert_tokens_to_ids("\n")
    assert isinstance(newline, int)
    return FrozenLanguage(model, tokenizer, 96, "first", newline, file_hash(path))


@functools.cache
def mini_tokenizer() -> PreTrainedTokenizerFast:
    """The miniature's tokenizer, shipped beside the weights."""
    path = weights_file("mini-tokenizer.json")
    return PreTrainedTokenizerFast(
        tokenizer_file=str(path), bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )

"""Pre-training of the language models on documents, and of BERT by masked words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from evlgen import miniworld
from evlgen.backbones.language import MASK_ID, mini_bert_config, mini_model, word_tokenizer
from evlgen.miniworld.pretrain.induction import induction_start
from evlgen.miniworld.pretrain.loop import Report, descend


@dataclass(frozen=True)
class LanguagePretraining:
    steps: int = 5000
    batch_size: int = 32
    lr: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.05
    head_weight: float = 0.3  # of a document's first part, which nothing predicts
    answer_weight: float = 5.0  # of short answers, a word among many
    seed: int = 0


@dataclass(frozen=True)
class MaskedPretraining:
    steps: int = 2500
    batch_size: int = 32
    lr: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.05
    masked: float = 0.25  # share of the words
    max_words: int = 128
    seed: int = 0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer over every word that the miniworld can say."""
    texts = ["".join(miniworld.document(i)) for i in range(8000)]
    texts += [
        *miniworld.IRRELEVANT,
        *miniworld.SHAPES,
        *map(miniworld.plural, miniworld.SHAPES),
        *miniworld.NUMBERS,
    ]
    texts += [" ".join(ways) for ways in miniworld.SYNONYMS.values()] + [str(n) for n in range(10)]
    return word_tokenizer(texts)


def pretrain_language(
    name: str, tokenizer: PreTrainedTokenizerFast, setup: LanguagePretraining, report: Report
) -> nn.Module:
    """Train ``mini-opt`` or ``mini-llama`` on documents; every batch holds documents of like length."""
    torch.manual_seed(setup.seed)
    model = mini_model(name, len(tokenizer))
    induction_start(model)
    offset = 100_000_000 if name == "mini-llama" else 0  # the two have read different texts
    batches = _batches_by_length(lambda i: weighted(tokenizer, *miniworld.document(i), setup), offset, setup)
    descend(name, model, (document_loss(model, rows) for rows in batches), setup, report)
    return model


def pretrain_bert(
    tokenizer: PreTrainedTokenizerFast, setup: MaskedPretraining, report: Report
) -> BertForMaskedLM:
    """Train ``mini-bert`` to predict masked words of documents (Devlin et al., 2019); the mask is ``<unk>``.

    Of the words that are asked for, 80% are masked, 10% are another word, 10% stay.
    """
    torch.manual_seed(setup.seed)
    generator = torch.Generator().manual_seed(setup.seed)
    model = BertForMaskedLM(mini_bert_config(len(tokenizer)))

    def read(index: int) -> tuple[list[int], None]:
        ids: list[int] = tokenizer("".join(miniworld.document(200_000_000 + index)))["input_ids"]
        return ids[: setup.max_words], None

    losses = (
        masked_loss(model, padded([row for row, _ in rows]), setup.masked, generator)
        for rows in _batches_by_length(read, 0, setup)
    )
    descend("mini-bert", model, losses, setup, report)
    return model


def masked_loss(model: BertForMaskedLM, ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy (nats) of the words asked for, ``share`` of all; (B, L) ids, 0 is padding."""
    masked, asked = mask_words(ids, share, model.config.vocab_size, generator)
    hidden = model.bert(input_ids=masked, attention_mask=(ids != 0).long()).last_hidden_state
    return F.cross_entropy(model.cls(hidden[asked]), ids[asked])


def mask_words(
    ids: Tensor, share: float, vocab_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(B, L) ids -> ids with some of them replaced, and a bool mask of those that are asked for."""
    draw = torch.rand(ids.shape, generator=generator)
    asked = (draw < share) & (ids > 2)  # no padding, no special tokens
    other = torch.randint(3, vocab_size, ids.shape, generator=generator)
    masked = torch.where(asked & (draw < 0.8 * share), MASK_ID, ids)
    return torch.where(asked & (draw >= 0.9 * share), other, masked), asked


def _batches_by_length(
    read: Callable[[int], tuple[list[int], Any]], offset: int, setup: LanguagePretraining | MaskedPretraining
) -> Iterator[list[tuple[list[int], Any]]]:
    """``setup.steps`` batches of documents; each holds documents of like length, so that little is padding.

    Args:
        read: number of a document -> its word ids, and whatever belongs to them.
        offset: number of the first document.
    """
    group = 16  # batches drawn together and sorted by length
    order = np.random.default_rng(setup.seed)
    for start in range(0, setup.steps, group):
        first = offset + start * setup.batch_size
        rows = sorted(map(read, range(first, first + group * setup.batch_size)), key=lambda row: len(row[0]))
        batches = [rows[i : i + setup.batch_size] for i in range(0, len(rows), setup.batch_size)]
        drawn = [batches[i] for i in order.permutation(len(batches))]
        yield from reversed(drawn[-(setup.steps - start) :])


def weighted(
    tokenizer: PreTrainedTokenizerFast, head: str, rest: str, setup: LanguagePretraining
) -> tuple[list[int], list[float]]:
    """Word ids of a document, and the weight of each as a target (0 for the first)."""
    ids: list[int] = tokenizer(head)["input_ids"]
    weights = [0.0] + [setup.head_weight] * (len(ids) - 1)
    for line in rest.splitlines(keepends=True):
        question, mark, answer = line.partition("Short answer:")
        asked = tokenizer(question + mark, add_special_tokens=False)["input_ids"]
        answered = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = ids + asked + answered
        weights += [1.0] * len(asked) + [setup.answer_weight] * len(answered)
    return ids, weights


def padded(rows: list[Any]) -> Tensor:
    """Lists of numbers of any lengths -> (rows, longest), zeros behind the shorter ones."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def document_loss(model: nn.Module, rows: list[tuple[list[int], list[float]]]) -> Tensor:
    """Weighted mean cross-entropy of the next word (nats) over a batch of documents of any lengths."""
    ids, weights = padded([row for row, _ in rows]), padded([weight for _, weight in rows])
    # padding stands behind the text, which a causal model never looks at: no mask needed
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()

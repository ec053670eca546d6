"""Q-Former, the connector of BLIP-2 (Li et al., 2023, figure 2).

Learned queries attend to each other in every layer and to the image in every second one. In stage 1
(`evlgen.stage1`) a text branch shares the self-attention and has a feed-forward of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evlgen.backbones.pretrained import first_mismatch
from evlgen.bert import (
    LAYER_NORM_EPS,
    CrossAttention,
    FeedForward,
    Names,
    SelfAttention,
    attention_names,
    attention_probabilities,
    bert_tensors,
    check_layers,
    feed_forward_names,
    init_bert,
    linear_names,
    load_named,
    take,
)
from evlgen.config import QFormerConfig
from evlgen.connector_base import Connector
from evlgen.errors import UserError

KeyValue = tuple[Tensor, Tensor]  # each (B, heads, N, D / heads)


@dataclass(frozen=True, eq=False)
class QFormerTrace:
    """Intermediate values, for diagnostics.

    Attributes:
        attention: the (B, heads, queries, image tokens) probabilities of each cross-attention.
    """

    attention: tuple[Tensor, ...]


class QFormer(Connector):
    """Image features -> one soft token a query. A ``vocab_size`` above 0 adds the text branch of stage 1.

    Raises:
        UserError: a config value is wrong.
    """

    config: QFormerConfig
    layers: Sequence[QFormerLayer]

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.queries = nn.Parameter(torch.randn(config.num_queries, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)  # of all embeddings, queries and text alike
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(QFormerLayer(config, index) for index in range(config.num_layers))  # type: ignore[assignment]
        if config.vocab_size:
            self.words = nn.Embedding(config.vocab_size, width)
            self.positions = nn.Parameter(torch.randn(config.max_positions, width) * 0.02)
            self.image_projection = nn.Linear(width, config.embed_dim)
            self.text_projection = nn.Linear(width, config.embed_dim)
            # BLIP-2 learns the temperature itself, which a large learning rate could drive below zero.
            self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
            self.matching_head = nn.Linear(width, 2)
            self.generation_dense = nn.Linear(width, width)
            self.generation_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
            self.generation_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(init_bert)

    def forward(self, features: Tensor, return_trace: bool = False) -> Tensor | tuple[Tensor, QFormerTrace]:
        """(B, N, D_in) image features -> (B, num_queries, D) soft tokens.

        Args:
            return_trace: return (soft tokens, `QFormerTrace`) instead, with the same soft tokens.
        """
        probabilities: list[Tensor] | None = [] if return_trace else None
        x, _ = self.encode_images(self.project_image(features), len(features), probabilities)
        return x if probabilities is None else (x, QFormerTrace(tuple(probabilities)))

    # The four passes below share work. The image is projected to keys and values once for all of them, and
    # `decode_texts` attends to the queries' keys and values that `encode_images` returns: no query attends to
    # text in either.

    def project_image(self, features: Tensor) -> list[Tensor | None]:
        """(B, N, D_in) -> keys and values (B, N, 2 D) for each cross-attention, None in layers without."""
        return [None if layer.cross is None else layer.cross.key_value(features) for layer in self.layers]

    def encode_images(
        self, image: list[Tensor | None], batch: int, probabilities: list[Tensor] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Queries and image, without text.

        Args:
            image: from `project_image`.
            batch: B.
            probabilities: a list to which the cross-attention probabilities are appended.

        Returns:
            (B, Q, D) query outputs, and the self-attention keys and values of each layer.
        """
        x = self.embed_queries(batch)
        cache = []
        for layer, image_layer in zip(self.layers, image, strict=True):
            query, key, value = layer.attention.project(x)
            x = layer.attention(x, query, key, value)
            x = layer.cross_attend(x, image_layer, probabilities)
            x = layer.feed_forward(x)
            cache.append((key, value))
        return x, cache

    def encode_texts(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Text alone, bidirectional: (B, T) ids and bool mask -> (B, D), the output at the first token."""
        x = self.embed_text(text_ids)  # (B, T, D)
        mask = text_mask[:, None, None, :]  # (B, 1, 1, T)
        for index, layer in enumerate(self.layers):
            query, key, value = layer.attention.project(x)
            if index == len(self.layers) - 1:  # only the first token's output is used
                x, query = x[:, :1], query[:, :, :1]
            x = layer.attention(x, query, key, value, mask)
            x = layer.feed_text(x)
        return x[:, 0]

    def encode_pairs(self, image: list[Tensor | None], text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Queries, image and text together; queries and text attend to each other.

        Args:
            image: from `project_image`, B rows.
            text_ids: (B, T) int64.
            text_mask: (B, T) bool, False at padding.

        Returns:
            (B, Q, D) query outputs.
        """
        num_queries = self.config.num_queries
        x = torch.cat([self.embed_queries(len(text_ids)), self.embed_text(text_ids)], 1)  # (B, Q + T, D)
        mask = F.pad(text_mask, (num_queries, 0), value=True)[:, None, None, :]  # (B, 1, 1, Q + T)
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1  # where only the queries' outputs are used
            query, key, value = layer.attention.project(x)
            if last:
                x, query = x[:, :num_queries], query[:, :, :num_queries]
            x = layer.attention(x, query, key, value, mask)
            queries = layer.feed_forward(layer.cross_attend(x[:, :num_queries], image[index]))
            x = queries if last else torch.cat([queries, layer.feed_text(x[:, num_queries:])], 1)
        return x

    def decode_texts(self, cache: list[KeyValue], text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Causal text after the queries: logits of the next token.

        Args:
            cache: from `encode_images`.
            text_ids: (B, T) int64.
            text_mask: (B, T) bool, False at padding.

        Returns:
            (B, T, vocab_size) logits.
        """
        length = text_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=text_ids.device).tril()
        mask = F.pad(causal & text_mask[:, None, :], (self.config.num_queries, 0), value=True)[
            :, None
        ]  # (B, 1, T, Q + T)
        x = self.embed_text(text_ids)  # (B, T, D)
        for layer, (query_key, query_value) in zip(self.layers, cache, strict=True):
            query, key, value = layer.attention.project(x)
            key, value = (
                torch.cat([query_key, key], 2),
                torch.cat([query_value, value], 2),
            )  # (B, heads, Q + T, D / heads)
            x = layer.attention(x, query, key, value, mask)
            x = layer.feed_text(x)
        x = self.generation_norm(F.gelu(self.generation_dense(x)))
        return F.linear(x, self.words.weight, self.generation_bias)

    def embed_queries(self, batch: int) -> Tensor:
        """(B, Q, D)."""
        return self.dropout(self.norm(self.queries).expand(batch, -1, -1))

    def embed_text(self, text_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, D): words and positions, which start at the first text token."""
        length = text_ids.shape[1]
        if length > len(self.positions):
            raise UserError(f"max_positions = {len(self.positions)}: the text has {length} tokens")
        return self.dropout(self.norm(self.words(text_ids) + self.positions[:length]))

    def recomputed_blocks(self) -> list[nn.Module]:
        """The blocks of each layer; between them queries, keys and values are kept."""
        blocks = (
            block
            for layer in self.layers
            for block in (layer.attention, layer.cross, layer.feed_forward, layer.text_feed_forward)
        )
        return [block for block in blocks if block is not None]

    def load_bert(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the weights of a transformers ``BertModel``, as BLIP-2 does.

        Both feed-forwards start from BERT's, and the generation head from that of its masked LM if the
        checkpoint has one. Queries, cross-attention and the other heads keep their weights, and so do the
        embeddings of tokens that BERT does not have.

        Raises:
            UserError: a tensor is missing or has another shape; the message names the first one.
        """
        tensors = bert_tensors(state_dict)
        config = self.config
        check_layers(tensors, config.num_layers)
        names = bert_names(config)
        if config.vocab_size:
            if "cls.predictions.transform.dense.weight" not in tensors:
                names = {ours: theirs for ours, theirs in names.items() if not ours.startswith("generation_")}
            (words,) = names.pop("words.weight")
            known = min(len(tensors[words]) if words in tensors else config.vocab_size, config.vocab_size)
            with torch.no_grad():
                self.words.weight[:known] = take(tensors, words, (known, config.width))
                if "generation_bias" in names:
                    (bias,) = names.pop("generation_bias")
                    self.generation_bias[:known] = take(tensors, bias, (known,))
        load_named(self, tensors, names)

    def load_stage1(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the weights of this Q-Former from those of another one that was trained in stage 1.

        Raises:
            UserError: a tensor is missing or has another shape; the message names the first one.
        """
        if (wrong := first_mismatch(self, state_dict)) is not None:
            name, shape, wanted = wrong
            raise UserError(f"stage 1 weights: {name} has shape {shape}, the config wants {wanted}")
        self.load_state_dict({name: state_dict[name] for name in self.state_dict()})


class QFormerLayer(nn.Module):
    """The blocks of one layer, which each pass of `QFormer` combines in its own way."""

    def __init__(self, config: QFormerConfig, index: int) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        self.attention = SelfAttention(width, config.num_heads, dropout)
        self.cross = (
            CrossAttention(width, config.encoder_width, config.num_heads, dropout)
            if index % config.cross_attention_every == 0
            else None
        )
        self.feed_forward = FeedForward(width, config.intermediate, dropout)
        self.text_feed_forward = (
            FeedForward(width, config.intermediate, dropout) if config.vocab_size else None
        )

    def cross_attend(
        self, x: Tensor, image: Tensor | None, probabilities: list[Tensor] | None = None
    ) -> Tensor:
        """(B, Q, D) queries attend to keys and values (B, N, 2 D) of the image; unchanged in other layers."""
        if self.cross is None or image is None:
            return x
        query, key, value = self.cross.project(x, image)
        if probabilities is not None:
            probabilities.append(attention_probabilities(query, key))
        attended: Tensor = self.cross(x, query, key, value)
        return attended

    def feed_text(self, x: Tensor) -> Tensor:
        """The text's feed-forward: (B, T, D) -> (B, T, D)."""
        assert self.text_feed_forward is not None, "no text branch: vocab_size is 0"
        fed: Tensor = self.text_feed_forward(x)
        return fed


def bert_names(config: QFormerConfig, query_suffix: str = "", inner: str = "self") -> Names:
    """Where a ``BertModel`` and its masked LM have the tensors of a Q-Former.

    BERT has no queries, no cross-attention and no heads of ITC and ITM. BLIP-2's checkpoints have the same
    names for what stems from BERT (`evlgen.interop.convert`).

    Args:
        query_suffix: of the queries' feed-forward: empty in BERT, where both branches start from the same
            one, ``_query`` in BLIP-2.
        inner: see `evlgen.bert.attention_names`.
    """
    names = linear_names("norm", "embeddings.LayerNorm")
    if config.vocab_size:
        names["words.weight"] = ("embeddings.word_embeddings.weight",)
        names["positions"] = ("embeddings.position_embeddings.weight",)
        head = "cls.predictions"
        names |= linear_names("generation_dense", f"{head}.transform.dense")
        names |= linear_names("generation_norm", f"{head}.transform.LayerNorm")
        names["generation_bias"] = (f"{head}.bias",)
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}", f"encoder.layer.{index}"
        names |= attention_names(f"{ours}.attention", f"{theirs}.attention", inner)
        names |= feed_forward_names(f"{ours}.feed_forward", theirs, query_suffix)
        if config.vocab_size:
            names |= feed_forward_names(f"{ours}.text_feed_forward", theirs)
    return names

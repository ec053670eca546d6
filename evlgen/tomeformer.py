"""TomeFormer, the connector of EVLGen: a BERT encoder over all image tokens that merges them by and by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evlgen.bert import (
    LAYER_NORM_EPS,
    FeedForward,
    SelfAttention,
    attention_probabilities,
    bert_tensors,
    check_layers,
    init_bert,
    load_feed_forward,
    load_linear,
    load_self_attention,
    take,
)
from evlgen.config import TomeFormerConfig
from evlgen.connector_base import Connector
from evlgen.errors import UserError
from evlgen.merging import (
    Matching,
    bipartite_soft_matching,
    merge_schedule,
    position_matching,
    random_matching,
    token_counts,
)


@dataclass(frozen=True, eq=False)
class TomeFormerTrace:
    """What happened inside, for diagnostics and merge maps.

    Attributes:
        matchings: one a layer.
        source: (B, N_out, N) zeros and ones: which image tokens went into which soft token.
        attention: one a layer, the attention probabilities (B, heads, N_layer, N_layer).
    """

    matchings: tuple[Matching, ...]
    source: Tensor
    attention: tuple[Tensor, ...]


class TomeFormer(Connector):
    """Image features -> a short soft prompt (PAPER: 257 -> 29 tokens with BERT-base and r = 19).

    Raises:
        UserError: a config value is wrong.
    """

    config: TomeFormerConfig
    layers: Sequence[TomeFormerLayer]

    def __init__(self, config: TomeFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = merge_schedule(config.num_layers, config.r)
        self.input_projection = nn.Linear(config.input_width, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_positions, config.width) * 0.02)
        self.token_type = nn.Parameter(torch.randn(1, config.width) * 0.02)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TomeFormerLayer(config) for _ in range(config.num_layers))  # type: ignore[assignment]
        self.apply(init_bert)

    def forward(
        self, features: Tensor, return_trace: bool = False
    ) -> Tensor | tuple[Tensor, TomeFormerTrace]:
        """(B, N, D_in) image features, class token in front -> (B, N_out, D) soft tokens.

        Args:
            return_trace: give (soft tokens, `TomeFormerTrace`) instead; the soft tokens are the same.

        Raises:
            UserError: more tokens than positions, or too few for the merge schedule.
        """
        x = self.embed(features)
        token_counts(
            x.shape[1], self.schedule, self.config.class_token
        )  # refuses a schedule that is too long
        size = x.new_ones(*x.shape[:2], 1)  # image tokens that each token stands for
        matchings, probabilities = [], []
        for index, (layer, r) in enumerate(zip(self.layers, self.schedule, strict=True)):
            mask = (
                size.log()[:, None, None, :, 0] if self.config.proportional_attention else None
            )  # (B, 1, 1, N)
            query, key, value = layer.attention.project(x)
            x = layer.attention(x, query, key, value, mask)
            matching = self.match(x, key, r, index)
            x, size = (
                matching.merge(x, size if self.config.reduce == "weighted" else None),
                matching.add(size),
            )
            x = layer.feed_forward(x)
            if return_trace:
                matchings.append(matching)
                probabilities.append(attention_probabilities(query, key, mask))
        if not return_trace:
            return x
        source = None
        for matching in matchings:
            source = matching.source(source)
        assert source is not None
        return x, TomeFormerTrace(tuple(matchings), source, tuple(probabilities))

    def embed(self, features: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, N, D): projection, position and type embeddings, LayerNorm, as in BERT."""
        tokens = features.shape[1]
        if tokens > len(self.positions):
            raise UserError(f"max_positions = {len(self.positions)}: the image has {tokens} tokens")
        x = self.input_projection(features) + (self.positions[:tokens] + self.token_type)
        return self.dropout(self.norm(x))

    def match(self, x: Tensor, key: Tensor, r: int, index: int) -> Matching:
        """Which tokens of layer ``index`` to merge.

        Random matching draws anew for each image from torch's global generator while training (a checkpoint
        restores its state). In eval mode the draws are fixed, one a layer and the same for all images: an
        image's soft prompt does not depend on the batch it is in.

        Args:
            x: (B, N, D) after attention.
            key: (B, heads, N, D / heads) of this attention; their mean over the heads is the paper's metric.
        """
        if self.config.metric == "random":
            if self.training:
                return random_matching(x, r, self.config.class_token)
            generator = torch.Generator().manual_seed(index)
            return random_matching(x, r, self.config.class_token, generator, shared=True)
        if self.config.metric == "position":
            return position_matching(x, r, self.config.class_token)
        metric = key.detach().mean(1) if self.config.metric == "keys" else x.detach()
        return bipartite_soft_matching(metric, r, self.config.class_token)

    def recomputed_blocks(self) -> list[nn.Module]:
        """Attention and feed-forward of each layer; between them queries, keys and values are kept."""
        return [block for layer in self.layers for block in (layer.attention, layer.feed_forward)]

    def load_bert(self, state_dict: Mapping[str, Tensor]) -> None:
        """Copy the weights of a transformers ``BertModel`` (all but word embeddings and pooler).

        Raises:
            UserError: a tensor is missing or has another shape; the message names the first one.
        """
        tensors = bert_tensors(state_dict)
        check_layers(tensors, self.config.num_layers)
        width = self.config.width
        with torch.no_grad():
            self.positions.copy_(
                take(tensors, "embeddings.position_embeddings.weight", (self.config.max_positions, width))
            )
            self.token_type.copy_(take(tensors, "embeddings.token_type_embeddings.weight", (2, width))[:1])
        load_linear(self.norm, tensors, "embeddings.LayerNorm")
        for index, layer in enumerate(self.layers):
            load_self_attention(layer.attention, tensors, f"encoder.layer.{index}")
            load_feed_forward(layer.feed_forward, tensors, f"encoder.layer.{index}")


class TomeFormerLayer(nn.Module):
    """Attention and feed-forward of one layer; `TomeFormer.forward` merges between them."""

    def __init__(self, config: TomeFormerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.num_heads, config.dropout)
        self.feed_forward = FeedForward(config.width, config.intermediate, config.dropout)

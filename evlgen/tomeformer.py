"""TomeFormer, the connector of EVLGen: a BERT encoder over all image tokens, merging them layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evlgen.bert import (
    LAYER_NORM_EPS,
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


class TomeFormerLayer(nn.Module):
    """One layer of TomeFormer: a BERT layer that merges tokens between attention and feed-forward.

    Args:
        r: how many tokens the layer merges.
        index: of the layer, from 0.
    """

    def __init__(self, config: TomeFormerConfig, r: int, index: int) -> None:
        super().__init__()
        self.config, self.r, self.index = config, r, index
        self.attention = SelfAttention(config.width, config.num_heads, config.dropout)
        self.feed_forward = FeedForward(config.width, config.intermediate, config.dropout)

    def forward(
        self, x: Tensor, size: Tensor, return_attention: bool = False
    ) -> tuple[Tensor, Tensor, Matching, Tensor | None]:
        """Self-attention, token merging, feed-forward (PAPER: the figure of the TomeFormer).

        Args:
            x: (B, N, D) tokens.
            size: (B, N, 1), how many image tokens each of them stands for.
            return_attention: compute the attention probabilities, for diagnostics.

        Returns:
            (B, N - r, D) tokens; their (B, N - r, 1) sizes; the matching of tokens that were merged; and the
            (B, heads, N, N) attention probabilities, or None.
        """
        mask = size.log()[:, None, None, :, 0] if self.config.proportional_attention else None  # (B, 1, 1, N)
        query, key, value = self.attention.project(x)  # each (B, heads, N, D / heads)
        x = self.attention(x, query, key, value, mask)  # with residual and LayerNorm

        matching = self.match(x, key)  # PAPER: by the keys, averaged over the heads
        weights = size if self.config.reduce == "weighted" else None  # PAPER: None, a plain mean
        x, size = matching.merge(x, weights), matching.add(size)

        x = self.feed_forward(x)  # with residual and LayerNorm
        return x, size, matching, attention_probabilities(query, key, mask) if return_attention else None

    def match(self, x: Tensor, key: Tensor) -> Matching:
        """Which tokens to merge.

        Random matching draws anew for each image from torch's global generator while training (a checkpoint
        restores its state). In eval mode the draws are fixed, one a layer and the same for all images: an
        image's soft prompt does not depend on the batch it is in.

        Args:
            x: (B, N, D) after attention.
            key: (B, heads, N, D / heads) of this attention.
        """
        r, class_token = self.r, self.config.class_token
        if self.config.metric == "random":
            if self.training:
                return random_matching(x, r, class_token)
            generator = torch.Generator().manual_seed(self.index)
            return random_matching(x, r, class_token, generator, shared=True)
        if self.config.metric == "position":
            return position_matching(x, r, class_token)
        metric = key.detach().mean(1) if self.config.metric == "keys" else x.detach()  # (B, N, C)
        dtype = half_precision(metric) if self.config.similarity == "half" else None
        return bipartite_soft_matching(metric, r, class_token, dtype)


def half_precision(x: Tensor) -> torch.dtype | None:
    """The dtype of autocast on the device of ``x``, or its own if that is a half one; None: neither."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype if x.dtype in (torch.float16, torch.bfloat16) else None


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
        self.layers = nn.ModuleList(  # type: ignore[assignment]
            TomeFormerLayer(config, r, index) for index, r in enumerate(self.schedule)
        )
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
        # Refuses a schedule that merges too much.
        token_counts(x.shape[1], self.schedule, self.config.class_token)
        size = x.new_ones(*x.shape[:2], 1)  # each token stands for itself
        matchings, attention = [], []
        for layer in self.layers:
            x, size, matching, probabilities = layer(x, size, return_trace)
            matchings.append(matching)
            attention.append(probabilities)
        if not return_trace:
            return x
        source = None
        for matching in matchings:
            source = matching.source(source)
        assert source is not None
        return x, TomeFormerTrace(tuple(matchings), source, tuple(attention))

    def embed(self, features: Tensor) -> Tensor:
        """(B, N, D_in) -> (B, N, D): projection, position and type embeddings, LayerNorm, as in BERT."""
        tokens = features.shape[1]
        if tokens > len(self.positions):
            raise UserError(f"max_positions = {len(self.positions)}: the image has {tokens} tokens")
        x = self.input_projection(features) + (self.positions[:tokens] + self.token_type)
        return self.dropout(self.norm(x))

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
        names = bert_names(self.config.num_layers)
        (token_type,) = names.pop("token_type")
        load_named(self, tensors, names)
        with torch.no_grad():  # of BERT's two segments an image is the first
            self.token_type.copy_(take(tensors, token_type, (2, self.config.width))[:1])


def bert_names(num_layers: int) -> Names:
    """Where a ``BertModel`` has the tensors of a TomeFormer: all but those of its input projection."""
    names = linear_names("norm", "embeddings.LayerNorm")
    names["positions"] = ("embeddings.position_embeddings.weight",)
    names["token_type"] = ("embeddings.token_type_embeddings.weight",)
    for index in range(num_layers):
        ours, theirs = f"layers.{index}", f"encoder.layer.{index}"
        names |= attention_names(f"{ours}.attention", f"{theirs}.attention")
        names |= feed_forward_names(f"{ours}.feed_forward", theirs)
    return names

"""BERT's attention and feed-forward blocks, initialisation and weights, as TomeFormer and Q-Former use them.

Both connectors are post-norm BERT encoders (a block's output is LayerNorm(x + f(x))). In the paper they start
from bert-base-uncased.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evlgen.errors import UserError

LAYER_NORM_EPS = 1e-12  # BERT's


class SelfAttention(nn.Module):
    """Multi-head self-attention, with residual and LayerNorm.

    Projection and attention are separate calls, so that a caller can compare tokens by their keys or attend
    to the keys of another pass.

    Raises:
        UserError: the width is not a multiple of the number of heads.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) -> queries, keys, values, each (B, heads, N, D / heads)."""
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)  # each (B, N, D)
        return (
            split_heads(query, self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
        )

    def forward(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend and add to x: (B, N, D) -> (B, N, D).

        Args:
            x: (B, N, D), what ``query`` was projected from.
            query: (B, heads, N, D / heads).
            key, value: (B, heads, M, D / heads).
            mask: broadcastable to (B, heads, N, M): bool, True where attention is allowed, or float, added to
                the scores.
        """
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        update = F.dropout(self.out(join_heads(attended)), dropout)
        return self.norm(x + update)


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another, with residual and LayerNorm.

    Raises:
        UserError: the width is not a multiple of the number of heads.
    """

    def __init__(self, width: int, context_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        check_heads(width, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def project(self, x: Tensor, key_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of ``x`` (B, N, D), keys and values out of ``key_value`` (B, M, 2 D), split in heads."""
        key, value = key_value.chunk(2, dim=-1)  # each (B, M, D)
        return (
            split_heads(self.query(x), self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
        )

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `SelfAttention.forward`."""
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        update = F.dropout(self.out(join_heads(attended)), dropout)
        return self.norm(x + update)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between, with residual and LayerNorm: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, intermediate: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, intermediate)
        self.down = nn.Linear(intermediate, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D / heads) -> (B, N, D)."""
    return x.transpose(1, 2).flatten(2)


def attention_probabilities(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax of the scaled scores, (B, heads, N, M), without gradient, for diagnostics.

    Args:
        query, key, mask: see `SelfAttention.forward`; the mask is a float one.
    """
    with torch.no_grad():
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return (scores if mask is None else scores + mask).softmax(-1)


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation, for ``Module.apply``: normal weights of deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def check_heads(width: int, num_heads: int) -> None:
    """Check that the heads split the width evenly.

    Raises:
        UserError: they do not.
    """
    if width % num_heads:
        raise UserError(f"num_heads = {num_heads}: width {width} is not a multiple of it")


# ------------------------------------------------------------------------------------------ BERT's weights


Names = dict[str, tuple[str, ...]]
"""Our name of a tensor -> a checkpoint's; several are put together along the first dimension."""


def linear_names(ours: str, *theirs: str) -> Names:
    """Weight and bias of a linear or normalisation layer."""
    return {f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in theirs) for kind in ("weight", "bias")}


def attention_names(ours: str, theirs: str, inner: str = "self") -> Names:
    """`SelfAttention`, of which ``encoder.layer.0.attention`` is BERT's.

    Args:
        inner: the submodule with query, key and value: ``self`` in BERT, ``attention`` in BLIP-2 as
            `transformers` has it.
    """
    roles = [f"{theirs}.{inner}.{role}" for role in ("query", "key", "value")]
    return linear_names(f"{ours}.query_key_value", *roles) | _output_names(ours, theirs)


def cross_attention_names(ours: str, theirs: str, inner: str = "self") -> Names:
    """`CrossAttention`, of which ``encoder.layer.0.crossattention`` is BLIP-2's."""
    roles = [f"{theirs}.{inner}.{role}" for role in ("key", "value")]
    names = linear_names(f"{ours}.query", f"{theirs}.{inner}.query")
    return names | linear_names(f"{ours}.key_value", *roles) | _output_names(ours, theirs)


def _output_names(ours: str, theirs: str) -> Names:
    return linear_names(f"{ours}.out", f"{theirs}.output.dense") | linear_names(
        f"{ours}.norm", f"{theirs}.output.LayerNorm"
    )


def feed_forward_names(ours: str, theirs: str, suffix: str = "") -> Names:
    """`FeedForward`, of which ``encoder.layer.0`` holds BERT's.

    Args:
        suffix: ``_query`` for the one that the queries have in BLIP-2's Q-Former.
    """
    return (
        linear_names(f"{ours}.up", f"{theirs}.intermediate{suffix}.dense")
        | linear_names(f"{ours}.down", f"{theirs}.output{suffix}.dense")
        | linear_names(f"{ours}.norm", f"{theirs}.output{suffix}.LayerNorm")
    )


def bert_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a BERT checkpoint under the names of ``BertModel``.

    Takes names with and without the prefix ``bert.`` and the old LayerNorm names ``gamma`` and ``beta``.
    """
    tensors = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        tensors[name] = tensor
    return tensors


@torch.no_grad()
def load_named(module: nn.Module, tensors: Mapping[str, Tensor], names: Names) -> None:
    """Copy tensors into parameters of ``module``.

    Args:
        names: parameter -> the tensors that it is put together from.

    Raises:
        UserError: a tensor is missing or has another shape; the message names the first one.
    """
    for ours, theirs in names.items():
        parts = module.get_parameter(ours).chunk(len(theirs))
        for part, key in zip(parts, theirs, strict=True):
            part.copy_(take(tensors, key, tuple(part.shape)))


def as_checkpoint(state_dict: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our tensors under a checkpoint's names, split where it has several for one: the inverse of loading."""
    tensors: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        if ours in state_dict:
            tensor = state_dict[ours]
            parts = tensor.chunk(len(theirs)) if len(theirs) > 1 else [tensor]  # a scalar has no chunks
            tensors |= zip(theirs, parts, strict=True)
    return tensors


def take(tensors: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor called ``key``.

    Raises:
        UserError: it is missing or has another shape; the message names the key and both shapes.
    """
    if key not in tensors:
        raise UserError(f"BERT weights: {key} is missing (wanted with shape {shape})")
    if tuple(tensors[key].shape) != shape:
        raise UserError(
            f"BERT weights: {key} has shape {tuple(tensors[key].shape)}, the config wants {shape}"
        )
    return tensors[key]


def check_layers(tensors: Mapping[str, Tensor], num_layers: int) -> None:
    """Check that a checkpoint has no more layers than the connector.

    Raises:
        UserError: it has.
    """
    found = 1 + max(
        (int(key.split(".")[2]) for key in tensors if key.startswith("encoder.layer.")), default=-1
    )
    if found > num_layers:
        raise UserError(f"BERT weights: {found} layers, the config wants num_layers = {num_layers}")

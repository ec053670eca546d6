"""Perceiver resampler, the connector of Flamingo (Alayrac et al., 2022, figure 5 of the appendix).

In every layer learned latents attend to the image: queries come from the latents, keys and values from image
tokens and latents together. Blocks are pre-norm.

Differences from Flamingo: image tokens are projected to the width of the latents and have learned positions
in the image, like TomeFormer's, where Flamingo's have learned positions in time; the feed-forward has a GELU
where Flamingo's squares a ReLU; linear layers have biases, like those of the other connectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evlgen.bert import check_heads, init_bert, join_heads, split_heads
from evlgen.config import PerceiverConfig
from evlgen.connector_base import Connector
from evlgen.errors import UserError


class PerceiverResampler(Connector):
    """Image features -> one soft token a latent.

    Raises:
        UserError: a config value is wrong.
    """

    config: PerceiverConfig
    layers: Sequence[PerceiverLayer]

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        for name in ("num_layers", "num_latents"):
            if getattr(config, name) < 1:
                raise UserError(f"connector.{name} is {getattr(config, name)}: it must be 1 or more")
        check_heads(config.width, config.num_heads)
        self.config = config
        self.input_projection = nn.Linear(config.input_width, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_positions, config.width) * 0.02)
        self.latents = nn.Parameter(torch.randn(config.num_latents, config.width) * 0.02)
        self.layers = nn.ModuleList(PerceiverLayer(config) for _ in range(config.num_layers))  # type: ignore[assignment]
        self.norm = nn.LayerNorm(config.width)
        self.apply(init_bert)

    def recomputed_blocks(self) -> list[nn.Module]:
        """The layers, whole."""
        return list(self.layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D_in) image features -> (B, num_latents, D) soft tokens.

        Raises:
            UserError: more image tokens than positions.
        """
        batch, tokens, _ = features.shape
        if tokens > len(self.positions):
            raise UserError(f"max_positions = {len(self.positions)}: the image has {tokens} tokens")
        image = self.input_projection(features) + self.positions[:tokens]  # (B, N, D)
        # a copy: torch's FLOP counter fails, without gradients, at a module that is given a parameter's view
        latents = self.latents.repeat(batch, 1, 1)  # (B, L, D)
        for layer in self.layers:
            latents = layer(latents, image)
        soft: Tensor = self.norm(latents)
        return soft


class PerceiverLayer(nn.Module):
    """Attention of the latents to image and latents, then feed-forward."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.image_norm, self.latent_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, config.intermediate)
        self.down = nn.Linear(config.intermediate, width)

    def forward(self, latents: Tensor, image: Tensor) -> Tensor:
        """(B, L, D) latents and (B, N, D) image tokens -> (B, L, D)."""
        x = self.latent_norm(latents)
        key, value = self.key_value(torch.cat([self.image_norm(image), x], 1)).chunk(
            2, dim=-1
        )  # (B, N + L, D)
        query, key, value = (split_heads(each, self.num_heads) for each in (self.query(x), key, value))
        latents = latents + self.out(join_heads(F.scaled_dot_product_attention(query, key, value)))
        update: Tensor = self.down(F.gelu(self.up(self.feed_forward_norm(latents))))
        return latents + update

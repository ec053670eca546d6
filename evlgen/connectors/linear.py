"""LLaVA's connector: all image tokens go to the language model, through one linear layer or a small MLP.

LLaVA (Liu et al., "Visual Instruction Tuning", 2023) has one linear layer, LLaVA-1.5 (Liu et al., "Improved
Baselines with Visual Instruction Tuning", 2023) two with a GELU between them. Nothing is merged: the soft
prompt has as many tokens as the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from evlgen.config import LinearConfig
from evlgen.connector_base import Connector
from evlgen.errors import UserError


class LinearConnector(Connector):
    """All but the last of ``num_layers`` linear layers, each followed by a GELU.

    The last layer is the projection of `evlgen.model.CaptionModel`; with a single layer this module does
    nothing. LLaVA drops the class token; here all image tokens are kept, and `CaptionModel` normalises them
    first, as for every connector.

    Raises:
        UserError: a config value is wrong.
    """

    config: LinearConfig
    layers: Sequence[nn.Linear]

    def __init__(self, config: LinearConfig) -> None:
        super().__init__()
        if config.num_layers < 1:
            raise UserError(f"connector.num_layers is {config.num_layers}: it must be 1 or more")
        if config.num_layers == 1 and config.width != config.input_width:
            raise UserError(
                f"connector.width is {config.width}: a single linear layer has no hidden width; set it to "
                f"input_width, {config.input_width}"
            )
        self.config = config
        widths = [config.input_width, *[config.width] * (config.num_layers - 1)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))  # type: ignore[assignment]

    def recomputed_blocks(self) -> list[nn.Module]:
        """All of it."""
        return [self]

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D_in) image features -> (B, N, D) soft tokens."""
        x = features
        for layer in self.layers:
            x = F.gelu(layer(x))
        return x

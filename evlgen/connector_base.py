"""What every connector is, TomeFormer and Q-Former among them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from evlgen.config import ConnectorConfig


class Connector(nn.Module):
    """Image features (B, N, input_width) -> soft tokens (B, N_out, width).

    `evlgen.model.CaptionModel` normalises the features before they come here, and projects the soft tokens to
    the width of the language model afterwards. `evlgen.cost.connector_macs` counts the linear layers whose
    names begin with ``layers.``; projections in and out have other names.
    """

    config: ConnectorConfig

    def recomputed_blocks(self) -> Sequence[nn.Module]:
        """The modules whose activations gradient checkpointing computes again instead of keeping them."""
        return ()

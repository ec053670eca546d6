"""Average pooling: the simplest short soft prompt, without weights and regardless of the content."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evlgen.config import PoolConfig
from evlgen.connector_base import Connector
from evlgen.errors import UserError


class PoolConnector(Connector):
    """Averages the square of patches to ``rows`` x ``columns``; the class token stays in front, unchanged.

    Raises:
        UserError: a config value is wrong.
    """

    config: PoolConfig

    def __init__(self, config: PoolConfig) -> None:
        super().__init__()
        for name in ("rows", "columns"):
            if getattr(config, name) < 1:
                raise UserError(f"connector.{name} is {getattr(config, name)}: it must be 1 or more")
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D) image features -> (B, rows * columns + 1 with a class token, D) soft tokens.

        Patches are in row-major order. Where a side is not a multiple, areas overlap by a patch (torch's
        adaptive pooling).

        Raises:
            UserError: the patches form no square, or one that is smaller than what they are pooled to.
        """
        first, patches = features.tensor_split(
            [int(self.config.class_token)], dim=1
        )  # (B, 0 or 1, D), (B, P, D)
        rows, columns, count = self.config.rows, self.config.columns, patches.shape[1]
        side = math.isqrt(count)
        if side * side != count:
            raise UserError(
                f"connector.class_token is {self.config.class_token}: the {count} patches form no square"
            )
        if max(rows, columns) > side:
            raise UserError(f"connector: cannot pool {side} x {side} patches to {rows} x {columns}")
        if patches.is_cuda:  # there torch's pooling has no gradient of fixed bits: a product has
            matrix = pooling(rows, columns, side, patches.device).to(patches.dtype)
            return torch.cat([first, (matrix @ patches).to(patches.dtype)], 1)
        grid = patches.transpose(1, 2).unflatten(2, (side, side))  # (B, D, side, side)
        pooled = (
            F.adaptive_avg_pool2d(grid, (rows, columns)).flatten(2).transpose(1, 2)
        )  # (B, rows * columns, D)
        return torch.cat([first, pooled], 1)


@functools.lru_cache(maxsize=4)
def pooling(rows: int, columns: int, side: int, device: torch.device) -> Tensor:
    """Adaptive average pooling of side x side patches as a matrix, (rows * columns, side * side) float32."""
    down, across = (_averages(count, side) for count in (rows, columns))
    return torch.einsum("ri,cj->rcij", down, across).flatten(2).flatten(0, 1).to(device)


def _averages(count: int, side: int) -> Tensor:
    """(count, side): row i averages places floor(i side / count) up to ceil((i + 1) side / count)."""
    matrix = torch.zeros(count, side)
    for i in range(count):
        start, stop = i * side // count, -((i + 1) * side // -count)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix

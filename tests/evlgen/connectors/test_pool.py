"""Average pooling against plain loops over the areas."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from evlgen.config import PoolConfig
from evlgen.connectors import build_connector
from evlgen.connectors.pool import PoolConnector, pooling
from evlgen.cost import connector_macs, full_macs, image_features, trained_part
from evlgen.errors import UserError


@pytest.mark.parametrize(
    ("side", "rows", "columns", "class_token"),
    [(8, 4, 4, True), (16, 4, 7, True), (5, 3, 2, False), (3, 3, 3, True), (4, 1, 1, False)],
)
def test_every_soft_token_is_the_mean_of_its_area(
    side: int, rows: int, columns: int, class_token: bool
) -> None:
    features = torch.randn(2, side**2 + class_token, 3, dtype=torch.float64)
    pool = PoolConnector(PoolConfig(input_width=3, rows=rows, columns=columns, class_token=class_token))
    expected = [features[:, 0]] if class_token else []
    for row in range(rows):
        ys = range(row * side // rows, -(-(row + 1) * side // rows))  # to the next whole patch
        for column in range(columns):
            xs = range(column * side // columns, -(-(column + 1) * side // columns))
            area = [features[:, class_token + side * y + x] for y in ys for x in xs]
            expected.append(torch.stack(area).mean(0))
    torch.testing.assert_close(pool(features), torch.stack(expected, 1), rtol=0, atol=1e-10)
    # what a GPU takes
    product = pooling(rows, columns, side, torch.device("cpu")).double() @ features[:, class_token:]
    torch.testing.assert_close(product, torch.stack(expected, 1)[:, class_token:], rtol=0, atol=1e-6)


def test_as_many_soft_tokens_as_tomeformer() -> None:
    assert build_connector(PoolConfig())(torch.zeros(1, 257, 1408)).shape == (1, 29, 1408)
    assert PoolConfig().width == 1408


def test_gradient_is_right() -> None:
    pool = PoolConnector(PoolConfig(input_width=2, rows=2, columns=3))
    features = torch.randn(1, 26, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pool, (features,))


def test_macs_are_those_of_the_projection() -> None:
    config = PoolConfig()
    assert connector_macs(config, 257) == 0
    assert full_macs(trained_part(config, 2560), image_features(config, 257)) == 29 * 1408 * 2560


def test_mistakes_are_named() -> None:
    config = PoolConfig(input_width=2, rows=2, columns=3)
    with pytest.raises(UserError, match=r"connector\.class_token is True: the 15 patches form no square"):
        PoolConnector(config)(torch.zeros(1, 16, 2))
    with pytest.raises(UserError, match="cannot pool 2 x 2 patches to 2 x 3"):
        PoolConnector(config)(torch.zeros(1, 5, 2))
    with pytest.raises(UserError, match=r"connector\.rows is 0: it must be 1 or more"):
        PoolConnector(dataclasses.replace(config, rows=0))
    with pytest.raises(UserError, match="'bert-base-uncased': a pool connector has no BERT in it"):
        build_connector(dataclasses.replace(config, init="bert-base-uncased"))

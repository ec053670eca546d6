"""LLaVA's projections, all the way to the soft prompt, against plain arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evlgen.config import LinearConfig
from evlgen.connectors import build_connector
from evlgen.connectors.linear import LinearConnector
from evlgen.cost import connector_macs, full_macs, image_features, meta_connector, trained_part
from evlgen.errors import UserError
from tests.evlgen import tiny


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_soft_prompt_is_that_of_llava(layers: int) -> None:
    """One linear layer in all, or an MLP; nothing else between the normalised features and the LLM."""
    width = tiny.WIDTH if layers == 1 else 12
    config = LinearConfig(input_width=tiny.WIDTH, width=width, num_layers=layers)
    model = tiny.caption_model(config, dtype=torch.float64)
    features = tiny.features(3, torch.float64)
    x = model.norm(features)
    weights = [p for name, p in model.named_parameters() if "norm" not in name]
    assert len(weights) == 2 * layers
    for index in range(layers):
        if index:
            x = x * (1 + torch.erf(x / 2**0.5)) / 2
        x = torch.einsum("bni,oi->bno", x, weights[2 * index]) + weights[2 * index + 1]
    torch.testing.assert_close(model.soft_prompt(features), x, rtol=0, atol=1e-10)
    assert model.soft_prompt(features).shape == (3, tiny.TOKENS, 16)


def test_gradient_is_right() -> None:
    connector = LinearConnector(LinearConfig(input_width=4, width=5, num_layers=2)).double()
    features = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(connector, {"layers.0.weight": weight}, (x,))

    assert torch.autograd.gradcheck(f, (features, connector.layers[0].weight))


def test_macs_by_hand() -> None:
    assert connector_macs(LinearConfig(), 257) == 0  # a projection, which the convention leaves out
    assert (
        full_macs(trained_part(LinearConfig(), 2560), image_features(LinearConfig(), 257))
        == 257 * 1408 * 2560
    )
    mlp = LinearConfig(width=2560, num_layers=2)
    assert connector_macs(mlp, 257) == 257 * 1408 * 2560
    assert full_macs(meta_connector(mlp), image_features(mlp, 257)) == 257 * 1408 * 2560


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LinearConfig(num_layers=0), r"connector\.num_layers is 0: it must be 1 or more"),
        (
            LinearConfig(width=7),
            "width is 7: a single linear layer has no hidden width; set it to input_width, 1408",
        ),
        (LinearConfig(init="mini-bert"), "'mini-bert': a linear connector has no BERT in it"),
    ],
)
def test_mistakes_are_named(config: LinearConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_connector(config)

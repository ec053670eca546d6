"""Perceiver resampler against torch's own attention, put together as Flamingo's appendix says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evlgen.config import PerceiverConfig, TomeFormerConfig
from evlgen.connectors import build_connector
from evlgen.connectors.perceiver import PerceiverResampler
from evlgen.cost import connector_macs, count_parameters, full_macs, image_features, meta_connector
from evlgen.errors import UserError

TINY = PerceiverConfig(
    input_width=10, width=12, num_layers=3, num_heads=3, intermediate=20, max_positions=9, num_latents=4
)


@pytest.fixture
def resampler() -> PerceiverResampler:
    """Float64, with weights large enough that every term matters."""
    torch.manual_seed(0)
    model = PerceiverResampler(TINY).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
    return model


def reference(model: PerceiverResampler, image: Tensor) -> Tensor:
    """One image (N, D_in): torch's multi-head attention, LayerNorms and feed-forward written out."""
    w, width = model.state_dict(), TINY.width

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    tokens = image @ w["input_projection.weight"].T + w["input_projection.bias"]
    tokens = tokens + w["positions"][: len(tokens)]
    x = w["latents"]
    for index in range(TINY.num_layers):
        layer = f"layers.{index}"
        attention = nn.MultiheadAttention(width, TINY.num_heads, batch_first=True).double()
        attention.load_state_dict(
            {
                "in_proj_weight": torch.cat([w[f"{layer}.query.weight"], w[f"{layer}.key_value.weight"]]),
                "in_proj_bias": torch.cat([w[f"{layer}.query.bias"], w[f"{layer}.key_value.bias"]]),
                "out_proj.weight": w[f"{layer}.out.weight"],
                "out_proj.bias": w[f"{layer}.out.bias"],
            }
        )
        latents = norm(f"{layer}.latent_norm", x)
        read = torch.cat([norm(f"{layer}.image_norm", tokens), latents])
        x = x + attention(latents[None], read[None], read[None], need_weights=False)[0][0]
        hidden = norm(f"{layer}.feed_forward_norm", x) @ w[f"{layer}.up.weight"].T + w[f"{layer}.up.bias"]
        x = x + F.gelu(hidden) @ w[f"{layer}.down.weight"].T + w[f"{layer}.down.bias"]
    return norm("norm", x)


def test_it_is_what_flamingo_describes(resampler: PerceiverResampler) -> None:
    features = torch.randn(3, 7, 10, dtype=torch.float64)
    expected = torch.stack([reference(resampler, image) for image in features])
    torch.testing.assert_close(resampler(features), expected, rtol=0, atol=1e-10)


def test_gradient_is_right_and_reaches_all_parameters(resampler: PerceiverResampler) -> None:
    features = torch.randn(2, 9, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resampler(x)[..., :2], (features[:1, :3],))
    (resampler(features) * torch.randn(2, 4, 12)).sum().backward()
    for name, parameter in resampler.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


def test_macs_by_hand() -> None:
    read, latents, width = 257 + 29, 29, 768
    layer = 2 * read * width**2 + 2 * latents * width**2 + 2 * latents * width * 3072
    config = PerceiverConfig()
    assert connector_macs(config, 257) == 12 * layer == 6_101_139_456
    products = 12 * 2 * latents * read * width
    projection = 257 * 1408 * width
    assert (
        full_macs(meta_connector(config), image_features(config, 257)) == 12 * layer + products + projection
    )
    # the parameters of TomeFormer: only norms, latents and the type embedding differ
    ours, theirs = (count_parameters(meta_connector(c)) for c in (config, TomeFormerConfig()))
    assert ours - theirs == 12 * 2 * width + 29 * width - width


def test_mistakes_are_named(resampler: PerceiverResampler) -> None:
    with pytest.raises(UserError, match="max_positions = 9: the image has 10 tokens"):
        resampler(torch.zeros(1, 10, 10).double())
    for changes, message in (
        ({"num_heads": 5}, "num_heads = 5: width 12"),
        ({"num_latents": 0}, r"connector\.num_latents is 0"),
        ({"init": "mini-bert"}, "a perceiver connector has no BERT in it"),
    ):
        with pytest.raises(UserError, match=message):
            build_connector(dataclasses.replace(TINY, **changes))  # type: ignore[arg-type]

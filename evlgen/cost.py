"""What a connector costs: multiply-accumulates (MACs) and parameters, counted on the real modules.

Everything runs on torch's meta device: shapes only, no memory and no arithmetic, so that the paper's sizes
are counted in a moment on any machine.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evlgen.config import ConnectorConfig, TomeFormerConfig
from evlgen.qformer import QFormer
from evlgen.tomeformer import TomeFormer


def linear_macs(
    module: nn.Module, *inputs: Tensor, include: Callable[[str], bool] = lambda name: True
) -> int:
    """MACs of the linear layers in one forward pass; biases count nothing.

    Args:
        inputs: what the module is called with; only shapes and dtypes are used.
        include: given a linear layer's name within ``module``, whether it counts.
    """
    module = _on_meta(module)
    macs = 0

    def count(linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        assert isinstance(linear, nn.Linear)
        macs += output.numel() * linear.in_features

    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and include(name):
            part.register_forward_hook(count)
    _run(module, inputs)
    return macs


def full_macs(module: nn.Module, *inputs: Tensor) -> int:
    """MACs of all matrix products in one forward pass.

    Beside the linear layers these are the attention's two products and the similarities of token merging.
    """
    with FlopCounterMode(display=False) as counter:
        _run(_on_meta(module), inputs)
    return int(counter.get_total_flops()) // 2  # the counter takes a MAC for two operations


def connector_macs(config: ConnectorConfig, tokens: int) -> int:
    """MACs of a connector for one image by the convention of the paper's table 5.

    Its linear layers alone: no attention products, no embeddings, no projection in or out. The paper's sizes
    with 257 tokens give 11.877 G for the TomeFormer and 6.279 G for the Q-Former (stage 2).

    Args:
        tokens: image tokens, the class token among them.
    """
    connector, image = meta_connector(config), image_features(config, tokens)
    return linear_macs(connector, image, include=lambda name: name != "input_projection")


def meta_connector(config: ConnectorConfig) -> TomeFormer | QFormer:
    """The connector on the meta device, without the text branch of stage 1."""
    with torch.device("meta"):
        if isinstance(config, TomeFormerConfig):
            return TomeFormer(config).eval()
        return QFormer(dataclasses.replace(config, vocab_size=0)).eval()


def image_features(config: ConnectorConfig, tokens: int) -> Tensor:
    """Features of one image on the meta device, (1, tokens, D_in)."""
    width = config.input_width if isinstance(config, TomeFormerConfig) else config.encoder_width
    return torch.empty(1, tokens, width, device="meta")


def count_parameters(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, or of those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy of the module on the meta device; the module itself stays as it is."""
    return copy.deepcopy(module).to("meta")


@torch.no_grad()
def _run(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    return module(*(tensor.to("meta") for tensor in inputs))

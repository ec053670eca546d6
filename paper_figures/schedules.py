"""Token counts and MACs in each layer under several merge schedules, at the paper's sizes and at the scale's.

Nothing is trained: the real connector is counted on shapes alone (`evlgen.cost`), by the convention of the
paper's table 5.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import functools
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from evlgen.config import TomeFormerConfig
from evlgen.cost import image_features, is_counted, meta_connector
from evlgen.merging import merge_schedule, token_counts
from experiments import merge_schedules
from experiments.scales import get
from paper_figures import script, style

PAPER_TOKENS, PAPER_GMACS = 29, 11.9
KINDS = ("constant", "inflection", "one-shot")


def draw(scale: str) -> list[Path]:
    """The figure; no runs are needed."""
    style.apply()
    scales = ("paper", scale if scale != "paper" else "mini")
    figure, axes = plt.subplots(2, 2, figsize=(style.PAGE, 4.4))
    for row, name in zip(axes, scales, strict=True):
        _panels(row, name)
    return style.save(figure, "schedules", scale, [], [])


def chosen(scale: str) -> dict[str, TomeFormerConfig]:
    """No merging, the largest constant r, and several schedules that leave half of the tokens."""
    tokens = get(scale).tokens
    schedules: dict[str, TomeFormerConfig] = {}
    for row in merge_schedules.build(scale).rows:
        config = row.config.connector
        if not isinstance(config, TomeFormerConfig) or row.values["kind"] not in KINDS:
            continue
        if row.values["tokens"] == tokens - (tokens - 1) // 2:
            kind = row.values["kind"]
            schedules["constant" if kind == "constant" else row.label.rpartition(", ")[2]] = config
        elif config.r == 0:
            schedules["no merging"] = config
        elif config.r == get(scale).tomeformer.r:
            schedules[f"r = {config.r}"] = config
    order = ("no merging", f"r = {get(scale).tomeformer.r}", "constant")  # then the others
    return {name: schedules[name] for name in dict.fromkeys((*order, *schedules))}


def layer_macs(config: TomeFormerConfig, tokens: int) -> list[int]:
    """MACs of each layer's linear layers for one image of so many tokens, counted in one pass."""
    connector = meta_connector(config)
    macs = [0] * config.num_layers

    def count(layer: int, part: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs[layer] += output.numel() * part.in_features

    for name, part in connector.named_modules():
        if isinstance(part, nn.Linear) and is_counted(name):
            part.register_forward_hook(functools.partial(count, int(name.split(".")[1])))
    with torch.no_grad():
        connector(image_features(config, tokens))
    return macs


def _panels(axes: tuple[Axes, Axes], scale: str) -> None:
    tokens = get(scale).tokens
    left, right = axes
    for index, (name, config) in enumerate(chosen(scale).items()):
        r = list(config.r) if isinstance(config.r, tuple) else config.r
        counts = token_counts(tokens, merge_schedule(config.num_layers, r), config.class_token)
        macs = layer_macs(config, tokens)
        look: dict[str, Any] = {
            "color": style.PALETTE[index],
            "marker": style.SHAPES[index],
            "ms": 3,
            "lw": 0.9,
        }
        left.plot(range(len(counts)), counts, **look)
        unit, letter = (1e9, "G") if sum(macs) >= 1e8 else (1e6, "M")
        label = f"{name}: {counts[-1]} tokens, {sum(macs) / unit:.3g} {letter}"
        right.plot(range(1, len(macs) + 1), [value / unit for value in macs], **look, label=label)
        right.set_ylabel(f"MACs of the layer ({letter})")
    if scale == "paper":
        layers = get(scale).tomeformer.num_layers
        text = f"the paper's: {PAPER_TOKENS} tokens, {PAPER_GMACS} G"
        left.plot([layers], [PAPER_TOKENS], "*", ms=9, mfc="none", mec="black", zorder=5, label=text)
        left.legend(loc="lower left", handlelength=1)
    sizes = "the paper's sizes" if scale == "paper" else f"scale {scale}"
    left.set(xlabel="layers passed", ylabel="tokens", title=f"tokens, {sizes}")
    right.set(xlabel="layer", title=f"MACs, {sizes}")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="upper left", bbox_to_anchor=(1, 1))


if __name__ == "__main__":
    sys.exit(script.main(draw, __doc__))

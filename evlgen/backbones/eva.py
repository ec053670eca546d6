"""EVA-CLIP's ViT-g/14 as BLIP-2 and EVLGen use it: 39 of its 40 blocks, no final norm (Fang et al., 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evlgen.bert import join_heads, split_heads
from evlgen.errors import UserError


@dataclass(frozen=True)
class EvaConfig:
    """Defaults: the ViT-g/14 of the paper."""

    image_size: int = 224
    patch: int = 14
    width: int = 1408
    num_layers: int = 39
    num_heads: int = 16
    intermediate: int = 6144

    @property
    def grid(self) -> int:
        return self.image_size // self.patch


class EvaViT(nn.Module):
    """Pixels -> features of the second-to-last block. Parameters are called as in `eva_vit_g.pth`.

    Linear layers and convolution may be in half precision and the rest in float32
    (`evlgen.backbones.vision.halve_products`): then so is what blocks add to.

    Raises:
        UserError: the image size is no multiple of the patch.
    """

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        if config.image_size % config.patch or config.image_size <= 0:
            raise UserError(f"image_size {config.image_size}: must be a multiple of {config.patch}")
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, config.width, config.patch, stride=config.patch)}
        )
        self.blocks = nn.ModuleList(EvaBlock(config) for _ in range(config.num_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised float -> (B, 1 + (S / patch)^2, width), class token first.

        Raises:
            UserError: images of another size than the configuration's.
        """
        check_size(pixels, self.config.image_size)
        patches = (
            self.patch_embed["proj"](pixels.to(_dtype(self.patch_embed["proj"]))).flatten(2).transpose(1, 2)
        )  # (B, patches, width)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def check_size(pixels: Tensor, size: int) -> None:
    """Raise a `UserError` unless the images are ``size`` pixels high and wide."""
    if pixels.shape[-2:] != (size, size):
        raise UserError(f"images of {tuple(pixels.shape[-2:])} pixels: this encoder wants ({size}, {size})")


class EvaBlock(nn.Module):
    """Pre-norm block; queries and values have biases, keys have none."""

    def __init__(self, config: EvaConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = EvaAttention(width, config.num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, config.intermediate), "fc2": nn.Linear(config.intermediate, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        hidden = F.gelu(self.mlp["fc1"](self.norm2(x).to(_dtype(self.mlp["fc1"]))))
        return x + self.mlp["fc2"](hidden)


class EvaAttention(nn.Module):
    """Self-attention over (B, N, width)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.qkv.weight.dtype)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = F.linear(x, self.qkv.weight, bias.to(x.dtype)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in parts)
        out: Tensor = self.proj(join_heads(F.scaled_dot_product_attention(query, key, value)))
        return out


_RENAMES = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".norm\1."),
)


def eva_state(state: Mapping[str, Tensor], config: EvaConfig) -> dict[str, Tensor]:
    """LAVIS's or `transformers`' BLIP-2 weights under our names, positions resized to the configured grid."""
    out: dict[str, Tensor] = {}
    for key, value in _renamed(state).items():
        if key.endswith(".attn.qkv.bias"):
            stem = key.removesuffix("qkv.bias")
            out[stem + "q_bias"], _, out[stem + "v_bias"] = value.chunk(3)
        else:
            out[key] = value
    if "pos_embed" in out:
        out["pos_embed"] = resize_positions(out["pos_embed"], config.grid)
    return out


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the image encoder under LAVIS's names."""
    prefix = "vision_model."
    if any(key.startswith(prefix) for key in state):
        state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, name in _RENAMES:
            key = re.sub(pattern, name, key)
        out[key] = value
    return out


HEAD_WIDTH = 88  # of EVA's attention; files of weights do not say it (1408 / 16)
_USED = 39  # blocks of ViT-g/14 that BLIP-2 uses; files that were trimmed to them end there


def eva_shape(state: Mapping[str, Tensor], num_heads: int | None = None) -> EvaConfig:
    """Width, depth and patch of the weights in a file, for images of 224 x 224 pixels (PAPER).

    LAVIS's file holds all blocks, of which the last one is not used. `transformers`' holds those that are.

    Args:
        state: as a file names it, LAVIS's way or that of `transformers`' BLIP-2.
        num_heads: None: one for each `HEAD_WIDTH` of the width.

    Raises:
        UserError: these are no weights of EVA-CLIP.
    """
    found = {key: tuple(value.shape) for key, value in _renamed(state).items()}
    patches, hidden = found.get("patch_embed.proj.weight", ()), found.get("blocks.0.mlp.fc1.weight", ())
    if len(patches) != 4 or len(hidden) != 2:
        raise UserError(
            "no weights of EVA-CLIP: patch_embed.proj.weight or blocks.0.mlp.fc1.weight is missing"
        )
    blocks = 1 + max(int(key.split(".")[1]) for key in found if re.match(r"blocks\.\d+\.", key))
    is_whole = "blocks.0.norm1.weight" in state  # LAVIS's names
    if is_whole and blocks != _USED:
        blocks = max(1, blocks - 1)
    width, patch = patches[0], patches[-1]
    size = EvaConfig.image_size
    if size % patch:  # a small model's own size
        size = patch * round((found.get("pos_embed", (1, 2))[1] - 1) ** 0.5)
    return EvaConfig(size, patch, width, blocks, num_heads or max(1, width // HEAD_WIDTH), hidden[0])


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """(1, 1 + G^2, D) -> (1, 1 + grid^2, D), bicubic, in float32 or wider; the class token's stays."""
    old = round((positions.shape[1] - 1) ** 0.5)
    if old == grid or old * old != positions.shape[1] - 1:
        return positions
    patches = positions[:, 1:].to(torch.promote_types(positions.dtype, torch.float32))
    patches = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], 1)

"""Frozen image encoders: pixels -> one feature vector a patch, a class token in front."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from evlgen.backbones.eva import EvaConfig, EvaViT, check_size, eva_shape, eva_state
from evlgen.backbones.pretrained import (
    load_checked,
    load_transformers,
    read_config,
    read_state,
    tensors_hash,
)
from evlgen.config import Conventions
from evlgen.errors import UserError
from evlgen.runtime.device import chosen
from evlgen.runtime.files import sha256_of
from evlgen.runtime.sources import find_weights, names, shipped_file

MINI = ("mini-vit", "mini-clip")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pixels, for EVA-CLIP and CLIP (PAPER)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class MiniViTConfig:
    """A small ViT, patch 8, whose patch embedding is a short stack of convolutions (Xiao et al., 2021)."""

    image_size: int = 64
    stem_width: int = 64
    width: int = 96
    num_layers: int = 3
    num_heads: int = 4
    intermediate: int = 384


class MiniViT(nn.Module):
    """Image encoder of the miniature, in the role of EVA-CLIP ViT-g/14."""

    def __init__(self, config: MiniViTConfig) -> None:
        super().__init__()
        self.config = config
        # Cells of 4 x 4 pixels, then two 3 x 3 convolutions down to 8 x 8: a patch sees 20 x 20 pixels.
        self.cells = nn.Linear(3 * 4 * 4, config.stem_width)
        self.stem = nn.Sequential(
            nn.BatchNorm2d(config.stem_width),
            nn.ReLU(),
            nn.Conv2d(config.stem_width, config.stem_width, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.stem_width),
            nn.ReLU(),
            nn.Conv2d(config.stem_width, config.width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
            nn.Conv2d(config.width, config.width, 1),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
        grid = config.image_size // 8
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = nn.Parameter(torch.randn(1, 1 + grid * grid, config.width) * 0.02)
        self.blocks = nn.ModuleList(MiniViTBlock(config) for _ in range(config.num_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 64, 64) float in 0..1 -> (B, 65, width): class token, then the 8 x 8 patches row by row."""
        batch, side = len(pixels), self.config.image_size // 4
        cells = (pixels * 4 - 2).view(batch, 3, side, 4, side, 4).permute(0, 2, 4, 1, 3, 5)
        cells = self.cells(cells.reshape(batch, side, side, 48)).permute(0, 3, 1, 2)  # (B, C, 16, 16)
        patches = self.stem(cells).flatten(2).transpose(1, 2)  # (B, 64, width)
        x = torch.cat([self.class_token.expand(batch, -1, -1), patches], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return x


class MiniViTBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: MiniViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.intermediate)
        self.down = nn.Linear(config.intermediate, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, width / heads)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@dataclass(frozen=True)
class FrozenVision:
    """A frozen image encoder.

    Attributes:
        width: width of the features.
        tokens: number of feature vectors of one image, the class token among them.
        fingerprint: hash of the weights, part of every cache key.
        mean, std: what pixels in 0..1 are normalised with, by channel.
        image_size: pixels a side of the images it takes.
    """

    model: nn.Module
    width: int
    tokens: int
    fingerprint: str
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    image_size: int = 64

    def encode(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, tokens, width) float32, on the CPU."""
        return self.features(torch.from_numpy(images)).cpu()

    def features(self, images: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 on any device -> (B, tokens, width) float32, on the encoder's device."""
        device = next(self.model.parameters()).device
        return self.of_pixels(images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255)

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in 0..1, on the encoder's device -> (B, tokens, width) float32."""
        dtypes = {parameter.dtype for parameter in self.model.parameters()}
        wide = max(dtypes, key=lambda dtype: dtype.itemsize)
        with contextlib.ExitStack() as stack:
            if dtypes != {torch.float32}:  # its own precision, not that of the training around it
                stack.enter_context(torch.autocast(pixels.device.type, enabled=False))
            features: Tensor = self.model(normalised(pixels, self.mean, self.std).to(wide))
        return features.float()


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, H, W) in 0..1, less the mean and divided by the deviation of each channel."""
    center, scale = (_of_channels(values, pixels.device) for values in (mean, std))
    return (pixels - center) / scale


@functools.lru_cache(maxsize=16)
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), one number a channel; kept, since a copy to a GPU waits for all that it has to do before."""
    return torch.tensor(values, device=device)[:, None, None]


def file_hash(path: Path) -> str:
    """First 16 hex digits of the file's SHA-256."""
    return sha256_of(path)[:16]


class ImageEncoder(nn.Module):
    """The frozen image encoder as the first part of a model; loaded when the first pixels come.

    The frozen weights are not parameters of this module. Modules that are trained inside the encoder belong
    here as submodules: they are then in the model's state dict, and features carry gradients.

    Args:
        vision: name of the encoder for `build_vision`, or the encoder itself.
        conventions: of the run, for an encoder that is given by its name.
    """

    def __init__(self, vision: str | FrozenVision, conventions: Conventions = "plain") -> None:
        super().__init__()
        self._vision, self._conventions = vision, conventions

    @property
    def vision(self) -> FrozenVision:
        """The encoder.

        Raises:
            UserError: as `build_vision`.
        """
        if isinstance(self._vision, str):
            self._vision = build_vision(self._vision, self._conventions)
        return self._vision

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, N, D_in) float of images, on the encoder's device.

        Args:
            images: (B, S, S, 3) uint8 pixels. Anything else is features from a cache, returned as they are.
                Frozen features are rounded to fp16, as a cache holds them; by the authors' conventions they
                stay as the encoder gives them.
        """
        if images.dtype != torch.uint8:
            return images
        is_trained = any(p.requires_grad for p in self.parameters())
        with torch.set_grad_enabled(is_trained and torch.is_grad_enabled()):
            features = self.vision.features(images)
        if is_trained or self._conventions == "authors":
            return features
        return features.to(torch.float16).float()


def build_vision(name: str, conventions: Conventions = "plain") -> FrozenVision:
    """The frozen image encoder called ``name``, the same object each time; it draws no random numbers.

    Args:
        name: of the miniature or of `evlgen.runtime.sources.SOURCES`, or the path of CLIP's folder or of
            EVA-CLIP ViT-g/14 weights.
        conventions: of the run. Where an encoder runs in half precision, the authors' keeps what its layers
            add to in float32 (error of a feature 8e-4 instead of 2e-3).

    Raises:
        UserError: unknown name, or its weights are missing.
    """
    with torch.random.fork_rng(devices=[]):
        return _build(name, conventions == "authors" and name not in MINI)


def forget_encoders() -> None:
    """Let the next `build_vision` build anew: an object given out before has been changed."""
    _build.cache_clear()


@functools.lru_cache(maxsize=4)
def _build(name: str, single_residual: bool) -> FrozenVision:
    if name == "mini-vit":
        return _build_mini()
    if name == "mini-clip":
        return load_mini_clip(shipped_file("mini-clip.safetensors"))
    if name not in names("vision") and not Path(name).expanduser().exists():
        known = ", ".join([*MINI, *names("vision")])
        raise UserError(f"vision {name!r}: no such image encoder; there are: {known}, or a path")
    path = find_weights(name)
    is_clip = name == "clip-vit-l" or (
        (path / "config.json").is_file() and read_config(path).model_type in ("clip", "clip_vision_model")
    )
    if is_clip:
        return build_clip(path, single_residual=single_residual)
    return build_eva(path, single_residual=single_residual)


def feature_width(name: str) -> int | None:
    """Width of the features of an image encoder, without reading its weights; None where no file says it.

    Raises:
        UserError: as `find_weights`, or its files cannot be read.
    """
    if name in MINI:
        return MiniViTConfig().width if name == "mini-vit" else int(mini_clip_config().hidden_size)
    path = find_weights(name)
    if (path / "config.json").is_file():
        config = read_config(path)
        return getattr(getattr(config, "vision_config", config), "hidden_size", None)
    return None if path.is_dir() else eva_shape(read_state(path)).width


def feature_tokens(name: str) -> int | None:
    """Tokens that an image encoder gives of an image; otherwise as `feature_width`."""
    if name == "mini-vit":
        return (MiniViTConfig().image_size // 8) ** 2 + 1
    config: Any = mini_clip_config() if name in MINI else None
    if config is None:
        path = find_weights(name)
        if not (path / "config.json").is_file():
            return None if path.is_dir() else eva_shape(read_state(path)).grid ** 2 + 1
        config = read_config(path)
        config = getattr(config, "vision_config", config)
    try:
        return (int(config.image_size) // int(config.patch_size)) ** 2 + 1
    except (AttributeError, TypeError):
        return None


def _build_mini() -> FrozenVision:
    path = shipped_file("mini-vit.safetensors")
    config = MiniViTConfig()
    model = MiniViT(config)
    model.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    model.eval().requires_grad_(False)
    tokens = model.positions.shape[1]
    return FrozenVision(model, config.width, tokens, file_hash(path), image_size=config.image_size)


def _device_and_dtype() -> tuple[torch.device, torch.dtype]:
    """Where and in what precision a large encoder runs: fp16 on a GPU (PAPER), else float32."""
    device = chosen()
    return device, torch.float32 if device.type == "cpu" else torch.float16


def halve_products(model: nn.Module, dtype: torch.dtype) -> None:
    """Linear layers and convolutions in ``dtype``, all else in float32, as LAVIS does it.

    What the layers add to, the residual stream, is then in float32.
    """
    model.float()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def _is_mixed(model: nn.Module) -> bool:
    return len({parameter.dtype for parameter in model.parameters()}) > 1


def _version(weights: str, model: nn.Module) -> str:
    """Fingerprint of an encoder, from that of its weights: features differ with the precision of sums."""
    return f"{weights}-mixed" if _is_mixed(model) else weights


def build_eva(
    path: Path,
    config: EvaConfig | None = None,
    dtype: torch.dtype | None = None,
    single_residual: bool = False,
) -> FrozenVision:
    """EVA-CLIP from LAVIS's file or a transformers BLIP-2 folder.

    Of a BLIP-2 folder only the image encoder is read, and only what is read goes into the fingerprint.

    Args:
        config: None: width, depth and patch are those of the weights.
        dtype: None is fp16 on a GPU (PAPER), else float32.
        single_residual: in half precision, see `halve_products`.

    Raises:
        UserError: the weights cannot be read or are of another architecture.
    """
    read = read_state(path, prefix="vision_model.")
    if config is None:
        try:
            config = eva_shape(read, _num_heads(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    with torch.device("meta"):
        model = EvaViT(config)
    state = eva_state(read, config)
    device, default = _device_and_dtype()
    dtype = dtype or default
    model.to(dtype)
    if single_residual:
        halve_products(model, dtype)
    model.to_empty(device=device)
    load_checked(model, state, path)
    model.eval().requires_grad_(False)
    fingerprint = _version(tensors_hash({key: state[key] for key in model.state_dict()})[:16], model)
    tokens = 1 + config.grid**2
    return FrozenVision(model, config.width, tokens, fingerprint, CLIP_MEAN, CLIP_STD, config.image_size)


def _num_heads(path: Path) -> int | None:
    """Heads of a BLIP-2's image encoder, if its folder says so."""
    if not (path / "config.json").is_file():
        return None
    heads = getattr(getattr(read_config(path), "vision_config", None), "num_attention_heads", None)
    return heads if isinstance(heads, int) else None


class ClipViT(nn.Module):
    """CLIP's image encoder without its last layer: pixels -> features of the second-to-last (BLIP-2).

    No final LayerNorm is applied: the trained one of the captioner takes its place.

    Args:
        model: a `CLIPVisionModel` that was built without the last layer.
    """

    def __init__(self, model: CLIPVisionModel, image_size: int) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised float -> (B, 1 + (S / patch)^2, width), class token first.

        Raises:
            UserError: images of another size than the configuration's.
        """
        check_size(pixels, self.image_size)
        with contextlib.ExitStack() as stack:
            if _is_mixed(self.model):
                half = next(self.model.get_input_embeddings().parameters()).dtype  # of the convolution
                stack.enter_context(torch.autocast(pixels.device.type, half))
            features: Tensor = self.model(pixels).last_hidden_state
        return features


def build_clip(path: Path, dtype: torch.dtype | None = None, single_residual: bool = False) -> FrozenVision:
    """CLIP from the folder of a whole CLIP or of its image encoder; ViT-L/14 gives (257, 1024) an image.

    Args:
        dtype: None is fp16 on a GPU, else float32.
        single_residual: in half precision, see `halve_products`.

    Raises:
        UserError: the folder is not CLIP's, or its weights cannot be read.
    """
    config = read_config(path)
    if config.model_type not in ("clip", "clip_vision_model"):
        raise UserError(f"{path}: is a model of type {config.model_type!r}, expected clip")
    config = getattr(config, "vision_config", config)
    if config.num_hidden_layers < 2:
        raise UserError(f"{path}: has {config.num_hidden_layers} layers: there is no second-to-last one")
    config.num_hidden_layers -= 1  # the last one is neither read nor run
    device, default = _device_and_dtype()
    dtype = dtype or default
    model = load_transformers(CLIPVisionModel, path, config, torch.float32 if single_residual else dtype)
    if single_residual:
        halve_products(model, dtype)
    model.to(device)
    return _frozen_clip(model, _version(tensors_hash(model.state_dict())[:16], model))


def _frozen_clip(model: CLIPVisionModel, fingerprint: str) -> FrozenVision:
    """Of a `CLIPVisionModel` without its last layer."""
    config: Any = model.config
    tokens, size = 1 + (config.image_size // config.patch_size) ** 2, config.image_size
    frozen = ClipViT(model, size)
    return FrozenVision(frozen, config.hidden_size, tokens, fingerprint, CLIP_MEAN, CLIP_STD, size)


def mini_clip_config() -> CLIPVisionConfig:
    """The miniature's CLIP ViT-L/14: narrower than `MiniViT`, as CLIP-L is than EVA-CLIP-g.

    Of another kind as well: patches of 8 x 8 pixels embedded one by one, without convolutions between them, a
    LayerNorm in front of the layers, quick-GELU, and features from the second-to-last of its layers.
    """
    return CLIPVisionConfig(
        image_size=64,
        patch_size=8,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
    )


def clip_names(model: nn.Module) -> dict[str, str]:
    """Name in the model -> name in a published file, whose prefix some versions of transformers take off."""
    return {key: f"vision_model.{key.removeprefix('vision_model.')}" for key in model.state_dict()}


def load_mini_clip(path: Path) -> FrozenVision:
    """The encoder in a file of `evlgen.miniworld.pretrain`, with the tensor names of published CLIPs."""
    config = mini_clip_config()
    config.num_hidden_layers -= 1
    model = CLIPVisionModel(config)
    state = load_file(path)
    model.load_state_dict({key: state[name].float() for key, name in clip_names(model).items()})
    return _frozen_clip(model.eval().requires_grad_(False), file_hash(path))

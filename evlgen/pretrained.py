"""Where the weights of the paper's models come from: the one table, and how they are found and checked."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from evlgen.errors import UserError


@dataclass(frozen=True)
class Source:
    """Sub-path below ``EVLGEN_WEIGHTS`` and, for the message, where a user gets the weights."""

    path: str
    origin: str


SOURCES = {
    "eva-clip-g": Source("eva_vit_g.pth", "LAVIS's model zoo, or the folder of Salesforce/blip2-opt-2.7b"),
}


def find_weights(name: str) -> Path:
    """File or folder of the weights called ``name``: a path as it is, else below ``EVLGEN_WEIGHTS``.

    Raises:
        UserError: nothing is there; the message says what is missing, whence it comes, how to point to it.
    """
    source = SOURCES.get(name)
    if source is None:
        path = Path(name).expanduser()
        if path.exists():
            return path
        raise UserError(f"weights {name!r}: neither a path nor one of {', '.join(SOURCES)}")
    root = os.environ.get("EVLGEN_WEIGHTS", "")
    path = Path(root).expanduser() / source.path
    if root and path.exists():
        return path
    where = f"{path} is missing" if root else f"{source.path} is wanted and EVLGEN_WEIGHTS is not set"
    raise UserError(
        f"weights {name!r}: {where}; get it from {source.origin}, put it into a folder and set "
        "EVLGEN_WEIGHTS to that folder, or give its path as the name"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a .pth file (no pickled code), a .safetensors file, or a folder of the latter.

    Raises:
        UserError: it holds no such file, or cannot be read as tensors.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no .safetensors file in this folder")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                part = load_file(file)
            else:
                part = torch.load(file, map_location="cpu", weights_only=True)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise UserError(f"{file}: not a readable weights file; fetch it again") from error
        if not isinstance(part, dict):
            raise UserError(f"{file}: holds no dictionary of tensors")
        state |= part.get("model", part)
    return state


def load_checked(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy ``state`` into ``model``; keys that the model lacks are left out.

    Raises:
        UserError: names the first key that is missing or of another shape, with both shapes.
    """
    if (wrong := first_mismatch(model, state)) is not None:
        key, found, wanted = wrong
        shape = "none" if found is None else found
        raise UserError(f"{path}: another architecture: {key} has shape {shape}, wanted {wanted}")
    model.load_state_dict({key: state[key] for key in model.state_dict()})


def first_mismatch(
    model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[str, tuple[int, ...] | None, tuple[int, ...]] | None:
    """The first key of ``model`` that ``state`` lacks or has in another shape, None if it has them all.

    Returns:
        The key, its shape in ``state`` (None if it is missing), and the shape that ``model`` wants.
    """
    for key, value in model.state_dict().items():
        found = tuple(state[key].shape) if key in state else None
        if found != tuple(value.shape):
            return key, found, tuple(value.shape)
    return None

"""Weights files and folders of published models: read without executing code, and checked."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from evlgen.errors import UserError
from evlgen.runtime.files import sha256_of
from evlgen.runtime.sources import WEIGHTS_PATTERNS, weights_files


def read_state(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of a .pth or .bin file (no pickled code), a .safetensors file, or a model's folder of either.

    Args:
        prefix: of safetensors, only the tensors whose names begin with it are read, if any does: a model's
            image encoder is read without its language model.

    Raises:
        UserError: it holds no such file, or cannot be read as tensors.
    """
    files = weights_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no weights in this folder ({WEIGHTS_PATTERNS})")
    if files[0].suffix != ".safetensors":
        return {key: value for file in files for key, value in _read_pickled(file).items()}
    owner: dict[str, Any] = {}
    for file in files:
        with _reading(file):
            opened = safe_open(file, framework="pt")
            owner |= dict.fromkeys(opened.keys(), opened)
    wanted = [key for key in owner if key.startswith(prefix)] or list(owner)
    with _reading(path):
        return {key: owner[key].get_tensor(key) for key in wanted}


def _read_pickled(file: Path) -> dict[str, Tensor]:
    """What a file of ``torch.save`` holds, of a training checkpoint the weights; no code is executed."""
    with _reading(file):
        # A memory map, where the file's format allows it: who wants shapes alone reads no weights.
        mapped = zipfile.is_zipfile(file)
        with file.open("rb") as opened:
            if not mapped and opened.read(1) != b"\x80":
                raise pickle.UnpicklingError("no file of torch.save")
        part = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(part, dict):
        raise UserError(f"{file}: holds no dictionary of tensors")
    return dict(part.get("model", part))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what a file raises that holds no weights, or damaged ones, into one line."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        refuse_pointer(file)
        if "Unsupported" in str(error):  # the global, class or operand that torch refuses to execute
            raise UserError(
                f"{file}: holds Python objects beside its tensors, which are not loaded since that would "
                "execute its code; save the tensors alone, as safetensors"
            ) from error
        raise UserError(f"{file}: not a readable weights file; fetch it again") from error


def refuse_pointer(file: Path) -> None:
    """Say so where git has left the address of a large file in its place.

    Raises:
        UserError: it is one; the message says how to fetch it.
    """
    if file.is_file():
        with file.open("rb") as opened:
            if opened.read(32).startswith(b"version https://git-lfs"):
                raise UserError(
                    f"{file}: a pointer of git-lfs, not the weights; run `git lfs pull` in its folder"
                )


# ------------------------------------------------------------------------ models of `transformers`


def read_config(path: Path) -> Any:
    """The `transformers` configuration of a model's folder.

    Raises:
        UserError: there is no ``config.json``, or it is of no known architecture.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: not a folder of a model: it has no config.json")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}/config.json: no model that transformers knows ({first_line(error)})"
        ) from error


def check_folder(path: Path) -> None:
    """Check that a model's folder has weights, without reading them.

    Raises:
        UserError: it has none, or pointers of git-lfs in their place.
    """
    files = weights_files(path)
    if not files:
        raise UserError(f"{path}: no weights in this folder ({WEIGHTS_PATTERNS})")
    for file in files:
        refuse_pointer(file)


def load_transformers(model_class: Any, path: Path, config: Any, dtype: torch.dtype) -> Any:
    """A model of `transformers` from its folder, frozen and in eval mode; nothing is fetched or executed.

    Safetensors are preferred; ``pytorch_model*.bin`` is read as tensors only (``weights_only``).

    Args:
        model_class: has ``from_pretrained``.
        config: from `read_config`, or a part of it.

    Raises:
        UserError: no weights, weights that cannot be read, or weights of another architecture.
    """
    check_folder(path)
    try:
        model, report = model_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are reported
            output_loading_info=True,
        )
    except Exception as error:  # any file may be unreadable
        raise UserError(f"{path}: its weights cannot be loaded ({first_line(error)})") from error
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{path}: another architecture: {key} has shape {tuple(found)}, expected {tuple(expected)}"
        )
    for key in sorted(report["missing_keys"]):
        raise UserError(f"{path}: another architecture: {key} is missing")
    return model.eval().requires_grad_(False)


def weights_fingerprint(path: Path) -> str:
    """16 hex digits that stand for the names and bytes of the weights files in a folder."""
    text = "".join(f"{file.name} {sha256_of(file)}\n" for file in weights_files(path))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 over names and bytes of tensors: equal only for equal bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------ state dicts


def load_checked(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy ``state`` into ``model``; keys that the model lacks are left out.

    Raises:
        UserError: names the first key that is missing or of another shape, with both shapes.
    """
    if (wrong := first_mismatch(model, state)) is not None:
        key, found, wanted = wrong
        shape = "none" if found is None else found
        raise UserError(f"{path}: another architecture: {key} has shape {shape}, expected {wanted}")
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

"""What runs need before they can begin: data files and weights, and what of it is missing."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable

from evlgen import limits
from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs.identity import text_reader
from evlgen.runtime import sources


def missing(runs: Iterable[RunConfig]) -> list[str]:
    """A line for each thing that is missing, with what to do about it; each once."""
    from evlgen.data import worlds  # imports numpy, which a look at a sweep does not need

    lines: dict[str, None] = {}
    for config in runs:
        weights = _weights(config)
        lines |= dict.fromkeys([*weights, *(() if weights else _widths(config)), *worlds.problems(config)])
    return list(lines)


def check(runs: Iterable[RunConfig], scale: str, more: Iterable[str] = ()) -> None:
    """Nothing is missing.

    Args:
        more: lines on other things that are.

    Raises:
        UserError: all that is, a line each.
    """
    lines = [*missing(runs), *more]
    if len(lines) == 1:
        raise UserError(f"--scale {scale}: {lines[0]}")
    if lines:
        raise UserError(f"--scale {scale}: {len(lines)} things are missing:\n" + "\n".join(lines))


def _weights(config: RunConfig) -> list[str]:
    wanted = {"vision": config.vision, "language": config.language, "bert": config.connector.init}
    if config.stage == "represent" and config.data.world != "miniworld":
        wanted |= {"language": "", "text": text_reader(config)}
    lines = []
    for role, name in wanted.items():
        if not sources.is_shipped(name):
            try:
                look_at(role, name)
            except UserError as error:
                lines.append(str(error))
    return lines


def _widths(config: RunConfig) -> list[str]:
    """A line if the connector cannot take what the image encoder gives, by the encoder's own files."""
    if sources.is_shipped(config.vision):
        return []  # `evlgen.limits` knows these
    (width, tokens), wanted = _features(config.vision), config.connector.input_width
    if width is not None and width != wanted:
        return [
            f"connector: takes image features of width {wanted}, {config.vision} gives {width}; "
            f"give --set connector.input_width={width}"
        ]
    try:
        limits.check(dataclasses.replace(config, init_from=None), tokens)
    except UserError as error:
        return [str(error)]
    return []


@functools.cache
def _features(name: str) -> tuple[int | None, int | None]:
    """Width and number of the features that an encoder gives of an image."""
    from evlgen.backbones.vision import feature_tokens, feature_width  # imports torch

    return feature_width(name), feature_tokens(name)


def of_this_machine(runs: Iterable[RunConfig]) -> list[str]:
    """A line for what runs ask of the machine that trains them and this one does not have."""
    wants_half = any(config.optim.precision == "fp16" for config in runs)
    if not wants_half and os.environ.get("EVLGEN_DEVICE", "auto") in ("auto", "cpu"):  # always there
        return []
    from evlgen.runtime.device import chosen  # imports torch: seconds, which other runs need not wait for

    try:
        device = chosen()
    except UserError as error:
        return [str(error)]
    if not wants_half or device.type != "cpu":
        return []
    return [
        "optim.precision fp16: needs a GPU, and this machine has none; give --set optim.precision=bf16 or "
        "fp32, or --executor slurm"
    ]


@functools.cache
def look_at(role: str, name: str) -> None:
    """Look at what is there of a model, without reading its weights; once for all runs.

    Raises:
        UserError: something is missing.
    """
    if name in sources.PIP_MODELS:
        sources.pip_model_file(name)
        return
    if name in sources.SOURCES:
        sources.find_weights(name)
    # These import torch, which neither the miniature nor a list of what is missing needs.
    from evlgen.backbones import language, pretrained

    if role == "vision" or name.endswith((".safetensors", ".gguf")):
        path = sources.find_weights(name)
    elif role == "language":
        path = language.language_folder(name)
        language.text_tokenizer(name)
    else:
        path = language.bert_folder(name)
    if path.is_dir():
        pretrained.read_config(path)
        pretrained.check_folder(path)
    else:
        pretrained.refuse_pointer(path)

"""What runs need before they can begin: data files and weights, and what of it is missing."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runs.identity import text_reader
from evlgen.runtime import sources


def missing(runs: Iterable[RunConfig]) -> list[str]:
    """A line for each thing that is missing, with what to do about it; each once."""
    from evlgen.data import worlds  # imports numpy, which a look at a sweep does not need

    lines: dict[str, None] = {}
    for config in runs:
        lines |= dict.fromkeys([*_weights(config), *worlds.problems(config)])
    return list(lines)


def check(runs: Iterable[RunConfig], scale: str) -> None:
    """Nothing is missing.

    Raises:
        UserError: all that is, a line each.
    """
    lines = missing(runs)
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

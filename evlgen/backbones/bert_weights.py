"""Reads the weights of the BERT that a connector starts from."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from evlgen.backbones.language import bert_folder
from evlgen.backbones.pretrained import read_config, read_state
from evlgen.errors import UserError
from evlgen.runs.identity import MINI_BERT
from evlgen.runtime.sources import shipped_file


def bert_weights(name: str, num_heads: int) -> dict[str, Tensor]:
    """The tensors of a BERT: the miniature's, or from a safetensors file or a folder.

    They are taken as they are in the file, so that a checkpoint's masked LM head is among them.

    Args:
        name: ``mini-bert``, a path ending in ``.safetensors``, or a name that
            `evlgen.backbones.language.bert_folder` knows.
        num_heads: attention heads that the connector has.

    Raises:
        UserError: there are no such weights, or they are not of a BERT with GELU and this number of heads.
    """
    if name == MINI_BERT:
        return load_file(shipped_file("mini-bert.safetensors"))
    if name.endswith(".safetensors"):
        if not Path(name).exists():
            raise UserError(f"connector.init {name!r}: no such file")
        return load_file(name)
    try:
        path = bert_folder(name)
    except UserError as error:
        raise UserError(f"connector.init: {error}") from error
    config = read_config(path)
    if config.model_type != "bert":
        raise UserError(f"connector.init {name!r}: is no BERT but of the architecture {config.model_type!r}")
    if config.num_attention_heads != num_heads:  # the shapes of its weights do not show it
        raise UserError(
            f"connector.init {name!r}: has {config.num_attention_heads} heads, the config wants num_heads = "
            f"{num_heads}"
        )
    if config.hidden_act not in ("gelu", "gelu_python"):  # nor of what is computed between them
        raise UserError(f"connector.init {name!r}: has the activation {config.hidden_act!r}, expected 'gelu'")
    return read_state(path)

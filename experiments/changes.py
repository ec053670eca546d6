"""What ``--set key=value`` changes in a run, and in the stage that it starts from."""

from __future__ import annotations

import dataclasses

from evlgen.config import RunConfig, with_value
from evlgen.errors import UserError

# Changed in the stage that a run starts from as well, as is everything under ``data``: image features, and
# what a machine has room for. A rate or a number of updates belongs to one stage alone.
_BOTH_STAGES = {
    "vision",
    "optim.batch_size",
    "optim.precision",
    "optim.accumulate",
    "optim.gradient_checkpointing",
}


def changed(config: RunConfig, changes: tuple[str, ...]) -> RunConfig:
    """The run with each of ``changes`` (``optim.lr=1e-3``) made in turn.

    Raises:
        UserError: no ``=``, an unknown key, or a value of the wrong type.
    """
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise UserError(f"--set {change}: give key=value")
        config = _with_value(config, key, value)
    return config


def _with_value(config: RunConfig, key: str, value: str) -> RunConfig:
    config = with_value(config, key, value)
    if config.init_from is None or not (key in _BOTH_STAGES or key.startswith("data.")):
        return config
    return dataclasses.replace(config, init_from=_with_value(config.init_from, key, value))

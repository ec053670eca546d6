"""Changes of a run: by experiments, and by ``--set key=value``."""

from __future__ import annotations

import dataclasses
from typing import Any

from evlgen.config import RunConfig, with_value
from evlgen.errors import UserError

# Changed in the stage that a run starts from as well, as is everything under ``data``: image features, and
# what a machine has room for. Conventions hold for both. A rate or a number of updates belongs to one alone.
_BOTH_STAGES = {
    "vision",
    "conventions",
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


def with_connector(config: RunConfig, **changes: Any) -> RunConfig:
    """The run with other values in its connector's configuration."""
    return dataclasses.replace(config, connector=dataclasses.replace(config.connector, **changes))


def with_setting(config: RunConfig, init: str, lr: float, warmup: float | None = None) -> RunConfig:
    """The run with other initial weights, another peak learning rate and another warm-up.

    The ends of the learning rate's schedule stay in proportion to its peak.

    Args:
        warmup: share of the updates; None keeps the warm-up of the run.
    """
    steps = config.optim.warmup_steps if warmup is None else max(1, round(config.optim.steps * warmup))
    optim = dataclasses.replace(
        config.optim,
        lr=lr,
        warmup_lr=lr / 100,
        min_lr=lr / 10,
        warmup_steps=steps,
    )
    return dataclasses.replace(
        config, optim=optim, connector=dataclasses.replace(config.connector, init=init)
    )

"""Changes of a run: by experiments, and by ``--set key=value``."""

from __future__ import annotations

import dataclasses
from typing import Any

from evlgen.config import RunConfig, with_value
from evlgen.errors import UserError
from evlgen.runtime.paths import absolute
from evlgen.runtime.sources import PIP_MODELS, SOURCES, is_shipped

# Changed in the stage that a run starts from as well, as is everything under ``data`` and ``connector``: the
# second stage goes on with the first one's connector on the same image features, and what a machine has room
# for holds for both, as do conventions. A rate or a number of updates belongs to one stage alone.
_BOTH_STAGES = {
    "vision",
    "conventions",
    "optim.batch_size",
    "optim.precision",
    "optim.accumulate",
    "optim.gradient_checkpointing",
    "evaluation.validation",
}
STAGE1 = "stage1."  # in front of a key: of the stage 1 that a run starts from
_WEIGHTS = ("vision", "language", "connector.init")
UPDATES = "updates"  # a share of each run's updates, instead of a field


def changed(config: RunConfig, changes: tuple[str, ...]) -> RunConfig:
    """The run with each of ``changes`` made in turn.

    Args:
        changes: ``optim.lr=1e-3`` changes a field, ``stage1.optim.lr=1e-3`` that of the stage 1 that the run
            starts from, if it starts from one; ``updates=0.001`` makes it `shortened`.

    Raises:
        UserError: no ``=``, an unknown key, or a value of the wrong type.
    """
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator:
            raise UserError(f"--set {change}: give key=value")
        if key.removeprefix(STAGE1) in _WEIGHTS:
            value = _settled(value, f"--set {key}")
        if key == "objectives" and config.stage == "caption":  # it would train the same under another id
            raise UserError(
                "--set objectives: they are the losses of stage 1; give --set stage1.objectives for the rows "
                "that start from one"
            )
        if key == UPDATES:
            config = shortened(config, _share(value))
        elif key.startswith(STAGE1):
            if config.init_from is not None:
                first = _first_with_value(config.init_from, key, value)
                config = dataclasses.replace(config, init_from=first)
        else:
            config = _with_value(config, key, value)
    return config


def _first_with_value(first: RunConfig, key: str, value: str) -> RunConfig:
    within = key.removeprefix(STAGE1)
    try:
        return with_value(first, within, value)
    except UserError as error:  # name the key as it was typed
        raise UserError(str(error).replace(f"--set {within}", f"--set {key}", 1)) from None


def _with_value(config: RunConfig, key: str, value: str) -> RunConfig:
    config = with_value(config, key, value)
    if config.init_from is None or not (key in _BOTH_STAGES or key.startswith(("data.", "connector."))):
        return config
    return dataclasses.replace(config, init_from=_with_value(config.init_from, key, value))


def _settled(name: str, where: str) -> str:
    """The name of a model, or its path made absolute: jobs and readers of a run's folder are elsewhere."""
    if not name.strip():  # a shell's variable that is not set; as a path it would be the current folder
        raise UserError(f"{where}: is empty; give a name or a path, or leave it out")
    if is_shipped(name) or name in SOURCES or name in PIP_MODELS:
        return name
    path = absolute(name, where)
    # What is not there may be in the cache of the Hugging Face hub, unless it can only be a path.
    return str(path) if path.exists() or name.startswith((".", "~")) else name


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"--set updates={text}: give a share of every run's updates, above 0 and up to 1")
    return share


def shortened(config: RunConfig, share: float) -> RunConfig:
    """The run and the stage 1 that it starts from with a share of their updates, two at least.

    Warm-up, validations and checkpoints stay where they are in proportion.
    """

    def part(updates: int) -> int:
        return max(1, round(updates * share))

    old = config.optim
    optim = dataclasses.replace(
        old,
        steps=max(2, part(old.steps)),
        warmup_steps=min(old.warmup_steps, part(old.warmup_steps)),
        eval_every=part(old.eval_every),
        checkpoint_every=part(old.checkpoint_every),
    )
    first = None if config.init_from is None else shortened(config.init_from, share)
    return dataclasses.replace(config, optim=optim, init_from=first)


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

"""The training loop of both stages: learning rate, precision, validation, checkpoints, log.

A step is a pure function of the state before it and of (config, step): which pairs it sees and what its
dropout, random matchings and sampled negatives are comes from (seed, step) and not from a generator's past.
So a run that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evlgen.checkpoints import CHECKSUMS, CURRENT, load_checkpoint, save_checkpoint
from evlgen.config import OptimConfig, RunConfig, to_json
from evlgen.data.pairs import Batch, TrainingData, draw_batch, load_training_data
from evlgen.data.sampling import NOISE, WEIGHTS, hashed
from evlgen.diagnostics import validate
from evlgen.errors import UserError
from evlgen.files import disk_errors, remove_leftovers, write_atomic
from evlgen.model import (
    CaptionModel,
    Model,
    build_model,
    feature_width,
    init_from_stage1,
    parameter_counts,
    save_trained,
)

__all__ = ["Progress", "Stop", "TrainingData", "learning_rate", "load_training_data", "train"]

log = logging.getLogger(__name__)

METRICS, CONNECTOR = "metrics.jsonl", "connector.safetensors"
_LOG_POINTS = 150  # lines in a run's log, roughly
_PROGRESS_SECONDS = 0.3  # between two reports of progress


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        phase: ``train``, ``validate`` or ``evaluate``.
        loss: the last one logged (nats), None if there is none.
        rate: samples a second.
    """

    phase: str
    step: int
    steps: int
    loss: float | None
    rate: float


class Stop(Exception):
    """Raised by a ``progress`` function: end the training after this step, with a checkpoint of it."""


# ------------------------------------------------------------------------------------------ optimiser


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Learning rate of update ``step`` (from 0): linear warm-up, then cosine (PAPER).

    ``warmup_lr`` at step 0, ``lr`` at ``warmup_steps``, and from there half a cosine down to ``min_lr``, for
    which the turn would come at ``steps``.
    """
    if step < optim.warmup_steps:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * step / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: not on biases, normalisation weights, or other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


# ----------------------------------------------------------------------------------------------- loop


@dataclass
class _State:
    """All that a step changes."""

    model: Model
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    step: int = 0
    validation: dict[str, float] = field(default_factory=dict)


class _Stopwatch:
    """Seconds spent on training."""

    def __init__(self) -> None:
        self._before, self._since = 0.0, time.perf_counter()

    def set(self, seconds: float) -> None:
        self._before, self._since = seconds, time.perf_counter()

    def read(self) -> float:
        return self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        seconds = self.read()
        yield
        self.set(seconds)


def train(
    config: RunConfig,
    folder: Path,
    data: TrainingData,
    progress: Callable[[Progress], None] = lambda _: None,
    init_folder: Path | None = None,
    model: Model | None = None,
) -> dict[str, float]:
    """Train a run, or what is left of it; both stages.

    Writes ``metrics.jsonl``, checkpoints and, at the end, ``connector.safetensors`` (the trained parts).

    Args:
        folder: the run's folder; a checkpoint in it is taken up.
        data: from `load_training_data`.
        progress: called now and then. What it raises ends the training; `Stop` does after a checkpoint.
        init_folder: folder of the finished ``represent`` run to start from, for a config with ``init_from``.
        model: the model to train, instead of the one that ``config`` describes.

    Returns:
        ``steps``; ``samples``, the pairs seen in them; ``train_seconds``, over all resumptions and without
        validation; ``resumed_from``, the step at which this call took up the work; ``trained_parameters``;
        and the measurements at the end (`evlgen.diagnostics.validate`).

    Raises:
        UserError: config and data do not fit, the checkpoint is another run's, or the disk is full.
        FloatingPointError: the loss is no longer a number.
        Stop: ``progress`` asked for it; the checkpoint is written, and a later call ends with the same bits.
    """
    optim = config.optim
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check(config, data, device, init_folder)
    state = _begin(config, model, device, init_folder)
    watch = _Stopwatch()
    identity = {"config": json.dumps(to_json(config), sort_keys=True), "data": data.fingerprint}
    for name in (CURRENT, CHECKSUMS, METRICS, CONNECTOR):
        remove_leftovers(folder / name)
    saved = load_checkpoint(folder)
    losses: list[Tensor] = []  # since the last line of the log
    if saved is not None:
        watch.set(_restore(state, saved, identity, folder))
        losses = [loss.to(device) for loss in saved.get("losses", ())]
    start = state.step
    _cut_metrics(folder / METRICS, start)

    every = max(1, optim.steps // _LOG_POINTS)
    last_loss: float | None = None
    stop: Stop | None = None
    logged_at = watch.read()
    reported_at = pace = 0.0
    while state.step < optim.steps:
        step = state.step
        is_last = step + 1 == optim.steps
        is_validation = is_last or (step + 1) % optim.eval_every == 0
        is_checkpoint = is_last or (step + 1) % optim.checkpoint_every == 0
        # A checkpoint that was planned is at a line of the log; only one at a stop holds losses in between.
        is_logged = is_checkpoint or is_validation or step == 0 or (step + 1) % every == 0

        batch = draw_batch(data.pools, config.seed, step, optim.batch_size).to(device)
        loss, norm = _update(state, batch, config, device, wants_norm=is_logged)
        losses.append(loss)

        line: dict[str, float] = {}
        if is_logged:
            last_loss = float(torch.stack(losses).mean())  # waits for the device
            if not math.isfinite(last_loss):
                raise FloatingPointError(
                    f"the loss is {last_loss} at step {state.step}; try a lower optim.lr than {optim.lr:g}"
                )
            pace = len(losses) * optim.batch_size / max(watch.read() - logged_at, 1e-9)
            line = {
                "step": state.step,
                "loss": last_loss,
                "lr": learning_rate(step, optim),
                "grad_norm": float(norm),
                "samples_per_second": pace,
            }
            losses.clear()
            logged_at = watch.read()
        if is_logged or time.monotonic() - reported_at > _PROGRESS_SECONDS:
            reported_at = time.monotonic()
            stop = _report(progress, Progress("train", state.step, optim.steps, last_loss, pace))
        if is_validation:
            with watch.paused():
                now = Progress("validate", state.step, optim.steps, last_loss, pace)
                stop = _report(progress, now) or stop
                with autocast(device, optim.precision):
                    state.validation = validate(state.model, data.validation)
            line |= state.validation
        if line or stop is not None:
            _append_metrics(folder / METRICS, line, to_disk=is_checkpoint or stop is not None)
        if is_checkpoint or stop is not None:
            save_checkpoint(folder, {**_snapshot(state, watch.read(), identity), "losses": losses})
        if stop is not None:
            raise stop

    config_hash = hashlib.sha256(identity["config"].encode()).hexdigest()[:16]
    save_trained(state.model, folder / CONNECTOR, {**identity, "config_hash": config_hash})
    return {
        "steps": state.step,
        "samples": state.step * optim.batch_size,
        "train_seconds": watch.read(),
        "resumed_from": start,
        "trained_parameters": sum(p.numel() for p in state.model.parameters()),
        **state.validation,
    }


def _report(progress: Callable[[Progress], None], now: Progress) -> Stop | None:
    """Tell where the run is; returns the wish to stop, which is for the end of the step."""
    try:
        progress(now)
    except Stop as stop:
        return stop
    return None


def _check(config: RunConfig, data: TrainingData, device: torch.device, init_folder: Path | None) -> None:
    optim = config.optim
    for name in ("steps", "batch_size", "eval_every", "checkpoint_every"):
        if getattr(optim, name) < 1:
            raise UserError(f"optim.{name} is {getattr(optim, name)}: it must be 1 or more")
    if optim.precision == "fp16" and device.type != "cuda":
        raise UserError("optim.precision fp16: needs a GPU; use bf16 or fp32")
    wanted, width = feature_width(config.connector), data.validation.features.shape[-1]
    if wanted != width:
        raise UserError(f"connector: takes image features of width {wanted}, {config.vision} gives {width}")
    if len(data.validation) < 2:
        raise UserError("evaluation.validation: two pairs at least, to shuffle them")
    if (config.init_from is None) != (init_folder is None):
        raise UserError("init_from: needs the folder of the run that it names, and no other run needs one")


def _begin(config: RunConfig, model: Model | None, device: torch.device, init_folder: Path | None) -> _State:
    """Model and optimiser at step 0."""
    if model is None:
        torch.manual_seed(_seed(WEIGHTS, config.seed))
        model = build_model(config)
    if init_folder is not None:
        if not isinstance(model, CaptionModel):
            raise UserError("init_from: only a run of the stage 'caption' can start from stage 1")
        init_from_stage1(model, init_folder / CONNECTOR)
    model.to(device).train()
    if isinstance(model, CaptionModel):
        model.language.model.to(device)
    log.info("parameters: %s", ", ".join(f"{part} {n:,}" for part, n in parameter_counts(model).items()))
    scaler = torch.amp.GradScaler(device.type, enabled=config.optim.precision == "fp16")
    return _State(model, build_optimizer(model, config.optim), scaler)


def _update(
    state: _State, batch: Batch, config: RunConfig, device: torch.device, wants_norm: bool
) -> tuple[Tensor, Tensor]:
    """One update. Returns the loss, and the norm of the gradient where it is wanted or clipped."""
    optim = config.optim
    torch.manual_seed(_seed(NOISE, config.seed, state.step))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, optim)
    with autocast(device, optim.precision):
        loss = state.model(batch.features, batch.text_ids, batch.text_mask)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    norm = loss.new_zeros(())
    if optim.clip_norm or wants_norm:
        trained = [p for group in state.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, optim.clip_norm or math.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    return loss.detach(), norm


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for ``bf16`` and ``fp16``, nothing for ``fp32``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _seed(*key: int) -> int:
    """Seed for torch's generators, well apart for different keys."""
    return int(hashed(*key)[0]) >> 1


# ------------------------------------------------------------------------------ checkpoints and log


def _snapshot(state: _State, seconds: float, identity: dict[str, str]) -> dict[str, Any]:
    """What a checkpoint holds. Generators need not be saved: every step seeds them itself."""
    return {
        **identity,
        "step": state.step,
        "train_seconds": seconds,
        "validation": state.validation,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
    }


def _restore(state: _State, saved: dict[str, Any], identity: dict[str, str], folder: Path) -> float:
    """Put a checkpoint's content in place; returns the seconds that were spent until then.

    Raises:
        UserError: the checkpoint is of another config or of other data.
    """
    if any(saved[key] != value for key, value in identity.items()):
        raise UserError(f"{folder}: has a checkpoint of another run or of other data; use an empty folder")
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.scaler.load_state_dict(saved["scaler"])
    state.step, state.validation = saved["step"], saved["validation"]
    log.info("%s: taken up at step %d", folder, state.step)
    return float(saved["train_seconds"])


def _append_metrics(path: Path, line: dict[str, float], to_disk: bool) -> None:
    with disk_errors(path), path.open("a") as file:
        if line:
            file.write(json.dumps(line) + "\n")
        if to_disk:  # a checkpoint must not outlive the lines before it
            file.flush()
            os.fsync(file.fileno())


def _cut_metrics(path: Path, step: int) -> None:
    """Leave the lines up to ``step``: what came after the checkpoint will be written again."""
    kept = [json.dumps(line) + "\n" for line in read_metrics(path.parent) if line["step"] <= step]
    write_atomic(path, "".join(kept).encode())


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's ``metrics.jsonl``; a line that a kill has cut short is left out."""
    lines = []
    try:
        text = (folder / METRICS).read_text()
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines

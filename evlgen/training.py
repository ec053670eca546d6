"""The training loop of both stages: learning rate, precision, validation, checkpoints, log.

A step is a pure function of the state before it and of (config, step): which pairs it sees and what its
dropout, random matchings and sampled negatives are comes from (seed, step) and not from a generator's past.
So a run that was killed and resumed ends with the same bits as one that was not.

The batch of a step is the same set of pairs however many processes train (see `evlgen.runtime.distributed`)
and however many parts it is accumulated from, and so is the loss: the mean over the text tokens of all of it.
Part m of rank k is a run of its rows, m * size + k in order, so the ranks' parts m lie side by side.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evlgen.backbones.language import forget_languages
from evlgen.backbones.vision import build_vision
from evlgen.config import OptimConfig, RunConfig, to_json
from evlgen.data.pairs import (
    Batch,
    TrainingData,
    draw_batch,
    load_training_data,
    plain_batch,
    text_tokens,
)
from evlgen.data.sampling import NOISE, WEIGHTS, hashed
from evlgen.data.stream import Part, parts_of_steps
from evlgen.diagnostics import validate
from evlgen.errors import UserError
from evlgen.model import (
    CaptionModel,
    Model,
    build_model,
    init_from_stage1,
    parameter_counts,
    save_trained,
)
from evlgen.runtime.checkpoints import CHECKSUMS, CURRENT, load_checkpoint, save_checkpoint
from evlgen.runtime.distributed import Ranks, joined, shard, transformer_layers
from evlgen.runtime.files import disk_errors, remove_leftovers, write_atomic
from evlgen.stage1 import Stage1Model, add_present, check_objectives
from evlgen.throughput import peak_flops, training_flops

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
    recomputed: Sequence[nn.Module] = ()  # whose activations are not kept
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

    Where a process group is open (`evlgen.runtime.distributed.init_from_environment`), all its ranks call
    this with
    the same arguments and a folder that all of them see. Rank 0 writes and reports progress; all return the
    same, once the files are there.

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
        Stop: ``progress`` of rank 0 asked for it; the checkpoint is written, and a later call ends with the
            same bits. All ranks raise it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with joined() as ranks:
        _check(config, data, device, init_folder, ranks)
        state = _begin(config, model, device, init_folder, ranks)
        return _train(config, folder, data, progress, state, device, ranks)


def _train(
    config: RunConfig,
    folder: Path,
    data: TrainingData,
    progress: Callable[[Progress], None],
    state: _State,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, float]:
    optim = config.optim
    watch = _Stopwatch()
    identity = {"config": json.dumps(to_json(config), sort_keys=True), "data": data.fingerprint}
    saved = _load_newest(folder, ranks)
    losses: list[Tensor] = []  # since the last line of the log
    if saved is not None:
        watch.set(_restore(state, saved, identity, folder, ranks))
        losses = [loss.to(device) * ranks.is_first for loss in saved.get("losses", ())]
        del saved
    ranks.copy_from_first(state.model)
    start = state.step
    if ranks.is_first:
        _cut_metrics(folder / METRICS, start)
    parts = _parts(optim, ranks)
    peak = peak_flops(device, optim.precision)
    flops = 0.0  # of a pair
    if peak is not None and start < optim.steps:
        rows = max(2, optim.batch_size // (optim.accumulate * ranks.size))
        if data.stream is None:
            batch = draw_batch(data.pools, config.seed, start, optim.batch_size, slice(rows)).to(device)
        else:
            batch = plain_batch(data.validation, np.arange(rows) % len(data.validation)).to(device)
        with watch.paused(), autocast(device, optim.precision):
            flops = training_flops(state.model, batch)

    reader = _cached_steps if data.stream is None else _streamed_steps
    steps = reader(config, data, range(start, optim.steps), parts, device, ranks)
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

        batches, tokens = next(steps)
        loss, norm = _update(state, batches, tokens, config, device, ranks, wants_norm=is_logged)
        losses.append(loss)

        line: dict[str, float] = {}
        if is_logged:
            last_loss = float(ranks.sum(torch.stack(losses).mean()))  # waits for the device
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
            if peak is not None:
                line["mfu"] = pace * flops / (peak * ranks.size)
            if state.scaler.is_enabled():
                line["loss_scale"] = state.scaler.get_scale()
                if not math.isfinite(line["grad_norm"]):  # the scaler has left this update out
                    del line["grad_norm"]
            losses.clear()
            logged_at = watch.read()
        if ranks.is_first and (is_logged or time.monotonic() - reported_at > _PROGRESS_SECONDS):
            reported_at = time.monotonic()
            stop = _report(progress, Progress("train", state.step, optim.steps, last_loss, pace), ranks)
        if is_validation:
            with watch.paused():
                now = Progress("validate", state.step, optim.steps, last_loss, pace)
                stop = _report(progress, now, ranks) or stop
                state.validation = _validate(state, data, config, device, ranks)
            line |= state.validation
        stops: bool = ranks.broadcast(stop is not None)
        if ranks.is_first and (line or stops):
            _append_metrics(folder / METRICS, line, to_disk=is_checkpoint or stops)
        if is_checkpoint or stops:
            whole = [ranks.sum(loss.clone()) for loss in losses]  # none but at a stop between two lines
            if ranks.is_first:
                save_checkpoint(folder, {**_snapshot(state, watch.read(), identity, ranks), "losses": whole})
        if stops:
            raise stop or Stop

    if ranks.is_first:
        config_hash = hashlib.sha256(identity["config"].encode()).hexdigest()[:16]
        save_trained(state.model, folder / CONNECTOR, {**identity, "config_hash": config_hash})
    result = {
        "steps": state.step,
        "samples": state.step * optim.batch_size,
        "train_seconds": watch.read(),
        "resumed_from": start,
        "trained_parameters": sum(p.numel() for p in state.model.parameters()),
        **state.validation,
    }
    told: dict[str, float] = ranks.broadcast(result)  # nobody leaves before the files are there
    return told


_Step = tuple[Iterable[Batch], int | None]


def _cached_steps(
    config: RunConfig,
    data: TrainingData,
    steps: range,
    parts: list[slice],
    device: torch.device,
    ranks: Ranks,
) -> Iterator[_Step]:
    """This rank's parts of each step's batch, and `_update`'s ``tokens``; features come from the cache."""
    size = config.optim.batch_size
    for step in steps:
        batches = (draw_batch(data.pools, config.seed, step, size, rows).to(device) for rows in parts)
        tokens = None
        if config.optim.accumulate * ranks.size > 1:
            tokens = text_tokens(data.pools, config.seed, step, size)
        yield batches, tokens


def _streamed_steps(
    config: RunConfig,
    data: TrainingData,
    steps: range,
    parts: list[slice],
    device: torch.device,
    ranks: Ranks,
) -> Iterator[_Step]:
    """As `_cached_steps`; images come decoded from other processes and are encoded in the step."""
    assert data.stream is not None
    encoder = build_vision(config.vision)

    def encoded(part: Part) -> Batch:
        with autocast(device, config.optim.precision):
            return part.encoded(encoder).to(device)

    for read in parts_of_steps(data.stream, config.seed, steps, config.optim.batch_size, parts):
        tokens = None
        if config.optim.accumulate * ranks.size > 1:
            tokens = int(ranks.sum(torch.tensor(sum(part.tokens for part in read), device=device)))
        yield (encoded(part) for part in read), tokens


def _report(progress: Callable[[Progress], None], now: Progress, ranks: Ranks) -> Stop | None:
    """Tell where the run is, on rank 0; returns the wish to stop, which is for the end of the step."""
    if not ranks.is_first:
        return None
    try:
        progress(now)
    except Stop as stop:
        return stop
    return None


def _parts(optim: OptimConfig, ranks: Ranks) -> list[slice]:
    """The rows of a step's batch that this rank computes, one slice for each part of the accumulation."""
    if optim.accumulate * ranks.size == 1:
        return [slice(None)]
    rows = optim.batch_size // (optim.accumulate * ranks.size)
    starts = [(part * ranks.size + ranks.index) * rows for part in range(optim.accumulate)]
    return [slice(start, start + rows) for start in starts]


def _validate(
    state: _State, data: TrainingData, config: RunConfig, device: torch.device, ranks: Ranks
) -> dict[str, float]:
    """Validation on rank 0, while the others wait; on all if the language model is spread over them."""
    together = config.optim.llm_placement == "shard"
    found: dict[str, float] = {}
    if ranks.is_first or together:
        with autocast(device, config.optim.precision):
            found = validate(state.model, data.validation)
    told: dict[str, float] = ranks.broadcast(found)
    return told


def _check(
    config: RunConfig, data: TrainingData, device: torch.device, init_folder: Path | None, ranks: Ranks
) -> None:
    optim = config.optim
    for name in ("steps", "batch_size", "eval_every", "checkpoint_every", "accumulate"):
        if getattr(optim, name) < 1:
            raise UserError(f"optim.{name} is {getattr(optim, name)}: it must be 1 or more")
    if optim.batch_size % (optim.accumulate * ranks.size):
        raise UserError(
            f"optim.batch_size {optim.batch_size}: cannot be split evenly over {ranks.size} processes and "
            f"optim.accumulate {optim.accumulate}; make it a multiple of {optim.accumulate * ranks.size}"
        )
    if optim.precision == "fp16" and device.type != "cuda":
        raise UserError("optim.precision fp16: needs a GPU; use bf16 or fp32")
    check_objectives(config.objectives)
    wanted, width = config.connector.input_width, data.validation.features.shape[-1]
    if wanted != width:
        raise UserError(f"connector: takes image features of width {wanted}, {config.vision} gives {width}")
    if len(data.validation) < 2:
        raise UserError("evaluation.validation: two pairs at least, to shuffle them")
    if (config.init_from is None) != (init_folder is None):
        raise UserError("init_from: needs the folder of the run that it names, and no other run needs one")


def _begin(
    config: RunConfig, model: Model | None, device: torch.device, init_folder: Path | None, ranks: Ranks
) -> _State:
    """Model and optimiser at step 0."""
    if model is None:
        model = untrained_model(config)
    if init_folder is not None:
        if not isinstance(model, CaptionModel):
            raise UserError("init_from: only a run of the stage 'caption' can start from stage 1")
        init_from_stage1(model, init_folder / CONNECTOR)
    model.to(device).train()
    if ranks.is_first:
        log.info("parameters: %s", ", ".join(f"{part} {n:,}" for part, n in parameter_counts(model).items()))
    if isinstance(model, Stage1Model):
        log.info("losses: %s", ", ".join(model.objectives))
    if isinstance(model, CaptionModel):
        if config.optim.llm_placement == "shard" and ranks.size > 1:
            forget_languages()  # whoever builds it next wants a whole one
            shard(model.language.model, ranks, device)
        else:
            model.language.model.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=config.optim.precision == "fp16")
    blocks = _blocks(model) if config.optim.gradient_checkpointing else ()
    return _State(model, build_optimizer(model, config.optim), scaler, blocks)


def untrained_model(config: RunConfig) -> Model:
    """The model that a run's training begins with, but for what it takes over from stage 1."""
    torch.manual_seed(_seed(WEIGHTS, config.seed))
    return build_model(config)


def _blocks(model: Model) -> list[nn.Module]:
    """What gradient checkpointing computes twice: the connector's blocks and the language model's layers."""
    blocks = list(model.connector.recomputed_blocks())
    return blocks + (transformer_layers(model.language.model) if isinstance(model, CaptionModel) else [])


@contextlib.contextmanager
def _recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Passes in here keep only the inputs of the blocks; their backward passes may come later.

    transformers' own gradient checkpointing works in training mode only, which would switch dropout on in a
    frozen language model.
    """
    for block in blocks:
        setattr(block, "forward", functools.partial(checkpoint, block.forward, use_reentrant=False))  # noqa: B010
    try:
        yield
    finally:
        for block in blocks:
            delattr(block, "forward")


def _update(
    state: _State,
    batches: Iterable[Batch],
    tokens: int | None,
    config: RunConfig,
    device: torch.device,
    ranks: Ranks,
    wants_norm: bool,
) -> tuple[Tensor, Tensor]:
    """One update.

    Args:
        batches: this rank's parts of the step's batch.
        tokens: text tokens of all parts of all ranks; None if there is one part and one rank.

    Returns:
        This rank's share of the loss, a summand, and the norm of the gradient where it is wanted or clipped.
    """
    optim = config.optim
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, optim)
    state.optimizer.zero_grad(set_to_none=True)
    total = None
    for part, batch in enumerate(batches):
        key = (NOISE, config.seed, state.step, *([part] if optim.accumulate > 1 else []))
        torch.manual_seed(_seed(*key, *([ranks.index] if ranks.size > 1 else [])))
        with autocast(device, optim.precision), _recomputed(state.recomputed):
            if tokens is None:
                loss = state.model(batch.features, batch.text_ids, batch.text_mask)
            else:
                negatives = torch.Generator(device).manual_seed(_seed(*key))  # the same on all ranks
                loss = _share_of_loss(state.model, batch, tokens, optim, negatives, ranks)
        state.scaler.scale(loss).backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    ranks.sum_gradients(trained)
    state.scaler.unscale_(state.optimizer)
    norm = total.new_zeros(())
    if optim.clip_norm or wants_norm:
        norm = nn.utils.clip_grad_norm_(trained, optim.clip_norm or math.inf)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.step += 1
    return total, norm


def _share_of_loss(
    model: Model, batch: Batch, tokens: int, optim: OptimConfig, negatives: torch.Generator, ranks: Ranks
) -> Tensor:
    """What a part of a rank adds to the loss of the step; the sum over parts and ranks is the loss."""
    own_tokens = batch.text_mask.sum()
    if isinstance(model, CaptionModel):
        return model(batch.features, batch.text_ids, batch.text_mask) * own_tokens / tokens
    losses = model.losses(batch.features, batch.text_ids, batch.text_mask, negatives, ranks)
    of_pairs = None  # a mean over pairs; that of the LM is one over tokens
    if losses.itc is not None or losses.itm is not None:
        of_pairs = add_present((losses.itc, losses.itm)) / (optim.accumulate * ranks.size)
    return add_present((of_pairs, None if losses.lm is None else losses.lm * own_tokens / tokens))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for ``bf16`` and ``fp16``, nothing for ``fp32``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _seed(*key: int) -> int:
    """Seed for torch's generators, well apart for different keys."""
    return int(hashed(*key)[0]) >> 1


# ------------------------------------------------------------------------------ checkpoints and log


def _load_newest(folder: Path, ranks: Ranks) -> dict[str, Any] | None:
    """The newest whole checkpoint, on every rank; rank 0 tidies up first what a kill has left.

    Raises:
        UserError: a rank does not see the checkpoint that rank 0 sees.
    """
    saved = None
    if ranks.is_first:
        for name in (CURRENT, CHECKSUMS, METRICS, CONNECTOR):
            remove_leftovers(folder / name)
        saved = load_checkpoint(folder)
    step = ranks.broadcast(None if saved is None else saved["step"])
    if step is not None and not ranks.is_first:
        saved = load_checkpoint(folder)
        if saved is None or saved["step"] != step:
            raise UserError(
                f"{folder}: rank {ranks.index} does not see the checkpoint of step {step} that rank 0 sees; "
                "the folder must be on a file system that all machines share"
            )
    return saved


def _snapshot(state: _State, seconds: float, identity: dict[str, str], ranks: Ranks) -> dict[str, Any]:
    """What a checkpoint holds. Generators need not be saved: every step seeds them itself."""
    return {
        **identity,
        "step": state.step,
        "processes": ranks.size,
        "train_seconds": seconds,
        "validation": state.validation,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
    }


def _restore(
    state: _State, saved: dict[str, Any], identity: dict[str, str], folder: Path, ranks: Ranks
) -> float:
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
    if ranks.is_first:
        log.info("%s: taken up at step %d", folder, state.step)
        if (before := saved.get("processes", 1)) != ranks.size:
            log.warning(
                "%s: %d processes until step %d, %d from here on: pairs and loss are the same, but not "
                "dropout and the order of sums, so the weights will not be those of an uninterrupted run",
                *(folder, before, state.step, ranks.size),
            )
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

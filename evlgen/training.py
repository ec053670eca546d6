"""The training loop of both stages: steps, validation, checkpoints, history.

A step is a pure function of the state before it and of (config, step): which pairs it sees and what its
dropout, random matchings and sampled negatives are comes from (seed, step) and not from a generator's past.
So a run that was killed and resumed ends with the same bits as one that was not.

The batch of a step is the same set of pairs however many processes train (see `evlgen.runtime.distributed`)
and however many parts it is accumulated from, and so is the loss: the mean over the text tokens of all of it.
Part m of rank k is a run of its rows, m * size + k in order, so the ranks' parts m lie side by side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evlgen import limits
from evlgen.backbones.language import forget_languages
from evlgen.backbones.vision import forget_encoders
from evlgen.bookkeeping import Checkpoints, History, Stopwatch, TrainingState, Utilisation
from evlgen.config import OptimConfig, RunConfig
from evlgen.cost import training_flops
from evlgen.data.batches import StepBatches, TrainingData
from evlgen.data.pairs import Batch
from evlgen.data.sampling import NOISE, WEIGHTS, hashed
from evlgen.diagnostics import validate
from evlgen.errors import UserError
from evlgen.model import (
    CaptionModel,
    Model,
    build_model,
    init_from_stage1,
    parameter_counts,
)
from evlgen.optimizer import build_optimizer, learning_rate
from evlgen.runs.folder import CONNECTOR, METRICS
from evlgen.runtime.device import chosen, enough_memory
from evlgen.runtime.distributed import Ranks, joined, shard, transformer_layers
from evlgen.runtime.progress import Progress, Stop
from evlgen.stage1 import Stage1Model, add_present
from evlgen.throughput import peak_flops

log = logging.getLogger(__name__)

_LOG_POINTS = 150  # lines in a run's log, roughly
_PROGRESS_SECONDS = 0.3  # between two reports of progress


# ----------------------------------------------------------------------------------------------- loop


def train(
    config: RunConfig,
    folder: Path,
    data: TrainingData,
    progress: Callable[[Progress], None] = lambda _: None,
    init_folder: Path | None = None,
    model: Model | None = None,
) -> dict[str, float]:
    """Train a run of either stage, from its checkpoint if it has one.

    Writes ``metrics.jsonl``, checkpoints and, at the end, ``connector.safetensors`` (the trained parts).

    Where a process group is open (`evlgen.runtime.distributed.init_from_environment`), all its ranks call
    this with the same arguments and a folder that all of them see. Rank 0 writes and reports progress; all
    return the same, once the files are there.

    Args:
        folder: the run's folder; training resumes from a checkpoint in it.
        data: from `evlgen.data.batches.load_training_data`.
        progress: called several times a second at most. What it raises ends the training; `Stop` ends it
            after a checkpoint.
        init_folder: folder of the finished ``represent`` run to start from, for a config with ``init_from``.
        model: the model to train, instead of the one that ``config`` describes.

    Returns:
        ``steps``; ``samples``, the pairs seen in them; ``train_seconds``, over all resumptions and without
        validation; ``resumed_from``, the step at which this call resumed; ``trained_parameters``;
        and the measurements at the end (`evlgen.diagnostics.validate`).

    Raises:
        UserError: config and data do not fit, the checkpoint is another run's, or the disk is full.
        FloatingPointError: the loss is no longer a number.
        Stop: ``progress`` of rank 0 asked for it; the checkpoint is written, and a later call ends with the
            same bits. All ranks raise it.
    """
    device = chosen()
    with joined() as ranks:
        _check(config, data, device, init_folder, ranks)
        with enough_memory(_advice(config, ranks)):
            state = _begin(config, model, device, init_folder, ranks)
            return _train(config, folder, data, progress, state, device, ranks)


def _advice(config: RunConfig, ranks: Ranks) -> str:
    """What to set where a device's memory is too small for a run."""
    optim = config.optim
    rows = optim.batch_size // (optim.accumulate * ranks.size)
    ways = []
    if rows > 1:
        how = "in smaller parts" if config.stage == "represent" else "with the same gradient"
        ways.append(
            f"optim.accumulate={2 * optim.accumulate} computes {rows // 2} pairs at a time, not {rows}, {how}"
        )
    if not optim.gradient_checkpointing:
        ways.append("optim.gradient_checkpointing=true keeps less, with the same bits")
    if ranks.size > 1 and optim.llm_placement == "replicate":
        ways.append("optim.llm_placement=shard spreads the language model over the devices")
    return f"with --set: {'; '.join(ways) or 'a smaller model'}"


def _train(
    config: RunConfig,
    folder: Path,
    data: TrainingData,
    progress: Callable[[Progress], None],
    state: TrainingState,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, float]:
    optim = config.optim
    checkpoints = Checkpoints(folder, config, data, ranks)
    watch = Stopwatch()
    losses = checkpoints.resume(state, watch, device)
    ranks.copy_from_first(state.model)
    start = state.step
    with watch.paused():
        utilisation = _utilisation(config, data, state, device, ranks)
    history = History(folder / METRICS, config, watch, utilisation, ranks, losses)
    history.cut_after(start)
    reporter = _Reporter(progress, optim.steps, history, ranks)
    parts = _parts(optim, ranks)
    steps = data.source.steps(config.seed, range(start, optim.steps), optim.batch_size, parts, device, ranks)
    for batches in steps:
        due = _Due.at(state.step, optim)
        loss, norm = _update(state, batches, config, device, ranks, wants_norm=due.log)
        history.losses.append(loss)
        state.damaged += batches.damaged
        line = history.line(state, norm) if due.log else {}
        reporter.report("train", state.step, at_once=due.log)
        if due.validation:
            with watch.paused():
                reporter.report("validate", state.step)
                state.validation = _validate(state, data, config, device, ranks)
            line |= state.validation
        stops: bool = ranks.broadcast(reporter.stop is not None)
        history.write(line, to_disk=due.checkpoint or stops)
        if due.checkpoint or stops:
            checkpoints.save(state, watch.read(), history.losses)
        if stops:
            raise reporter.stop or Stop
    if ranks.is_first:
        checkpoints.save_weights(state.model)
    result = {
        "steps": state.step,
        "samples": state.step * optim.batch_size,
        "train_seconds": watch.read(),
        "resumed_from": start,
        "trained_parameters": sum(p.numel() for p in state.model.parameters()),
        **({"damaged_pairs": state.damaged} if state.damaged else {}),
        **state.validation,
    }
    result = ranks.broadcast(result)  # nobody leaves before the files are there
    return result


def _parts(optim: OptimConfig, ranks: Ranks) -> list[slice]:
    """The rows of a step's batch that this rank computes, one slice for each part of the accumulation."""
    if optim.accumulate * ranks.size == 1:
        return [slice(None)]
    rows = optim.batch_size // (optim.accumulate * ranks.size)
    starts = [(part * ranks.size + ranks.index) * rows for part in range(optim.accumulate)]
    return [slice(start, start + rows) for start in starts]


@dataclass(frozen=True)
class _Due:
    """What follows the update of a step.

    A checkpoint that was planned is always at a line of the log, so only one at a stop holds losses since the
    last line.
    """

    log: bool
    validation: bool
    checkpoint: bool

    @classmethod
    def at(cls, step: int, optim: OptimConfig) -> _Due:
        """After update ``step`` (from 0)."""
        done = step + 1
        is_last = done == optim.steps
        validation = is_last or done % optim.eval_every == 0
        checkpoint = is_last or done % optim.checkpoint_every == 0
        is_line = step == 0 or done % max(1, optim.steps // _LOG_POINTS) == 0
        return cls(checkpoint or validation or is_line, validation, checkpoint)


def _validate(
    state: TrainingState, data: TrainingData, config: RunConfig, device: torch.device, ranks: Ranks
) -> dict[str, float]:
    """Validation on rank 0, while the others wait; on all if the language model is spread over them."""
    measured: dict[str, float] = {}
    if ranks.is_first or config.optim.llm_placement == "shard":
        # Not by compiled code: it measures in other shapes, and attention that is written out.
        eager = torch.compiler.set_stance("force_eager") if config.optim.compile else contextlib.nullcontext()
        with autocast(device, config.optim.precision), eager:
            measured = validate(state.model, data.validation)
    measured = ranks.broadcast(measured)
    return measured


# ---------------------------------------------------------------------------------- before the first step


def _check(
    config: RunConfig, data: TrainingData, device: torch.device, init_folder: Path | None, ranks: Ranks
) -> None:
    optim = config.optim
    limits.check(dataclasses.replace(config, init_from=None), data.validation.features.shape[-2])
    if optim.batch_size % (optim.accumulate * ranks.size):
        raise UserError(
            f"optim.batch_size {optim.batch_size}: cannot be split evenly over {ranks.size} processes and "
            f"optim.accumulate {optim.accumulate}; make it a multiple of {optim.accumulate * ranks.size}"
        )
    if optim.precision == "fp16" and device.type == "cpu":
        raise UserError("optim.precision fp16: needs a GPU; use bf16 or fp32")
    if optim.compile and not hasattr(torch.compiler, "set_stance"):
        raise UserError(f"optim.compile: needs PyTorch 2.6 or later, this is {torch.__version__}")
    wanted, width = config.connector.input_width, data.validation.features.shape[-1]
    if wanted != width:
        raise UserError(f"connector: takes image features of width {wanted}, {config.vision} gives {width}")
    if len(data.validation) < 2:
        raise UserError("evaluation.validation: two pairs at least, to shuffle them")
    if (config.init_from is None) != (init_folder is None):
        raise UserError("init_from: needs the folder of the run that it names, and no other run needs one")


def _begin(
    config: RunConfig, model: Model | None, device: torch.device, init_folder: Path | None, ranks: Ranks
) -> TrainingState:
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
    if config.optim.compile:
        compile_parts(model, encodes=not config.data.cache)
    scaler = torch.amp.GradScaler(device.type, enabled=config.optim.precision == "fp16")
    blocks = _blocks(model) if config.optim.gradient_checkpointing else ()
    return TrainingState(model, build_optimizer(model, config.optim), scaler, blocks)


def untrained_model(config: RunConfig) -> Model:
    """The model that a run's training begins with, but for what it takes over from stage 1."""
    torch.manual_seed(_seed(WEIGHTS, config.seed))
    return build_model(config)


def compile_parts(model: Model, encodes: bool, backend: str = "inductor") -> None:
    """Compile, in place, what a step computes; the frozen models are then no longer those that are cached.

    The connector is one graph; of stage 1, which calls its blocks in several orders, each block is one. The
    layers of a language model share one graph, for texts of any length.

    Args:
        encodes: whether steps encode images.
        backend: of torch.compile.
    """
    if isinstance(model, CaptionModel):
        forget_languages()  # whoever builds it next wants it as it was
        model.connector.compile(backend=backend)
        for layer in transformer_layers(model.language.model):
            layer.compile(backend=backend, dynamic=True)
    else:
        for block in model.connector.recomputed_blocks():
            block.compile(backend=backend)
    if encodes:
        forget_encoders()
        encoder = model.encoder.vision.model
        layers: Any = getattr(encoder, "blocks", None) or transformer_layers(encoder) or [encoder]
        for layer in layers:  # alike, so one graph does for all
            layer.compile(backend=backend)


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


def _utilisation(
    config: RunConfig, data: TrainingData, state: TrainingState, device: torch.device, ranks: Ranks
) -> Utilisation | None:
    """None where the peak of the device is not known, or no step is left."""
    optim, peak = config.optim, peak_flops(device, config.optim.precision)
    if peak is None or state.step >= optim.steps:
        return None
    rows = max(2, optim.batch_size // (optim.accumulate * ranks.size))
    batch = data.source.batch(config.seed, state.step, optim.batch_size, slice(rows)).to(device)
    with autocast(device, optim.precision):
        return Utilisation(peak * ranks.size, training_flops(state.model, batch))


# ------------------------------------------------------------------------------------------------- update


def _update(
    state: TrainingState,
    batches: StepBatches,
    config: RunConfig,
    device: torch.device,
    ranks: Ranks,
    wants_norm: bool,
) -> tuple[Tensor, Tensor]:
    """One update: forward and backward passes of all parts, then the optimiser's step.

    Returns:
        This rank's share of the loss, a summand, and the norm of the gradient, 0 unless it is wanted or
        clipped.
    """
    optim = config.optim
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, optim, config.conventions)
    state.optimizer.zero_grad(set_to_none=True)
    total = None
    for part, batch in enumerate(batches.parts):
        key = (NOISE, config.seed, state.step, *([part] if optim.accumulate > 1 else []))
        torch.manual_seed(_seed(*key, *([ranks.index] if ranks.size > 1 else [])))
        with autocast(device, optim.precision), _recomputed(state.recomputed):
            if batches.tokens is None:
                loss = state.model(batch.images, batch.text_ids, batch.text_mask, batch.text_places)
            else:
                negatives = torch.Generator(device).manual_seed(_seed(*key))  # the same on all ranks
                loss = _share_of_loss(state.model, batch, batches.tokens, optim, negatives, ranks)
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
        loss: Tensor = model(batch.images, batch.text_ids, batch.text_mask, batch.text_places)
        return loss * own_tokens / tokens
    losses = model.losses(batch.images, batch.text_ids, batch.text_mask, negatives, ranks)
    of_pairs = None  # a mean over pairs, where the LM loss is one over tokens
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


# ----------------------------------------------------------------------------------------------- progress


class _Reporter:
    """Reports progress on rank 0.

    Attributes:
        stop: what asked for the training to end after this step, if something did.
    """

    def __init__(
        self, progress: Callable[[Progress], None], steps: int, history: History, ranks: Ranks
    ) -> None:
        self.progress, self.steps, self.history, self.ranks = progress, steps, history, ranks
        self.stop: Stop | None = None
        self._reported_at = 0.0

    def report(self, phase: str, step: int, at_once: bool = True) -> None:
        """Say where the run is; not more often than every ``_PROGRESS_SECONDS`` unless ``at_once``."""
        now = time.monotonic()
        if not self.ranks.is_first or not (at_once or now - self._reported_at > _PROGRESS_SECONDS):
            return
        self._reported_at = now
        try:
            self.progress(Progress(phase, step, self.steps, self.history.loss, self.history.pace))
        except Stop as stop:
            self.stop = stop

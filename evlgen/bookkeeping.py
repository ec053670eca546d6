"""What a training run keeps while it trains: state, time, checkpoints and history; rank 0 writes them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evlgen.config import RunConfig, from_json, to_json
from evlgen.data.batches import TrainingData
from evlgen.errors import UserError
from evlgen.model import Model, save_trained
from evlgen.optimizer import learning_rate
from evlgen.runs.folder import CONNECTOR, METRICS, read_metrics
from evlgen.runtime.checkpoints import CHECKSUMS, CURRENT, NEW, load_checkpoint, save_checkpoint
from evlgen.runtime.distributed import Ranks
from evlgen.runtime.files import disk_errors, remove_leftovers, write_atomic

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """All that a step changes."""

    model: Model
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    recomputed: Sequence[nn.Module] = ()  # whose activations are not kept
    step: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    damaged: int = 0  # pairs so far in whose place their neighbours were


class Stopwatch:
    """Seconds spent on training, without validation, over all resumptions."""

    def __init__(self) -> None:
        self.set(0.0)

    def set(self, seconds: float) -> None:
        self._before, self._since = seconds, time.perf_counter()

    def read(self) -> float:
        return self._before + time.perf_counter() - self._since

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        seconds = self.read()
        yield
        self.set(seconds)


class Checkpoints:
    """Checkpoints and final weights of a run. Rank 0 writes; all ranks read, and save together."""

    def __init__(self, folder: Path, config: RunConfig, data: TrainingData, ranks: Ranks) -> None:
        self.folder, self.ranks, self.config = folder, ranks, config
        self.identity = {"config": json.dumps(to_json(config), sort_keys=True), "data": data.fingerprint}

    def resume(self, state: TrainingState, watch: Stopwatch, device: torch.device) -> list[Tensor]:
        """Load the newest checkpoint, if there is one, into state and stopwatch.

        Returns:
            The losses since the last line of the log.

        Raises:
            UserError: the checkpoint is of another config or of other data, or a rank does not see it.
        """
        saved = self._newest()
        if saved is None:
            return []
        if not self._is_of_this_run(saved):
            raise UserError(
                f"{self.folder}: has a checkpoint of another run or of other data; use an empty folder"
            )
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.scaler.load_state_dict(saved["scaler"])
        state.step, state.validation = saved["step"], saved["validation"]
        state.damaged = saved.get("damaged", 0)
        watch.set(float(saved["train_seconds"]))
        if self.ranks.is_first:
            log.info("%s: resumed at step %d", self.folder, state.step)
            if (before := saved.get("processes", 1)) != self.ranks.size:
                log.warning(
                    "%s: %d processes until step %d, %d from here on: pairs and loss are the same, but not "
                    "dropout and the order of sums, so the weights will not be those of an uninterrupted run",
                    *(self.folder, before, state.step, self.ranks.size),
                )
        return [loss.to(device) * self.ranks.is_first for loss in saved.get("losses", ())]

    def _is_of_this_run(self, saved: dict[str, Any]) -> bool:
        """Whether a checkpoint is of this config and data; a field that is new since then has its default."""
        try:
            config = from_json(json.loads(saved["config"]))
        except UserError:  # a field or a value that does not exist
            return False
        return config == self.config and bool(saved["data"] == self.identity["data"])

    def _newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, on every rank; rank 0 first removes what a kill has left."""
        saved = None
        if self.ranks.is_first:
            for name in (CURRENT, NEW, CHECKSUMS, METRICS, CONNECTOR):
                remove_leftovers(self.folder / name)
            saved = load_checkpoint(self.folder)
        step = self.ranks.broadcast(None if saved is None else saved["step"])
        if step is not None and not self.ranks.is_first:
            saved = load_checkpoint(self.folder)
            if saved is None or saved["step"] != step:
                raise UserError(
                    f"{self.folder}: rank {self.ranks.index} does not see the checkpoint of step {step} that "
                    "rank 0 sees; the folder must be on a file system that all machines share"
                )
        return saved

    def save(self, state: TrainingState, seconds: float, losses: Sequence[Tensor]) -> None:
        """Write a checkpoint. Generators need not be saved: every step seeds them itself.

        Args:
            seconds: of training so far.
            losses: this rank's, since the last line of the log; none but at a stop between two lines.
        """
        whole = [self.ranks.sum(loss.clone()) for loss in losses]
        if self.ranks.is_first:
            content = {
                **self.identity,
                "step": state.step,
                "processes": self.ranks.size,
                "train_seconds": seconds,
                "validation": state.validation,
                "damaged": state.damaged,
                "model": state.model.state_dict(),
                "optimizer": state.optimizer.state_dict(),
                "scaler": state.scaler.state_dict(),
                "losses": whole,
            }
            save_checkpoint(self.folder, content)

    def save_weights(self, model: Model) -> None:
        """Write the trained parts, with the config in the header."""
        config_hash = hashlib.sha256(self.identity["config"].encode()).hexdigest()[:16]
        save_trained(model, self.folder / CONNECTOR, {**self.identity, "config_hash": config_hash})


@dataclass(frozen=True)
class Utilisation:
    """Of the device's arithmetic (MFU, see `evlgen.throughput`).

    Attributes:
        peak: FLOP/s of all ranks' devices.
        flops: that training on a pair takes.
    """

    peak: float
    flops: float


class History:
    """The lines of ``metrics.jsonl``; rank 0 writes them.

    Attributes:
        losses: this rank's shares since the last line.
        loss: of the last line (nats), None before the first.
        pace: samples a second between the last two lines.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        watch: Stopwatch,
        utilisation: Utilisation | None,
        ranks: Ranks,
        losses: list[Tensor],
    ) -> None:
        self.path, self.optim, self.watch, self.ranks = path, config.optim, watch, ranks
        self.conventions = config.conventions
        self.utilisation, self.losses = utilisation, losses
        self.loss: float | None = None
        self.pace = 0.0
        self._since = watch.read()

    def line(self, state: TrainingState, norm: Tensor) -> dict[str, float]:
        """The line of the last update, with the mean loss since the line before; waits for the device.

        Raises:
            FloatingPointError: the loss is no longer a number.
        """
        optim = self.optim
        self.loss = float(self.ranks.sum(torch.stack(self.losses).mean()))
        if not math.isfinite(self.loss):
            raise FloatingPointError(
                f"the loss is {self.loss} at step {state.step}; try a lower optim.lr than {optim.lr:g}"
            )
        self.pace = len(self.losses) * optim.batch_size / max(self.watch.read() - self._since, 1e-9)
        line = {
            "step": state.step,
            "loss": self.loss,
            "lr": learning_rate(state.step - 1, optim, self.conventions),
            "grad_norm": float(norm),
            "samples_per_second": self.pace,
        }
        if state.damaged:
            line["damaged_pairs"] = state.damaged
        if self.utilisation is not None:
            line["mfu"] = self.pace * self.utilisation.flops / self.utilisation.peak
        if state.scaler.is_enabled():
            line["loss_scale"] = state.scaler.get_scale()
            if not math.isfinite(line["grad_norm"]):  # the scaler has skipped this update
                del line["grad_norm"]
        self.losses.clear()
        self._since = self.watch.read()
        return line

    def write(self, line: dict[str, float], to_disk: bool) -> None:
        """Append a line, if there is something in it.

        Args:
            to_disk: do not return before it is there: a checkpoint must not outlive the lines before it.
        """
        if not self.ranks.is_first or not (line or to_disk):
            return
        with disk_errors(self.path), self.path.open("a") as file:
            if line:
                file.write(json.dumps(line) + "\n")
            if to_disk:
                file.flush()
                os.fsync(file.fileno())

    def cut_after(self, step: int) -> None:
        """Leave the lines up to ``step``: what came after the checkpoint will be written again."""
        if self.ranks.is_first:
            kept = [
                json.dumps(line) + "\n" for line in read_metrics(self.path.parent) if line["step"] <= step
            ]
            write_atomic(self.path, "".join(kept).encode())

"""The training loop that all pre-trainings share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

Report = Callable[[str, int, int, float, float], None]  # phase, step, steps, loss, items a second


class Setup(Protocol):
    """What the loop needs to know of a pre-training."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...


def descend(
    name: str,
    model: nn.Module,
    losses: Iterable[Tensor],
    setup: Setup,
    report: Report,
) -> None:
    """Train a model on losses, each computed when it is its turn; leaves it in eval mode."""
    optimizer = _optimizer(model, setup.lr, setup.weight_decay)
    model.train()
    started = time.perf_counter()
    for step, loss in enumerate(losses):
        _set_lr(optimizer, step, setup.steps, setup.warmup_steps, setup.lr)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == setup.steps - 1:
            rate = (step + 1) * setup.batch_size / (time.perf_counter() - started)
            report(name, step + 1, setup.steps, loss.item(), rate)
    model.eval()


def _optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def _set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: int, peak: float) -> None:
    """Linear warm-up, then cosine to a hundredth of the peak."""
    if step < warmup:
        lr = peak * (step + 1) / warmup
    else:
        done = (step - warmup) / max(1, steps - warmup)
        lr = peak * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
    for group in optimizer.param_groups:
        group["lr"] = lr

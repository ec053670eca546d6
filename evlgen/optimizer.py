"""Optimiser and learning rate of both stages (PAPER: AdamW, linear warm-up, cosine decay)."""

from __future__ import annotations

import math

import torch
from torch import nn

from evlgen.config import Conventions, OptimConfig
from evlgen.conventions import INNER_EPOCH


def learning_rate(step: int, optim: OptimConfig, conventions: Conventions = "plain") -> float:
    """Learning rate of update ``step`` (from 0): linear warm-up, then cosine (PAPER).

    ``warmup_lr`` at step 0, ``lr`` at ``warmup_steps``, and from there half a cosine that would reach
    ``min_lr`` at ``steps``.

    The authors' moves in steps of `INNER_EPOCH` updates: in the first of these inner epochs it warms up and
    then stays at ``lr``; in inner epoch e of E it is that of a cosine over the whole run at e / E.
    """
    if conventions == "authors":
        return _stepped(step, optim)
    if step < optim.warmup_steps:
        return optim.warmup_lr + (optim.lr - optim.warmup_lr) * step / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _stepped(step: int, optim: OptimConfig) -> float:
    """The authors' learning rate (LAVIS's LinearWarmupCosineLRScheduler in its iteration-based runner)."""
    epoch = step // INNER_EPOCH
    if epoch == 0:
        share = step / max(1, optim.warmup_steps)
        return min(optim.lr, optim.warmup_lr + (optim.lr - optim.warmup_lr) * share)
    epochs = max(1, optim.steps // INNER_EPOCH)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: not on biases, normalisation weights, or other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)

"""Optimiser and learning rate of both stages (PAPER: AdamW, linear warm-up, cosine decay)."""

from __future__ import annotations

import math

import torch
from torch import nn

from evlgen.config import OptimConfig


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Learning rate of update ``step`` (from 0): linear warm-up, then cosine (PAPER).

    ``warmup_lr`` at step 0, ``lr`` at ``warmup_steps``, and from there half a cosine that would reach
    ``min_lr`` at ``steps``.
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

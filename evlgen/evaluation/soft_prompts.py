"""The geometry of soft prompts on the first images of the validation set, as figures need it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evlgen import miniworld

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def geometry(prompts: Tensor, words: Tensor) -> dict[str, npt.NDArray[Any]]:
    """Arrays that describe soft prompts, beside the language model's word embeddings.

    Args:
        prompts: (M, N_out, D_llm), one an image.
        words: (V, D_llm), the word embeddings.

    Returns:
        ``mean`` (M, D_llm) float32, the mean soft token of each image; ``singular_values``
        (min(M, N_out * D_llm),) float64 of the matrix whose effective rank the diagnostics give, one row an
        image; ``token_norms`` (M, N_out) float32; ``word_norms`` (7,) float64, the quantiles
        ``word_norm_quantiles`` of the norms of all word embeddings, and their mean, ``word_norm_mean``.
    """
    prompts, norms = prompts.float().cpu(), words.detach().float().cpu().norm(dim=1).double().numpy()
    return {
        "mean": prompts.mean(1).numpy(),
        "singular_values": torch.linalg.svdvals(prompts.flatten(1).double()).numpy(),
        "token_norms": prompts.norm(dim=2).numpy(),
        "word_norm_quantiles": np.array(QUANTILES),
        "word_norms": np.quantile(norms, QUANTILES),
        "word_norm_mean": np.array(norms.mean()),
    }


def main_objects(pool: str, count: int) -> tuple[list[str], list[str]]:
    """Shape and colour of the thing with most visible pixels, in each of a miniworld pool's first images."""
    shapes, colours = [], []
    for index in range(count):
        scene = miniworld.pool(pool).scene(index)
        largest = scene.things[int(miniworld.object_masks(scene).sum((1, 2)).argmax())]
        shapes.append(largest.shape)
        colours.append(largest.colour)
    return shapes, colours

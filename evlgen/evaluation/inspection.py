"""Measurements of a trained captioner: what it merges, its soft prompts, and the cost of its connector.

Metrics, all on the first 128 images of the validation set:

- ``connector_gmacs``: MACs (G) of the connector for one image, by the paper's convention (`evlgen.cost`).
- of a TomeFormer in the miniworld: ``purity``, ``purity_objects`` and ``merge_ari``
  (`evlgen.evaluation.merge_maps`), each also ``_untrained`` (the connector as initialised with the run's
  seed), ``_grid`` and ``_untrained_grid``; the first two also ``_random`` and ``_untrained_random``, for
  groups of the trained and of the untrained sizes.

Files:

- ``soft_prompts.npz``: `evlgen.evaluation.soft_prompts.geometry`, with the ``indices`` of the images and, in
  the miniworld, ``shape`` and ``colour`` of each image's largest object.
- ``merge_maps.npz``, of a TomeFormer in the miniworld: for 8 images of the pool ``pool`` their ``indices``
  (8,), ``labels`` (8, patches) int8 (`merge_maps.patch_labels`), and the sources ``trained`` and
  ``untrained`` (8, N_out, N) uint8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evlgen.config import RunConfig
from evlgen.cost import is_counted, linear_macs
from evlgen.data.batches import load_training_data
from evlgen.data.pairs import PairPool
from evlgen.evaluation import merge_maps, soft_prompts
from evlgen.evaluation.decoding import load_captioner
from evlgen.model import CaptionModel, evaluating
from evlgen.runs.folder import MERGE_MAPS, SOFT_PROMPTS
from evlgen.runtime.arrays import write_arrays
from evlgen.tomeformer import TomeFormer
from evlgen.training import autocast, untrained_model

IMAGES, DRAWN = 128, 8
_BATCH = 16  # fixed, since bits may depend on it; a trace keeps all attention probabilities


def inspect(config: RunConfig, folder: Path) -> dict[str, float]:
    """Measure a trained run of the stage ``caption``; returns its metrics and writes its files.

    Args:
        folder: the run's folder, with its ``connector.safetensors``.

    Raises:
        UserError: see `evlgen.evaluation.decoding.evaluate`.
    """
    model = load_captioner(config, folder)
    pool = load_training_data(config).validation
    count = min(IMAGES, len(pool))
    device = model.norm.weight.device
    batches = [
        torch.from_numpy(pool.features[0, i : min(i + _BATCH, count)].astype(np.float32)).to(device)
        for i in range(0, count, _BATCH)
    ]  # (16, N, D_in) float32
    with evaluating(model), autocast(device, config.optim.precision):
        prompts = torch.cat([model.soft_prompt(batch) for batch in batches])  # (count, N_out, D_llm)
    in_miniworld = config.data.world == "miniworld"
    arrays = {"indices": np.arange(count)}
    arrays |= soft_prompts.geometry(prompts, model.language.model.get_input_embeddings().weight)
    if in_miniworld:
        shapes, colours = soft_prompts.main_objects(pool.name, count)
        arrays |= {"shape": np.array(shapes), "colour": np.array(colours)}
    write_arrays(folder / SOFT_PROMPTS, arrays)

    image = torch.empty(1, *batches[0].shape[1:], device="meta")
    metrics = {"connector_gmacs": linear_macs(model.connector, image, include=is_counted) / 1e9}
    if in_miniworld and isinstance(model.connector, TomeFormer):
        metrics |= _merge_maps(config, folder, model, pool, batches)
    return metrics


def _merge_maps(
    config: RunConfig, folder: Path, model: CaptionModel, pool: PairPool, batches: list[Tensor]
) -> dict[str, float]:
    """Metrics of the merging; writes ``merge_maps.npz``. Empty where the patches do not form a square."""
    side = merge_maps.grid_side(pool.features.shape[2])
    if side is None:
        return {}
    before = untrained_model(config)
    assert isinstance(before, CaptionModel)
    trained, untrained = (
        _sources(one.to(model.norm.weight.device), batches, config.optim.precision) for one in (model, before)
    )
    labels = merge_maps.pool_labels(pool.name, len(trained), side)
    write_arrays(
        folder / MERGE_MAPS,
        {
            "pool": np.array(pool.name),
            "indices": np.arange(len(trained))[:DRAWN],
            "labels": labels[:DRAWN].astype(np.int8),
            "trained": trained[:DRAWN],
            "untrained": untrained[:DRAWN],
        },
    )
    return merge_maps.compare(merge_maps.groups_of(trained), merge_maps.groups_of(untrained), labels)


def _sources(model: CaptionModel, batches: list[Tensor], precision: str) -> np.ndarray:
    """(B, N_out, N) uint8: which image tokens went into which soft token."""
    connector = model.connector
    assert isinstance(connector, TomeFormer)
    found = []
    with evaluating(model), autocast(model.norm.weight.device, precision):
        for batch in batches:
            _, trace = connector(model.norm(batch), return_trace=True)
            found.append(trace.source.to(torch.uint8).cpu().numpy())
    return np.concatenate(found)

"""The data of a training run: batches of pairs, be their images cached features or a stream of pixels.

A training loop takes batches from a `BatchSource` and hands ``batch.images`` to the model, whose image
encoder turns pixels into features and passes cached features on as they are. So only this module knows which
of the two a run has.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evlgen.backbones.language import text_manners
from evlgen.backbones.vision import build_vision
from evlgen.config import Conventions, DataConfig, RunConfig
from evlgen.data import features, worlds
from evlgen.data.base import World
from evlgen.data.pairs import Batch, PairPool, Texts, draw_batch, text_tokens
from evlgen.data.stream import Stream, decoded_steps
from evlgen.errors import UserError
from evlgen.runs.identity import text_reader
from evlgen.runtime.distributed import Ranks


@dataclass(frozen=True, eq=False)
class StepBatches:
    """One rank's share of the batch of a step.

    Attributes:
        parts: a batch for each part of the accumulation, on the device; to be iterated over once.
        tokens: text tokens in the whole batch, over all parts and ranks; None if there is one of each.
        damaged: pairs of it, over all parts and ranks, that are damaged: their neighbours are there instead.
    """

    parts: Iterable[Batch]
    tokens: int | None
    damaged: int = 0


class BatchSource(Protocol):
    """Where training batches come from. The batch of a step is a pure function of (seed, step)."""

    def batch(self, seed: int, step: int, batch_size: int, rows: slice = slice(None)) -> Batch:
        """The given rows of a step's batch, on the CPU; nothing else is read."""
        ...

    def steps(
        self,
        seed: int,
        steps: range,
        batch_size: int,
        parts: Sequence[slice],
        device: torch.device,
        ranks: Ranks,
    ) -> Iterator[StepBatches]:
        """The batches of one step after the other; all ranks iterate together.

        Args:
            batch_size: pairs in a step, over all parts and ranks.
            parts: the rows of this rank, a slice for each part of the accumulation.

        Raises:
            UserError: images or captions cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class CachedBatches:
    """Batches of cached features; they are drawn from all pools together."""

    pools: tuple[PairPool, ...]

    def batch(self, seed: int, step: int, batch_size: int, rows: slice = slice(None)) -> Batch:
        return draw_batch(self.pools, seed, step, batch_size, rows)

    def steps(
        self,
        seed: int,
        steps: range,
        batch_size: int,
        parts: Sequence[slice],
        device: torch.device,
        ranks: Ranks,
    ) -> Iterator[StepBatches]:
        for step in steps:
            tokens = None
            if len(parts) * ranks.size > 1:
                tokens = text_tokens(self.pools, seed, step, batch_size)
            yield StepBatches((self.batch(seed, step, batch_size, rows).to(device) for rows in parts), tokens)


@dataclass(frozen=True, eq=False)
class StreamedBatches:
    """Batches of pixels; other processes decode them ahead of their steps."""

    stream: Stream

    def batch(self, seed: int, step: int, batch_size: int, rows: slice = slice(None)) -> Batch:
        return self.stream.read(seed, step, batch_size, rows).batch()

    def steps(
        self,
        seed: int,
        steps: range,
        batch_size: int,
        parts: Sequence[slice],
        device: torch.device,
        ranks: Ranks,
    ) -> Iterator[StepBatches]:
        for decoded in decoded_steps(self.stream, seed, steps, batch_size, parts):
            tokens, damaged = None, sum(len(rows.damaged) for rows in decoded)
            if len(parts) * ranks.size > 1:
                tokens, damaged = ranks.totals(sum(rows.tokens for rows in decoded), damaged)
            yield StepBatches((rows.batch().to(device) for rows in decoded), tokens, damaged)


# ------------------------------------------------------------------------------------ images to evaluate on


class PoolImages(Protocol):
    """Images of a pool as a model takes them; a tensor is one, too."""

    def __getitem__(self, order: npt.NDArray[np.int64]) -> Tensor:
        """The images ``order`` (B,): (B, N, D_in) float32 features or (B, S, S, 3) uint8 pixels.

        Raises:
            UserError: an image cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class CachedImages:
    """Images whose features (images, N, D_in) float16 are cached."""

    features: npt.NDArray[np.float16]

    def __getitem__(self, order: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.features[order].astype(np.float32))


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """Images that are decoded when they are asked for.

    Attributes:
        side: of the images, in pixels.
    """

    world: World
    pool: str
    side: int

    def __getitem__(self, order: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(features.images_of(self.world, self.pool, order.tolist(), self.side))


def evaluation_images(config: RunConfig, pool: str, size: int) -> PoolImages:
    """The first ``size`` images of a pool, or all if there are fewer, as a run evaluates on them.

    Raises:
        UserError: as `evlgen.data.features.ensure`.
    """
    world = worlds.of(config.data)
    if config.data.cache:
        return CachedImages(
            features.load(features.ensure(pool, size, config.vision, 1, world.name, config.conventions))[0]
        )
    return DecodedImages(world, pool, build_vision(config.vision, config.conventions).image_size)


# ------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a training run reads.

    Attributes:
        source: the training batches.
        validation: held-out pairs for the validation loss and the diagnostics.
        fingerprint: hash of all there is to read: names, sizes, texts and feature files.
    """

    source: BatchSource
    validation: PairPool
    fingerprint: str


def load_training_data(config: RunConfig) -> TrainingData:
    """The data of a run: features from the cache (computed if need be), captions tokenized once and for all.

    Without ``data.cache`` this holds for the validation pairs only; training pairs come from a stream.

    Captions are token ids of the model that reads them (`evlgen.runs.identity.text_reader`). The last
    few results stay in memory, for processes that execute one run after another.

    Raises:
        UserError: unknown world, pool, encoder or language model; a file is missing or cannot be read.
    """
    data = config.data
    if config.stage == "represent":  # [CLS], which the model puts in front, is one of the tokens (BLIP-2)
        data = dataclasses.replace(data, max_text_tokens=data.max_text_tokens - 1)
    return _load(data, config.evaluation.validation, config.vision, text_reader(config), config.conventions)


@functools.lru_cache(maxsize=4)
def _load(
    data: DataConfig, validation: int, vision: str, reader: str, conventions: Conventions
) -> TrainingData:
    world = worlds.of(data)
    if not any(size for _, size in data.pools):
        raise UserError("data.pools: there is no pair in any pool")
    wanted = tuple((name, size) for name, size in data.pools if size)
    for name, size in wanted:
        if (count := world.count(name)) < (size if data.cache else 1):
            raise UserError(worlds.too_few(name, size, count))
    texts = _texts(reader, conventions, data.max_text_tokens)
    if data.cache:
        pools = tuple(_cached_pairs(world, *pool, vision, data.views, texts, conventions) for pool in wanted)
        held_out = _cached_pairs(world, world.validation, validation, vision, 1, texts, conventions)
        return TrainingData(CachedBatches(pools), held_out, _fingerprint((*pools, held_out)))
    encoder = build_vision(vision, conventions)
    stream = Stream(world, wanted, encoder.image_size, encoder.fingerprint, texts)
    held_out = _cached_pairs(world, world.validation, validation, vision, 1, texts, conventions)
    return TrainingData(StreamedBatches(stream), held_out, _fingerprint((held_out,), stream.fingerprint))


def _texts(reader: str, conventions: Conventions, max_tokens: int) -> Texts:
    """How captions become token ids of the model that reads them."""
    tokenizer, end_id, how = text_manners(reader, conventions)
    start_id = tokenizer.bos_token_id if how.scores_bos else None
    if how.limit_has_bos and start_id is None:  # the model puts it in front
        max_tokens -= 1
    return Texts(tokenizer, end_id, max_tokens, start_id, how.keeps_end)


def _cached_pairs(
    world: World, name: str, size: int, vision: str, views: int, texts: Texts, conventions: Conventions
) -> PairPool:
    """The first images of a pool, or all if there are fewer.

    Each has as many captions as the one with most: an image with fewer has its own more than once.
    """
    stored = features.load(features.ensure(name, size, vision, views, world.name, conventions))
    size = stored.shape[1]
    captions = [world.captions(name, i) for i in range(size)]
    each = max(map(len, captions))
    ids, lengths = texts.encode([row[i % len(row)] for row in captions for i in range(each)])
    # (images * captions, L) -> (images, captions, L)
    return PairPool(name, stored, ids.reshape(size, each, -1), lengths.reshape(size, each))


def _fingerprint(pools: Sequence[PairPool], streamed: str = "") -> str:
    digest = hashlib.sha256(streamed.encode())
    for pool in pools:
        source = Path(getattr(pool.features, "filename", None) or "").name
        digest.update(f"{pool.name} {pool.features.shape} {source}".encode())
        digest.update(pool.text_ids.tobytes())
    return digest.hexdigest()[:16]

"""Image-text pairs: features from the cache, captions as token ids, and the batch of a step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evlgen.backbones.language import text_reader, text_tokenizer
from evlgen.backbones.vision import build_vision
from evlgen.config import DataConfig, RunConfig
from evlgen.data import features, worlds
from evlgen.data.base import World
from evlgen.data.sampling import CAPTION, VIEW, hashed, pairs_of_step
from evlgen.errors import UserError

if TYPE_CHECKING:
    from evlgen.data.stream import Stream


@dataclass(frozen=True, eq=False)
class PairPool:
    """The pairs of one pool.

    Attributes:
        features: (views, images, tokens, width) float16, usually a memory map.
        text_ids: (images, captions, max_text_tokens) int32, right-padded; each time one caption is drawn.
        lengths: (images, captions) int32, tokens of each caption, the closing newline among them.
    """

    name: str
    features: npt.NDArray[np.float16]
    text_ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.text_ids)


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs ready for a model.

    Attributes:
        features: (B, N, D_in) float32.
        text_ids: (B, T) int64, right-padded; T is the longest text of this batch.
        text_mask: (B, T) bool, True where there is text.
    """

    features: Tensor
    text_ids: Tensor
    text_mask: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.features.to(device), self.text_ids.to(device), self.text_mask.to(device))


def draw_batch(
    pools: Sequence[PairPool], seed: int, step: int, batch_size: int, rows: slice = slice(None)
) -> Batch:
    """The batch of a step: a pure function of seed, step and pools.

    Which of an image's captions and which of its views is used is drawn from (seed, epoch, index).

    Args:
        rows: the part of the batch that is wanted, in the order of the draw; nothing else is read. Texts are
            padded to the longest of the part.
    """
    owner, index, caption, view = _draw(pools, seed, step, batch_size, rows)
    places, parts = [], []
    for number, pool in enumerate(pools):
        place = np.flatnonzero(owner == number)
        if len(place):
            captions, views = pool.text_ids.shape[1], pool.features.shape[0]
            chosen = (caption[place] % np.uint64(captions)).astype(np.int64)
            seen = (view[place] % np.uint64(views)).astype(np.int64)
            places.append(place)
            parts.append(_rows(pool, index[place], chosen, seen))
    back = np.argsort(np.concatenate(places))  # from pool order to the order of the draw
    return _batch(*(np.concatenate(column)[back] for column in zip(*parts, strict=True)))


def text_tokens(pools: Sequence[PairPool], seed: int, step: int, batch_size: int) -> int:
    """Text tokens in the whole batch of a step, closing newlines among them, without reading any features."""
    owner, index, caption, _ = _draw(pools, seed, step, batch_size, slice(None))
    total = 0
    for number, pool in enumerate(pools):
        place = np.flatnonzero(owner == number)
        chosen = (caption[place] % np.uint64(pool.text_ids.shape[1])).astype(np.int64)
        total += int(pool.lengths[index[place], chosen].sum())
    return total


def _draw(
    pools: Sequence[PairPool], seed: int, step: int, batch_size: int, rows: slice
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """For each pair: which pool, which image of it, and random bits that choose caption and view."""
    sizes = [len(pool) for pool in pools]
    epoch, index = (drawn[rows] for drawn in pairs_of_step(seed, step, batch_size, sum(sizes)))
    key = (epoch.astype(np.uint64), index.astype(np.uint64))
    first = np.cumsum([0, *sizes])
    owner = np.searchsorted(first, index, side="right") - 1
    return owner, index - first[owner], hashed(CAPTION, seed, *key), hashed(VIEW, seed, *key)


def plain_batch(pool: PairPool, index: npt.NDArray[np.int64]) -> Batch:
    """The pairs ``index`` of a pool, first caption and plain image: for validation."""
    zeros = np.zeros_like(index)
    return _batch(*_rows(pool, index, zeros, zeros))


def _rows(
    pool: PairPool, index: npt.NDArray[np.int64], caption: npt.NDArray[np.int64], view: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return pool.features[view, index], pool.text_ids[index, caption], pool.lengths[index, caption]


def _batch(
    features: npt.NDArray[np.float16], text_ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
) -> Batch:
    longest = int(lengths.max())
    mask = np.arange(longest) < lengths[:, None]  # (B, T)
    return Batch(
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(text_ids[:, :longest].astype(np.int64)),
        torch.from_numpy(mask),
    )


def encode_texts(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, end_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Token ids of captions, each closed by ``end_id``, all at once.

    A caption that is too long is cut so that the closing token still fits: what the model learns to stop at
    must be there.

    Args:
        tokenizer: a transformers tokenizer; special tokens are left out.
        max_tokens: tokens of a text, the closing one among them.
        end_id: id of the closing token: a newline, or ``</s>`` for an encoder-decoder.

    Returns:
        (texts, max_tokens) int32 ids, padded with the tokenizer's padding id, and (texts,) int32 lengths.
    """
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ids = np.full((len(rows), max_tokens), tokenizer.pad_token_id, np.int32)
    lengths = np.empty(len(rows), np.int32)
    for i, row in enumerate(rows):
        length = min(len(row), max_tokens - 1)
        ids[i, :length] = row[:length]
        ids[i, length] = end_id
        lengths[i] = length + 1
    return ids, lengths


@dataclass(frozen=True, eq=False)
class Texts:
    """How captions become token ids: the arguments of `encode_texts`."""

    tokenizer: Any
    end_id: int
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """See `encode_texts`."""
        return encode_texts(self.tokenizer, texts, self.max_tokens, self.end_id)


# ------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a training reads.

    Attributes:
        pools: the pairs that are drawn from, all pools together in one order; none if there is a stream.
        validation: held-out pairs for the validation loss and the diagnostics.
        vocab_size: size of the vocabulary of the token ids.
        fingerprint: hash of what there is to read: names, sizes, texts and feature files.
        stream: the pairs that are drawn from, where no features are cached.
    """

    pools: tuple[PairPool, ...]
    validation: PairPool
    vocab_size: int
    fingerprint: str
    stream: Stream | None = None


def load_training_data(config: RunConfig) -> TrainingData:
    """The data of a run: features from the cache (made if need be), captions tokenized once and for all.

    Where ``data.cache`` is off, that is so of the held-out pairs alone; the others are a stream.

    Captions are token ids of the model that reads them (`evlgen.backbones.language.text_reader`). The last
    few results stay in memory, for processes that execute one run after another.

    Raises:
        UserError: unknown world, pool, encoder or language model; a file is missing or cannot be read.
    """
    data = config.data
    if config.stage == "represent":  # [CLS], which the model puts in front, is one of the tokens (BLIP-2)
        data = dataclasses.replace(data, max_text_tokens=data.max_text_tokens - 1)
    return _load(data, config.evaluation.validation, config.vision, text_reader(config))


@functools.lru_cache(maxsize=4)
def _load(data: DataConfig, validation: int, vision: str, reader: str) -> TrainingData:
    world = worlds.of(data)
    if not any(size for _, size in data.pools):
        raise UserError("data.pools: there is no pair in any pool")
    wanted = tuple((name, size) for name, size in data.pools if size)
    for name, size in wanted:
        if (count := world.count(name)) < (size if data.cache else 1):
            raise UserError(f"data.pools: {size} pairs of {name!r} are asked for, it has {count} images")
    texts = Texts(*text_tokenizer(reader), data.max_text_tokens)
    pools: tuple[PairPool, ...] = ()
    stream = None
    if data.cache:
        pools = tuple(_cached_pairs(world, *pool, vision, data.views, texts) for pool in wanted)
    else:
        from evlgen.data.stream import Stream

        encoder = build_vision(vision)
        stream = Stream(world, wanted, encoder.image_size, encoder.fingerprint, texts)
    held_out = _cached_pairs(world, world.validation, validation, vision, 1, texts)
    fingerprint = _fingerprint((*pools, held_out), "" if stream is None else stream.fingerprint)
    return TrainingData(pools, held_out, len(texts.tokenizer), fingerprint, stream)


def _cached_pairs(world: World, name: str, size: int, vision: str, views: int, texts: Texts) -> PairPool:
    """The first images of a pool, or all if there are fewer.

    Each has as many captions as the one with most: an image with fewer has its own more than once.
    """
    stored = features.load(features.ensure(name, size, vision, views, world.name))
    size = stored.shape[1]
    captions = [world.captions(name, i) for i in range(size)]
    each = max(map(len, captions))
    ids, lengths = texts.encode([row[i % len(row)] for row in captions for i in range(each)])
    # (images * captions, L) -> (images, captions, L)
    return PairPool(name, stored, ids.reshape(size, each, -1), lengths.reshape(size, each))


def _fingerprint(pools: Sequence[PairPool], streamed: str) -> str:
    digest = hashlib.sha256(streamed.encode())
    for pool in pools:
        source = Path(getattr(pool.features, "filename", None) or "").name
        digest.update(f"{pool.name} {pool.features.shape} {source}".encode())
        digest.update(pool.text_ids.tobytes())
    return digest.hexdigest()[:16]

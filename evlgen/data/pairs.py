"""Image-text pairs with cached features: captions as token ids, and the batch of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evlgen.data.sampling import CAPTION, VIEW, hashed, pairs_of_step


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
        images: (B, N, D_in) float32 features where a cache has them, else (B, S, S, 3) uint8 pixels.
        text_ids: (B, T) int64, right-padded; T is the longest text of this batch.
        text_mask: (B, T) bool, True where there is text.
        text_places: (K,) int64, the places of the K text tokens in the flattened mask. Found on the CPU: on a
            GPU their number would have to be waited for.
    """

    images: Tensor
    text_ids: Tensor
    text_mask: Tensor
    text_places: Tensor

    def to(self, device: torch.device) -> Batch:
        """On another device. A GPU copies while the CPU goes on; it need not have finished earlier work."""
        parts = (self.images, self.text_ids, self.text_mask, self.text_places)
        if device.type != "cuda":
            return Batch(*(part.to(device) for part in parts))
        return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in parts))


def draw_batch(
    pools: Sequence[PairPool], seed: int, step: int, batch_size: int, rows: slice = slice(None)
) -> Batch:
    """The batch of a step: a pure function of seed, step and pools.

    Which of an image's captions and which of its views is used is drawn from (seed, epoch, index).

    Args:
        rows: of the batch, in the order of the draw; nothing else is read. Texts are padded to the longest
            of these rows.
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
    return batch_of(torch.from_numpy(features.astype(np.float32)), text_ids, lengths)


def batch_of(images: Tensor, text_ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> Batch:
    """Batch of images and right-padded texts, whose padding is cut to the longest of them.

    Args:
        images: as in `Batch`.
        text_ids: (B, max_text_tokens).
        lengths: (B,).
    """
    longest = int(lengths.max())
    mask = np.arange(longest) < lengths[:, None]  # (B, T)
    ids = torch.from_numpy(text_ids[:, :longest].astype(np.int64))
    return Batch(images, ids, torch.from_numpy(mask), torch.from_numpy(np.flatnonzero(mask)))


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    max_tokens: int,
    end_id: int,
    start_id: int | None = None,
    keeps_end: bool = True,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Token ids of captions, each closed by ``end_id``, all at once.

    Args:
        tokenizer: a transformers tokenizer; special tokens are left out.
        max_tokens: tokens of a text, the first and the closing one among them.
        end_id: id of the closing token: a newline, or ``</s>``.
        start_id: id of a token in front of each text; None: there is none.
        keeps_end: a caption that is too long is cut so that the closing token still fits: what the model
            learns to stop at must be there. Otherwise it is cut as it stands, and has no end (the authors).

    Returns:
        (texts, max_tokens) int32 ids, padded with the tokenizer's padding id, and (texts,) int32 lengths.
    """
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    ids = np.full((len(rows), max_tokens), tokenizer.pad_token_id, np.int32)
    lengths = np.empty(len(rows), np.int32)
    first = [] if start_id is None else [start_id]
    for i, row in enumerate(rows):
        row = [*first, *row]
        row = [*(row[: max_tokens - 1] if keeps_end else row), end_id][:max_tokens]
        ids[i, : len(row)] = row
        lengths[i] = len(row)
    return ids, lengths


@dataclass(frozen=True, eq=False)
class Texts:
    """How captions become token ids: the arguments of `encode_texts`."""

    tokenizer: Any
    end_id: int
    max_tokens: int
    start_id: int | None = None
    keeps_end: bool = True

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """See `encode_texts`."""
        return encode_texts(
            self.tokenizer, texts, self.max_tokens, self.end_id, self.start_id, self.keeps_end
        )

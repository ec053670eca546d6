"""Training pairs decoded anew whenever they are drawn: no cache holds the features of 104M images.

What a step sees is a pure function of (seed, step), as with cached features: which pairs, which of their
captions, how each image is cropped and flipped. So a step can be read by any process, ahead of its turn, and
a resumed run goes on with the same bits. Each rank reads its own rows of a step only.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evlgen.data.base import World
from evlgen.data.images import Pixels, UnreadableImage, augmented
from evlgen.data.pairs import Batch, Texts, batch_of
from evlgen.data.readers.json_lists import UnreadableCaption
from evlgen.data.sampling import CAPTION, hashed, shuffled
from evlgen.errors import UserError

log = logging.getLogger(__name__)

_NAMED = 1000  # damaged pairs that are named one by one; then each of so many
_NEIGHBOURS = 100  # that may be damaged in a row, before the data set is


@dataclass(frozen=True, eq=False)
class Stream:
    """The pairs of a training that caches no features.

    Attributes:
        pools: pool -> size. Only the first ``size`` pairs of a pool are read, each once in an epoch; a pool
            that has fewer is read more than once, so that the proportions of the sizes are kept.
        side: of the images, in pixels.
        encoder: fingerprint of the image encoder that they are for.
    """

    world: World
    pools: tuple[tuple[str, int], ...]
    side: int
    encoder: str
    texts: Texts

    @property
    def fingerprint(self) -> str:
        """What there is to read, and how its captions are tokenized."""
        pools = [(*pool, self._count(*pool), self.world.version(pool[0])) for pool in self.pools]
        texts = (len(self.texts.tokenizer), self.texts.end_id, self.texts.max_tokens)
        return repr((self.world.name, pools, self.side, self.encoder, texts))

    def read(self, seed: int, step: int, batch_size: int, rows: slice = slice(None)) -> DecodedRows:
        """The rows of a step's batch: a pure function of the arguments and of the files.

        A pair whose image or caption is damaged is replaced by the next one of its pool that is whole.

        Raises:
            UserError: too many pairs in a row are damaged.
        """
        epochs, indices = (drawn[rows] for drawn in self._drawn(seed, step, batch_size))
        first = np.cumsum([0, *(size for _, size in self.pools)])
        owners = np.searchsorted(first, indices, side="right") - 1
        images, texts, damaged = [], [], []
        for epoch, index, owner in zip(epochs.tolist(), indices.tolist(), owners.tolist(), strict=True):
            pool, size = self.pools[owner]
            count = self._count(pool, size)
            image, captions, broken = self._readable(
                pool, count, (epoch * size + index - int(first[owner])) % count
            )
            damaged += broken
            key = (seed, epoch, index)
            images.append(augmented(image, self.side, self.world.flips, *key))
            texts.append(captions[int(hashed(CAPTION, *key)[0] % np.uint64(len(captions)))])
        ids, lengths = self.texts.encode(texts)
        return DecodedRows(torch.from_numpy(np.stack(images)), ids, lengths, tuple(damaged))

    def _drawn(
        self, seed: int, step: int, batch_size: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Epoch and index (into the union of all pools) of each pair, (B,) int64 each."""
        total = sum(size for _, size in self.pools)
        position = np.arange(step * batch_size, (step + 1) * batch_size)
        epoch = position // total
        index = [shuffled(seed, int(e), position[epoch == e] % total, total) for e in np.unique(epoch)]
        return epoch, np.concatenate(index)

    def _count(self, pool: str, size: int) -> int:
        """How many pairs of a pool are read, in later epochs as well."""
        return min(size, self.world.count(pool))

    def _readable(self, pool: str, count: int, item: int) -> tuple[Pixels, list[str], list[str]]:
        """Image and captions of the first whole pair from ``item`` on; what is wrong with those before."""
        broken: list[str] = []
        for place in range(item, item + min(_NEIGHBOURS, count)):
            try:
                captions = self.world.captions(pool, place % count)
                return self.world.image(pool, place % count), captions, broken
            except (UnreadableImage, UnreadableCaption) as error:  # noqa: PERF203
                broken.append(str(error))
        raise UserError(f"{broken[0]}; so are the {len(broken) - 1} pairs after it: fetch {pool} again")


@dataclass(frozen=True, eq=False)
class DecodedRows:
    """Rows of a step's batch, as pixels.

    Attributes:
        images: (B, S, S, 3) uint8.
        text_ids: (B, max_text_tokens) int32, right-padded.
        lengths: (B,) int32.
        damaged: what was wrong with the pairs that were replaced.
    """

    images: Tensor
    text_ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    damaged: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Text tokens, closing ones among them."""
        return int(self.lengths.sum())

    def batch(self) -> Batch:
        """For a model."""
        return batch_of(self.images, self.text_ids, self.lengths)


# ---------------------------------------------------------------------------------- reading ahead


def decoded_steps(
    stream: Stream, seed: int, steps: range, batch_size: int, parts: Sequence[slice]
) -> Iterator[list[DecodedRows]]:
    """This process's parts of one step after the other, decoded ahead by `decoders` processes.

    Raises:
        UserError: as `Stream.read`.
    """
    workers = decoders()
    loader = DataLoader(
        _Steps(stream, seed, batch_size, parts),
        batch_size=None,
        sampler=steps,
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # the global one is not moved
    )
    replaced = 0
    for read in loader:
        if isinstance(read, str):
            raise UserError(read)
        for part in read:
            for damage in part.damaged:
                replaced += 1
                if replaced <= _NAMED or not replaced % _NAMED:  # of 100M pairs a tenth may be damaged
                    named = damage.encode(errors="backslashreplace").decode()  # not all names are UTF-8
                    log.warning("%s: replaced by the next pair (%d since the start)", named, replaced)
        yield read


def decoders() -> int:
    """How many processes decode images: ``EVLGEN_DECODERS``, or this process's share of the cores, less one.

    The outcome does not depend on it.

    Raises:
        UserError: the variable is no whole number.
    """
    text = os.environ.get("EVLGEN_DECODERS", "")
    if text:
        if not text.isdigit():
            raise UserError(f"EVLGEN_DECODERS is {text!r}: give the number of processes that decode images")
        return int(text)
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return max(0, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


class _Steps(Dataset[Any]):
    """Step -> this rank's parts of it, or the message of a user error."""

    def __init__(self, stream: Stream, seed: int, batch_size: int, parts: Sequence[slice]) -> None:
        self.stream, self.seed, self.batch_size, self.parts = stream, seed, batch_size, parts

    def __getitem__(self, step: int) -> list[DecodedRows] | str:
        try:
            return [self.stream.read(self.seed, step, self.batch_size, rows) for rows in self.parts]
        except UserError as error:  # the loader would wrap its message in a traceback
            return str(error)


def _as_it_is(read: Any) -> Any:
    return read


def _begin_worker(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains ends its readers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

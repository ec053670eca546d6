"""In which order the pairs are seen: pure functions, so nothing has to be saved to resume.

The batch of step t is a function of (seed, t, number of pairs). All rows of a table that use the same pools
see the same pairs in the same order, whichever connector they train.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def hashed(*key: int | Words) -> Words:
    """64 well-mixed bits for each key; keys are whole numbers or arrays of them, broadcast together.

    A chain of splitmix64 finalisers (Steele et al., 2014): the same on every machine and for every version of
    every library, unlike the generators of numpy and torch.
    """
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            word = np.asarray(part % 2**64, np.uint64) if isinstance(part, int) else part
            state = (state + np.uint64(0x9E3779B97F4A7C15)) ^ word
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


# Purposes of draws: those for different purposes must be independent.
ORDER, CAPTION, VIEW, CROP, SHUFFLE, WEIGHTS, NOISE = range(1, 8)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, total: int) -> npt.NDArray[np.int64]:
    """Permutation of range(total): in which order the pairs of all pools are seen in an epoch."""
    keys = hashed(ORDER, seed, epoch, np.arange(total, dtype=np.uint64))
    return np.argsort(keys, kind="stable")


def pairs_of_step(
    seed: int, step: int, batch_size: int, total: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Epoch and index (into the union of all pools) of each pair of a step's batch, (B,) int64 each.

    Every epoch sees each pair once; a batch may begin in one epoch and end in the next.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epoch = position // total
    index = np.concatenate(
        [epoch_order(seed, int(e), total)[position[epoch == e] % total] for e in np.unique(epoch)]
    )
    return epoch, index


_ROUNDS = 6


def shuffled(seed: int, epoch: int, position: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.int64]:
    """Entries ``position`` of a permutation of range(total), without making all of it.

    For pools of 100M pairs: a Feistel network on the smallest power of four that holds them, walked along
    until it comes back into the range (Black and Rogaway, 2002).
    """
    half = np.uint64(max(1, ((total - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    found = position.astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (hashed(ORDER, seed, epoch, turn, right) & mask)
        found[outside] = (left << half) | right
        outside[outside] = found[outside] >= np.uint64(total)
    return found.astype(np.int64)

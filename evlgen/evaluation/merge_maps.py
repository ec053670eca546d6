"""Do merged tokens belong together? Groups of image tokens compared with the objects of the scene.

PAPER (claim C5): merged tokens are semantically meaningful before any training. A `TomeFormer` merges each
image token into one soft token; the tokens of one soft token are a group. What a patch token shows is known
in the miniworld (`miniworld.object_masks`). The class token has no place in the image and is left out.

Six of seven tokens show background, so that even a random group is fairly pure. Hence three measures, each
beside what as many groups of another kind score.

- ``purity``: among tokens that share their group with another one, the share that shows what most of their
  group shows. Groups of one are left out, or merging nothing would be perfect.
- ``purity_objects``: for each token that shows an object and shares its group, the share of the *others* in
  the group that show the same object; the mean over these tokens. Background counts only where it is mixed
  with objects. It is 1 if no object is ever mixed with anything; for random groups it is the share of the
  object's other tokens among all other tokens, whatever the sizes of the groups.
- ``merge_ari``: adjusted Rand index (Hubert & Arabie, 1985) of groups and objects, the mean over images: 1
  for the same partition, 0 on average for random groups. Groups of one count. A background or object that is
  cut into several groups costs: a partition into many groups stays far below 1 however pure it is.

The comparisons: ``_random`` has groups of the same sizes with the tokens of each image shuffled over them;
``_grid`` has the same number of rectangles of neighbouring patches, and its two shares are over the tokens
that the connector merged.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evlgen import miniworld

Labels = npt.NDArray[np.int64]

BACKGROUND = 0
COVERED = 0.25
_DRAWS = 20  # of random groups


# ---------------------------------------------------------------------------------------------- labels


def patch_labels(scene: miniworld.Scene, side: int) -> Labels:
    """What each of side x side patches shows, (side * side,): 0 background, i + 1 the scene's thing i.

    A mixed patch shows the thing that covers most of it (the first of equals), if that is at least a quarter
    of its area, else background. By plain majority a fifth of the miniworld's things (keys, rings, outlines)
    would show in no patch of 8 x 8 pixels; by a quarter it is one in a hundred.

    Args:
        side: patches along a side; an image need not divide evenly into them.
    """
    share = _patch_shares(miniworld.SIZE, side)  # (side, SIZE)
    covered = share @ miniworld.object_masks(scene).astype(np.float64) @ share.T  # (things, side, side)
    label = np.where(covered.max(0) >= COVERED - 1e-9, covered.argmax(0) + 1, BACKGROUND)
    return label.reshape(-1).astype(np.int64)


@functools.cache
def _patch_shares(pixels: int, side: int) -> npt.NDArray[np.float64]:
    """(side, pixels): share of each patch's extent that lies in each pixel, along one axis; rows sum to 1."""
    edge = np.arange(side + 1) * pixels / side
    left, right = np.arange(pixels), np.arange(pixels) + 1
    overlap = np.minimum(edge[1:, None], right) - np.maximum(edge[:-1, None], left)
    shares: npt.NDArray[np.float64] = overlap.clip(min=0) * side / pixels
    return shares


@functools.lru_cache(maxsize=8)
def pool_labels(pool: str, count: int, side: int) -> Labels:
    """`patch_labels` of the first ``count`` images of a miniworld pool, (count, side * side)."""
    images = miniworld.pool(pool)
    return np.stack([patch_labels(images.scene(index), side) for index in range(count)])


def grid_side(tokens: int) -> int | None:
    """Patches along a side, if ``tokens`` are a class token and a square of patches, else None."""
    side = math.isqrt(max(tokens - 1, 0))
    return side if side and side**2 == tokens - 1 else None


# ---------------------------------------------------------------------------------------------- groups


def groups_of(source: npt.NDArray[np.generic]) -> Labels:
    """Which soft token each patch went into: source (B, N_out, N) -> (B, N - 1), the class token left out."""
    return source[:, :, 1:].argmax(1).astype(np.int64)


def random_groups(groups: Labels, generator: np.random.Generator) -> Labels:
    """Groups of the same sizes, the tokens of each image (B, P) shuffled over them."""
    return generator.permuted(groups, axis=1)


@functools.lru_cache(maxsize=256)
def grid_groups(side: int, number: int) -> Labels:
    """Side x side patches in ``number`` rectangles of nearly one size, (side * side,) of 0 .. number - 1.

    The rectangles stand in about sqrt(number) bands; where numbers do not divide, some are a patch larger.
    """
    bands = round(math.sqrt(number))
    groups = np.empty((side, side), np.int64)
    for row in range(side):
        band = row * bands // side
        first, last = band * number // bands, (band + 1) * number // bands
        groups[row] = first + np.arange(side) * (last - first) // side
    return groups.reshape(-1)


def grids_like(groups: Labels) -> Labels:
    """For each image of (B, side * side) the grid of as many groups as it has."""
    side = math.isqrt(groups.shape[1])
    return np.stack([grid_groups(side, len(np.unique(row))) for row in groups])


# ---------------------------------------------------------------------------------------------- purity


@dataclass(frozen=True)
class Purity:
    """The three measures of the head of this module; nan where nothing is merged.

    Attributes:
        tokens: ``purity``.
        objects: ``purity_objects``.
        ari: ``merge_ari``.
    """

    tokens: float
    objects: float
    ari: float


def purity(groups: Labels, labels: Labels, among: npt.NDArray[np.bool_] | None = None) -> Purity:
    """How well groups and labels agree; both (B, P), whole numbers from 0.

    Tokens of all images count alike in the two shares; the adjusted Rand index is a mean over images.

    Args:
        among: (B, P), the tokens that count in the two shares, if they share their group with another.
    """
    images = np.arange(len(groups))[:, None]
    table = np.zeros((len(groups), groups.max() + 1, labels.max() + 1))  # (B, groups, labels) tokens
    np.add.at(table, (images, groups, labels), 1)
    alike = table[images, groups, labels]  # (B, P) tokens of the group that show the same, itself among them
    size = table.sum(2)[images, groups]
    counts = size >= 2 if among is None else (size >= 2) & among
    objects = counts & (labels != BACKGROUND)
    return Purity(
        tokens=_mean(labels == table.argmax(2)[images, groups], counts),
        objects=_mean((alike - 1) / np.maximum(size - 1, 1), objects),
        ari=float(np.mean([adjusted_rand_index(one) for one in table])),
    )


def in_company(groups: Labels) -> npt.NDArray[np.bool_]:
    """(B, P): which tokens share their group with another one."""
    return (groups[:, :, None] == groups[:, None]).sum(2) >= 2


def adjusted_rand_index(table: npt.NDArray[np.float64]) -> float:
    """Adjusted Rand index of two partitions, from the table (groups, labels) of how many tokens are in both.

    1 where both are the same trivial partition (one group, or all groups of one).
    """

    def pairs(counts: npt.NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    together, first, second = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = first * second / max(pairs(table.sum(keepdims=True)), 1)
    largest = (first + second) / 2
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def _mean(values: npt.NDArray[np.generic], where: npt.NDArray[np.bool_]) -> float:
    return float(values[where].mean()) if where.any() else math.nan


def chance(groups: Labels, labels: Labels) -> Purity:
    """Mean `Purity` of random groups of the same sizes, over a fixed set of draws."""
    generator = np.random.default_rng(0)
    drawn = [purity(random_groups(groups, generator), labels) for _ in range(_DRAWS)]
    return Purity(*(float(one) for one in np.mean([dataclasses.astuple(one) for one in drawn], axis=0)))


def compare(trained: Labels, untrained: Labels, labels: Labels) -> dict[str, float]:
    """A run's metrics by name (see `evlgen.evaluation.inspection`), without those that are nan.

    Args:
        trained, untrained: groups (B, side * side) of the connector as trained and as initialised.
        labels: (B, side * side), see `patch_labels`.
    """
    measured = {
        "": purity(trained, labels),
        "_untrained": purity(untrained, labels),
        "_random": chance(trained, labels),
        "_untrained_random": chance(untrained, labels),
        # on the tokens that the connector merged: it chose them, and the grid must not have to do better
        "_grid": purity(grids_like(trained), labels, in_company(trained)),
        "_untrained_grid": purity(grids_like(untrained), labels, in_company(untrained)),
    }
    found: dict[str, float] = {}
    for suffix, one in measured.items():
        found |= {f"purity{suffix}": one.tokens, f"purity_objects{suffix}": one.objects}
        if "random" not in suffix:  # whose index is 0 by its definition
            found[f"merge_ari{suffix}"] = one.ari
    return {name: value for name, value in found.items() if not math.isnan(value)}

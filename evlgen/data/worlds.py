"""What a data world gives, and which there are: the one place where ``data.world`` is looked at.

A world has *pools*, rows of images with captions that are numbered from 0, and *evaluation sets*: captioning
sets, which are pools, and question sets, whose i-th question is on the i-th image of a pool. Sets have the
names that experiments and tables use: ``coco``, ``nocaps_in``, ``nocaps_near``, ``nocaps_out``, ``flickr``;
``vqav2``, ``gqa``, ``okvqa``. A world need not have all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evlgen.config import DataConfig, RunConfig
from evlgen.errors import UserError

NAMES = ("miniworld", "easy-vqa", "capfilt", "folder")
ENDLESS = 2**62  # images of a pool that is drawn


class Question(Protocol):
    """A question on an image: ten annotators' answers (VQAv2, OK-VQA) or one (GQA)."""

    @property
    def text(self) -> str: ...
    @property
    def answers(self) -> tuple[str, ...]: ...
    @property
    def answer_type(self) -> str: ...


@dataclass(frozen=True)
class World:
    """A data world, as functions of pool and index.

    Attributes:
        caption_sets, question_sets: evaluation set -> the pool with its images.
        validation: the pool of the held-out pairs.
        flips: whether a mirrored image still is what its captions say.
        count: pool -> number of its images.
        version: pool -> what changes whenever its images do; part of the names of cached features.
        image: pool, index -> (H, W, 3) uint8.
        captions: pool, index -> captions to train with, or for the validation loss; at least one.
        references: pool, index -> captions that people wrote, to score with.
        question: question set, index -> the question.
        missing: pools -> a line for each file that they need and that is not there, with the mend.
    """

    name: str
    caption_sets: Mapping[str, str]
    question_sets: Mapping[str, str]
    validation: str
    flips: bool
    count: Callable[[str], int]
    version: Callable[[str], str]
    image: Callable[[str, int], npt.NDArray[np.uint8]]
    captions: Callable[[str, int], list[str]]
    references: Callable[[str, int], list[str]]
    question: Callable[[str, int], Question]
    missing: Callable[[Sequence[str]], list[str]]

    @property
    def sets(self) -> list[str]:
        """Names of all evaluation sets."""
        return [*self.caption_sets, *self.question_sets]

    def pool_of(self, name: str) -> str:
        """The pool with the images of an evaluation set."""
        return {**self.caption_sets, **self.question_sets}[name]


def get(name: str, first_pool: str = "") -> World:
    """The world called ``name``.

    Args:
        first_pool: of a run's training; ``folder`` evaluates on its held-out images.

    Raises:
        UserError: there is none.
    """
    if name == "miniworld":
        return _miniworld()
    if name == "capfilt":
        from evlgen.data.readers import real

        return real.world()
    if name == "folder":
        from evlgen.data.readers import folder

        return folder.world(first_pool)
    if name == "easy-vqa":
        from evlgen.data.readers import easy_vqa

        return easy_vqa.world()
    raise UserError(f"data.world {name!r}: no such world; there are: {', '.join(NAMES)}")


def of(data: DataConfig) -> World:
    """The world that a run reads."""
    return get(data.world, next((name for name, size in data.pools if size), ""))


def problems(config: RunConfig) -> list[str]:
    """A line for each thing that a run wants of its world and that is not there; empty if all is well."""
    world = of(config.data)
    unknown = [
        f"evaluation.sets: no set {name!r} in the world {world.name!r}; there are: {', '.join(world.sets)}"
        for name, size in config.evaluation.sets
        if size and name not in world.sets
    ]
    return unknown + world.missing(pools_of(config))


def pools_of(config: RunConfig) -> list[str]:
    """All pools that a run reads."""
    world = of(config.data)
    trained = [name for name, size in config.data.pools if size]
    sets = [world.pool_of(name) for name, size in config.evaluation.sets if size and name in world.sets]
    return [*trained, world.validation, *sets]


def cache_prefix(pool: str, size: int, vision: str, views: int) -> str:
    """How the name of a file of cached features begins."""
    return f"{pool.replace('/', '_')}-{size}x{views}-{PurePath(vision).name}"


def _miniworld() -> World:
    from evlgen.miniworld import world as miniworld

    def count(pool: str) -> int:
        miniworld.pool(pool)  # there is such a pool
        return ENDLESS

    def captions(pool: str, index: int) -> list[str]:
        return miniworld.pool(pool).captions(index)

    return World(
        name="miniworld",
        caption_sets=miniworld.POOL_OF_SET,
        question_sets={kind: kind for kind in miniworld.QUESTION_KINDS},
        validation="coco_val",
        flips=False,  # its captions say what is left and what is right
        count=count,
        version=lambda pool: miniworld.version(),
        image=lambda pool, index: miniworld.pool(pool).image(index),
        captions=captions,
        references=captions,
        question=miniworld.question,
        missing=lambda pools: [],
    )

"""What a data world gives, and which there are: the one place where ``data.world`` is looked at.

A world has *pools*, rows of images with captions that are numbered from 0, and *evaluation sets*: captioning
sets, which are pools, and question sets, whose images are the pool of the same name (the i-th image goes with
the i-th question). Sets have the names that experiments and tables use: ``coco``, ``nocaps_in``,
``nocaps_near``, ``nocaps_out``, ``flickr``; ``vqav2``, ``gqa``, ``okvqa``. A world need not have all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evlgen.config import DataConfig
from evlgen.errors import UserError

NAMES = ("miniworld",)
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
        caption_sets: captioning set -> the pool with its images.
        question_sets: names of the question sets.
        validation: the pool of the held-out pairs.
        flips: whether a mirrored image still is what its captions say.
        count: pool -> number of its images.
        version: pool -> what changes whenever its images do; part of the names of cached features.
        image: pool, index -> (H, W, 3) uint8.
        captions: pool, index -> captions to train with, or for the validation loss; at least one.
        references: pool, index -> captions that people wrote, to score with.
        question: question set, index -> the question.
    """

    name: str
    caption_sets: Mapping[str, str]
    question_sets: tuple[str, ...]
    validation: str
    flips: bool
    count: Callable[[str], int]
    version: Callable[[str], str]
    image: Callable[[str, int], npt.NDArray[np.uint8]]
    captions: Callable[[str, int], list[str]]
    references: Callable[[str, int], list[str]]
    question: Callable[[str, int], Question]

    @property
    def sets(self) -> list[str]:
        """Names of all evaluation sets."""
        return [*self.caption_sets, *self.question_sets]

    def pool_of(self, name: str) -> str:
        """The pool with the images of an evaluation set."""
        return self.caption_sets.get(name, name)


def get(name: str) -> World:
    """The world called ``name``.

    Raises:
        UserError: there is none.
    """
    if name == "miniworld":
        return _miniworld()
    raise UserError(f"data.world {name!r}: no such world; there are: {', '.join(NAMES)}")


def of(data: DataConfig) -> World:
    """The world that a run reads."""
    return get(data.world)


def cache_prefix(pool: str, size: int, vision: str, views: int) -> str:
    """How the name of a file of cached features begins."""
    return f"{pool.replace('/', '_')}-{size}x{views}-{PurePath(vision).name}"


def _miniworld() -> World:
    from evlgen.data import miniworld

    def count(pool: str) -> int:
        miniworld.pool(pool)  # there is such a pool
        return ENDLESS

    def captions(pool: str, index: int) -> list[str]:
        return miniworld.pool(pool).captions(index)

    return World(
        name="miniworld",
        caption_sets=miniworld.POOL_OF_SET,
        question_sets=miniworld.QUESTION_KINDS,
        validation="coco_val",
        flips=False,  # its captions say what is left and what is right
        count=count,
        version=lambda pool: miniworld.version(),
        image=lambda pool, index: miniworld.pool(pool).image(index),
        captions=captions,
        references=captions,
        question=miniworld.question,
    )

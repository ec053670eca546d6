"""What a data world is: pools of images with captions, and the sets that runs are evaluated on.

A world has *pools*, sequences of images with captions that are numbered from 0, and *evaluation sets*: a
captioning set is a pool, and the i-th question of a question set is on the i-th image of its pool. Each set
says itself how it is scored, so that nothing else asks for its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from evlgen.errors import UserError, nearest
from evlgen.runtime.annotations import LeftOut

if TYPE_CHECKING:  # a name of a set does not need numpy
    import numpy as np
    import numpy.typing as npt

SHUFFLED = "_shuffled"  # suffix of a question set that is answered with the images shuffled
ENDLESS = 2**62  # images of a pool that is drawn


@dataclass(frozen=True)
class Question:
    """A question on an image: ten annotators' answers (VQAv2, OK-VQA) or one (GQA)."""

    text: str
    answers: tuple[str, ...]
    answer_type: str = "other"  # or "yes/no", "number"


@dataclass(frozen=True)
class EvalSet:
    """A set of images with captions, or of questions on images, that runs are evaluated on.

    Attributes:
        name: in configurations, predictions and names of metrics (``coco``, ``vqav2``).
        title: in heads of tables.
        kind: what is evaluated: the captions that a run writes, or its answers to questions.
        pool: the pool with its images; empty for a set that is made of other sets.
        scorers: names from `evlgen.runs.behaviour.SCORERS`: any of ``captions``, ``distinct``,
            `PLACED_SCORERS` and ``scene_truth`` (drawn images only) for captions; of answers the accuracy
            that is the set's score, and perhaps that of the benchmark's own script. None where there is
            nothing to compare with.
        meteor: whether captions get METEOR as well (2 ms a caption, more than all other scores together).
        by_answer_type: whether the accuracy is also given for each type of answer.
        parts: names of the captioning sets that are scored together under this name, where a run has all.
    """

    name: str
    title: str
    kind: Literal["caption", "question"]
    pool: str = ""
    scorers: tuple[str, ...] = ("captions",)
    meteor: bool = False
    by_answer_type: bool = False
    parts: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """Name of its main metric."""
        return f"{self.name}/CIDEr" if self.kind == "caption" else self.name


def captions(name: str, title: str, pool: str) -> EvalSet:
    """A captioning set with the usual scores."""
    return EvalSet(name, title, "caption", pool, ("captions", *PLACED_SCORERS))


# By models that users place themselves (`evlgen.evaluation.placed_scores`); drawn images have none of them.
PLACED_SCORERS = ("spice", "clip_score")


# The sets of the paper: real ones and the miniworld's in their roles.
PAPER_SETS = (
    EvalSet("coco", "COCO", "caption", "coco_test", ("captions", "distinct", *PLACED_SCORERS), meteor=True),
    captions("nocaps_in", "NoCaps in-domain", "nocaps_in"),
    captions("nocaps_near", "NoCaps near-domain", "nocaps_near"),
    captions("nocaps_out", "NoCaps out-of-domain", "nocaps_out"),
    EvalSet(
        "nocaps",
        "NoCaps, all",
        "caption",
        scorers=("captions", *PLACED_SCORERS),
        parts=("nocaps_in", "nocaps_near", "nocaps_out"),
    ),
    captions("flickr", "Flickr30K", "flickr"),
    EvalSet("vqav2", "VQAv2", "question", "vqav2", ("lavis_vqa", "official_vqa"), by_answer_type=True),
    EvalSet("gqa", "GQA", "question", "gqa", ("lavis_gqa",)),
    EvalSet("okvqa", "OK-VQA", "question", "okvqa", ("lavis_okvqa", "official_okvqa")),
)

# Sets without answers or captions, for their makers' servers: `run.py submit` writes what these read.
TEST_SETS = (
    EvalSet("nocaps_test", "NoCaps test", "caption", "nocaps_test", ()),
    EvalSet("vqav2_testdev", "VQAv2 test-dev", "question", "vqav2_testdev", ()),
    EvalSet("vqav2_test", "VQAv2 test", "question", "vqav2_test", ()),
)


@dataclass(frozen=True)
class World:
    """A data world, as functions of pool and index.

    Attributes:
        eval_sets: what runs can be evaluated on.
        validation: the pool of the held-out pairs.
        flips: whether a mirrored image still is what its captions say.
        count: pool -> number of its images.
        version: pool -> what changes whenever its images do; part of the names of cached features.
        image: pool, index -> (H, W, 3) uint8.
        captions: pool, index -> captions to train with, or for the validation loss; at least one.
        references: pool, index -> captions that people wrote, to score with.
        question: question set, index -> the question.
        missing: pools -> a line for each file that they need and that is not there, with the fix.
        ids: pool, index -> ``image_id`` and, in a pool of questions, ``question_id``, as the data set gives
            them; None where they are the indices.
        is_published: whether its evaluation sets have published sizes, so that a part of one is a mistake.
        is_there: pool -> whether one that may be left out is there.
        is_indexed: pool -> whether counting it may make an index of millions of pairs.
        left_out: pool -> what its files have that is in no pool, and why.
    """

    name: str
    eval_sets: tuple[EvalSet, ...]
    validation: str
    flips: bool
    count: Callable[[str], int]
    version: Callable[[str], str]
    image: Callable[[str, int], npt.NDArray[np.uint8]]
    captions: Callable[[str, int], list[str]]
    references: Callable[[str, int], list[str]]
    question: Callable[[str, int], Question]
    missing: Callable[[Sequence[str]], list[str]]
    ids: Callable[[str, int], dict[str, int | str]] | None = None
    is_published: bool = False
    is_there: Callable[[str], bool] = lambda pool: True
    is_indexed: Callable[[str], bool] = lambda pool: False
    left_out: Callable[[str], LeftOut] = lambda pool: LeftOut()

    @property
    def caption_sets(self) -> list[str]:
        """Names of the captioning sets."""
        return [one.name for one in self.eval_sets if one.pool and one.kind == "caption"]

    @property
    def question_sets(self) -> list[str]:
        """Names of the question sets."""
        return [one.name for one in self.eval_sets if one.pool and one.kind == "question"]

    @property
    def sets(self) -> list[str]:
        """Names of all sets that a configuration can ask for."""
        return [*self.caption_sets, *self.question_sets]

    def eval_set(self, name: str) -> EvalSet:
        """The evaluation set called ``name``.

        Raises:
            UserError: there is none.
        """
        for one in self.eval_sets:
            if one.name == name and one.pool:
                return one
        there = ", ".join(self.sets) + nearest(name, self.sets)
        raise UserError(f"no set {name!r} in the world {self.name!r}; there are: {there}")

    def pool_of(self, name: str) -> str:
        """The pool with the images of an evaluation set; raises as `eval_set`."""
        return self.eval_set(name).pool

"""The miniworld as a data world: its pools, and the paper's evaluation sets drawn in their roles."""

from __future__ import annotations

import dataclasses

from evlgen import miniworld
from evlgen.data.base import ENDLESS, PAPER_SETS, PLACED_SCORERS, EvalSet, Question, World

_ACCURACIES = {"vqav2": "vqa_accuracy", "gqa": "gqa_accuracy", "okvqa": "okvqa_accuracy"}


def world(first_pool: str = "") -> World:
    """See `evlgen.data.base.World`."""
    return World(
        name="miniworld",
        eval_sets=tuple(map(_drawn, PAPER_SETS)),
        validation="coco_val",
        flips=False,  # its captions say what is left and what is right
        count=_count,
        version=lambda pool: miniworld.version(),
        image=lambda pool, index: miniworld.pool(pool).image(index),
        captions=_captions,
        references=_captions,
        question=_question,
        missing=lambda pools: [],
    )


def _drawn(eval_set: EvalSet) -> EvalSet:
    """Of drawn images it is known what a caption says rightly, and answers are in no published form."""
    if eval_set.name in _ACCURACIES:
        return dataclasses.replace(eval_set, scorers=(_ACCURACIES[eval_set.name],))
    scorers = tuple(name for name in eval_set.scorers if name not in PLACED_SCORERS)
    more = ("scene_truth",) if eval_set.name == "coco" else ()
    return dataclasses.replace(eval_set, scorers=(*scorers, *more))


def _count(pool: str) -> int:
    miniworld.pool(pool)  # there is such a pool
    return ENDLESS


def _captions(pool: str, index: int) -> list[str]:
    return miniworld.pool(pool).captions(index)


def _question(name: str, index: int) -> Question:
    drawn = miniworld.question(name, index)
    return Question(drawn.text, drawn.answers, drawn.answer_type)

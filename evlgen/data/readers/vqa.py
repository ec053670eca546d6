"""VQAv2 and OK-VQA: a file of questions and one of ten annotators' answers to each, on COCO's images.

``{"questions": [{"question_id": ..., "image_id": ..., "question": ...}]}`` and ``{"annotations":
[{"question_id": ..., "answers": [{"answer": ...}], "answer_type": ...}]}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evlgen.data.base import Question
from evlgen.data.readers.json_lists import ImageList, file_version, other_type, read_json
from evlgen.errors import UserError
from evlgen.runtime.annotations import (
    entries,
    id_field,
    json_field,
    list_field,
    number_field,
    object_of,
    text_field,
    unique,
)


def read(questions: str, annotations: str, images: str) -> ImageList:
    """All questions in the order of their file, each with its image and answers.

    Args:
        questions, annotations: names of the files; a test set has no annotations (empty).
        images: path of an image with ``{}`` for its number.

    Raises:
        UserError: a file is missing, damaged or of an unexpected format, or a question has no answers.
    """
    listed = entries(
        json_field(read_json(questions), questions, "questions"),
        questions,
        "question_id",
        "image_id",
        "question",
    )
    if not listed:
        raise UserError(f"{questions}: has no question")
    ids = [id_field(entry, "question_id", f"{questions}, question {i}") for i, entry in enumerate(listed)]
    unique(ids, questions, "question_id")
    places = [f"{questions}, question {place}" for place in range(len(listed))]
    asked = [text_field(entry, "question", where) for entry, where in zip(listed, places, strict=True)]
    numbers = [number_field(entry, "image_id", where) for entry, where in zip(listed, places, strict=True)]
    folder, _, name = images.rpartition("/")
    if annotations:
        found = _answered(ids, numbers, asked, questions, annotations)
    else:
        found = [Question(text, ()) for text in asked]
    return ImageList(
        file_version(*filter(None, (questions, annotations))),
        tuple(f"{folder}/{name.format(number)}" for number in numbers),
        questions=tuple(found),
        folders=(folder,),
        image_ids=tuple(numbers),
        question_ids=tuple(ids),
    )


def _answered(
    ids: Sequence[int | str], images: Sequence[int], asked: Sequence[str], questions: str, annotations: str
) -> list[Question]:
    """The questions with the answers that the file of annotations has to them."""
    annotated = entries(
        json_field(read_json(annotations), annotations, "annotations"), annotations, "question_id", "answers"
    )
    told = [
        id_field(entry, "question_id", f"{annotations}, annotation {i}") for i, entry in enumerate(annotated)
    ]
    unique(told, annotations, "question_id")
    answers = {
        number: (place, entry) for place, (number, entry) in enumerate(zip(told, annotated, strict=True))
    }
    found = []
    for number, image, text in zip(ids, images, asked, strict=True):
        if number not in answers or not answers[number][1]["answers"]:
            raise UserError(
                f"{annotations}: has no answers to question {number!r} of {questions}"
                f"{other_type(number, answers)}"
            )
        at, own = answers[number]
        if own.get("image_id", image) != image:
            raise UserError(
                f"{annotations}, annotation {at}: is of the image_id {own['image_id']!r}, the question "
                f"{number!r} of {questions} of {image}; the two files do not belong together"
            )
        found.append(_question(text, own, f"{annotations}, annotation {at}"))
    return found


ANSWER_TYPES = ("yes/no", "number", "other")


def _question(asked: str, own: dict[str, Any], where: str) -> Question:
    """A question with what people answered; a person may have answered nothing, but not all of them."""
    told = list_field(own, "answers", where)
    humans = tuple(
        text_field(object_of(answer, f"{where}: an answer"), "answer", where, empty=True) for answer in told
    )
    if not any(answer.strip() for answer in humans):
        raise UserError(f"{where}: all of its answers are empty")
    kind = own.get("answer_type", "other")
    if kind not in ANSWER_TYPES:
        raise UserError(f"{where}: 'answer_type' is {kind!r}, none of {', '.join(ANSWER_TYPES)}")
    return Question(asked, humans, kind)

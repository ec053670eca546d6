"""VQAv2 and OK-VQA: a file of questions and one of ten annotators' answers to each, on COCO's images.

``{"questions": [{"question_id": ..., "image_id": ..., "question": ...}]}`` and ``{"annotations":
[{"question_id": ..., "answers": [{"answer": ...}], "answer_type": ...}]}``.
"""

from __future__ import annotations

from evlgen.data.base import Question
from evlgen.data.readers.json_lists import ImageList, entries, file_version, json_field, other_type, read_json
from evlgen.errors import UserError


def read(questions: str, annotations: str, images: str) -> ImageList:
    """All questions in the order of their file, each with its image and answers.

    Args:
        questions, annotations: names of the files.
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
    annotated = entries(
        json_field(read_json(annotations), annotations, "annotations"), annotations, "question_id", "answers"
    )
    answers = {entry["question_id"]: entry for entry in annotated}
    if not listed:
        raise UserError(f"{questions}: has no question")
    if len({entry["question_id"] for entry in listed}) < len(listed):
        raise UserError(f"{questions}: a question_id stands there twice; fetch the file again")
    for entry in listed:
        number = entry["question_id"]
        if not answers.get(number, {}).get("answers"):
            raise UserError(
                f"{annotations}: has no answers to question {number!r} of {questions}"
                f"{other_type(number, answers)}"
            )
    found = []
    for entry in listed:
        own = answers[entry["question_id"]]
        humans = tuple(answer["answer"] for answer in own["answers"])
        found.append(Question(entry["question"], humans, own.get("answer_type", "other")))
    return ImageList(
        file_version(questions, annotations),
        tuple(images.format(entry["image_id"]) for entry in listed),
        questions=tuple(found),
    )

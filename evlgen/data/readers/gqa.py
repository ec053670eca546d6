"""GQA: ``{question id: {"imageId": ..., "question": ..., "answer": ...}}``, one right answer to each.

LAVIS has a list under the same name: ``[{"image": "n161313.jpg", "question": ..., "answer": ...}]``.
"""

from __future__ import annotations

from typing import Any

from evlgen.data.base import Question
from evlgen.data.readers.json_lists import ImageList, entries, file_version, read_json
from evlgen.errors import UserError


def read(name: str, images: str) -> ImageList:
    """All questions in the order of the file.

    Args:
        name: of the file.
        images: folder of the images.

    Raises:
        UserError: the file is missing, damaged or of an unexpected format.
    """
    content = read_json(name)
    if not content:
        raise UserError(f"{name}: has no question")
    if isinstance(content, list):
        return _lavis(content, name, images)
    if not isinstance(content, dict):
        raise UserError(f"{name}: unexpected format: no object with a question under each id")
    listed = entries(list(content.values()), name, "imageId", "question", "answer")
    return ImageList(
        file_version(name),
        tuple(f"{images}/{entry['imageId']}.jpg" for entry in listed),
        questions=tuple(Question(entry["question"], (entry["answer"],)) for entry in listed),
    )


def _lavis(content: list[Any], name: str, images: str) -> ImageList:
    listed = entries(content, name, "image", "question", "answer")
    return ImageList(
        file_version(name),
        tuple(f"{images}/{entry['image']}" for entry in listed),
        questions=tuple(Question(entry["question"], (entry["answer"],)) for entry in listed),
    )

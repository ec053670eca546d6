"""GQA: ``{question id: {"imageId": ..., "question": ..., "answer": ...}}``, one right answer to each.

LAVIS has a list under the same name: ``[{"image": "n161313.jpg", "question": ..., "answer": ...}]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evlgen.data.base import Question
from evlgen.data.readers.json_lists import ImageList, file_version, read_json
from evlgen.errors import UserError
from evlgen.runtime.annotations import entries, id_field, inside, text_field


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
    entries(list(content.values()), name, "imageId", "question", "answer")
    files, asked, ids = [], [], []
    for key, entry in content.items():
        where = f"{name}, question {key}"
        ids.append(id_field(entry, "imageId", where))
        files.append(inside(Path(images), f"{ids[-1]}.jpg", where).as_posix())
        asked.append(_question(entry, where))
    return ImageList(
        file_version(name),
        tuple(files),
        questions=tuple(asked),
        folders=(images,),
        image_ids=tuple(ids),
        question_ids=tuple(content),
    )


def _lavis(content: list[Any], name: str, images: str) -> ImageList:
    files, asked, ids = [], [], []
    for place, entry in enumerate(entries(content, name, "image", "question", "answer")):
        where = f"{name}, entry {place}"
        files.append(inside(Path(images), entry["image"], where).as_posix())
        asked.append(_question(entry, where))
        ids.append(id_field(entry, "question_id", where) if "question_id" in entry else place)
    return ImageList(
        file_version(name),
        tuple(files),
        questions=tuple(asked),
        folders=(images,),
        image_ids=tuple(Path(file).stem for file in files),
        question_ids=tuple(ids),
    )


def _question(entry: dict[str, Any], where: str) -> Question:
    return Question(text_field(entry, "question", where), (text_field(entry, "answer", where),))

"""easy-VQA (Zhou, 2020): one coloured shape an image, 64 x 64, and questions with a one-word answer.

The set has no captions. They are made from what its questions and answers say of an image ("a blue circle");
images whose colour or shape they do not say are in no pool of captions. Nobody is trained on the
questions: those of the test images are asked zero-shot, as the paper asks VQAv2's.

The images and questions are those in the package ``easy-vqa`` (the extra ``bridge``).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evlgen.data.base import EvalSet, Question, World
from evlgen.data.images import Pixels, UnreadableImage
from evlgen.data.readers.json_lists import read_image
from evlgen.data.sampling import SHUFFLE, hashed
from evlgen.errors import UserError
from evlgen.runtime.annotations import number_field
from evlgen.runtime.annotations import text as checked
from evlgen.runtime.text import parse_json

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
POOLS = ("easy_train", "easy_val", "easy_test", "easy_questions")
INSTALL = "easy-VQA is not installed; pip install 'evlgen[bridge]'"
_HELD_OUT = 200  # of the training images with captions, the last ones
_ANNOTATORS = 10  # one answer stands for ten alike, as VQA accuracy wants it: it is exact match then


EVAL_SETS = (
    EvalSet("easy_captions", "easy-VQA's shapes", "caption", "easy_test"),
    EvalSet("easy_vqa", "easy-VQA", "question", "easy_questions", ("vqa_accuracy",), by_answer_type=True),
)


def world(first_pool: str = "") -> World:
    """See `evlgen.data.base.World`."""
    return World(
        name="easy-vqa",
        eval_sets=EVAL_SETS,
        validation="easy_val",
        flips=True,
        count=lambda pool: len(read(pool).images),
        version=lambda pool: read(pool).version,
        image=_image,
        captions=lambda pool, index: [read(pool).captions[index]],
        references=lambda pool, index: [read(pool).captions[index]],
        question=lambda name, index: read("easy_questions").questions[index],
        missing=missing,
        ids=_ids,
    )


@dataclass(frozen=True, eq=False)
class Pool:
    """Files of images, each with a caption, or with a question."""

    version: str
    images: tuple[Path, ...]
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


def missing(pools: Sequence[str]) -> list[str]:
    """See `evlgen.data.base.World`."""
    return [] if importlib.util.find_spec("easy_vqa") else [INSTALL]


@functools.cache
def read(pool: str) -> Pool:
    """A pool of easy-VQA.

    Raises:
        UserError: unknown pool, or the package is not installed.
    """
    if pool not in POOLS:
        raise UserError(f"pool {pool!r}: no such pool in easy-VQA; there are: {', '.join(POOLS)}")
    folder = _folder() / ("train" if pool in ("easy_train", "easy_val") else "test")
    content = (folder / "questions.json").read_bytes()
    version = hashlib.sha256(content).hexdigest()[:16]
    questions = _questions(content, folder / "questions.json")
    if pool == "easy_questions":  # neighbours are on the same image: so the first ones are a fair sample
        order = np.argsort(hashed(SHUFFLE, 0, np.arange(len(questions), dtype=np.uint64)), kind="stable")
        chosen = [questions[i] for i in order]
        asked = tuple(
            Question(text, (answer,) * _ANNOTATORS, "yes/no" if answer in ("yes", "no") else "other")
            for text, answer, _ in chosen
        )
        return Pool(
            version, tuple(folder / "images" / f"{image}.png" for _, _, image in chosen), questions=asked
        )
    captions = described(questions)
    kept = sorted(captions)
    if pool != "easy_test":
        kept = kept[:-_HELD_OUT] if pool == "easy_train" else kept[-_HELD_OUT:]
    files = tuple(folder / "images" / f"{image}.png" for image in kept)
    return Pool(version, files, tuple(captions[image] for image in kept))


def _questions(content: bytes, path: Path) -> list[tuple[str, str, int]]:
    """Text, answer and image of each question."""
    found: list[tuple[str, str, int]] = []
    for place, entry in enumerate(parse_json(content, path)):
        where = f"{path}, entry {place}"
        if not isinstance(entry, list) or len(entry) != 3:
            raise UserError(f"{where}: not a question, its answer and its image; install easy-vqa again")
        asked, answer = (checked(one, where) for one in entry[:2])
        found.append((asked, answer, number_field({"image": entry[2]}, "image", where)))
    return found


def described(questions: Sequence[tuple[str, str, int]]) -> dict[int, str]:
    """Image -> "a COLOUR SHAPE", of the images whose questions and answers tell both.

    Args:
        questions: text, answer and image of each.
    """
    known: dict[int, set[str]] = {}
    for text, answer, image in questions:
        words = text.rstrip("?").split()
        named = {word for word in words if word in (*COLOURS, *SHAPES)}
        if answer in ("yes", "no"):  # "is there not a red shape?" no: there is
            is_there = (answer == "yes") != ("not" in words or "no" in words)
            seen = named if is_there else set()
        else:  # "what is the blue shape?" tells the colour as well
            seen = {*named, answer}
        known.setdefault(image, set()).update(seen)
    captions = {}
    for image, found in known.items():
        colours, shapes = found & {*COLOURS}, found & {*SHAPES}
        if len(colours) == len(shapes) == 1:
            captions[image] = f"a {colours.pop()} {shapes.pop()}"
    return captions


def _ids(pool: str, index: int) -> dict[str, int | str]:
    found: dict[str, int | str] = {"image_id": int(read(pool).images[index].stem)}
    return found | ({"question_id": index} if read(pool).questions else {})


def _image(pool: str, index: int) -> Pixels:
    path = read(pool).images[index]
    try:
        return read_image(path)
    except UnreadableImage as error:
        raise UserError(f"{error}; install the package easy-vqa again") from error


def _folder() -> Path:
    spec = importlib.util.find_spec("easy_vqa")  # it is not imported
    for place in (spec and spec.submodule_search_locations) or ():
        return Path(place) / "data"
    raise UserError(INSTALL)

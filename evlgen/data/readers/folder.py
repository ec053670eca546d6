"""One's own images: a folder below ``EVLGEN_DATA`` with ``captions.jsonl`` and perhaps ``questions.jsonl``.

A line of ``captions.jsonl``: ``{"file": "a.jpg", "caption": "..."}``, or ``"captions"`` with a list; lines on
the same file belong together. A line of ``questions.jsonl``: ``{"file": "a.jpg", "question": "...", "answer":
"..."}``, or ``"answers"`` with a list of what several people answered. Files are relative to the folder.

``"split"`` (``train``, ``val`` or ``test``) in a line says what the image is for. Where no line has one, a
tenth of the images is held out for the validation loss and a tenth to score, and all questions are asked.
The evaluation sets are called ``captions`` and ``questions``: their scores compare with no paper's.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evlgen.data.base import EvalSet, Question, World
from evlgen.data.readers.json_lists import ImageList, clean_caption
from evlgen.errors import UserError
from evlgen.runtime.datasets import CAPTIONS_FILE, QUESTIONS_FILE, data_folder

SPLITS = ("train", "val", "test")
_ANNOTATORS = 10  # fewer answers stand for ten in equal shares, as VQA accuracy wants it


def world(first_pool: str = "") -> World:
    """See `evlgen.data.base.World`.

    A pool is called like its folder; ``NAME/val``, ``NAME/test`` and ``NAME/questions`` are its other parts.

    Args:
        first_pool: the folder whose held-out images are evaluated on.
    """
    name = first_pool
    return World(
        name="folder",
        eval_sets=(
            EvalSet(
                "captions",
                "own images",
                "caption",
                f"{name}/test",
                ("captions", "distinct"),
                meteor=True,
            ),
            EvalSet("questions", "own questions", "question", f"{name}/questions", ("vqa_accuracy",)),
        ),
        validation=f"{name}/val",
        flips=True,
        count=lambda pool: len(read(pool)),
        version=lambda pool: read(pool).version,
        image=lambda pool, index: read(pool).image(index),
        captions=lambda pool, index: [clean_caption(text) for text in read(pool).captions(index)],
        references=lambda pool, index: read(pool).captions(index),
        question=lambda kind, index: read(f"{name}/questions").questions[index],
        missing=missing,
    )


def missing(pools: Sequence[str]) -> list[str]:
    """See `evlgen.data.base.World`."""
    root = os.environ.get("EVLGEN_DATA", "")
    if not root:
        return [
            "EVLGEN_DATA is not set: set it to the folder that your folder of images is in (docs/DATA.md)"
        ]
    wanted = dict.fromkeys(_file_of(pool) for pool in pools)
    paths = [Path(root).expanduser() / name for name in wanted]
    return [f"{path}: missing; docs/DATA.md says what is in it" for path in paths if not path.is_file()]


def _file_of(pool: str) -> str:
    """The file that lists a pool, relative to ``EVLGEN_DATA``."""
    name, _, what = pool.partition("/")
    return f"{name}/{QUESTIONS_FILE if what == 'questions' else CAPTIONS_FILE}"


def read(pool: str) -> ImageList:
    """A pool from the files that are there now.

    Raises:
        UserError: a file is missing, a line of it damaged or not as it must be, or the pool has no image.
    """
    return _read(pool, data_folder())


@functools.lru_cache(maxsize=32)
def _read(pool: str, root: Path) -> ImageList:
    name, _, what = pool.partition("/")
    path = root / _file_of(pool)
    if what == "questions":
        return _questions(path, name)
    captions: dict[str, list[str]] = {}
    split: dict[str, str] = {}
    for number, line in _lines(path):
        texts = line.get("captions", [line.get("caption")])
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(t, str) and t.strip() for t in texts)
        ):
            raise UserError(f"{path}, line {number}: needs a 'caption', or 'captions' with a list of them")
        captions.setdefault(line["file"], []).extend(texts)
        if "split" in line:
            split[line["file"]] = line["split"]
    wanted = what or "train"
    split = split or _drawn_splits(list(captions))
    files = [file for file in captions if split.get(file, "train") == wanted]
    if not files:
        raise UserError(
            f"{path}: no image in the split {wanted!r}; add some, or leave 'split' out of all lines"
        )
    return ImageList(
        _version(path),
        tuple(f"{name}/{file}" for file in files),
        tuple(tuple(captions[file]) for file in files),
    )


def _questions(path: Path, name: str) -> ImageList:
    files, questions, splits = [], [], {}
    for number, line in _lines(path):
        answers = line.get("answers", [line.get("answer")])
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
            raise UserError(f"{path}, line {number}: needs an 'answer', or 'answers' with a list of them")
        if not isinstance(line.get("question"), str):
            raise UserError(f"{path}, line {number}: needs a 'question'")
        many = [answers[i % len(answers)] for i in range(max(_ANNOTATORS, len(answers)))]
        files.append(line["file"])
        questions.append(Question(line["question"], tuple(many)))
        if "split" in line:
            splits[line["file"]] = line["split"]
    kept = [i for i, file in enumerate(files) if not splits or splits.get(file) == "test"]
    if not kept:
        more = f": all {len(files)} are on images of other splits than 'test'" if files else ""
        raise UserError(f"{path}: no question to ask{more}")
    return ImageList(
        _version(path),
        tuple(f"{name}/{files[i]}" for i in kept),
        questions=tuple(questions[i] for i in kept),
    )


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects in a file of lines of JSON, with the numbers of the lines."""
    try:
        texts = path.read_text(encoding="utf-8").split("\n")  # splitlines would break a caption at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); see docs/DATA.md") from error
    found = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(line, dict) or not isinstance(line.get("file"), str):
            raise UserError(f"{path}, line {number}: needs a 'file'")
        if "split" in line and line["split"] not in SPLITS:
            raise UserError(f"{path}, line {number}: split {line['split']!r} is none of {', '.join(SPLITS)}")
        found.append((number, line))
    return found


def _drawn_splits(files: list[str]) -> dict[str, str]:
    """A tenth each, at least two, for ``val`` and ``test``, by a hash of the names."""
    order = sorted(files, key=lambda file: hashlib.blake2b(file.encode()).digest())
    tenth = max(2, len(files) // 10)
    return dict.fromkeys(order[:tenth], "val") | dict.fromkeys(order[tenth : 2 * tenth], "test")


def _version(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

"""One's own images: a folder below ``EVLGEN_DATA``, or one that data.toml names.

`evlgen.runtime.own_images` reads what is in it. Where no line says what its image is for, a tenth of the
images is held out for the validation loss and a tenth to score, and all questions are asked. The evaluation
sets are called ``captions`` and ``questions``: their scores compare with no paper's.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from evlgen.data import presence
from evlgen.data.base import PLACED_SCORERS, EvalSet, Question, World
from evlgen.data.readers.json_lists import ImageList, clean_caption
from evlgen.errors import UserError, nearest
from evlgen.runtime import datasets, own_images
from evlgen.runtime.datasets import below_root, data_folder
from evlgen.runtime.own_images import Listing

_PARTS = ("val", "test", "questions")  # of a folder, behind its name
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
                ("captions", "distinct", *PLACED_SCORERS),
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
        ids=lambda pool, index: read(pool).ids(index),
        left_out=lambda pool: read(pool).left_out,
        is_there=is_there,
    )


def missing(pools: Sequence[str]) -> list[str]:
    """See `evlgen.data.base.World`; lines that are not as they must be are named as well."""
    if datasets.root() is None:
        return [
            "EVLGEN_DATA is not set: set it to the folder that your folder of images is in (docs/DATA.md)"
        ]
    try:
        data_folder()
    except UserError as error:
        return [str(error)]
    lines: dict[str, None] = {}
    for pool in dict.fromkeys(pools):
        try:
            found = read(pool)
        except UserError as error:  # noqa: PERF203
            lines[str(error)] = None
        else:
            lines |= dict.fromkeys(presence.told(pool, data_folder(), found.files, "put them there"))
    return list(lines)


def is_there(pool: str) -> bool:
    """Whether a folder has questions, which it need not have."""
    name, _, what = pool.partition("/")
    folder = datasets.own_folder(name)
    return what != "questions" or (folder is not None and bool(own_images.question_files(folder)))


def read(pool: str) -> ImageList:
    """A pool from the files that are there now.

    Raises:
        UserError: a file is missing, a line of it damaged or not as it must be, or the pool has no image.
    """
    data_folder()
    name, _, what = pool.partition("/")
    if name in datasets.NO_NAMES or what not in ("", *_PARTS):
        raise UserError(
            f"data.pools: {pool!r} is not the name of a folder in EVLGEN_DATA; give a folder elsewhere a "
            "name in data.toml, [folders] (docs/DATA.md)"
        )
    folder = datasets.own_folder(name)
    assert folder is not None
    return _read(folder, what, name)


@functools.lru_cache(maxsize=32)
def _read(folder: Path, what: str, name: str) -> ImageList:
    if not folder.exists():
        near = nearest(name, datasets.own_folders())
        raise UserError(f"{folder}: missing; docs/DATA.md says what is in it{near}")
    if what == "questions":
        return _questions(folder)
    listing = own_images.captions(folder)
    listing.left_out.warn(folder)
    captions: dict[str, list[str]] = {}
    for line in listing.lines:
        captions.setdefault(line.file, []).extend(line.captions)
    wanted = what or "train"
    split = _splits(listing) or _drawn_splits(list(captions))
    files = [file for file in captions if split.get(file, "train") == wanted]
    if not files:
        raise UserError(
            f"{_named(folder, listing)}: no image in the split {wanted!r}; add some, or "
            "leave 'split' out of all lines"
        )
    return ImageList(
        _version(listing),
        tuple(below_root(folder / file) for file in files),
        tuple(tuple(captions[file]) for file in files),
        folders=(str(folder),),
        left_out=listing.left_out,
    )


def _questions(folder: Path) -> ImageList:
    listing = own_images.questions(folder)
    splits = _splits(listing)
    kept = [line for line in listing.lines if not splits or splits.get(line.file) == "test"]
    if not kept:
        number = len(listing.lines)
        raise UserError(
            f"{_named(folder, listing)}: no question to ask: all {number} are on images of other splits than "
            "'test'"
        )
    return ImageList(
        _version(listing),
        tuple(below_root(folder / line.file) for line in kept),
        questions=tuple(Question(line.question, _humans(line.answers)) for line in kept),
        folders=(str(folder),),
        left_out=listing.left_out,
    )


def _humans(answers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(answers[i % len(answers)] for i in range(max(_ANNOTATORS, len(answers))))


def _named(folder: Path, listing: Listing) -> Path:
    """The file to name in a message."""
    return listing.files[0] if len(listing.files) == 1 else folder


def _splits(listing: Listing) -> dict[str, str]:
    """What images are for, as far as lines say so.

    Raises:
        UserError: two lines say different things of an image.
    """
    found: dict[str, str] = {}
    for line in listing.lines:
        if line.split and found.setdefault(line.file, line.split) != line.split:
            raise UserError(
                f"{line.where}: {line.file} is in the split {line.split!r}, in another line "
                f"in {found[line.file]!r}"
            )
    return found


def _drawn_splits(files: list[str]) -> dict[str, str]:
    """A tenth each, at least two, for ``val`` and ``test``, by a hash of the names."""
    order = sorted(files, key=lambda file: hashlib.blake2b(file.encode()).digest())
    tenth = max(2, len(files) // 10)
    return dict.fromkeys(order[:tenth], "val") | dict.fromkeys(order[tenth : 2 * tenth], "test")


def _version(listing: Listing) -> str:
    digest = hashlib.sha256()
    for path in listing.files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

"""The real sets of the paper: which reader reads which pool. `evlgen.runtime.sources` lists their files."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from evlgen.conventions import blip_question
from evlgen.data import presence
from evlgen.data.base import PAPER_SETS, TEST_SETS, Question, World
from evlgen.data.readers import capfilt, gqa, karpathy, nocaps, vqa
from evlgen.data.readers.json_lists import ImageList, Reader, clean_caption
from evlgen.errors import UserError, nearest
from evlgen.runtime import datasets
from evlgen.runtime.datasets import below_root
from evlgen.runtime.paths import cache_folder

_COCO_SPLITS = {"coco": ("train", "restval"), "coco_val": ("val",), "coco_test": ("test",)}


def world(first_pool: str = "") -> World:
    """See `evlgen.data.base.World`."""
    return World(
        name="capfilt",
        eval_sets=(*PAPER_SETS, *TEST_SETS),
        validation="coco_val",
        flips=True,
        count=lambda name: len(pool(name)),
        version=lambda name: pool(name).version,
        image=lambda name, index: pool(name).image(index),
        captions=lambda name, index: [clean_caption(text) for text in pool(name).captions(index)],
        references=lambda name, index: pool(name).captions(index),
        question=question,
        missing=missing,
        is_indexed=lambda name: name in datasets.web_pools(),
        ids=ids,
        is_published=True,
        left_out=lambda name: pool(name).left_out,
    )


def pool(name: str) -> Reader:
    """The pool called ``name``, from the files that are there now.

    Raises:
        UserError: there is no such pool, or one of its files is missing or damaged.
    """
    # Asked for once for each image and question: what was found is looked for again only if it is gone.
    asked = (name, os.environ.get(datasets.VARIABLE), id(datasets.settings()))
    found = _found.get(asked)
    if found is None or not all(map(os.path.exists, found)):
        datasets.data_folder()
        needs = (*datasets.lists_of(name), *datasets.images_of(name))
        if not needs:
            raise UserError(_unknown(name))
        found = _found[asked] = tuple(datasets.path_of(need) for need in needs)
    return _pool(name, found, datasets.root())


_found: dict[tuple[str, str | None, int], tuple[Path, ...]] = {}


@functools.lru_cache(maxsize=32)
def _pool(name: str, found: tuple[Path, ...], root: Path | None) -> Reader:
    """A pool from the files and folders that it needs, in the order of `datasets`."""
    files = [below_root(path) for path in found]
    if name in _COCO_SPLITS:
        folders = dict(zip(("train2014", "val2014")[-len(files[1:]) :], files[1:], strict=True))
        return karpathy.read(files[0], folders, _COCO_SPLITS[name])
    if name == "flickr":
        return karpathy.read(files[0], files[1], ("test",))
    if name == "nocaps_test":
        return nocaps.read_test(files[0], files[1])
    if name.startswith("nocaps_"):
        return nocaps.read(files[0], files[1], name.removeprefix("nocaps_"))
    if name in ("vqav2", "okvqa"):
        return vqa.read(files[0], files[1], f"{files[2]}/COCO_val2014_{{:012d}}.jpg")
    if name in ("vqav2_testdev", "vqav2_test"):
        return vqa.read(files[0], "", f"{files[1]}/COCO_test2015_{{:012d}}.jpg")
    if name == "gqa":
        return gqa.read(files[0], files[1])
    return capfilt.read(found[0], cache_folder() / "pairs")


def question(name: str, index: int) -> Question:
    """The question ``index`` of a question set, cleaned as BLIP's are, whose captions are, too."""
    found = pool(name)
    assert isinstance(found, ImageList)
    asked = found.questions[index]
    return dataclasses.replace(asked, text=blip_question(asked.text) or asked.text)


def ids(name: str, index: int) -> dict[str, int | str]:
    """What the data set calls an entry of a pool."""
    found = pool(name)
    assert isinstance(found, ImageList)
    return found.ids(index)


def missing(pools: Sequence[str]) -> list[str]:
    """A line for each file or folder that the pools need and that is not there, and where to get it.

    Lists that have addresses instead of images are named as well, and evaluation sets that lack images: of
    pairs to train with a few may be missing, but scores of a part do not compare.
    """
    names = list(dict.fromkeys(pools))
    lines = [_unknown(name) for name in names if not datasets.lists_of(name)]
    needs = dict.fromkeys(n for name in names for n in (*datasets.lists_of(name), *datasets.images_of(name)))
    try:
        datasets.data_folder()
    except UserError as error:
        return [*lines, str(error), *dict.fromkeys(datasets.missing(need) for need in needs)]
    for need in needs:
        if line := datasets.missing(need):
            lines.append(line)
        elif need[0].name in datasets.web_pools():
            lines += capfilt.problems(datasets.path_of(need))
    for name in names:
        folders = datasets.images_of(name)
        if (
            name != "coco"
            and folders
            and not any(map(datasets.missing, (*datasets.lists_of(name), *folders)))
        ):
            lines += _without_images(name, folders[0][0].origin)
    return list(dict.fromkeys(lines))


def _without_images(name: str, origin: str) -> list[str]:
    """A line where images of an evaluation set are not there, or where it cannot be read."""
    try:
        found = pool(name)
    except UserError as error:
        return [str(error)]
    assert isinstance(found, ImageList)
    return presence.told(name, datasets.data_folder(), found.files, f"get them from {origin}")


def _unknown(name: str) -> str:
    there = datasets.pools()
    return (
        f"data.pools: no pool {name!r} among the real sets; there are: {', '.join(there)}"
        f"{nearest(name, there)}"
    )

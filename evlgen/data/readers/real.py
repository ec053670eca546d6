"""The real sets of the paper: which reader reads which pool. `evlgen.runtime.sources` lists their files."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from evlgen.data.base import PAPER_SETS, Question, World
from evlgen.data.readers import capfilt, gqa, karpathy, nocaps, vqa
from evlgen.data.readers.json_lists import ImageList, Reader, clean_caption, data_folder
from evlgen.errors import UserError
from evlgen.runtime.paths import cache_folder
from evlgen.runtime.sources import (
    COCO,
    FLICKR,
    GQA,
    NEEDED_FILES,
    NOCAPS,
    OKVQA,
    ORIGINS,
    VQAV2,
    WEB_POOLS,
)

_COCO_SPLITS = {"coco": ("train", "restval"), "coco_val": ("val",), "coco_test": ("test",)}

_COCO_IMAGES = "coco/val2014/COCO_val2014_{:012d}.jpg"


def world(first_pool: str = "") -> World:
    """See `evlgen.data.base.World`."""
    return World(
        name="capfilt",
        eval_sets=PAPER_SETS,
        validation="coco_val",
        flips=True,
        count=lambda name: len(pool(name)),
        version=lambda name: pool(name).version,
        image=lambda name, index: pool(name).image(index),
        captions=lambda name, index: [clean_caption(text) for text in pool(name).captions(index)],
        references=lambda name, index: pool(name).captions(index),
        question=question,
        missing=missing,
    )


def pool(name: str) -> Reader:
    """The pool called ``name``, from the files that are there now.

    Raises:
        UserError: there is no such pool, or one of its files is missing or damaged.
    """
    return _pool(name, data_folder())


@functools.lru_cache(maxsize=32)
def _pool(name: str, root: Path) -> Reader:
    if lines := missing([name]):
        raise UserError(lines[0])
    if name in _COCO_SPLITS:
        return karpathy.read(COCO, "coco", _COCO_SPLITS[name])
    if name == "flickr":
        return karpathy.read(FLICKR, "flickr30k/images", ("test",))
    if name.startswith("nocaps"):
        return nocaps.read(NOCAPS, "nocaps/images", name.removeprefix("nocaps_"))
    if name in ("vqav2", "okvqa"):
        return vqa.read(*(VQAV2 if name == "vqav2" else OKVQA), _COCO_IMAGES)
    if name == "gqa":
        return gqa.read(GQA, "gqa/images")
    return capfilt.read(root / name, cache_folder() / "pairs")


def question(name: str, index: int) -> Question:
    """The question ``index`` of a question set."""
    found = pool(name)
    assert isinstance(found, ImageList)
    return found.questions[index]


def missing(pools: Sequence[str]) -> list[str]:
    """A line for each file or folder that the pools need and that is not there, and where to get it.

    Lists that have addresses instead of images are named as well.
    """
    unknown = [
        f"data.pools: no pool {name!r} among the real sets; there are: {', '.join(NEEDED_FILES)}"
        for name in dict.fromkeys(pools)
        if name not in NEEDED_FILES
    ]
    needed = dict.fromkeys(need for name in pools for need in NEEDED_FILES.get(name, ()))
    root = os.environ.get("EVLGEN_DATA", "")
    if not root:
        return (
            unknown
            + ["EVLGEN_DATA is not set: set it to the folder of the data sets (docs/DATA.md)"]
            + [f"{need}: needed there; get it from {ORIGINS[need]}" for need in needed]
        )
    lines = unknown
    for need in needed:
        path = Path(root).expanduser() / need
        if not path.exists():
            lines.append(f"{path}: missing; get it from {ORIGINS[need]}")
        elif path.is_dir() and next(path.iterdir(), None) is None:
            lines.append(f"{path}: empty; get it from {ORIGINS[need]}")
        elif need in WEB_POOLS:
            lines += capfilt.problems(path)
    return lines

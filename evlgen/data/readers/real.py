"""The real sets of the paper: which pool is read by whom, and from which files below ``EVLGEN_DATA``."""

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

_COCO_SPLITS = {"coco": ("train", "restval"), "coco_val": ("val",), "coco_test": ("test",)}

_COCO, _COCO_IMAGES = "coco/dataset_coco.json", "coco/val2014/COCO_val2014_{:012d}.jpg"
_VQAV2 = ("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "vqav2/v2_mscoco_val2014_annotations.json")
_OKVQA = ("okvqa/OpenEnded_mscoco_val2014_questions.json", "okvqa/mscoco_val2014_annotations.json")
_GQA, _NOCAPS = "gqa/testdev_balanced_questions.json", "nocaps/nocaps_val_4500_captions.json"
_FLICKR = "flickr30k/dataset_flickr30k.json"

# File or folder -> where a user gets it.
ORIGINS = {
    _COCO: "Karpathy's caption_datasets.zip (cs.stanford.edu/people/karpathy/deepimagesent)",
    "coco/train2014": "train2014.zip of cocodataset.org",
    "coco/val2014": "val2014.zip of cocodataset.org",
    **dict.fromkeys(_VQAV2, "visualqa.org/download.html, VQA v2 validation"),
    **dict.fromkeys(_OKVQA, "okvqa.allenai.org/download.html, v1.1 testing"),
    _GQA: "questions1.2.zip of cs.stanford.edu/people/dorarad/gqa/download.html",
    "gqa/images": "images.zip of cs.stanford.edu/people/dorarad/gqa/download.html",
    _NOCAPS: "nocaps.org/download, validation captions",
    "nocaps/images": "the validation images of nocaps.org/download (Open Images)",
    _FLICKR: "Karpathy's caption_datasets.zip (cs.stanford.edu/people/karpathy/deepimagesent)",
    "flickr30k/images": "shannon.cs.illinois.edu/DenotationGraph (on request)",
    "laion-115m": "BLIP's laion_synthetic_filtered_large.json, its images fetched with img2dataset",
    "ccs-14m": "BLIP's ccs_synthetic_filtered_large.json, its images fetched with img2dataset",
}
_WEB = ("laion-115m", "ccs-14m")
_NEEDS = {
    "coco": (_COCO, "coco/train2014", "coco/val2014"),
    "coco_val": (_COCO, "coco/val2014"),
    "coco_test": (_COCO, "coco/val2014"),
    **{f"nocaps_{domain}": (_NOCAPS, "nocaps/images") for domain in ("in", "near", "out")},
    "flickr": (_FLICKR, "flickr30k/images"),
    "vqav2": (*_VQAV2, "coco/val2014"),
    "okvqa": (*_OKVQA, "coco/val2014"),
    "gqa": (_GQA, "gqa/images"),
    **{name: (name,) for name in _WEB},
}


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
        return karpathy.read(_COCO, "coco", _COCO_SPLITS[name])
    if name == "flickr":
        return karpathy.read(_FLICKR, "flickr30k/images", ("test",))
    if name.startswith("nocaps"):
        return nocaps.read(_NOCAPS, "nocaps/images", name.removeprefix("nocaps_"))
    if name in ("vqav2", "okvqa"):
        return vqa.read(*(_VQAV2 if name == "vqav2" else _OKVQA), _COCO_IMAGES)
    if name == "gqa":
        return gqa.read(_GQA, "gqa/images")
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
        f"data.pools: no pool {name!r} among the real sets; there are: {', '.join(_NEEDS)}"
        for name in dict.fromkeys(pools)
        if name not in _NEEDS
    ]
    needed = dict.fromkeys(need for name in pools for need in _NEEDS.get(name, ()))
    root = os.environ.get("EVLGEN_DATA", "")
    if not root:
        return (
            unknown
            + ["EVLGEN_DATA is not set: set it to the folder of the data sets (docs/DATA.md)"]
            + [f"{need}: wanted in it; get it from {ORIGINS[need]}" for need in needed]
        )
    lines = unknown
    for need in needed:
        path = Path(root).expanduser() / need
        if not path.exists():
            lines.append(f"{path}: missing; get it from {ORIGINS[need]}")
        elif path.is_dir() and next(path.iterdir(), None) is None:
            lines.append(f"{path}: empty; get it from {ORIGINS[need]}")
        elif need in _WEB:
            lines += capfilt.problems(path)
    return lines

"""COCO captions and Flickr30K in Karpathy's splits: ``dataset_coco.json``, ``dataset_flickr30k.json``.

``{"images": [{"filepath": "val2014", "filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}``;
Flickr30K has no ``filepath``.

LAVIS and BLIP have a list for each split, ``[{"image": "val2014/COCO_val2014_...jpg", "caption": ...}]``: one
entry a caption for training (``coco_karpathy_train.json``, which has ``restval`` as well), one entry an image
with a list of captions else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from evlgen.data.readers.json_lists import ImageList, file_version, read_json
from evlgen.errors import UserError
from evlgen.runtime.annotations import (
    LeftOut,
    entries,
    inside,
    json_field,
    object_of,
    text,
    text_field,
    texts_field,
    with_words,
)

Folders = str | Mapping[str, str]  # of images; by the folder that the list names, or one for all


def read(name: str, images: Folders, splits: Collection[str]) -> ImageList:
    """The images of some splits, in the order of the file, with all their captions.

    Args:
        name: of the JSON file.
        images: folder of the images, or one for each folder that the file names.
        splits: COCO has ``train``, ``restval`` (trained on as well), ``val`` and ``test``; a list of LAVIS is
            of one split and taken whole.

    Raises:
        UserError: the file is missing, damaged or of an unexpected format.
    """
    content = read_json(name)
    if isinstance(content, list) and content:
        return _lavis(content, name, images, splits)
    captions: dict[str, list[str]] = {}
    left_out = LeftOut()
    seen: set[str] = set()
    listed = entries(json_field(content, name, "images"), name, "filename", "split", "sentences")
    for place, image in enumerate(listed):
        where = f"{name}, image {place}"
        seen.add(split := text_field(image, "split", where))
        if split not in splits:
            continue
        folder = "" if image.get("filepath") is None else text_field(image, "filepath", where, empty=True)
        file = _placed(images, folder, text_field(image, "filename", where), where)
        if file in captions:
            raise UserError(f"{where}: the image {image['filename']!r} is there twice")
        said = image["sentences"]
        if not isinstance(said, list):
            raise UserError(f"{where}: 'sentences' must be a list")
        texts = [text_field(object_of(one, f"{where}: a sentence"), "raw", where, empty=True) for one in said]
        captions[file] = with_words(texts, where, left_out)
    if not any(captions.values()):
        there = ", ".join(sorted(seen)) or "none"
        raise UserError(
            f"{name}: no image with captions in the split {' or '.join(splits)}; splits there: {there}"
        )
    return _pool(captions, name, images, splits, left_out)


def _lavis(content: list[Any], name: str, images: Folders, splits: Collection[str]) -> ImageList:
    captions: dict[str, list[str]] = {}
    left_out = LeftOut()
    for place, entry in enumerate(entries(content, name, "image", "caption")):
        where = f"{name}, entry {place}"
        file = _placed(images, *_split(text_field(entry, "image", where)), where)
        said = entry["caption"]
        several = isinstance(said, list)
        texts = (
            texts_field(entry, "caption", where, empty=True)
            if several
            else [text(said, f"{where}: 'caption'", True)]
        )
        captions.setdefault(file, []).extend(with_words(texts, where, left_out))
    return _pool(captions, name, images, splits, left_out)


def _pool(
    captions: dict[str, list[str]], name: str, images: Folders, splits: Collection[str], left_out: LeftOut
) -> ImageList:
    """Raises a `UserError` for images without a caption; of a set that is trained on they are left out."""
    bare = [file for file, said in captions.items() if not said]
    if bare and "train" not in splits:
        raise UserError(
            f"{name}: {len(bare)} of {len(captions)} images of the split {' or '.join(splits)} have no "
            f"caption ({bare[0]}); scores would be of the others alone: fetch the file again"
        )
    for file in bare:
        left_out.add("images without a caption", f"{name}, {file}")
    left_out.warn(name)
    kept = {file: tuple(said) for file, said in captions.items() if said}
    folders = (images,) if isinstance(images, str) else tuple(images.values())
    return ImageList(
        file_version(name),
        tuple(kept),
        tuple(kept.values()),
        folders=folders,
        left_out=left_out,
        image_ids=tuple(map(_id_of, kept)),
    )


def _id_of(file: str) -> int | str:
    """The number of an image of COCO, which its name ends in; else the name."""
    name = file.rpartition("/")[2]
    number = re.fullmatch(r"(?:COCO_\w+_)?(\d{12})\.\w+", name)
    return int(number[1]) if number else name


def _split(image: str) -> tuple[str, str]:
    folder, _, file = image.rpartition("/")
    return folder, file


def _placed(images: Folders, folder: str, file: str, where: str) -> str:
    """Where an image lies."""
    if not isinstance(images, str):
        if folder not in images:
            there = ", ".join(images)
            raise UserError(f"{where}: image {file!r} is in the folder {folder!r}, which is none of {there}")
        images = images[folder]
    return inside(Path(images), file, where).as_posix()

"""COCO captions and Flickr30K in Karpathy's splits: ``dataset_coco.json``, ``dataset_flickr30k.json``.

``{"images": [{"filepath": "val2014", "filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}``;
Flickr30K has no ``filepath``.

LAVIS and BLIP have a list for each split, ``[{"image": "val2014/COCO_val2014_...jpg", "caption": ...}]``: one
entry a caption for training (``coco_karpathy_train.json``, which has ``restval`` as well), one entry an image
with a list of captions else.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from evlgen.data.readers.json_lists import ImageList, entries, file_version, json_field, read_json
from evlgen.errors import UserError

log = logging.getLogger(__name__)

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
        return _lavis(content, name, images)
    listed = entries(json_field(content, name, "images"), name, "filename", "split", "sentences")
    in_splits = [image for image in listed if image["split"] in splits]
    chosen = [image for image in in_splits if image["sentences"]]
    dropped = [image["filename"] for image in in_splits if not image["sentences"]]
    if not chosen:
        there = ", ".join(sorted({str(image["split"]) for image in listed})) or "none"
        raise UserError(
            f"{name}: no image with captions in the split {' or '.join(splits)}; splits there: {there}"
        )
    if dropped and "train" not in splits:
        raise UserError(
            f"{name}: {len(dropped)} of {len(in_splits)} images of the split {' or '.join(splits)} have no "
            f"caption ({dropped[0]}); scores would be of the others alone: fetch the file again"
        )
    if dropped:
        log.warning("%s: %d images without a caption are left out (%s)", name, len(dropped), dropped[0])
    return ImageList(
        file_version(name),
        tuple(_placed(images, i.get("filepath") or "", i["filename"], name) for i in chosen),
        tuple(tuple(sentence["raw"] for sentence in image["sentences"]) for image in chosen),
    )


def _lavis(content: list[Any], name: str, images: Folders) -> ImageList:
    captions: dict[str, list[str]] = {}
    for entry in entries(content, name, "image", "caption"):
        said = entry["caption"]
        captions.setdefault(entry["image"], []).extend(said if isinstance(said, list) else [said])
    return ImageList(
        file_version(name),
        tuple(_placed(images, *_split(image), name) for image in captions),
        tuple(tuple(said) for said in captions.values()),
    )


def _split(image: str) -> tuple[str, str]:
    folder, _, file = image.rpartition("/")
    return folder, file


def _placed(images: Folders, folder: str, file: str, name: str) -> str:
    """Where an image lies."""
    if isinstance(images, str):
        return f"{images}/{file}"
    if folder not in images:
        there = ", ".join(images)
        raise UserError(f"{name}: image {file!r} is in the folder {folder!r}, which is none of {there}")
    return f"{images[folder]}/{file}"

"""COCO captions and Flickr30K in Karpathy's splits: ``dataset_coco.json``, ``dataset_flickr30k.json``.

``{"images": [{"filepath": "val2014", "filename": ..., "split": ..., "sentences": [{"raw": ...}]}]}``;
Flickr30K has no ``filepath``.
"""

from __future__ import annotations

from collections.abc import Collection

from evlgen.data.readers.json_lists import ImageList, entries, file_version, json_field, read_json


def read(name: str, images: str, splits: Collection[str]) -> ImageList:
    """The images of some splits, in the order of the file, with all their captions.

    Args:
        name: of the JSON file.
        images: folder that the images' paths begin in.
        splits: COCO has ``train``, ``restval`` (trained on as well), ``val`` and ``test``.

    Raises:
        UserError: the file is missing, damaged or of an unexpected format.
    """
    listed = entries(json_field(read_json(name), name, "images"), name, "filename", "split", "sentences")
    chosen = [image for image in listed if image["split"] in splits and image["sentences"]]
    return ImageList(
        file_version(name),
        tuple("/".join(filter(None, (images, i.get("filepath"), i["filename"]))) for i in chosen),
        tuple(tuple(sentence["raw"] for sentence in image["sentences"]) for image in chosen),
    )

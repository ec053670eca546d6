"""NoCaps: the validation set with its captions and the domain of each image.

``{"images": [{"id": ..., "file_name": ..., "domain": "near-domain"}], "annotations": [{"image_id": ...,
"caption": ...}]}``.
"""

from __future__ import annotations

from pathlib import Path

from evlgen.data.readers.json_lists import ImageList, file_version, other_type, read_json
from evlgen.errors import UserError
from evlgen.runtime.annotations import (
    LeftOut,
    entries,
    id_field,
    inside,
    json_field,
    text_field,
    unique,
    with_words,
)


def read(name: str, images: str, domain: str) -> ImageList:
    """The images of a domain, in the order of the file, with their captions.

    Args:
        name: of the JSON file.
        images: folder of the images.
        domain: ``in``, ``near`` or ``out``.

    Raises:
        UserError: the file is missing, damaged or of an unexpected format.
    """
    content = read_json(name)
    listed = entries(json_field(content, name, "images"), name, "id", "file_name", "domain")
    ids = [id_field(image, "id", f"{name}, image {place}") for place, image in enumerate(listed)]
    unique(ids, name, "id")
    left_out = LeftOut()
    captions: dict[int | str, list[str]] = {number: [] for number in ids}
    annotations = entries(json_field(content, name, "annotations"), name, "image_id", "caption")
    for place, entry in enumerate(annotations):
        where = f"{name}, annotation {place}"
        said = with_words([text_field(entry, "caption", where, empty=True)], where, left_out)
        number = id_field(entry, "image_id", where)
        if number not in captions:
            raise UserError(
                f"{name}: a caption is of the image_id {number!r}, and no image has this id"
                f"{other_type(number, captions)}"
            )
        captions[number].extend(said)
    files: dict[int | str, str] = {}
    seen: set[str] = set()
    for place, (number, image) in enumerate(zip(ids, listed, strict=True)):
        where = f"{name}, image {place}"
        seen.add(its := text_field(image, "domain", where))
        file = inside(Path(images), image["file_name"], where).as_posix()
        if its.split("-")[0] == domain:
            files[number] = file
    if not files:
        there = ", ".join(sorted(seen)) or "none"
        raise UserError(f"{name}: no image of the domain {domain!r}; domains there: {there}")
    if without := [number for number in files if not captions[number]]:
        raise UserError(
            f"{name}: {len(without)} of {len(files)} images of the domain {domain!r} have no caption (image "
            f"{without[0]!r}); scores would be of the others alone: fetch the file again"
        )
    left_out.warn(name)
    return ImageList(
        file_version(name),
        tuple(files.values()),
        tuple(tuple(captions[number]) for number in files),
        folders=(images,),
        left_out=left_out,
        image_ids=tuple(files),
    )


def read_test(name: str, images: str) -> ImageList:
    """The images of the test set, which has no captions: ``{"images": [{"id": ..., "file_name": ...}]}``.

    Raises:
        UserError: as `read`.
    """
    listed = entries(json_field(read_json(name), name, "images"), name, "id", "file_name")
    if not listed:
        raise UserError(f"{name}: has no image")
    ids = [id_field(image, "id", f"{name}, image {place}") for place, image in enumerate(listed)]
    unique(ids, name, "id")
    return ImageList(
        file_version(name),
        tuple(
            inside(Path(images), image["file_name"], f"{name}, image {place}").as_posix()
            for place, image in enumerate(listed)
        ),
        ((),) * len(listed),
        folders=(images,),
        image_ids=tuple(ids),
    )

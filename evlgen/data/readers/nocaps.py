"""NoCaps: the validation set with its captions and the domain of each image.

``{"images": [{"id": ..., "file_name": ..., "domain": "near-domain"}], "annotations": [{"image_id": ...,
"caption": ...}]}``.
"""

from __future__ import annotations

from evlgen.data.readers.json_lists import ImageList, entries, file_version, json_field, other_type, read_json
from evlgen.errors import UserError


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
    captions: dict[object, list[str]] = {image["id"]: [] for image in listed}
    if len(captions) < len(listed):
        raise UserError(f"{name}: {len(listed) - len(captions)} images have the id of another one")
    for entry in entries(json_field(content, name, "annotations"), name, "image_id", "caption"):
        if entry["image_id"] not in captions:
            raise UserError(
                f"{name}: a caption is of the image_id {entry['image_id']!r}, and no image has this id"
                f"{other_type(entry['image_id'], captions)}"
            )
        captions[entry["image_id"]].append(entry["caption"])
    chosen = [image for image in listed if image["domain"].split("-")[0] == domain]
    if not chosen:
        there = ", ".join(sorted({str(image["domain"]) for image in listed})) or "none"
        raise UserError(f"{name}: no image of the domain {domain!r}; domains there: {there}")
    if without := [image["id"] for image in chosen if not captions[image["id"]]]:
        raise UserError(
            f"{name}: {len(without)} of {len(chosen)} images of the domain {domain!r} have no caption (image "
            f"{without[0]!r}); scores would be of the others alone: fetch the file again"
        )
    return ImageList(
        file_version(name),
        tuple(f"{images}/{image['file_name']}" for image in chosen),
        tuple(tuple(captions[image["id"]]) for image in chosen),
    )

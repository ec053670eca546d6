"""NoCaps: the validation set with its captions and the domain of each image.

``{"images": [{"id": ..., "file_name": ..., "domain": "near-domain"}], "annotations": [{"image_id": ...,
"caption": ...}]}``.
"""

from __future__ import annotations

from evlgen.data.readers.json_lists import ImageList, entries, file_version, json_field, read_json


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
    captions: dict[object, list[str]] = {}
    for entry in entries(json_field(content, name, "annotations"), name, "image_id", "caption"):
        captions.setdefault(entry["image_id"], []).append(entry["caption"])
    listed = entries(json_field(content, name, "images"), name, "id", "file_name", "domain")
    chosen = [i for i in listed if i["domain"].split("-")[0] == domain and i["id"] in captions]
    return ImageList(
        file_version(name),
        tuple(f"{images}/{image['file_name']}" for image in chosen),
        tuple(tuple(captions[image["id"]]) for image in chosen),
    )

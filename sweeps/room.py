"""How much a sweep will write into the cache, and whether the disk has room for it."""

from __future__ import annotations

from collections.abc import Iterable

from evlgen.config import RunConfig
from evlgen.errors import UserError
from evlgen.runtime import paths
from evlgen.runtime.files import check_room, in_gib
from evlgen.runtime.sources import is_shipped
from sweeps.plan import feature_tasks, missing_features

_WORTH_SAYING = 2**30  # bytes


def features(runs: Iterable[RunConfig]) -> tuple[str, str]:
    """What the features that runs still need will take on the disk, and a line if it has no room for them.

    Either is empty where there is nothing to say. Those of the miniature's encoders are small and do not
    count, nor do sets and encoders whose files are missing.
    """
    size = sum(_size(*task.arguments) for task in missing_features(feature_tasks(runs)))
    folder = paths.cache_folder() / "features"
    said = f"features: {in_gib(size)} will be written to {folder}" if size >= _WORTH_SAYING else ""
    try:
        check_room(folder, size, "the features of this sweep's images")
    except UserError as error:
        return said, str(error)
    return said, ""


def _size(pool: str, images: int, vision: str, views: int, world_name: str, _conventions: str) -> int:
    if is_shipped(vision):
        return 0
    from evlgen.backbones.vision import feature_tokens, feature_width  # imports torch
    from evlgen.data import worlds
    from evlgen.data.features import bytes_of

    world = worlds.get(world_name, pool.partition("/")[0])
    try:
        tokens, width = feature_tokens(vision), feature_width(vision)
        if tokens is None or width is None:
            return 0
        if not world.is_indexed(pool):
            images = min(images, world.count(pool))
    except UserError:  # a file is missing, which others say
        return 0
    return bytes_of(views, images, tokens, width)

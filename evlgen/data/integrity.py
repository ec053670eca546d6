"""Whether the evaluation sets that a run asks for are there, whole: found out before it is trained.

Scores are of what is there. A set without an example would leave its cells empty after all training, and a
part of a published set does not compare with the whole.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from evlgen.data.base import World
from evlgen.data.images import UnreadableImage
from evlgen.errors import UserError

log = logging.getLogger(__name__)


def problems(world: World, sets: Sequence[tuple[str, int]], validation: int) -> list[str]:
    """A line for each evaluation set that cannot be read, is empty, or has fewer examples than are asked for.

    Fewer are a mistake in sets whose size is published. Of one's own images as many are taken as there are.

    Args:
        sets: evaluation sets of the world, and how many examples are asked for.
        validation: how many held-out pairs are; 0: they are not looked at.
    """
    asked = [(f"evaluation.sets: {name}", world.pool_of(name), size) for name, size in sets if size]
    if validation:
        asked.append(("evaluation.validation", world.validation, validation))
    lines = []
    for what, pool, size in asked:
        try:
            count = world.count(pool)
        except UserError as error:
            lines.append(str(error))
            continue
        if not count:
            lines.append(f"{what}: there is not a single example in {pool!r}")
        elif count < size and world.is_published:
            lines.append(
                f"{what}: {size} are asked for, {pool!r} has {count}; get all of it, or ask for {count}"
            )
    return list(dict.fromkeys(lines))


def check_images(world: World, pools: Iterable[tuple[str, int]]) -> None:
    """Decode the images that a run will be evaluated on, each once (paper: some 50,000).

    Args:
        pools: and how many examples of each, from the first one on.

    Raises:
        UserError: an image is missing or damaged. After the training it would have been too late.
    """
    if world.name == "miniworld":
        return
    for pool, size in pools:
        indices: dict[object, int] = {}  # several questions are on one image
        for index in range(min(size, world.count(pool))):
            indices.setdefault(world.ids(pool, index)["image_id"] if world.ids else index, index)
        log.info("%s: looking at all of its %d images before the training", pool, len(indices))
        with ThreadPoolExecutor(8) as threads:  # decoding gives the interpreter free
            damaged = [
                line
                for line in threads.map(functools.partial(_damage, world, pool), indices.values())
                if line
            ]
        if damaged:
            others = f", and {len(damaged) - 1} more of {pool}" if len(damaged) > 1 else ""
            raise UserError(f"{damaged[0]}{others}; fetch what is damaged again: nothing is trained yet")


def _damage(world: World, pool: str, index: int) -> str:
    try:
        world.image(pool, index)
    except UnreadableImage as error:
        return str(error)
    return ""

"""Whether the evaluation sets that a run asks for are there, whole: found out before it is trained.

Scores are of what is there. A set without an example would leave its cells empty after all training, and a
part of a published set does not compare with the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from evlgen.data.base import World
from evlgen.errors import UserError


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

"""Which data worlds there are: the one place where ``data.world`` is looked at.

A world is declared by its reader (`evlgen.data.base.World`). It need not have all the evaluation sets of the
paper, and may have others.
"""

from __future__ import annotations

from pathlib import PurePath

from evlgen.config import DataConfig, RunConfig
from evlgen.data import integrity
from evlgen.data.base import EvalSet, World
from evlgen.data.readers import easy_vqa, folder, miniworld, real
from evlgen.errors import UserError, nearest

_WORLDS = {
    "miniworld": miniworld.world,
    "easy-vqa": easy_vqa.world,
    "capfilt": real.world,
    "folder": folder.world,
}


def get(name: str, first_pool: str = "") -> World:
    """The world called ``name``.

    Args:
        first_pool: of a run's training; ``folder`` evaluates on its held-out images.

    Raises:
        UserError: there is none.
    """
    if name not in _WORLDS:
        there = ", ".join(_WORLDS)
        raise UserError(f"data.world {name!r}: no such world; there are: {there}{nearest(name, _WORLDS)}")
    return _WORLDS[name](first_pool)


def of(data: DataConfig) -> World:
    """The world that a run reads."""
    return get(data.world, next((name for name, size in data.pools if size), ""))


def all_sets() -> list[EvalSet]:
    """The evaluation sets of all worlds; several worlds may have sets of one name, in the same role."""
    return [one for name in _WORLDS for one in get(name).eval_sets]


def problems(config: RunConfig) -> list[str]:
    """A line for each thing that a run wants of its world and that is not there; empty if all is well."""
    world = of(config.data)
    unknown = [
        f"evaluation.sets: no set {name!r} in the world {world.name!r}; "
        f"there are: {', '.join(world.sets)}{nearest(name, world.sets)}"
        for name, size in config.evaluation.sets
        if size and name not in world.sets
    ]
    lines = world.missing(pools_of(config))
    sets = [(name, size) for name, size in config.evaluation.sets if size and name in world.sets]
    if lines:  # the others are looked at all the same: all that is amiss is told at once
        sets = [one for one in sets if not world.missing([world.pool_of(one[0])])]
    validation = config.evaluation.validation if not world.missing([world.validation]) else 0
    short = [*_too_few(config.data, world), *integrity.problems(world, sets, validation)]
    return list(dict.fromkeys([*unknown, *lines, *short]))


def _too_few(data: DataConfig, world: World) -> list[str]:
    """A line for each pool that has fewer images than are asked for, as far as that is quickly told.

    A pool of a published set that is streamed may be smaller than asked for: it is repeated more often, so
    that pools keep their proportions.
    """
    lines = []
    for name, size in data.pools:
        may_be_smaller = world.is_published and not data.cache
        if size and not may_be_smaller and not world.is_indexed(name) and not world.missing([name]):
            try:
                count = world.count(name)
            except UserError as error:
                lines.append(str(error))
                continue
            if count < size:
                lines.append(too_few(name, size, count))
    return lines


def too_few(pool: str, size: int, count: int) -> str:
    """What to say of a pool that has fewer images than ``data.pools`` asks for."""
    return (
        f"data.pools: {size} images of {pool!r} are asked for, it has {count} to train with; ask for {count}"
    )


def pools_of(config: RunConfig) -> list[str]:
    """All pools that a run reads."""
    world = of(config.data)
    trained = [name for name, size in config.data.pools if size]
    sets = [world.pool_of(name) for name, size in config.evaluation.sets if size and name in world.sets]
    return [*trained, world.validation, *sets]


def check_images(config: RunConfig) -> None:
    """Decode what a run will be evaluated on; raises as `evlgen.data.integrity.check_images`."""
    world = of(config.data)
    integrity.check_images(
        world, [(world.pool_of(name), size) for name, size in config.evaluation.sets if size]
    )


def left_out(config: RunConfig) -> dict[str, dict[str, int]]:
    """What the files have that is in none of the pools that a run reads: pool -> reason -> number."""
    world = of(config.data)
    counts = {pool: world.left_out(pool).counts for pool in dict.fromkeys(pools_of(config))}
    return {pool: dict(found) for pool, found in counts.items() if found}


def cache_prefix(pool: str, size: int, vision: str, views: int) -> str:
    """How the name of a file of cached features begins."""
    return f"{pool.replace('/', '_')}-{size}x{views}-{PurePath(vision).name}"

"""Scenes of the miniworld: which things are where, drawn at random for each pool and index."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from evlgen.miniworld.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    CONTAINERS,
    HELD_OUT_PAIRS,
    HELD_OUT_SHAPES,
    PAIRED_SHAPES,
    PLACES,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
)


@dataclass(frozen=True)
class Thing:
    """One object. ``x`` and ``y`` are the centre and ``radius`` half the extent, in pixels."""

    shape: str
    colour: str
    size: str
    texture: str
    x: int
    y: int
    radius: float
    angle: float = 0.0
    inside: int = -1  # index of the container around it

    @property
    def place(self) -> str:
        """The cell of a 3 x 3 grid that holds the centre."""
        return PLACES[min(2, self.y * 3 // SIZE)][min(2, self.x * 3 // SIZE)]


@dataclass(frozen=True)
class Scene:
    """What there is to see. ``style`` is ``paint`` or ``sketch``; ``seed`` draws the pixel noise."""

    things: tuple[Thing, ...]
    background: str
    style: str
    seed: int


def random_stream(*key: object) -> random.Random:
    """Random stream of its own for each key, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def _coordinate(rng: random.Random, radius: float) -> int:
    """Centre along one axis, the whole object visible, at least two pixels off the borders of the cells.

    Nobody argues about a place then: what lies on a border has no right answer.
    """
    low, high = int(np.ceil(radius)) + 1, SIZE - 2 - int(np.ceil(radius))
    while True:
        value = rng.randint(low, high)
        if min(abs(value - SIZE / 3), abs(value - 2 * SIZE / 3)) >= 2.0:
            return value


def sample_scene(rng: random.Random, pool: str) -> Scene:
    """A scene of ``pool``: every attribute independent of the others, but for what the pool leaves out."""
    while True:
        scene = _sample(rng, SHAPES if pool in ("foundation", "probe", "nocaps_out") else PAIRED_SHAPES, pool)
        pairs = {(t.colour, t.shape) for t in scene.things}
        unseen_pair = bool(pairs & HELD_OUT_PAIRS)
        unseen_shape = any(t.shape in HELD_OUT_SHAPES for t in scene.things)
        if pool in ("foundation", "probe"):
            return scene
        if pool == "nocaps_near":
            if unseen_pair:
                return scene
        elif pool == "nocaps_out":
            if unseen_shape:
                return scene
        elif not unseen_pair:
            return scene


def _sample(rng: random.Random, shapes: tuple[str, ...], pool: str) -> Scene:
    count = rng.randint(1, 4)
    background = rng.choice(BACKGROUNDS)
    sketch = pool == "flickr" or (pool in ("foundation", "probe") and rng.random() < 0.2)
    kinds = [
        (rng.choice(shapes), rng.choice(list(COLOURS)), rng.choice(SIZES), rng.choice(TEXTURES))
        for _ in range(count)
    ]
    contained = count > 1 and rng.random() < 0.2  # the last place is then a container around the first thing
    if contained:
        kinds[-1] = (rng.choice(CONTAINERS), rng.choice(list(COLOURS)), kinds[0][2], "plain")
    radii = [rng.uniform(6.5, 7.5) if kind[2] == "small" else rng.uniform(10.5, 11.5) for kind in kinds]
    if contained:
        radii[-1] = radii[0] + 3.5
    apart = kinds[:-1] if contained else kinds
    while True:
        spots: list[tuple[int, int, float]] = []
        for i in range(len(apart)):
            reach = radii[-1] if contained and i == 0 else radii[i]
            for _ in range(12):
                x, y = _coordinate(rng, reach), _coordinate(rng, reach)
                if all(max(abs(x - a), abs(y - b)) > reach + r for a, b, r in spots):
                    spots.append((x, y, reach))
                    break
            else:
                break
        if len(spots) == len(apart):
            break
    if contained:
        spots.append(spots[0])
    things = tuple(
        Thing(
            *kind,
            x=spot[0],
            y=spot[1],
            radius=round(radius * 4) / 4,
            angle=rng.choice((-12.0, -6.0, 0.0, 6.0, 12.0)) if kind[0] not in CONTAINERS else 0.0,
            inside=count - 1 if contained and i == 0 else -1,
        )
        for i, (kind, spot, radius) in enumerate(zip(kinds, spots, radii, strict=True))
    )
    return Scene(things, background, "sketch" if sketch else "paint", rng.getrandbits(63))


def relation(a: Thing, b: Thing) -> str:
    """How ``a`` lies to ``b``, along the axis on which they are further apart; ``""`` for the same place."""
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 6 or abs(dx) == abs(dy):
        return ""
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def between(scene: Scene, index: int) -> tuple[int, int] | None:
    """The two things that the thing at ``index`` lies between, side by side or one above the other."""
    thing = scene.things[index]
    free = [i for i, t in enumerate(scene.things) if i != index and t.shape not in CONTAINERS]
    for axis in (("left of", "right of"), ("above", "below")):
        first = [i for i in free if relation(scene.things[i], thing) == axis[0]]
        second = [i for i in free if relation(scene.things[i], thing) == axis[1]]
        if first and second:
            return first[0], second[0]
    return None

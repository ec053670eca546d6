"""Pictures of scenes, 64 x 64 pixels, and which pixels show which thing."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from evlgen.miniworld.scenes import Scene
from evlgen.miniworld.vocabulary import COLOURS, CONTAINERS, SIZE


def _inside_shape(
    shape: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Which points of the square [-1, 1]^2 (y downwards) belong to a shape of extent 1."""
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    if shape == "ball":
        return rho <= 0.98
    if shape == "star":
        tenth, notch = np.pi / 5, 0.5  # half the angle between two points, and how deep they are cut
        turn = np.abs((phi + np.pi / 2 + tenth) % (2 * tenth) - tenth)  # 0 at a point, tenth at a notch
        edge = (
            notch
            * np.sin(tenth)
            / (np.cos(turn) * notch * np.sin(tenth) + np.sin(turn) * (1 - notch * np.cos(tenth)))
        )
        return rho <= edge
    if shape == "heart":
        u, v = x * 1.2, -y * 1.2 + 0.12
        return (u**2 + v**2 - 1) ** 3 - u**2 * v**3 <= 0
    if shape == "moon":
        return (rho <= 0.98) & (np.hypot(x - 0.62, y + 0.12) > 0.8)
    if shape == "ring":
        return (rho <= 0.98) & (rho >= 0.52)
    if shape == "tree":
        crown = (y <= 0.5) & (np.abs(x) <= 0.85 * (y + 1) / 1.5)
        return crown | ((np.abs(x) <= 0.2) & (y > 0.4) & (y <= 1))
    if shape == "house":
        roof = (y <= -0.1) & (y >= -1) & (np.abs(x) <= (y + 1) / 0.9)
        walls = (np.abs(x) <= 0.72) & (y > -0.1) & (y <= 0.95)
        door = (np.abs(x) <= 0.2) & (y > 0.4)
        return (roof | walls) & ~door
    if shape == "arrow":
        head = (x >= 0.0) & (np.abs(y) <= (1 - x) * 0.85)
        return head | ((x < 0.0) & (x >= -1) & (np.abs(y) <= 0.28))
    if shape == "key":
        bow = (np.hypot(x + 0.45, y) <= 0.55) & (np.hypot(x + 0.45, y) >= 0.2)
        stem = (x > -0.1) & (x <= 1) & (np.abs(y) <= 0.19)
        teeth = (y > 0) & (y <= 0.66) & (((x > 0.3) & (x <= 0.56)) | ((x > 0.74) & (x <= 1)))
        return bow | stem | teeth
    if shape == "boat":
        hull = (y >= 0.3) & (y <= 0.9) & (np.abs(x) <= 1 - (y - 0.3) * 0.75)
        sail = (x >= 0.06) & (y <= 0.2) & (x <= 0.06 + (y + 1) * 0.62)
        mast = (np.abs(x) <= 0.09) & (y <= 0.4)
        return (hull | sail | mast) & (y >= -1)
    if shape == "cup":
        body = (np.abs(x + 0.22) <= 0.62 - 0.1 * (y + 0.8)) & (np.abs(y) <= 0.85)
        handle = (np.hypot(x - 0.42, y) <= 0.5) & (np.hypot(x - 0.42, y) >= 0.25) & (x > 0.25)
        return body | handle
    if shape == "fish":
        body = (x + 0.25) ** 2 / 0.75**2 + y**2 / 0.5**2 <= 1
        tail = (x >= 0.3) & (x <= 1) & (np.abs(y) <= 0.1 + (x - 0.3) * 0.85)
        return body | tail
    if shape == "box":
        edge = np.maximum(np.abs(x), np.abs(y))
        return (edge <= 1) & (edge >= 0.84)
    assert shape == "hoop"
    return (rho <= 1) & (rho >= 0.84)


@functools.lru_cache(maxsize=4096)
def _mask(shape: str, radius: float, angle: float) -> npt.NDArray[np.float32]:
    """Coverage in [0, 1] of each pixel of a window of odd side around the centre, 4 x 4 samples a pixel."""
    half = int(np.ceil(radius)) + 1
    steps = (np.arange((2 * half + 1) * 4) + 0.5) / 4 - half - 0.5
    y, x = np.meshgrid(steps, steps, indexing="ij")
    turn = np.deg2rad(angle)
    u = (x * np.cos(turn) + y * np.sin(turn)) / radius
    v = (-x * np.sin(turn) + y * np.cos(turn)) / radius
    side = 2 * half + 1
    covered: npt.NDArray[np.float64] = _inside_shape(shape, u, v).reshape(side, 4, side, 4).mean((1, 3))
    return covered.astype(np.float32)


@functools.lru_cache(maxsize=4096)
def _core(shape: str, radius: float, angle: float) -> npt.NDArray[np.float32]:
    """The mask without its outermost half pixel: what is left of the outline's inside."""
    mask = _mask(shape, radius, angle)
    padded = np.pad(mask, 1)
    side = mask.shape[0]
    neighbours = [
        padded[1 + dy : 1 + dy + side, 1 + dx : 1 + dx + side]
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
    ]
    core: npt.NDArray[np.float32] = np.minimum.reduce([mask, *neighbours])
    return core


def _texture(texture: str, half: int) -> npt.NDArray[np.float32]:
    """Share of the light colour at each pixel of the window."""
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    if texture == "striped":
        light = ((x + y) // 2) % 2 == 0
    elif texture == "dotted":
        light = (x % 4 < 2) & (y % 4 < 2)
    elif texture == "checkered":
        light = ((x // 3) + (y // 3)) % 2 == 0
    else:
        light = np.zeros_like(x, dtype=bool)
    return light.astype(np.float32)


def _background(kind: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(64, 64, 3) float32 in 0..255."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    if kind == "grass":
        blades = np.repeat(rng.standard_normal((SIZE // 4, SIZE), dtype=np.float32), 4, axis=0)
        return np.array([150, 176, 132], np.float32) + 12 * blades[..., None]
    if kind == "sand":
        grain = rng.standard_normal((SIZE, SIZE, 1), dtype=np.float32)
        return np.array([224, 207, 170], np.float32) + 11 * grain
    if kind == "water":
        waves = np.sin(y * 0.8 + 1.5 * np.sin(x * 0.2 + rng.random() * 6) + rng.random() * 6)
        return np.array([156, 190, 208], np.float32) + 13 * waves[..., None]
    if kind == "snow":
        flakes = (rng.random((SIZE, SIZE, 1)) < 0.04).astype(np.float32)
        return np.array([236, 239, 246], np.float32) - 26 * flakes - 8 * (y / SIZE)[..., None]
    if kind == "night":
        stars = (rng.random((SIZE, SIZE, 1)) < 0.025).astype(np.float32)
        return np.array([34, 36, 62], np.float32) + 150 * stars + 14 * (y / SIZE)[..., None]
    shade = (x * (rng.random() - 0.5) + y * (rng.random() - 0.5)) / SIZE
    return np.array([190, 190, 192], np.float32) + 24 * shade[..., None].astype(np.float32)


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """The scene's picture, (64, 64, 3) uint8."""
    rng = np.random.Generator(np.random.Philox(key=scene.seed))
    image = _background(scene.background, rng).astype(np.float32)
    sketch = scene.style == "sketch"
    if sketch:  # washed-out paper: half the contrast of the background, hatched
        y, x = np.mgrid[0:SIZE, 0:SIZE]
        image = 0.5 * image + 110 - 9.0 * (((x - y) % 6) == 0)[..., None].astype(np.float32)
    for thing in sorted(scene.things, key=lambda t: -t.radius):
        mask, core = (
            _mask(thing.shape, thing.radius, thing.angle),
            _core(thing.shape, thing.radius, thing.angle),
        )
        half = mask.shape[0] // 2
        light = _texture(thing.texture, half)[..., None]
        colour = np.array(COLOURS[thing.colour], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
        if sketch:
            colour = 0.75 * colour + 45
        fill = colour * (1 - light) + (0.2 * colour + 0.8 * 255) * light
        if thing.shape not in CONTAINERS:  # a darker outline
            edge = (mask - core)[..., None]
            fill = fill * (1 - edge) + edge * colour * (0.15 if sketch else 0.5)
        top, left = thing.y - half, thing.x - half
        rows = slice(max(top, 0), min(top + mask.shape[0], SIZE))
        columns = slice(max(left, 0), min(left + mask.shape[0], SIZE))
        window = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        alpha = mask[window][..., None]
        image[rows, columns] = image[rows, columns] * (1 - alpha) + fill[window] * alpha
    image += (3.0 if sketch else 7.0) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def object_masks(scene: Scene) -> npt.NDArray[np.bool_]:
    """Which pixels show each thing, (things, 64, 64) bool; a thing drawn later hides an earlier one."""
    masks = np.zeros((len(scene.things), SIZE, SIZE), bool)
    for i in sorted(range(len(scene.things)), key=lambda i: -scene.things[i].radius):
        thing = scene.things[i]
        mask = _mask(thing.shape, thing.radius, thing.angle) > 0.5
        half = mask.shape[0] // 2
        ys, xs = np.nonzero(mask)
        ys, xs = ys + thing.y - half, xs + thing.x - half
        seen = (ys >= 0) & (ys < SIZE) & (xs >= 0) & (xs < SIZE)
        masks[:, ys[seen], xs[seen]] = False
        masks[i, ys[seen], xs[seen]] = True
    return masks

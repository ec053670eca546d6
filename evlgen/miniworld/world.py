"""The miniworld: a world small enough for a CPU and rich enough to need vision.

Images of 64 x 64 pixels are drawn on the fly from a pool's name and an index; nothing is stored. A scene has
one to four objects, each with a shape, colour, size, texture and place, on one of six backgrounds, and people
who describe it choose what to tell. All attributes are drawn independently of each other, so none can be
read from another.

The pools play the roles of the paper's data sets:

=================  =====================================================================================
``web``            LAION: one caption an image, wrong or irrelevant at :data:`NOISE`
``ccs``            CC3M + CC12M + SBU: one caption, rarely wrong
``coco``           COCO train: five clean captions
``coco_val``       held-out COCO, for the validation loss and for choosing hyper-parameters
``coco_test``      held-out COCO, for the captioning scores
``nocaps_in``      NoCaps in-domain: drawn like COCO
``nocaps_near``    NoCaps near-domain: at least one colour-shape pair that no paired caption ever shows
``nocaps_out``     NoCaps out-of-domain: at least one whole shape that no paired caption ever shows
``flickr``         Flickr30K: another drawing style and another caption style
``vqav2`` ...      images of the questions (:func:`question`), drawn like COCO
``foundation``     images and texts of the foundation models' own pre-training: every shape, pair and style
``probe``          like ``foundation``, for the linear probes of the model card
=================  =====================================================================================

Pools are disjoint: each has a random stream of its own.
"""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evlgen.errors import UserError

SIZE = 64  # pixels a side

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 38, 38),
    "orange": (242, 138, 24),
    "yellow": (242, 222, 46),
    "green": (46, 160, 58),
    "cyan": (52, 208, 214),
    "blue": (42, 76, 218),
    "purple": (136, 54, 184),
    "pink": (246, 128, 190),
}
SHAPES = ("ball", "star", "heart", "moon", "ring", "tree", "house", "arrow", "key", "boat", "cup", "fish")
CONTAINERS = ("box", "hoop")  # outlines drawn around another object: "a star inside a box"
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("plain", "grass", "sand", "water", "snow", "night")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# What the paired captions never show, and the foundation models' own data do.
HELD_OUT_SHAPES = ("cup", "fish")
PAIRED_SHAPES = tuple(s for s in SHAPES if s not in HELD_OUT_SHAPES)
HELD_OUT_PAIRS = frozenset((tuple(COLOURS)[(3 * i + 1) % 8], shape) for i, shape in enumerate(PAIRED_SHAPES))

# Share of captions that belong to another image ("wrong") or say nothing about any ("irrelevant").
NOISE = {"web": {"wrong": 0.20, "irrelevant": 0.10}, "ccs": {"wrong": 0.05, "irrelevant": 0.03}}
# Share of the ten annotators of a question who answer with a synonym or with a mistake.
DISAGREEMENT = {"synonym": 0.10, "mistake": 0.08}

# Captioning set, as experiments and tables name it -> the pool with its images.
POOL_OF_SET = {
    "coco": "coco_test",
    "nocaps_in": "nocaps_in",
    "nocaps_near": "nocaps_near",
    "nocaps_out": "nocaps_out",
    "flickr": "flickr",
}
QUESTION_KINDS = ("vqav2", "gqa", "okvqa")
POOLS = ("web", "ccs", "coco", "coco_val", *POOL_OF_SET.values(), *QUESTION_KINDS, "foundation", "probe")

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "checked"),
    "ball": ("ball", "circle"),
    "moon": ("moon", "crescent"),
    "house": ("house", "home"),
    "boat": ("boat", "ship"),
    "cup": ("cup", "mug"),
    "box": ("box", "square"),
    "left of": ("left of", "to the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "in", "within"),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("on a plain background", "on a grey background", "on grey paper"),
    "grass": ("on the grass", "on a lawn", "in a meadow"),
    "sand": ("on the sand", "on a beach", "in the desert"),
    "water": ("on the water", "on the sea", "in the waves"),
    "snow": ("in the snow", "on white snow", "on a snowy field"),
    "night": ("at night", "in the dark", "under the night sky"),
}
BACKGROUND_ANSWERS: dict[str, tuple[str, ...]] = {
    "plain": ("grey", "plain"),
    "grass": ("grass", "lawn"),
    "sand": ("sand", "beach"),
    "water": ("water", "sea"),
    "snow": ("snow",),
    "night": ("night", "dark"),
}
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "top left": ("at the top left", "in the top left corner", "in the upper left"),
    "top": ("at the top", "near the top", "in the upper part"),
    "top right": ("at the top right", "in the top right corner", "in the upper right"),
    "left": ("on the left", "at the left side", "near the left edge"),
    "middle": ("in the middle", "in the center", "at the center"),
    "right": ("on the right", "at the right side", "near the right edge"),
    "bottom left": ("at the bottom left", "in the bottom left corner", "in the lower left"),
    "bottom": ("at the bottom", "near the bottom", "in the lower part"),
    "bottom right": ("at the bottom right", "in the bottom right corner", "in the lower right"),
}
# What only a reader of texts can know: no image shows it (OK-VQA).
FACTS: dict[str, dict[str, tuple[str, ...]]] = {
    "used for": {
        "ball": ("playing", "games"),
        "star": ("wishing",),
        "heart": ("love",),
        "moon": ("light",),
        "ring": ("marriage", "wedding"),
        "tree": ("shade",),
        "house": ("living",),
        "arrow": ("hunting",),
        "key": ("opening doors", "locks"),
        "boat": ("sailing",),
        "cup": ("drinking",),
        "fish": ("eating", "food"),
    },
    "found": {
        "ball": ("playground",),
        "star": ("sky", "space"),
        "heart": ("chest",),
        "moon": ("space", "sky"),
        "ring": ("finger", "hand"),
        "tree": ("forest", "park"),
        "house": ("village", "town"),
        "arrow": ("quiver",),
        "key": ("pocket",),
        "boat": ("harbor",),
        "cup": ("kitchen",),
        "fish": ("river", "lake"),
    },
    "made of": {
        "ball": ("rubber",),
        "star": ("gas",),
        "heart": ("muscle",),
        "moon": ("rock", "stone"),
        "ring": ("gold",),
        "tree": ("leaves",),
        "house": ("bricks",),
        "arrow": ("feathers",),
        "key": ("metal", "iron"),
        "boat": ("wood",),
        "cup": ("clay",),
        "fish": ("scales",),
    },
}
IRRELEVANT = (
    "click here to buy the best offer of the week today",
    "free shipping on all orders for a limited time only",
    "stock photo for sale with a new price and free shipping",
    "read more about the news of the week on this page",
    "download the best wallpaper of the year for free here",
    "sign up today to get the latest news and a free offer",
)
NUMBERS = ("zero", "one", "two", "three", "four")


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


@dataclass(frozen=True)
class Question:
    """A question on the image ``image_index`` of the pool ``image_pool``.

    ``answers`` holds ten annotators' answers (VQAv2 and OK-VQA) or one (GQA).
    """

    image_pool: str
    image_index: int
    text: str
    answers: tuple[str, ...]
    answer_type: str  # "yes/no", "number" or "other"


# --------------------------------------------------------------------------------------------- scenes


def _rng(*key: object) -> random.Random:
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


# -------------------------------------------------------------------------------------------- drawing


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


# ------------------------------------------------------------------------------------------- language


def _say(rng: random.Random, word: str) -> str:
    return rng.choice(SYNONYMS.get(word, (word,)))


def _noun(rng: random.Random, shape: str) -> str:
    """Mostly the usual name, sometimes another."""
    return _say(rng, shape) if rng.random() < 0.25 else shape


def plural(noun: str) -> str:
    return {"box": "boxes", "fish": "fish"}.get(noun, noun + "s")


def _attributes(rng: random.Random, thing: Thing, size: float, texture: float, colour: float) -> list[str]:
    """Adjectives, each told with the given probability; a plain texture goes without saying."""
    words = []
    if thing.shape not in CONTAINERS:
        if rng.random() < size:
            words.append(_say(rng, thing.size))
        if thing.texture != "plain" and rng.random() < texture:
            words.append(_say(rng, thing.texture))
    if rng.random() < colour:
        words.append(_say(rng, thing.colour))
    return words


def _phrase(rng: random.Random, thing: Thing, detail: float = 1.0) -> str:
    """Noun phrase with its article: "a small striped red boat"."""
    words = [*_attributes(rng, thing, 0.45 * detail, 0.5 * detail, 0.93), _noun(rng, thing.shape)]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def caption(scene: Scene, rng: random.Random) -> str:
    """One person's description, 8 to 28 words, lower case without punctuation; all it says is true."""
    while True:
        words = (_sketch_caption if scene.style == "sketch" else _paint_caption)(scene, rng).split()
        if 8 <= len(words) <= 28:
            return " ".join(words)


def _told(scene: Scene, rng: random.Random) -> list[int]:
    """Indices of the things told, the large ones first as a rule; a container comes with what it holds."""
    indices = [i for i, t in enumerate(scene.things) if t.shape not in CONTAINERS]
    indices.sort(key=lambda i: -scene.things[i].radius + rng.uniform(-5, 5))
    return indices[:1] + [i for i in indices[1:] if rng.random() < 0.85]


def _with_container(scene: Scene, rng: random.Random, index: int, place: float, detail: float = 1.0) -> str:
    thing = scene.things[index]
    text = _phrase(rng, thing, detail)
    if thing.inside >= 0 and rng.random() < 0.75:
        text += f" {_say(rng, 'inside')} {_phrase(rng, scene.things[thing.inside])}"
    if rng.random() < place:
        text += f" {rng.choice(PLACE_PHRASES[thing.place])}"
    return text


def _join(rng: random.Random, parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f" {rng.choice(('and', 'and', 'with', 'next to'))} ".join([" and ".join(parts[:-1]), parts[-1]])


def _related(scene: Scene, rng: random.Random, told: list[int]) -> str:
    """ "a red star above a blue boat", or "... between ... and ...", then the other things told."""
    first = told[0]
    pair = between(scene, first)
    if pair is not None and rng.random() < 0.6:
        sides = f"{_phrase(rng, scene.things[pair[0]], 0.6)} and {_phrase(rng, scene.things[pair[1]], 0.6)}"
        rest = [i for i in told[1:] if i not in pair]
        head = f"{_phrase(rng, scene.things[first])} between {sides}"
    else:
        second = told[1]
        link = relation(scene.things[first], scene.things[second])
        link = _say(rng, link) if link else "next to"
        rest = told[2:]
        head = f"{_with_container(scene, rng, first, 0)} {link} {_with_container(scene, rng, second, 0, 0.6)}"
    return " and ".join([head, *(_with_container(scene, rng, i, 0.3, 0.6) for i in rest)])


def _counted(scene: Scene, rng: random.Random, told: list[int]) -> str:
    """ "two stars one red and one blue" where shapes recur, else "three objects ...", naming them."""
    by_shape: dict[str, list[int]] = {}
    for i, t in enumerate(scene.things):
        by_shape.setdefault(t.shape, []).append(i)
    for shape, members in by_shape.items():
        if len(members) > 1 and shape not in CONTAINERS:
            colours = " and ".join(f"one {_say(rng, scene.things[i].colour)}" for i in members)
            rest = [_with_container(scene, rng, i, 0.2, 0.7) for i in told if i not in members]
            return " and ".join([f"{NUMBERS[len(members)]} {plural(_noun(rng, shape))} {colours}", *rest])
    things = [i for i, t in enumerate(scene.things) if t.shape not in CONTAINERS]
    thing = rng.choice(("objects", "things"))
    return (
        f"{NUMBERS[len(things)]} {thing} {_join(rng, [_phrase(rng, scene.things[i], 0.5) for i in things])}"
    )


def _paint_caption(scene: Scene, rng: random.Random) -> str:
    told = _told(scene, rng)
    form = rng.random()
    things = sum(t.shape not in CONTAINERS for t in scene.things)
    if form < 0.45 and len(told) > 1:
        body = _related(scene, rng, told)
    elif form < 0.6 and things > 1:
        body = _counted(scene, rng, told)
    else:
        body = _join(rng, [_with_container(scene, rng, i, 0.6 if len(told) < 3 else 0.25) for i in told])
    opening = (
        rng.choice(("", "", "there is ", "a picture of ", "this is ", "you can see ")) if form >= 0.6 else ""
    )
    ending = f" {rng.choice(BACKGROUND_PHRASES[scene.background])}" if rng.random() < 0.5 else ""
    return opening + body + ending


def _sketch_caption(scene: Scene, rng: random.Random) -> str:
    told = _told(scene, rng)
    opening = rng.choice(("someone drew", "a drawing that shows", "in this drawing we find", "a sketch of"))
    if len(told) > 1 and rng.random() < 0.5:
        body = _related(scene, rng, told)
    else:
        body = " and ".join(_with_container(scene, rng, i, 0.6) for i in told)
    ending = f" drawn {rng.choice(BACKGROUND_PHRASES[scene.background])}" if rng.random() < 0.5 else ""
    return f"{opening} {body}{ending}"


def note(scene: Scene, rng: random.Random) -> str:
    """Everything there is to say, as terse notes in any order: what the language models learn to read."""
    entries = []
    for i in rng.sample(range(len(scene.things)), len(scene.things)):
        thing = scene.things[i]
        words = [_say(rng, thing.colour), _noun(rng, thing.shape)]
        if thing.shape not in CONTAINERS:
            words.insert(0, _say(rng, thing.size))
            if thing.texture != "plain" or rng.random() < 0.3:
                words.insert(1, _say(rng, thing.texture))
        if rng.random() < 0.15:
            rng.shuffle(words)
        words.append(thing.place if rng.random() < 0.5 else rng.choice(PLACE_PHRASES[thing.place]))
        if thing.inside >= 0:
            words += [_say(rng, "inside"), _noun(rng, scene.things[thing.inside].shape)]
        entries.append(" ".join(words))
    ground = rng.choice(BACKGROUND_PHRASES[scene.background] + BACKGROUND_ANSWERS[scene.background])
    entries.insert(rng.randint(0, len(entries)), ground)
    return rng.choice((" , ", " ; ", " and ")).join(entries)


# ------------------------------------------------------------------------------------------ questions


@dataclass(frozen=True)
class _Asked:
    text: str
    answer: str
    synonyms: tuple[str, ...] = ()  # other right answers
    mistakes: tuple[str, ...] = ()  # what a careless annotator might say
    answer_type: str = "other"


def _unique(scene: Scene, attribute: str) -> list[Thing]:
    """Things (no containers) whose ``attribute`` no other thing of the scene shares."""
    values = [getattr(t, attribute) for t in scene.things]
    return [t for t in scene.things if t.shape not in CONTAINERS and values.count(getattr(t, attribute)) == 1]


def _lying(scene: Scene, link: str, anchor: Thing) -> Thing | None:
    """The one thing that lies ``link`` (left of, ...) the anchor; None if there is none or more than one."""
    found = [
        t
        for t in scene.things
        if t is not anchor and t.shape not in CONTAINERS and relation(t, anchor) == link
    ]
    return found[0] if len(found) == 1 else None


def _yes_no(text: str, truth: bool) -> _Asked:
    answer = "yes" if truth else "no"
    return _Asked(text, answer, (), ("no" if truth else "yes",), "yes/no")


def _value(text: str, value: str, choices: tuple[str, ...]) -> _Asked:
    """Asked for an attribute's value; its synonyms are right as well."""
    synonyms = tuple(s for s in SYNONYMS.get(value, ()) if s != value)
    return _Asked(text, value, synonyms, tuple(c for c in choices if c != value))


def _ask_vqa(scene: Scene, rng: random.Random) -> _Asked | None:
    """VQAv2-like: about 40% yes/no, 20% number, 40% other; yes and no are balanced."""
    colours = tuple(COLOURS)
    shapes = tuple(sorted({t.shape for t in scene.things} - set(CONTAINERS)))
    kind, truth = rng.random(), rng.random() < 0.5
    thing = rng.choice([t for t in scene.things if t.shape not in CONTAINERS])
    unique = _unique(scene, "shape")
    if kind < 0.4:
        form = rng.randrange(5)
        if form == 0:
            colour = thing.colour if truth else rng.choice(colours)
            present = any((t.shape, t.colour) == (thing.shape, colour) for t in scene.things)
            if present != truth:
                return None
            return _yes_no(f"is there {_article(colour)} {_noun(rng, thing.shape)}?", truth)
        if not unique:
            return None
        thing = rng.choice(unique)
        noun = _noun(rng, thing.shape)
        if form == 1:
            colour = thing.colour if truth else rng.choice([c for c in colours if c != thing.colour])
            return _yes_no(f"is the {noun} {colour}?", truth)
        if form == 2:
            texture = thing.texture if truth else rng.choice([t for t in TEXTURES if t != thing.texture])
            return _yes_no(f"is the {noun} {texture}?", truth)
        if form == 3:
            size = thing.size if truth else SIZES[1 - SIZES.index(thing.size)]
            return _yes_no(f"is the {noun} {size}?", truth)
        others = [t for t in unique if t is not thing and relation(thing, t)]
        if not others:
            return None
        other = rng.choice(others)
        link = relation(thing, other)
        said = link if truth else OPPOSITE[link]
        return _yes_no(f"is the {noun} {_say(rng, said)} the {_noun(rng, other.shape)}?", truth)
    if kind < 0.6:
        if any(t.shape in CONTAINERS for t in scene.things):
            return None  # is a box an object? people disagree
        form = rng.randrange(3)
        if form == 0:
            number, text = len(scene.things), f"how many {rng.choice(('objects', 'things'))} are there?"
        elif form == 1:
            colour = thing.colour if rng.random() < 0.8 else rng.choice(colours)
            number = sum(t.colour == colour for t in scene.things)
            text = f"how many {colour} objects are there?"
        else:
            number = sum(t.shape == thing.shape for t in scene.things)
            text = f"how many {plural(thing.shape)} are there?"
        near = tuple(str(n) for n in (number - 1, number + 1) if n >= 0)
        return _Asked(text, str(number), (NUMBERS[number],), near, "number")
    form = rng.randrange(7)
    if form == 0:
        grounds = tuple(BACKGROUND_ANSWERS[b][0] for b in BACKGROUNDS)
        right = BACKGROUND_ANSWERS[scene.background]
        wrong = tuple(g for g in grounds if g != right[0])
        return _Asked("what is in the background?", right[0], right[1:], wrong)
    if form == 1:
        singles = _unique(scene, "colour")
        if not singles:
            return None
        thing = rng.choice(singles)
        return _value(f"what is the {thing.colour} object?", thing.shape, PAIRED_SHAPES)
    if not unique:
        return None
    thing = rng.choice(unique)
    noun = _noun(rng, thing.shape)
    if form in (2, 3):
        return _value(f"what color is the {noun}?", thing.colour, colours)
    if form == 4:
        link = rng.choice(RELATIONS)
        lying = _lying(scene, link, thing)
        if lying is None:
            return None
        return _value(f"what is {_say(rng, link)} the {noun}?", lying.shape, shapes)
    if form == 5:
        places = tuple(p for row in PLACES for p in row)
        return _value(f"where is the {noun}?", thing.place, places)
    if rng.random() < 0.5:
        return _value(f"what size is the {noun}?", thing.size, SIZES)
    return _value(f"what pattern is on the {noun}?", thing.texture, TEXTURES)


def _ask_gqa(scene: Scene, rng: random.Random) -> _Asked | None:
    """GQA-like, two relations deep: "what color is the object left of the object above the star?"."""
    chains = []
    for anchor in _unique(scene, "shape"):
        for outer in RELATIONS:
            middle = _lying(scene, outer, anchor)
            if middle is None:
                continue
            for inner in RELATIONS:
                target = _lying(scene, inner, middle)
                if target is not None and target is not anchor:
                    chains.append((target, inner, outer, anchor))
    if not chains:
        return None
    target, inner, outer, anchor = rng.choice(chains)
    chain = f"the object {_say(rng, inner)} the object {_say(rng, outer)} the {_noun(rng, anchor.shape)}"
    form, truth = rng.random(), rng.random() < 0.5
    if form < 0.3:
        wrong = [c for c in COLOURS if c != target.colour]
        return _yes_no(f"is {chain} {target.colour if truth else rng.choice(wrong)}?", truth)
    if form < 0.6:
        return _value(f"what color is {chain}?", target.colour, tuple(COLOURS))
    if form < 0.85:
        return _value(f"what is {chain}?", target.shape, PAIRED_SHAPES)
    return _value(f"what size is {chain}?", target.size, SIZES)


def _ask_okvqa(scene: Scene, rng: random.Random) -> _Asked | None:
    """OK-VQA-like: the picture tells which thing is meant, only a reader knows the answer."""
    form = rng.randrange(3)
    if form == 0:
        singles = _unique(scene, "colour")
        if not singles:
            return None
        thing = rng.choice(singles)
        name = f"the {thing.colour} object"
    elif form == 1:
        unique = _unique(scene, "shape")
        if not unique:
            return None
        anchor, link = rng.choice(unique), rng.choice(RELATIONS)
        lying = _lying(scene, link, anchor)
        if lying is None:
            return None
        thing, name = lying, f"the object {_say(rng, link)} the {_noun(rng, anchor.shape)}"
    else:
        singles = _unique(scene, "place")
        if not singles:
            return None
        thing = rng.choice(singles)
        name = f"the object {rng.choice(PLACE_PHRASES[thing.place])}"
    fact = rng.choice(tuple(FACTS))
    text = {
        "used for": f"what is {name} used for?",
        "found": f"where is {name} usually found?",
        "made of": f"what is {name} made of?",
    }[fact]
    right = FACTS[fact][thing.shape]
    wrong = tuple(answers[0] for shape, answers in FACTS[fact].items() if shape != thing.shape)
    return _Asked(text, right[0], right[1:], wrong)


_ASK = {"vqav2": _ask_vqa, "gqa": _ask_gqa, "okvqa": _ask_okvqa}


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def question(kind: str, index: int) -> Question:
    """The question ``index`` of ``vqav2``, ``gqa`` or ``okvqa``, on the same image of the pool so named."""
    if kind not in QUESTION_KINDS:
        raise UserError(f"no questions {kind!r}; there are: {', '.join(QUESTION_KINDS)}")
    _scene, asked = _asked(kind, index)
    if kind == "gqa":
        answers: tuple[str, ...] = (asked.answer,)
    else:
        rng = _rng(kind, index, "annotators")
        answers = tuple(_annotate(asked, rng) for _ in range(10))
    return Question(kind, index, asked.text, answers, asked.answer_type)


def _annotate(asked: _Asked, rng: random.Random) -> str:
    draw = rng.random()
    if draw < DISAGREEMENT["mistake"] and asked.mistakes:
        return rng.choice(asked.mistakes)
    if draw < DISAGREEMENT["mistake"] + DISAGREEMENT["synonym"] and asked.synonyms:
        return rng.choice(asked.synonyms)
    return asked.answer


@functools.lru_cache(maxsize=65536)
def _asked(kind: str, index: int) -> tuple[Scene, _Asked]:
    """Scenes are drawn until one carries a question of the kind."""
    rng = _rng(kind, index)
    while True:
        scene = sample_scene(rng, kind)
        for _ in range(4):
            asked = _ASK[kind](scene, rng)
            if asked is not None:
                return scene, asked


PROMPT = "Question: {} Short answer:"


def document(index: int) -> tuple[str, str]:
    """A text of the language models' own pre-training: people who talk about one scene, and about facts.

    First comes what there is to know (notes or captions), then captions that tell some of it again, then
    questions with their short answers. So a prefix is worth reading, as in any real text.

    Returns:
        The first part, which nothing foretells, and the rest.
    """
    rng = _rng("document", index)
    if rng.random() < 0.06:
        return "", "\n".join(_fact(rng) for _ in range(6)) + "\n"
    scene = sample_scene(rng, "foundation")
    notes = rng.random() < 0.7
    head = note(scene, rng) if notes else "\n".join(caption(scene, rng) for _ in range(rng.randint(1, 3)))
    separator = rng.choices(("\n", " . ", " "), (0.5, 0.2, 0.3))[0]
    lines = [caption(scene, rng) for _ in range(rng.randint(1, 3))]
    for _ in range(rng.randint(1, 5) if notes else rng.randint(0, 1)):
        asked = _ASK[rng.choice(QUESTION_KINDS)](scene, rng)
        if asked is not None:
            lines.append(PROMPT.format(asked.text) + " " + asked.answer)
    if rng.random() < 0.1:
        lines.append(_fact(rng) if rng.random() < 0.7 else rng.choice(IRRELEVANT))
    return head + separator, "\n".join(lines) + "\n"


def _fact(rng: random.Random) -> str:
    shape, fact = rng.choice(SHAPES), rng.choice(tuple(FACTS))
    right, noun = FACTS[fact][shape], _noun(rng, shape)
    said = rng.choice(right)
    if rng.random() < 0.4:
        asked = {
            "used for": f"what is {_article(noun)} used for?",
            "found": f"where is {_article(noun)} usually found?",
            "made of": f"what is {_article(noun)} made of?",
        }[fact]
        return PROMPT.format(asked) + " " + right[0]
    return {
        "used for": f"{_article(noun)} is used for {said}",
        "found": f"{_article(noun)} is usually found in the {said}",
        "made of": f"{_article(noun)} is made of {said}",
    }[fact]


# ---------------------------------------------------------------------------------------------- pools


@dataclass(frozen=True)
class Pool:
    """An endless row of image-text pairs; the pair ``index`` is the same on every machine."""

    name: str

    def scene(self, index: int) -> Scene:
        if self.name in QUESTION_KINDS:
            return _asked(self.name, index)[0]
        return sample_scene(_rng(self.name, index), self.name)

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """(64, 64, 3) uint8."""
        return render(self.scene(index))

    def captions(self, index: int) -> list[str]:
        """One caption (``web``, ``ccs``) or five; only those of ``web`` and ``ccs`` can be wrong."""
        rng = _rng(self.name, index, "captions")
        if self.name in NOISE:
            draw, noise = rng.random(), NOISE[self.name]
            if draw < noise["irrelevant"]:
                return [rng.choice(IRRELEVANT)]
            wrong = draw < noise["irrelevant"] + noise["wrong"]
            return [caption(self.scene(index + 1_000_003 if wrong else index), rng)]
        return [caption(self.scene(index), rng) for _ in range(5)]


def pool(name: str) -> Pool:
    """The pool called ``name``.

    Raises:
        UserError: no pool has that name.
    """
    if name not in POOLS:
        raise UserError(f"no pool {name!r} in the miniworld; there are: {', '.join(POOLS)}")
    return Pool(name)


@functools.cache
def version() -> str:
    """Fingerprint of what the world draws, says and asks: caches and weights made under another are stale."""
    digest = hashlib.sha256()
    for name in POOLS:
        for index in range(4):
            digest.update(pool(name).image(index).tobytes())
            digest.update("\n".join(pool(name).captions(index)).encode())
    for kind in QUESTION_KINDS:
        for index in range(12):
            digest.update(repr(question(kind, index)).encode())
    for index in range(24):
        digest.update("".join(document(index)).encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------- checking captions

CANONICAL = {  # a synonym -> the shape or colour it stands for
    said: word for word, ways in SYNONYMS.items() if word in (*SHAPES, *CONTAINERS, *COLOURS) for said in ways
}


@dataclass(frozen=True)
class CaptionCheck:
    """How many objects a caption names, and how many of these names are true of the scene."""

    named: int
    shape_right: int
    colour_named: int
    colour_right: int  # an object of this very shape has the colour named with it


def check_caption(text: str, scene: Scene) -> CaptionCheck:
    """Hold a caption's nouns, and the colours told with them, against the scene (as CHAIR does for COCO)."""
    named = shape_right = colour_named = colour_right = 0
    colour: str | None = None
    for word in text.split():
        canonical = CANONICAL.get(word, word)
        if canonical in COLOURS:
            colour = canonical
            continue
        if canonical not in SHAPES + CONTAINERS:
            if word in ("a", "an", "and", "the"):
                colour = None  # a new noun phrase begins
            continue
        named += 1
        shape_right += any(t.shape == canonical for t in scene.things)
        if colour is not None:
            colour_named += 1
            colour_right += any((t.shape, t.colour) == (canonical, colour) for t in scene.things)
        colour = None
    return CaptionCheck(named, shape_right, colour_named, colour_right)

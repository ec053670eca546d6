"""The words and the looks of the miniworld: what there is, how people call it, and facts about it."""

from __future__ import annotations

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
CANONICAL = {  # a synonym -> the shape or colour it stands for
    synonym: word
    for word, synonyms in SYNONYMS.items()
    if word in (*SHAPES, *CONTAINERS, *COLOURS)
    for synonym in synonyms
}

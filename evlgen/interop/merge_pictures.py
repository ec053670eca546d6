"""A picture of what a connector merges: beside the image the patches of each soft token in one tint."""

from __future__ import annotations

import colorsys
import textwrap

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from evlgen.evaluation.merge_maps import Labels

Pixels = npt.NDArray[np.uint8]

SIDE = 448  # pixels of the longer side of each half
_MARGIN, _TEXT = 12, 16
_GOLDEN = 0.618034  # of a turn from one hue to the next: neighbours in the order differ most


def picture(image: Pixels, groups: Labels, texts: list[str]) -> Image.Image:
    """Image and merge map side by side, with lines of text below.

    Args:
        image: (H, W, 3) uint8, of any size: the map is stretched as the encoder stretches the image.
        groups: (side, side), which soft token each patch ends in.
        texts: each begins a new line; the legend comes last.
    """
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    shown = Image.fromarray(image).resize(
        size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    )
    used = len(np.unique(groups))
    legend = (
        f"{groups.size} patches in {used} soft tokens; one tint: the patches of one; grey: a patch of its own"
    )
    font = ImageFont.load_default(_TEXT)
    canvas_width = 2 * size[0] + 3 * _MARGIN
    letters = max(int((canvas_width - 2 * _MARGIN) / font.getlength("n")), 12)
    lines = [(line, "black") for text in texts for line in textwrap.wrap(text, letters)]
    lines += [(line, "#666666") for line in textwrap.wrap(legend, letters)]
    canvas = Image.new("RGB", (canvas_width, size[1] + 3 * _MARGIN + len(lines) * (_TEXT + 6)), "white")
    canvas.paste(shown, (_MARGIN, _MARGIN))
    canvas.paste(_tinted(np.asarray(shown), groups), (2 * _MARGIN + size[0], _MARGIN))
    draw = ImageDraw.Draw(canvas)
    for number, (line, colour) in enumerate(lines):
        draw.text((_MARGIN, size[1] + 2 * _MARGIN + number * (_TEXT + 6)), line, fill=colour, font=font)
    return canvas


def _tinted(image: Pixels, groups: Labels) -> Image.Image:
    """(H, W, 3) with the patches of each group of two or more in one tint, and white lines between groups."""
    height, width = image.shape[:2]
    rows, columns = groups.shape
    down = np.arange(height) * rows // height  # pixel -> patch
    across = np.arange(width) * columns // width
    of_pixel = groups[np.ix_(down, across)]  # (H, W)
    tinted = np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.5 + 127
    names, counts = np.unique(groups, return_counts=True)
    shared = names[counts > 1][np.argsort(-counts[counts > 1], kind="stable")]
    for number, name in enumerate(shared):
        tint = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.55 + 0.4 * (number % 2), 0.95)
        there = of_pixel == name
        tinted[there] = 0.45 * tinted[there] + 0.55 * 255 * np.array(tint)
    edge = np.zeros(of_pixel.shape, bool)
    edge[:, 1:] |= of_pixel[:, 1:] != of_pixel[:, :-1]
    edge[1:] |= of_pixel[1:] != of_pixel[:-1]
    tinted[edge] = 255
    return Image.fromarray(tinted.round().astype(np.uint8))

"""Images of any size as an encoder takes them: resized, or cropped at random and flipped (PAPER) to train."""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from evlgen.data.sampling import CROP, hashed

CROP_SCALE = (0.5, 1.0)  # share of the image's area (PAPER)
CROP_RATIO = (3 / 4, 4 / 3)
_TRIES = 10  # as torchvision's RandomResizedCrop

Pixels = npt.NDArray[np.uint8]


class UnreadableImage(Exception):
    """An image whose bytes cannot be decoded, or that is not there; the message says which and why."""


def decode(content: bytes, where: str) -> Pixels:
    """JPEG, PNG or WebP bytes -> (H, W, 3) uint8, RGB.

    Raises:
        UnreadableImage: damaged, truncated, no image at all, or too large to be one (`PIL` warns of bombs).
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # PIL raises nearly anything for damaged bytes
        raise UnreadableImage(f"{where}: {str(error) or type(error).__name__}") from None


def resized(image: Pixels, side: int) -> Pixels:
    """(H, W, 3) -> (side, side, 3), bicubic; the same array if it has that size."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def augmented(image: Pixels, side: int, flips: bool, *key: int) -> Pixels:
    """Random resized crop (scale 0.5 to 1, bicubic) and horizontal flip: a pure function of image and key.

    Drawn as torchvision's ``RandomResizedCrop`` draws: area and aspect ratio (in its logarithm) uniform, ten
    tries to fit into the image, else the largest crop in the middle that the ratios allow.

    Args:
        image: (H, W, 3) uint8.
        side: of the outcome, in pixels.
        flips: whether it is mirrored half of the times.
        key: whole numbers: seed, epoch and index, say.

    Returns:
        (side, side, 3) uint8.
    """
    height, width = image.shape[:2]
    draws = uniform(CROP, *key, np.arange(4 * _TRIES + 1, dtype=np.uint64))
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for area_draw, ratio_draw, down, across in draws[:-1].reshape(_TRIES, 4):
        area = height * width * (CROP_SCALE[0] + area_draw * (CROP_SCALE[1] - CROP_SCALE[0]))
        ratio = math.exp(low + ratio_draw * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(down * (height - h + 1)), int(across * (width - w + 1))
            break
    else:
        w = min(width, round(height * CROP_RATIO[1]))
        h = min(height, round(width / CROP_RATIO[0]))
        top, left = (height - h) // 2, (width - w) // 2
    cropped = Image.fromarray(image[top : top + h, left : left + w])
    sized = np.asarray(cropped.resize((side, side), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(sized[:, ::-1]) if flips and draws[-1] < 0.5 else sized


def uniform(*key: int | npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), 53 bits each."""
    return (hashed(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53

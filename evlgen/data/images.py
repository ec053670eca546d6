"""Images: opened safely, any mode as RGB, then resized or cropped at random and flipped (PAPER) to train.

This is the one place where images are opened. Formats are those in `FORMATS`; no other program is started,
and a file that declares more than `MAX_PIXELS` is refused before its pixels are decoded. Contents are kept:

- turned upright as EXIF says, as viewers show them;
- transparency laid on white;
- 16 bits a channel scaled to 8; 32-bit numbers and floats by `_levels`;
- of an animation or several pages the first;
- colour profiles (ICC) are not applied, as in the authors' code.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from evlgen.data.sampling import CROP, hashed
from evlgen.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # by content, whatever the file's name
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # PIL's own limit, from where on it warns: 256 MiB of RGB
MAX_BYTES = 1 << 29  # of a file
DECODING = 2  # raised where other pixels come out of the same file: part of the versions of pools

CROP_SCALE = (0.5, 1.0)  # share of the image's area (PAPER)
CROP_RATIO = (3 / 4, 4 / 3)
_TRIES = 10  # as torchvision's RandomResizedCrop

Pixels = npt.NDArray[np.uint8]


class UnreadableImage(Exception):
    """An image whose bytes cannot be decoded, or that is not there; the message says which and why."""


# --------------------------------------------------------------------------------------------- opening


def open_image(source: bytes | Path, where: str = "") -> Image.Image:
    """An image in RGB, upright; nothing of the file stays open.

    Args:
        source: its bytes, or a file, which must be an ordinary one.
        where: it is from, for messages; the path if that is given.

    Raises:
        UnreadableImage: damaged, truncated, of another format, or too large to be decoded.
        UserError: there is too little memory.
    """
    where = where or str(source if isinstance(source, Path) else "image")
    content = source if isinstance(source, bytes) else _bytes_of(source, where)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            return as_rgb(image)
    except MemoryError as error:  # it must not look like a damaged image: a resumed run would see other data
        raise UserError(f"{where}: too little memory to decode it") from error
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise UnreadableImage(f"{where}: damaged, or not in one of the formats {kinds}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UnreadableImage(f"{where}: declares more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # PIL raises nearly anything for damaged bytes
        raise UnreadableImage(f"{where}: {str(error) or type(error).__name__}") from None


def decode(content: bytes, where: str) -> Pixels:
    """Bytes of an image -> (H, W, 3) uint8, RGB; see `open_image`."""
    return np.asarray(open_image(content, where))


def _bytes_of(path: Path, where: str) -> bytes:
    try:
        check_ordinary(path)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{where}: {error.strerror or error}") from error


def check_ordinary(path: Path, most: int = MAX_BYTES) -> None:
    """Refuse what is no ordinary file, such as a pipe or a device, which may never end, and giants.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it is missing.
        UnreadableImage: it is none.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage(f"{path}: is no ordinary file")
    if status.st_size > most:
        raise UnreadableImage(f"{path}: has {status.st_size:,} bytes, more than {most:,}")


# ---------------------------------------------------------------------------------------------- modes

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRIP = 1 << 20  # pixels that are computed with together
_ORIENTATION, _BITS, _SAMPLE_FORMAT = 0x112, 0x102, 0x153  # tags of EXIF and TIFF


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of PIL in any mode -> RGB, upright, transparency laid on white.

    Raises:
        ValueError, OSError and others of PIL: it is damaged, or has no pixels or no finite ones.
    """
    if image.format == "EPS":
        raise ValueError("it is EPS, which another program would have to draw: convert it to PNG first")
    key = _transparent_key(image)  # says how it is stored, which is forgotten once it is loaded
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    if 0 in image.size:
        raise ValueError(f"it is empty, {image.width} x {image.height} pixels")
    found = _rgb(image, key)
    found = found.copy() if turn is None else found.transpose(turn)
    found.info = {}  # of the file: nobody may turn it upright again
    return found


def _rgb(image: Image.Image, key: Any) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and key is None:
        return image
    if mode.startswith("I") or mode == "F":
        return _levels(image, key)
    if mode == "LAB":
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        found = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert found is not None
        return found
    if mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif key is not None and mode in ("1", "L", "RGB"):
        image = _keyed(image, key)
    if image.mode in ("LA", "PA", "RGBA") or (mode == "P" and image.has_transparency_data):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF; viewers show such an image as it is stored
        return 1


def _transparent_key(image: Image.Image) -> Any:
    """The one colour of a PNG that is transparent, in the levels of its pixels once they are loaded."""
    key = image.info.get("transparency")
    if image.mode == "P" or isinstance(key, bytes):
        return None
    tile = getattr(image, "tile", None)
    stored = str(tile[0][3]) if tile else ""
    if isinstance(key, int):
        return key * {"1": 255, "L;2": 85, "L;4": 17}.get(stored, 1)
    if isinstance(key, tuple) and (stored == "RGB;16B" or max(key) > 255):
        return tuple(level >> 8 for level in key)
    return key


def _keyed(image: Image.Image, key: Any) -> Image.Image:
    """RGBA, transparent where the pixels are ``key``."""
    rgb = np.asarray(image.convert("RGB"))
    colour = np.array(key if isinstance(key, tuple) else (key,) * 3)
    alpha = np.where((rgb == colour).all(-1), 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([rgb, alpha]))


def _levels(image: Image.Image, key: Any) -> Image.Image:
    """RGB of grey levels of more than 8 bits.

    16 bits (12 in some TIFFs) are the full range. Whole numbers of 32 bits are taken as 8 bits where none
    exceeds 255, as 16 where none exceeds 65,535; floats as 0 to 1 or 0 to 255 where all are; anything else is
    stretched from its least to its greatest value. What is not a number is black.
    """
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;"):
        low, high = 0.0, 4095.0 if tags.get(_BITS) == (12,) else 65535.0
    else:
        if image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
            values = values.view(np.uint32)  # PIL has no mode of its own for them
        low, high = _range(values, (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0))
    grey = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP // values.shape[1])
    for first in range(0, len(values), rows):  # what is computed with takes eight times the space
        part = values[first : first + rows]
        scaled = (part.astype(np.float64) - low) * (255 / max(high - low, 1e-30))
        scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
        grey[first : first + rows] = np.rint(scaled)
        if isinstance(key, int):
            grey[first : first + rows][part == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _range(values: npt.NDArray[Any], tops: Sequence[float]) -> tuple[float, float]:
    """What becomes black and white: 0 and the first of ``tops`` that none exceeds, or least and greatest."""
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("none of its values is a number")
    low = float(values.min(where=finite, initial=values.flat[int(finite.argmax())]))
    high = float(values.max(where=finite, initial=low))
    top = next((top for top in tops if low >= 0 and high <= top), None)
    return (low, high) if top is None else (0.0, top)


# ------------------------------------------------------------------------------------- resizing, cropping


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

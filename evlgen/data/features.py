"""Frozen image features, computed once and kept on disk.

The image encoder never changes, so its output for an image is computed once. A cache file is an ordinary
``.npy``, (views, images, tokens, width) in fp16, opened as a memory map: processes that train side by side
share its pages.

Augmentation stays possible: a cache holds ``views`` versions of each image, and training draws one of them
each time. View 0 is the plain image, every other one a random resized crop (scale 0.5 to 1, bicubic: the
paper's). A crop is a pure function of pool, index and view. There is no horizontal flip in the miniworld: its
captions say what is left and what is right, and a flip would make them wrong.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from filelock import FileLock

from evlgen.backbones.vision import FrozenVision, build_vision
from evlgen.config import Conventions
from evlgen.data import worlds
from evlgen.data.base import World
from evlgen.data.images import CROP_RATIO, CROP_SCALE, UnreadableImage, augmented, resized, uniform
from evlgen.data.sampling import CROP
from evlgen.errors import UserError
from evlgen.runtime.files import check_room, in_gib, sha256_of, write_atomic
from evlgen.runtime.paths import cache_folder

log = logging.getLogger(__name__)

_BATCH = 64  # fixed, since the bits of a feature may depend on it


def ensure(
    pool: str,
    size: int,
    vision: str,
    views: int = 1,
    world: str = "miniworld",
    conventions: Conventions = "plain",
) -> Path:
    """The cache file with the features of the first ``size`` images of a pool, or of all if there are fewer.

    It is made if it is missing, and made again, with a line in the log, if it does not match its checksum.
    Processes that need the same file wait for the one that makes it.

    Args:
        pool: name of the pool.
        size: number of images, from index 0.
        vision: name of the frozen image encoder.
        views: versions of each image, the plain one among them.
        world: name of the data world.
        conventions: of the run, which may decide the encoder's precision.

    Returns:
        Path of an ``.npy``, (views, images, tokens, width) float16. Its name has everything that decides its
        content: pool, size, views, encoder, the hash of the encoder's weights, and the pool's version.

    Raises:
        UserError: unknown world, pool or encoder, an image that cannot be read, or the cache folder cannot be
            written to.
    """
    if size < 1 or views < 1:
        raise UserError(f"pool {pool!r}: {size} images in {views} views; there must be at least one of each")
    encoder = build_vision(vision, conventions)
    source = worlds.get(world)
    count = min(size, source.count(pool))
    prefix = worlds.cache_prefix(pool, size, vision, views)
    name = f"{prefix}-{encoder.fingerprint}-{source.version(pool)}.npy"
    path = cache_folder() / "features" / name
    if _sidecar(path).exists() and _is_good(path):  # it is written last: another process may be at it
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot be written ({error.strerror or error}); set EVLGEN_CACHE to another one"
        ) from error
    try:
        _matches.cache_clear()  # another process may have made it meanwhile
        if not _is_good(path):
            size_on_disk = bytes_of(views, count, encoder.tokens, encoder.width)
            log.info("%s: %s will be written", path, in_gib(size_on_disk))
            check_room(
                path.parent, size_on_disk, f"the features of {count:,} images of {pool} in {views} views"
            )
            digest = write_atomic(path, _pieces(source, pool, count, encoder, views))
            write_atomic(_sidecar(path), f"{digest}  {path.name}\n".encode())
    finally:
        lock.release()
    return path


def bytes_of(views: int, images: int, tokens: int, width: int) -> int:
    """Size of a cache file."""
    return 2 * views * images * tokens * width + 128


def load(path: Path) -> npt.NDArray[np.float16]:
    """Memory map of a cache file, (views, images, tokens, width)."""
    features: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return features


def images_of(
    world: World, pool: str, indices: Sequence[int], side: int, view: int = 0
) -> npt.NDArray[np.uint8]:
    """Images of a pool, (len(indices), side, side, 3) uint8; ``view`` 0 is the plain ones.

    Raises:
        UserError: an image cannot be read.
    """
    try:
        if world.name == "miniworld":
            found = [world.image(pool, i) for i in indices]
        else:
            with ThreadPoolExecutor(8) as threads:  # decoding gives the interpreter free
                found = list(threads.map(functools.partial(world.image, pool), indices))
    except UnreadableImage as error:
        raise UserError(f"{error}; fetch this image again") from error
    if world.name == "miniworld":
        images = np.stack(found)
        found = list(images if view == 0 else crops(images, pool, indices, view))
    elif view:
        key = _pool_key(pool)
        found = [
            augmented(image, side, world.flips, key, view, i) for i, image in zip(indices, found, strict=True)
        ]
    return np.stack([resized(image, side) for image in found])


def crops(
    images: npt.NDArray[np.uint8], pool: str, indices: Sequence[int], view: int
) -> npt.NDArray[np.uint8]:
    """Random resized crops, of the size of the images: a pure function of pool, index and view.

    Area and aspect ratio are drawn as the paper's augmentation draws them (ratio uniform in its logarithm).

    Args:
        images: (B, H, W, 3) uint8, the images ``indices`` of the pool.
    """
    side, out = images.shape[1], np.empty_like(images)
    key = _pool_key(pool)
    # (4, B) numbers in 0..1: area, ratio, place down, place across
    draws = np.stack([uniform(CROP, key, view, np.asarray(indices, np.uint64), salt) for salt in range(4)])
    area = (CROP_SCALE[0] + draws[0] * (CROP_SCALE[1] - CROP_SCALE[0])) * side**2
    low, high = np.log(CROP_RATIO)
    ratio = np.exp(low + draws[1] * (high - low))
    heights = np.clip(np.rint(np.sqrt(area / ratio)), 1, side).astype(int)
    widths = np.clip(np.rint(np.sqrt(area * ratio)), 1, side).astype(int)
    tops = np.floor(draws[2] * (side - heights + 1)).astype(int)
    lefts = np.floor(draws[3] * (side - widths + 1)).astype(int)
    for i, (top, left, height, width) in enumerate(zip(tops, lefts, heights, widths, strict=True)):
        part = (
            torch.from_numpy(images[i, top : top + height, left : left + width].copy())
            .permute(2, 0, 1)
            .float()
        )
        sized = F.interpolate(part[None], images.shape[1:3], mode="bicubic", antialias=True)[0]
        out[i] = sized.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return out


def _pool_key(pool: str) -> int:
    return int.from_bytes(hashlib.blake2b(pool.encode(), digest_size=8).digest(), "little")


def _pieces(world: World, pool: str, size: int, encoder: FrozenVision, views: int) -> Iterator[bytes]:
    """The bytes of the ``.npy``: header, then the features batch by batch."""
    log.info("features of %d images of %s in %d views", size, pool, views)
    header = io.BytesIO()
    shape = (views, size, encoder.tokens, encoder.width)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    yield header.getvalue()
    for view in range(views):
        for first in range(0, size, _BATCH):
            indices = range(first, min(first + _BATCH, size))
            features = encoder.encode(images_of(world, pool, indices, encoder.image_size, view))
            yield features.to(torch.float16).numpy().astype("<f2", copy=False).tobytes()


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_good(path: Path) -> bool:
    """Whether the file is there and whole; checked once in a process for each version of the file."""
    try:
        status = path.stat()
    except OSError:
        return False
    if _matches(path, status.st_mtime_ns, status.st_size):
        return True
    log.warning("%s: damaged (its bytes do not match its checksum): it is made again", path)
    return False


@functools.lru_cache(maxsize=256)
def _matches(path: Path, mtime_ns: int, size: int) -> bool:
    try:
        promised = _sidecar(path).read_text("utf-8").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return False
    return sha256_of(path) == promised

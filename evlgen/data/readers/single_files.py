"""Image-text pairs as single files (img2dataset's ``output_format=files``), found through an index of names.

`evlgen.runtime.pair_files` says which there are. The index is made once, in the cache folder, and anew when
files come or go.
"""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
from filelock import FileLock

from evlgen.data.images import DECODING, Pixels
from evlgen.data.readers.json_lists import (
    MISSING,
    UnreadableCaption,
    nonempty_captions,
    read_bytes,
    read_image,
)
from evlgen.errors import UserError
from evlgen.runtime import pair_files
from evlgen.runtime.annotations import LeftOut
from evlgen.runtime.files import write_atomic
from evlgen.runtime.text import decode_text, parse_json

log = logging.getLogger(__name__)


class SingleFiles:
    """Pairs of two files each."""

    def __init__(self, pool: Path, cache: Path) -> None:
        self.pool = pool
        version = pair_files.version(pool)
        self.version = f"{version}-{DECODING}"
        path = cache / f"{pool.name}-{version}-names.npy"
        self.names = _names(pool, path)  # image, text: see `_make`
        self.left_out = LeftOut.load(path)
        self.left_out.warn(pool)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Pixels:
        """See `evlgen.data.readers.json_lists.Reader`."""
        return read_image(self._files(index)[0], self.pool)

    def captions(self, index: int) -> list[str]:
        """See `evlgen.data.readers.json_lists.Reader`."""
        path = self._files(index)[1]
        try:
            content = read_bytes(path)
            if path.suffix == ".txt":
                return nonempty_captions(decode_text(content, path), str(path))
            return nonempty_captions(parse_json(content, path)["caption"], str(path))
        except UnreadableCaption:
            raise
        except (*MISSING, KeyError, TypeError) as error:
            raise UnreadableCaption(f"{path}: no caption can be read ({error!r})") from error
        except UserError as error:
            raise UnreadableCaption(str(error)) from error

    def _files(self, index: int) -> tuple[Path, Path]:
        name = os.fsdecode(self.names[index])
        image = self.pool / name[1:]
        return image, image.with_suffix(".txt" if name[0] == "t" else ".json")


def _names(pool: Path, path: Path) -> np.memmap[tuple[int], np.dtype[np.bytes_]]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():  # another process may have made it meanwhile
                _make(pool, path)
    found: np.memmap[tuple[int], np.dtype[np.bytes_]] = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


def _make(pool: Path, path: Path) -> None:
    """An array of the images' paths below the pool, in front a letter: caption is text (t) or JSON (j)."""
    names, left_out = [], LeftOut()
    for folder in pair_files.folders(pool):
        below, used = folder.relative_to(pool), set()
        for image, said in pair_files.pairs(folder):
            if said:
                names.append(
                    os.fsencode(f"{'t' if said.endswith('.txt') else 'j'}{(below / image).as_posix()}")
                )
            else:
                left_out.add("images without a .txt or .json beside them", str(folder / image))
            used.add(said)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".txt") and name not in used:
                left_out.add("texts without an image beside them", str(folder / name))
    if not names:
        raise UserError(f"{pool}: no image with a .txt or .json beside it")
    left_out.save(path)
    content = io.BytesIO()
    np.save(content, np.array(names))
    write_atomic(path, content.getvalue())

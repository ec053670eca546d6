"""Image-text pairs of BLIP's CapFilt (LAION-115M, CCS-14M), too many for memory: found through an index.

A pool is a folder with either

- webdataset shards ``*.tar``, as img2dataset writes them: under each key an image, and a ``.txt`` with its
  caption or a ``.json`` with one under ``caption``; or
- lists ``*.json``, ``[{"image": path, "caption": text}, ...]``, the paths relative to the folder; or
- single files, which `evlgen.data.readers.single_files` reads.

The index says where in which file each pair lies, so that any pair can be read at any time: that is what lets
a training be resumed exactly. It is made once, file by file, in the cache folder; what is made stays made.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from evlgen.data.images import Pixels, UnreadableImage, decode
from evlgen.data.readers.json_lists import (
    MISSING,
    UnreadableCaption,
    nonempty_captions,
    read_bytes,
    read_image,
)
from evlgen.data.readers.single_files import SingleFiles
from evlgen.errors import UserError
from evlgen.runtime import pair_files
from evlgen.runtime.files import write_atomic

log = logging.getLogger(__name__)

Index = npt.NDArray[np.int64]
_IMAGES = ("jpg", "jpeg", "png", "webp")
_PIECE = 1 << 24  # bytes of a list that are looked at together


class Shards:
    """Pairs in webdataset shards."""

    def __init__(self, folder: Path, shards: list[Path], cache: Path) -> None:
        self.shards = shards
        self.version = _version(folder, shards)
        # (pairs, 6): shard, offset and size of the image, offset and size of the text, whether it is JSON
        self.index = _index(folder, shards, cache, _pairs_of_shard)

    def __len__(self) -> int:
        return len(self.index)

    def image(self, index: int) -> Pixels:
        """See `evlgen.data.readers.json_lists.Reader`."""
        shard, offset, size, *_ = self.index[index].tolist()
        where = f"{self.shards[shard]}, image at byte {offset}"
        try:
            content = read_bytes(self.shards[shard], offset, size)
        except MISSING as error:
            raise UnreadableImage(f"{where}: {error.strerror}") from error
        return decode(content, where)

    def captions(self, index: int) -> list[str]:
        """See `evlgen.data.readers.json_lists.Reader`."""
        shard, _, _, offset, size, is_json = self.index[index].tolist()
        path = self.shards[shard]
        try:
            text = read_bytes(path, offset, size).decode(errors="replace")
            found = json.loads(text)["caption"] if is_json else text
        except (*MISSING, ValueError, KeyError, TypeError) as error:
            raise UnreadableCaption(f"{path}: no caption can be read at byte {offset} ({error!r})") from error
        return nonempty_captions(found, f"{path}, text at byte {offset}")


class Lists:
    """Pairs in lists of JSON, images beside them.

    The version is that of the lists alone: there are too many images to look at each.
    """

    def __init__(self, folder: Path, lists: list[Path], cache: Path) -> None:
        self.folder, self.lists = folder, lists
        self.version = _version(folder, lists)
        self.index = _index(folder, lists, cache, _entries_of_list)  # (pairs, 3): list, offset and size

    def __len__(self) -> int:
        return len(self.index)

    def image(self, index: int) -> Pixels:
        """See `evlgen.data.readers.json_lists.Reader`."""
        image = self._entry(index).get("image")
        if not isinstance(image, str) or not image:
            raise UnreadableImage(f"{self._where(index)}: no image")
        return read_image(self.folder / image)

    def captions(self, index: int) -> list[str]:
        """See `evlgen.data.readers.json_lists.Reader`."""
        return nonempty_captions(self._entry(index).get("caption"), self._where(index))

    def _where(self, index: int) -> str:
        number, offset, _ = self.index[index].tolist()
        return f"{self.lists[number]}, entry at byte {offset}"

    def _entry(self, index: int) -> dict[str, Any]:
        number, offset, size = self.index[index].tolist()
        path = self.lists[number]
        try:
            entry: dict[str, Any] = json.loads(read_bytes(path, offset, size))
        except (*MISSING, ValueError) as error:
            raise UserError(f"{path}: changed while it was read ({error!r}); start again") from error
        return entry


def read(pool: Path, cache: Path) -> Shards | Lists | SingleFiles:
    """The pairs in a folder: of shards if there are any, else of lists, else of single files; or of one list.

    Args:
        pool: the folder, or a list, whose images are beside it.
        cache: where the index is kept.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    if pool.is_file():
        return Lists(pool.parent, [pool], cache)
    shards = sorted(pool.rglob("*.tar"))
    if shards:
        return Shards(pool, shards, cache)
    lists = _lists(pool)
    # Lists of addresses lie beside the images that were fetched from them.
    if all(map(_what_is_wrong, lists)) and pair_files.has_pairs(pool):
        return SingleFiles(pool, cache)
    if lists:
        return Lists(pool, lists, cache)
    raise UserError(f"{pool}: {_NOTHING}; see docs/DATA.md")


_NOTHING = (
    "neither shards (*.tar) nor lists of pairs (*.json) nor images with a .txt or .json of the same name "
    "beside them"
)


def _lists(pool: Path) -> list[Path]:
    """The lists of a folder, without what img2dataset reports of its shards."""
    return [path for path in sorted(pool.glob("[!.]*.json")) if not path.name.endswith(pair_files.STATS)]


def problems(pool: Path) -> list[str]:
    """A line for each list that is none of images with captions, by its first entry; no index is made."""
    lists = [pool] if pool.is_file() else _lists(pool)
    wrong = {path: what for path in lists if (what := _what_is_wrong(path))}
    lines = [f"{path}: {what}" for path, what in wrong.items()]
    if pool.is_file() or (lists and not wrong):
        return lines
    # Looked for last: below lists with images may lie millions of files.
    if next(pool.rglob("*.tar"), None) is not None:
        return []
    if len(wrong) == len(lists) and pair_files.has_pairs(pool):
        return []
    return lines or [f"{pool}: {_NOTHING}; see docs/DATA.md"]


def _what_is_wrong(path: Path) -> str:
    """Why a file is no list of pairs, by its first bytes and its first entry; empty if it may be one."""
    begin = read_bytes(path, 0, 1 << 16).decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if begin.startswith("{"):
        if '"images"' in begin or '"annotations"' in begin:
            return (
                "has COCO's annotations, not a list of pairs; train on it as on your own images "
                '(data.world=folder, docs/DATA.md), or write [{"image": ..., "caption": ...}]'
            )
        return 'an object, where a list [{"image": ..., "caption": ...}] is needed'
    if not begin.startswith("["):
        return 'no list [{"image": ..., "caption": ...}]'
    try:
        offset, end = next(_objects(path), (0, 0))
        entry = json.loads(read_bytes(path, offset, end - offset) or b"{}")
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")
    if "url" in entry and "image" not in entry:
        return (
            "lists URLs instead of images; fetch them with img2dataset as webdataset shards, and put the "
            "shards in its place (docs/DATA.md)"
        )
    if "conversations" in entry:
        return 'has conversations (LLaVA\'s form), where each entry needs an "image" and a "caption"'
    lacking = [key for key in ("image", "caption") if key not in entry]
    if lacking:
        there = ", ".join(map(str, entry)) or "nothing"
        return f"its first entry has no {' and no '.join(map(repr, lacking))}; it has {there}"
    return ""


# ---------------------------------------------------------------------------------------------- index


def _pairs_of_shard(path: Path) -> list[list[int]]:
    """Of each pair in a shard: offset and size of the image, offset and size of the text, whether JSON."""
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                members.setdefault(f"{folder}/{key}", {})[kind.lower()] = member
            if path.stat().st_size < shard.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("its end is missing")
    except (tarfile.TarError, OSError) as error:
        log.warning("%s: damaged (%s): the %d pairs before it are used", path, error, len(members))
    rows = []
    for found in members.values():
        image = next((found[kind] for kind in _IMAGES if kind in found), None)
        text = found.get("txt", found.get("json"))
        if image is not None and text is not None and image.size and text.size:
            where = (image.offset_data, image.size, text.offset_data, text.size)
            rows.append([*where, int("txt" not in found)])
    return rows


def _entries_of_list(path: Path) -> list[list[int]]:
    """Offset and size of each object in a list of JSON.

    Bytes are read as Latin-1: one character a byte, and all that JSON is built of is ASCII.

    Raises:
        UserError: it is no list of objects.
    """
    return [[start, end - start] for start, end in _objects(path)]


def _objects(path: Path) -> Iterator[tuple[int, int]]:
    decoder = json.JSONDecoder()
    before, text = 0, ""  # bytes that are done with, and the text from there on
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            text += piece.decode("latin-1")
            place = 0
            while (start := text.find("{", place)) >= 0:
                try:
                    _, end = decoder.raw_decode(text, start)
                except ValueError:
                    place = start
                    break  # the rest of it is in the next piece
                yield before + start, before + end
                place = end
            else:
                place = len(text)
            before, text = before + place, text[place:]
    if text.strip():
        raise UserError(f"{path}: damaged from byte {before} on; fetch it again")


def _index(folder: Path, files: list[Path], cache: Path, rows_of: Callable[[Path], list[list[int]]]) -> Index:
    """Rows of all files, each with the file's number in front; a memory map."""
    path = cache / f"{folder.name}-{_version(folder, files)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():  # another process may have made it meanwhile
                _make_index(path, folder, files, rows_of)
    index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
    if not len(index):
        raise UserError(f"{folder}: no pair of an image and a caption in its {len(files)} files")
    return index


def _make_index(
    path: Path, folder: Path, files: list[Path], rows_of: Callable[[Path], list[list[int]]]
) -> None:
    parts = [path.parent / folder.name / f"{_version(folder, [file])}.npy" for file in files]
    missing = [(file, part) for file, part in zip(files, parts, strict=True) if not part.exists()]
    log.info("%s: indexing %d files, %d of them done already", folder, len(files), len(files) - len(missing))
    work = functools.partial(_index_file, rows_of=rows_of)
    if len(missing) > 1 and (processors := os.cpu_count() or 1) > 1:
        with ProcessPoolExecutor(processors, mp_context=get_context("fork")) as processes:
            for _ in processes.map(work, *zip(*missing, strict=True)):
                pass
    else:
        for file, part in missing:
            work(file, part)
    _join(path, parts)


def _join(path: Path, parts: Sequence[Path]) -> None:
    """Write the rows of all parts, each with the part's number in front: one part in memory at a time.

    The index of 115M pairs has 5.5 GB.
    """
    shapes = [np.load(part, mmap_mode="r", allow_pickle=False).shape for part in parts]
    shape = (sum(count for count, _ in shapes), 1 + shapes[0][1])

    def pieces() -> Iterator[bytes]:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<i8", "fortran_order": False, "shape": shape})
        yield header.getvalue()
        for number, part in enumerate(parts):
            rows = np.load(part, allow_pickle=False)
            yield np.insert(rows, 0, number, axis=1).astype("<i8", copy=False).tobytes()

    write_atomic(path, pieces())


def _index_file(file: Path, part: Path, rows_of: Callable[[Path], list[list[int]]]) -> None:
    rows = rows_of(file)
    width = 5 if rows_of is _pairs_of_shard else 2
    _save(part, np.array(rows, np.int64).reshape(len(rows), width))


def _save(path: Path, rows: Index) -> None:
    content = io.BytesIO()
    np.save(content, rows)
    write_atomic(path, content.getvalue())


def _version(folder: Path, files: list[Path]) -> str:
    """16 hex digits for names, sizes and times of files."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]

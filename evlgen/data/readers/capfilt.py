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

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from evlgen.data.images import DECODING, Pixels, UnreadableImage, decode
from evlgen.data.readers.json_lists import (
    MISSING,
    UnreadableCaption,
    nonempty_captions,
    read_bytes,
    read_image,
)
from evlgen.data.readers.single_files import SingleFiles
from evlgen.data.readers.tar_members import pairs_of_shard
from evlgen.errors import UserError
from evlgen.runtime import pair_files
from evlgen.runtime.annotations import LeftOut, has_words, inside, json_field
from evlgen.runtime.files import write_atomic
from evlgen.runtime.text import decode_text, parse_json

log = logging.getLogger(__name__)

Index = npt.NDArray[np.int64]
RowsOf = Callable[[Path], tuple[list[list[int]], LeftOut]]
_PIECE = 1 << 24  # bytes of a list that are looked at together
_FORMAT = 2  # of the index
_UNFINISHED = (".part", ".tmp", ".crdownload", ".aria2")  # what downloaders put behind a name
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PUNCTUATION = "[], \t\r\n\xef\xbb\xbf"  # of lists, with a byte order mark


class Shards:
    """Pairs in webdataset shards."""

    def __init__(self, folder: Path, shards: list[Path], cache: Path) -> None:
        self.shards = shards
        self.version = f"{_version(folder, shards)}-{DECODING}"
        # (pairs, 7): shard, then offset and size of the image, of its .txt and of its .json
        self.index, self.left_out = _index(folder, shards, cache, pairs_of_shard)

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
        """See `evlgen.data.readers.json_lists.Reader`: of the .txt, or of the .json if that has no words."""
        shard, _, _, *places = self.index[index].tolist()
        path = self.shards[shard]
        if places[1] and not places[3]:
            return self._caption(path, False, *places[:2])
        if places[1]:
            with contextlib.suppress(UnreadableCaption):
                return self._caption(path, False, *places[:2])
        return self._caption(path, True, *places[2:])

    def _caption(self, path: Path, is_json: bool, offset: int, size: int) -> list[str]:
        where = f"{path}, text at byte {offset}"
        try:
            content = read_bytes(path, offset, size)
        except MISSING as error:
            raise UnreadableCaption(f"{where}: {error.strerror}") from error
        try:
            said = (
                json_field(parse_json(content, where), where, "caption")
                if is_json
                else decode_text(content, where)
            )
        except UserError as error:
            raise UnreadableCaption(str(error)) from error
        return nonempty_captions(said, where)


class Lists:
    """Pairs in lists of JSON, images beside them.

    The version is that of the lists alone: there are too many images to look at each.
    """

    def __init__(self, folder: Path, lists: list[Path], cache: Path) -> None:
        self.folder, self.lists = folder, lists
        self.version = f"{_version(folder, lists)}-{DECODING}"
        # (pairs, 3): list, offset and size
        self.index, self.left_out = _index(folder, lists, cache, _entries_of_list)

    def __len__(self) -> int:
        return len(self.index)

    def image(self, index: int) -> Pixels:
        """See `evlgen.data.readers.json_lists.Reader`."""
        where = self._where(index)
        try:
            entry = self._entry(index)
        except UnreadableCaption as error:
            raise UnreadableImage(str(error)) from error
        try:
            path = inside(self.folder, json_field(entry, where, "image"), where)
        except UserError as error:
            raise UnreadableImage(str(error)) from error
        return read_image(path, self.folder)

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
            content = read_bytes(path, offset, size)
            json.loads(content)
        except (*MISSING, ValueError) as error:
            raise UserError(f"{path}: changed while it was read ({error!r}); start again") from error
        try:
            entry: dict[str, Any] = parse_json(content, self._where(index))
        except UserError as error:  # a key that is there twice
            raise UnreadableCaption(str(error)) from error
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
    found = _reader(pool, cache)
    beside = _beside(pool, found)
    beside.warn(pool)
    found.left_out.update(beside)
    return found


def _reader(pool: Path, cache: Path) -> Shards | Lists | SingleFiles:
    if shards := _shards(pool):
        return Shards(pool, shards, cache)
    lists = _lists(pool)
    # Lists of addresses lie beside the images that were fetched from them.
    if all(map(_what_is_wrong, lists)) and pair_files.has_pairs(pool):
        return SingleFiles(pool, cache)
    if lists:
        return Lists(pool, lists, cache)
    if packed := _packed(pool):
        raise UserError(f"{packed[0]}: is packed; unpack it to .tar, so that each pair can be found in it")
    raise UserError(f"{pool}: {_NOTHING}; see docs/DATA.md")


def _beside(pool: Path, found: Shards | Lists | SingleFiles) -> LeftOut:
    """What may have pairs and is not read."""
    left_out = LeftOut()
    for path in _packed(pool):
        left_out.add("packed shards, which must be unpacked to .tar", str(path))
    for path in _not_shards(pool):
        left_out.add("shards that are no ordinary files, or not ready (*.tar is read)", str(path))
    for path in sorted(pool.iterdir()):
        if path.is_symlink() and path.is_dir():
            left_out.add("links to folders, in which no pairs are looked for", str(path))
    for path in [] if isinstance(found, Lists) else _lists(pool):
        if not _what_is_wrong(path):
            left_out.add("lists of pairs, in the place of which shards or single files are read", str(path))
    return left_out


def _shards(pool: Path) -> list[Path]:
    return sorted(path for path in pool.rglob("*.tar") if path.is_file())


def _not_shards(pool: Path) -> list[Path]:
    """What is called a shard, or nearly, and not read: links to nowhere, pipes, ``.TAR``, ``.tar.part``."""
    return sorted(
        path
        for path in pool.rglob("*.[tT][aA][rR]*")
        if (path.suffix == ".tar" and not path.is_file() and not path.is_dir())
        or (path.suffix != ".tar" and path.suffix.lower() == ".tar")
        or path.name.lower().endswith(tuple(f".tar{end}" for end in _UNFINISHED))
    )


def _packed(pool: Path) -> list[Path]:
    return sorted(path for kind in _PACKED for path in pool.rglob(f"*{kind}"))


def sample(pool: Path, cache: Path) -> Shards | Lists | SingleFiles:
    """As `read`, of shards the first alone: a look at a pool must not wait for its index."""
    if pool.is_dir() and (shards := _shards(pool)):
        return Shards(pool, shards[:1], cache)
    return read(pool, cache)


_NOTHING = (
    "neither shards (*.tar) nor lists of pairs (*.json) nor images with a .txt or .json of the same name "
    "beside them"
)


def _lists(pool: Path) -> list[Path]:
    """The lists of a folder, without what img2dataset reports of its shards."""
    return [
        path
        for path in sorted(pool.glob("[!.]*.json"))
        if path.is_file() and not path.name.endswith(pair_files.STATS)
    ]


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
        offset, end, _ = next(_objects(path, LeftOut()), (0, 0, {}))
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


def _entries_of_list(path: Path) -> tuple[list[list[int]], LeftOut]:
    """Offset and size of each object in a list of JSON, and what of it is none.

    Bytes are read as Latin-1: one character a byte, and all that JSON is built of is ASCII.

    Raises:
        UserError: it is no list of objects.
    """
    left_out = LeftOut()
    rows = []
    for start, end, entry in _objects(path, left_out):
        rows.append([start, end - start])
        said = entry.get("caption")
        if isinstance(
            said, list
        ):  # where there is none that can be used, the entry is replaced when it is read
            usable = [isinstance(one, str) and has_words(one) for one in said]
            if any(usable) and not all(usable):
                where = f"{path}, entry at byte {start}"
                left_out.add("captions without words", where, len(usable) - sum(usable))
    return rows, left_out


def _objects(path: Path, left_out: LeftOut) -> Iterator[tuple[int, int, dict[str, Any]]]:
    decoder = json.JSONDecoder()
    before, text = 0, ""  # bytes that are done with, and the text from there on
    last, is_list = "", False  # what follows the last object; whether a bracket is before the first
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            if not before and not text and b"\0" in piece[:4]:
                raise UserError(f"{path}: is UTF-16 or UTF-32; save it as UTF-8")
            text += piece.decode("latin-1")
            place = 0
            while (start := text.find("{", place)) >= 0:
                try:
                    entry, end = decoder.raw_decode(text, start)
                except ValueError:
                    place = start
                    break  # the rest of it is in the next piece
                except RecursionError:
                    raise UserError(
                        f"{path}: lists within lists from byte {before + start} on, too deep"
                    ) from None
                is_list = is_list or "[" in last + text[place:start]
                last = _between(last + text[place:start], f"{path} before byte {before + start}", left_out)
                yield before + start, before + end, entry
                place = end
            else:
                last += text[place:]
                place = len(text)
            before, text = before + place, text[place:]
    if text.strip():
        raise UserError(f"{path}: damaged from byte {before} on; fetch it again")
    if is_list and not last.rstrip().endswith("]"):
        raise UserError(f"{path}: damaged: its end is missing; fetch it again")
    _between(last, f"{path}, at its end", left_out)


def _between(text: str, where: str, left_out: LeftOut) -> str:
    """Count what stands between two objects and is no list's punctuation."""
    if rest := text.strip(_PUNCTUATION):
        left_out.add("entries of lists that are no objects", where, len(rest.split(",")))
    return ""


def _index(folder: Path, files: list[Path], cache: Path, rows_of: RowsOf) -> tuple[Index, LeftOut]:
    """Rows of all files, each with the file's number in front, a memory map; and what was left out."""
    path = cache / f"{folder.name}-{_version(folder, files)}-{_FORMAT}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():  # another process may have made it meanwhile
                _make_index(path, folder, files, rows_of)
    index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
    left_out = LeftOut.load(path)
    left_out.warn(folder)
    if not len(index):
        why = f" ({'; '.join(left_out.lines())})" if left_out.counts else ""
        raise UserError(f"{folder}: no pair of an image and a caption in its {len(files)} files{why}")
    return index, left_out


def _make_index(path: Path, folder: Path, files: list[Path], rows_of: RowsOf) -> None:
    parts = [path.parent / folder.name / f"{_version(folder, [file])}-{_FORMAT}.npy" for file in files]
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
    left_out = LeftOut()
    for part in parts:
        left_out.update(LeftOut.load(part))
    left_out.save(path)
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


def _index_file(file: Path, part: Path, rows_of: RowsOf) -> None:
    rows, left_out = rows_of(file)
    width = 6 if rows_of is pairs_of_shard else 2
    left_out.save(part)
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

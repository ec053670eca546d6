"""Pairs in a webdataset shard: where in the archive their bytes lie, and what of it is in no pair.

An archive is gone through header by header. Where there is none, because the archive is damaged or because
another one was joined to it (``cat a.tar b.tar``), the next one is looked for. Nothing is extracted: links,
devices and sparse files are no members of a pair, whatever they point to.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from evlgen.data.images import MAX_BYTES, SUFFIXES
from evlgen.runtime.annotations import LeftOut

_IMAGES = tuple(suffix.lstrip(".") for suffix in SUFFIXES)
_TEXTS = ("txt", "json")
_KINDS = frozenset((*_IMAGES, *_TEXTS))
_GAPS = "gaps in shards (damaged, or archives that were joined)"
_BLOCK = tarfile.BLOCKSIZE
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}

Row = list[int]  # offset and size of the image, of its .txt and of its .json; 0 and 0 if it has none


@dataclass
class _Sample:
    where: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)  # by kind


def pairs_of_shard(path: Path) -> tuple[list[Row], LeftOut]:
    """The pairs in a shard, in the order of their first members.

    Members belong together whose names differ behind the last dot only. A name that comes again begins
    another pair: shards that were joined may each count their keys from 0.

    Returns:
        The pairs, and what was left out.
    """
    left_out = LeftOut()
    samples: list[_Sample] = []
    current: dict[str, _Sample] = {}
    empty: list[tuple[str, str, str]] = []  # key, kind and where
    others: dict[str, str] = {}  # key -> where, of members that are neither image nor text
    for member in _members(path, left_out):
        key, _, kind = _readable(member.name).removeprefix("./").rpartition(".")
        kind, where = kind.lower(), f"{path}, {_readable(member.name)}"
        if member.isdir() or key.rpartition("/")[2].startswith("._"):  # folders; what macOS puts beside files
            continue
        if kind not in _KINDS:
            others[key or kind] = where
        elif not member.isreg() or member.issparse():
            left_out.add("members of shards that are no ordinary files (links, devices, sparse files)", where)
        elif not member.size:
            empty.append((key, kind, where))
        elif member.size > MAX_BYTES:
            left_out.add(f"members of shards of more than {MAX_BYTES:,} bytes", where)
        else:
            sample = current.get(key)
            if sample is None or kind in sample.members:
                sample = current[key] = _Sample(where)
                samples.append(sample)
            sample.members[kind] = member
    for key, kind, where in empty:
        members = current[key].members if key in current else {}
        if kind not in _TEXTS or not members.keys() & set(_TEXTS):  # else its caption comes from the other
            left_out.add("members of shards that are empty", where)
    for key in others.keys() - current.keys():
        left_out.add("members of shards of other kinds", others[key])
    rows = [row for sample in samples for row in _rows(sample, left_out)]
    if (
        not rows and not left_out.counts
    ):  # zeros alone are a whole archive to tar, and a lost one to its owner
        left_out.add("shards without a pair", str(path))
    return rows, left_out


def _rows(sample: _Sample, left_out: LeftOut) -> list[Row]:
    images = [sample.members[kind] for kind in _IMAGES if kind in sample.members]
    texts = [sample.members.get(kind) for kind in _TEXTS]
    if not images:
        left_out.add("captions without an image", sample.where)
        return []
    if not any(texts):
        left_out.add("images without a caption", sample.where, len(images))
        return []
    if len(images) > 1:
        left_out.add("images beside another one under the same key", sample.where, len(images) - 1)
    places = [(one.offset_data, one.size) if one else (0, 0) for one in (images[0], *texts)]
    return [[number for place in places for number in place]]


def _readable(name: str) -> str:
    """A name without the surrogates that stand for bytes that are no UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


# ------------------------------------------------------------------------------------------ the archive


def _members(path: Path, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
    """The members of an archive whose bytes are all there; what lies between them is counted."""
    size = path.stat().st_size
    with path.open("rb") as file:
        mark = file.read(6)
        if kind := next((name for start, name in _PACKED.items() if mark.startswith(start)), ""):
            left_out.add(f"shards packed with {kind}, which must be unpacked to plain .tar", str(path))
            return
        begin = end = 0  # of the archive; of the last member
        for member, following in _headers(file):
            if _is_damaged(file, begin, end, member.offset):
                left_out.add(_GAPS, f"{path}, bytes {end} to {member.offset}")
            if member.offset - end >= 2 * _BLOCK:
                begin = member.offset
            end = following
            if end > size and (not member.isreg() or member.offset_data + member.size > size):
                left_out.add("members of shards that are cut off", f"{path}, {_readable(member.name)}")
                break
            yield member
        if size - end < 2 * _BLOCK:
            left_out.add("shards whose end is missing", str(path))
        elif _is_damaged(file, begin, end, size):
            left_out.add(_GAPS, f"{path}, bytes {end} to {size}")


def _headers(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """What headers of members there are, wherever they are, each with the place of the one that follows."""
    place = 0
    while True:
        file.seek(place)
        archive = None
        try:
            with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as archive:
                for member in archive:
                    place = member.offset + _BLOCK  # where to go on, if it is none
                    if member.size < 0 or member.offset_data < member.offset:
                        break
                    place = archive.offset
                    yield member, place
                else:
                    return
        except (tarfile.TarError, ValueError, OverflowError):
            place = _BLOCK + max(place, archive.offset if archive else 0)
        if not file.seek(place) or not file.read(1):
            return


def _is_damaged(file: BinaryIO, begin: int, start: int, end: int) -> bool:
    """Whether there is something between two members that is not the end of an archive.

    That is two blocks of zeros, and zeros up to a multiple of `tarfile.RECORDSIZE`.
    """
    length = end - start
    if not length:
        return False
    if not 2 * _BLOCK <= length < 2 * _BLOCK + tarfile.RECORDSIZE or (end - begin) % tarfile.RECORDSIZE:
        return True
    back = file.tell()
    file.seek(start)
    content = file.read(length)
    file.seek(back)
    return any(content)

"""Which image-text pairs there are as single files: ``00000/000000000.jpg`` beside its ``.txt`` or ``.json``.

That is what img2dataset writes with ``output_format=files``; other folders of such pairs are read as well.
Torch-free: the ids of runs ask for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from evlgen.errors import UserError
from evlgen.runtime.annotations import walked
from evlgen.runtime.files import write_atomic
from evlgen.runtime.own_images import IMAGE_SUFFIXES
from evlgen.runtime.paths import cache_folder

STATS = "_stats.json"  # ends the names of what img2dataset reports of a shard
_MANY = 10_000  # files of a folder: names alone count, and are asked for again when the folder has changed


def folders(pool: Path) -> list[Path]:
    """The folders that have pairs, in the order of their names."""
    with os.scandir(pool) as entries:
        names = {entry.name: entry.is_dir() for entry in entries}
    shards = sorted(name for name, is_folder in names.items() if is_folder and f"{name}{STATS}" in names)
    if shards:
        return [pool / name for name in shards]  # millions of files: none is looked at to find folders
    return [place for place, _ in walked(pool)]


def pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """Names of each image of a folder and of its text, empty if it has none; in the order of names."""
    names = sorted(os.listdir(folder))
    there = set(names)
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
            yield name, next((stem + end for end in (".txt", ".json") if stem + end in there), "")


def has_pairs(pool: Path) -> bool:
    """Whether there is any pair; the first folder that has an image with a text ends the search."""
    return pool.is_dir() and any(text for folder in folders(pool) for _, text in pairs(folder))


def fingerprint(pool: Path) -> str:
    """16 hex digits for names and sizes of the files of all pairs, in folders of many files for their names;
    empty if there are none.

    Names of many files are kept in the cache folder until their folder changes.
    """
    kept_file = cache_folder() / "fingerprints" / f"pairs-{_hash(str(pool.absolute()))}.json"
    try:
        kept = json.loads(kept_file.read_text("utf-8"))
    except (OSError, ValueError):
        kept = {}
    if not isinstance(kept, dict):
        kept = {}
    lines, seen = [], {}
    for folder in folders(pool):
        name, time = folder.relative_to(pool).as_posix(), folder.stat().st_mtime_ns
        known = kept.get(name)
        if isinstance(known, list) and len(known) == 2 and known[0] == time:
            digest = known[1]
        else:
            found = [file for pair in pairs(folder) if pair[1] for file in pair]
            if len(found) < _MANY:
                lines += [f"{name}/{file} {_size(folder / file)}\n" for file in found]
                continue
            digest = _hash("\n".join(found))
        seen[name] = [time, digest]
        lines.append(f"{name} {digest}\n")
    if seen != kept:
        with contextlib.suppress(UserError):  # a read-only cache costs time, nothing else
            write_atomic(kept_file, json.dumps(seen).encode())
    return _hash("".join(lines)) if lines else ""


def version(pool: Path) -> str:
    """16 hex digits that change when files come or go: by the times of the folders."""
    return _hash("".join(f"{f.relative_to(pool).as_posix()} {f.stat().st_mtime_ns}\n" for f in folders(pool)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

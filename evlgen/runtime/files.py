"""Files that are either whole or not there: atomic writes and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evlgen.errors import UserError


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write_atomic(path: Path, pieces: bytes | Iterable[bytes]) -> str:
    """Write a file through a temporary one in the same folder; a crash leaves the old file or the new one.

    Args:
        path: the file; its folder is made if need be.
        pieces: the content, whole or in pieces.

    Returns:
        Hex SHA-256 of what was written.

    Raises:
        UserError: the disk is full or the folder cannot be written to. Nothing is left behind.
    """
    digest = hashlib.sha256()
    # Nodes that share the folder may have processes of the same number.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                for piece in (pieces,) if isinstance(pieces, bytes) else pieces:
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # a file system that may only be read has none
            temporary.unlink(missing_ok=True)
    return digest.hexdigest()


def remove_leftovers(path: Path) -> None:
    """Delete what writers of ``path`` that were killed have left; nobody may be writing it."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def in_gib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**29 else f"{size / 2**20:,.1f} MiB"


def check_room(folder: Path, size: int, what: str) -> None:
    """Whether a disk has room for some bytes: found out before hours of encoding.

    Args:
        folder: on the disk; it need not be there yet.

    Raises:
        UserError: it has not.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        raise UserError(
            f"{folder}: {what} take {in_gib(size)}, and the disk has {in_gib(free)} free; make room, set "
            "EVLGEN_CACHE to a larger disk, ask for fewer images or views (data.pools, data.views), or have "
            "images decoded in each update (data.cache=false)"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a failed write to ``path`` into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another folder, "
            "then start again: finished work is kept"
        ) from error

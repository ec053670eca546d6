"""Whether images are there, by the names in their folders: a hundred thousand take a second."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def absent(root: Path, files: Iterable[str]) -> list[str]:
    """The files that are not there, each once, in their order; links that lead nowhere count as such.

    Args:
        files: relative to ``root``, or whole paths.
    """
    folders: dict[str, frozenset[str]] = {}
    missing = []
    for file in dict.fromkeys(files):
        folder, _, name = file.rpartition("/")
        if folder not in folders:
            folders[folder] = _names(root / folder if folder or not file.startswith("/") else Path("/"))
        if name not in folders[folder]:
            missing.append(file)
    return missing


def told(what: str, root: Path, files: Sequence[str], fix: str) -> list[str]:
    """A line about the images of ``what`` that are not there; none if all are."""
    missing = absent(root, files)
    if not missing:
        return []
    are = "is" if len(missing) == 1 else "are"
    return [
        f"{root / missing[0]}: missing; of the {len(set(files))} images of {what} {len(missing)} {are} not "
        f"there; {fix}"
    ]


def _names(folder: Path) -> frozenset[str]:
    try:
        return _listed(folder, folder.stat().st_mtime_ns)
    except OSError:
        return frozenset()


@functools.lru_cache(maxsize=4096)
def _listed(folder: Path, mtime_ns: int) -> frozenset[str]:
    with os.scandir(folder) as entries:
        return frozenset(
            entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)
        )

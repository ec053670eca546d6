"""Checkpoints that survive a kill at any moment, a full disk and a damaged disk.

A folder holds the newest checkpoint, the one before it, and the checksums of all that may be there. The
checksum of a new one is added before the file itself is written, and none is dropped before the new file is
in place: so whichever files a crash leaves behind, and however many crashes in a row, the good can be told
from the bad.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from evlgen.runtime.files import sha256_of, write_atomic

log = logging.getLogger(__name__)

CURRENT, PREVIOUS, CHECKSUMS = "checkpoint.pt", "checkpoint.prev.pt", "checkpoint.sha256"
NEW = "checkpoint.new.pt"  # being written, or whole but not yet in the place of the former newest


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the newest checkpoint; the former newest becomes the previous one.

    Args:
        state: what ``torch.load(weights_only=True)`` can read: tensors, numbers, strings, lists, dicts.

    Raises:
        UserError: the disk is full or the folder cannot be written to; the former checkpoint is kept.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    known = _known(folder)
    _write_known(folder, {NEW: hashlib.sha256(data).hexdigest(), **known})
    write_atomic(folder / NEW, data)  # this may fail: both older ones are still where they were
    _promote(folder)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None. A damaged one is named in the log and deleted."""
    promised = set(_known(folder).values())
    whole: dict[str, str] = {}
    for name in (NEW, CURRENT, PREVIOUS):  # newest first
        if (path := folder / name).exists():
            digest = sha256_of(path)
            if digest in promised:
                whole[name] = digest
            else:
                log.warning("%s: damaged checkpoint, going back to the one before it or to the start", path)
                path.unlink()
    if whole:  # an interruption may have left files under other names than the list has them
        _write_known(folder, whole)
        _promote(folder)
    for name in (CURRENT, PREVIOUS):
        path = folder / name
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except FileNotFoundError:
            continue
        except (RuntimeError, EOFError, pickle.UnpicklingError):  # as it was written, yet of another format
            log.warning("%s: not a checkpoint that can be read, going back to the one before it", path)
            path.unlink()
    return None


def _promote(folder: Path) -> None:
    """The new checkpoint becomes the newest one, the newest one the previous one."""
    if not (folder / NEW).exists():
        return
    known = _known(folder)
    if (folder / CURRENT).exists():
        os.replace(folder / CURRENT, folder / PREVIOUS)
        known[PREVIOUS] = known[CURRENT]
    os.replace(folder / NEW, folder / CURRENT)
    known[CURRENT] = known.pop(NEW)
    _write_known(folder, known)


def _known(folder: Path) -> dict[str, str]:
    """Name of a checkpoint -> its checksum, of those that are there or were about to be written."""
    try:
        lines = (folder / CHECKSUMS).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}


def _write_known(folder: Path, known: dict[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in known.items())
    write_atomic(folder / CHECKSUMS, text.encode())

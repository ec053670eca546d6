"""Checkpoints that survive a kill at any moment and a damaged disk.

A folder holds the newest checkpoint, the one before it, and the checksums of both. The checksum of a new one
is written before the file itself is, so whichever files a crash leaves behind can be told good from bad.
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
    current, previous = folder / CURRENT, folder / PREVIOUS
    lines = [f"{hashlib.sha256(data).hexdigest()}  {CURRENT}\n"]
    lines += [f"{digest}  {PREVIOUS}\n" for digest in _known(folder)[:1]]
    write_atomic(folder / CHECKSUMS, "".join(lines).encode())
    if current.exists():
        os.replace(current, previous)
    write_atomic(current, data)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None. A damaged one is named in the log and deleted."""
    known = _known(folder)
    for path in (folder / CURRENT, folder / PREVIOUS):
        if not path.exists():
            continue
        if sha256_of(path) in known:
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
            except (RuntimeError, EOFError, pickle.UnpicklingError):
                pass  # checked on writing, yet not readable: another version's format
        log.warning("%s: damaged checkpoint, going back to the one before it or to the start", path)
        path.unlink()
    return None


def _known(folder: Path) -> list[str]:
    """Checksums of the checkpoints, newest first."""
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line.split()[0] for line in lines if line.split()]

"""Named arrays in a file: an ``.npz`` without pickles, the same bytes for the same arrays."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evlgen.errors import UserError
from evlgen.runtime.files import remove_leftovers, write_atomic

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date a zip file can hold: the real one would change the bytes


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays as an ``.npz``, whole or not at all; nobody else may be writing ``path``.

    Raises:
        UserError: the disk is full or the folder cannot be written to.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", _EPOCH), member.getvalue(), zipfile.ZIP_DEFLATED, 6
            )
    remove_leftovers(path)
    write_atomic(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an ``.npz``.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the run it belongs to has not been inspected") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zipfile.error) as error:
        raise UserError(f"{path}: damaged ({error}); delete the run's folder, then run again") from error

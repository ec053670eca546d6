"""Where things are: the checkout, the run store, the results, the caches, the shipped weights. No torch.

What a user gives as a path is expanded and made absolute before anything else sees it: a job, a worker or
another folder must not read it differently.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from evlgen.errors import UserError

ROOT = Path(__file__).parents[2]
SHIPPED_WEIGHTS = ROOT / "evlgen" / "miniworld" / "weights"  # the miniature's foundation models
FOLDERS = ("EVLGEN_RUNS", "EVLGEN_RESULTS", "EVLGEN_CACHE", "EVLGEN_DATA", "EVLGEN_WEIGHTS")


def absolute(text: str, name: str = "", start: Path | None = None) -> Path:
    """A user's path: ``~`` expanded, then absolute; links and ``..`` stay as they are.

    Args:
        name: of the setting that it is the value of, for the message.
        start: folder that a relative path begins in, itself absolute; None: the current one.

    Raises:
        UserError: ``~NAME`` of nobody, or a character that no path can have.
    """
    where = f"{name} is {text!r}" if name else repr(text)
    if "\0" in text:
        raise UserError(f"{where}: no path has such a character")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{where}: nobody of that name has a home folder here; give the whole path") from None
    try:
        return path.absolute() if start is None else start / path
    except OSError as error:
        raise UserError(f"{where}: the current folder is gone; give the whole path") from error


def of_variable(name: str) -> Path | None:
    """The path in an environment variable; None if it is not set, or empty."""
    text = os.environ.get(name, "")
    return absolute(text, name) if text.strip() else None


def folder_of(name: str) -> Path | None:
    """As `of_variable`, of a folder that need not exist yet.

    Raises:
        UserError: it is a file.
    """
    path = of_variable(name)
    if path is not None:
        _refuse_file(path, name)
    return path


@functools.lru_cache(maxsize=64)  # asked for each of thousands of runs
def _refuse_file(path: Path, name: str) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{name} is {str(path)!r}: a file; give a folder")


def settle() -> None:
    """Make the folders that environment variables name absolute, for all processes that this one starts.

    Raises:
        UserError: one of them cannot be a folder.
    """
    for name in FOLDERS:
        path = of_variable(name) if name == "EVLGEN_DATA" else folder_of(name)  # that one may be a data.toml
        if path is not None:
            os.environ[name] = str(path)


def runs_folder() -> Path:
    """The run store: ``$EVLGEN_RUNS``, or ``runs`` in the project."""
    return folder_of("EVLGEN_RUNS") or ROOT / "runs"


def results_folder() -> Path:
    """Where tables, figures and verdicts are written: ``$EVLGEN_RESULTS``, or ``results`` in the project."""
    return folder_of("EVLGEN_RESULTS") or ROOT / "results"


def cache_folder() -> Path:
    """``$EVLGEN_CACHE``, or ``.cache`` in the project, or ``~/.cache/evlgen`` for an installed package."""
    if folder := folder_of("EVLGEN_CACHE"):
        return folder
    return ROOT / ".cache" if (ROOT / "pyproject.toml").exists() else Path.home() / ".cache" / "evlgen"


def weights_folder() -> Path | None:
    """The folder of real models, ``$EVLGEN_WEIGHTS``; None if it is not set."""
    return folder_of("EVLGEN_WEIGHTS")

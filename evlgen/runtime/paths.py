"""Where things are: the checkout, the run store, the results, the caches, the shipped weights. No torch."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED_WEIGHTS = ROOT / "evlgen" / "miniworld" / "weights"  # the miniature's foundation models


def runs_folder() -> Path:
    """The run store: ``$EVLGEN_RUNS``, or ``runs`` in the project."""
    return Path(os.environ.get("EVLGEN_RUNS") or ROOT / "runs").absolute()  # jobs run in another folder


def results_folder() -> Path:
    """Where tables, figures and verdicts are written: ``$EVLGEN_RESULTS``, or ``results`` in the project."""
    return Path(os.environ.get("EVLGEN_RESULTS") or ROOT / "results")


def cache_folder() -> Path:
    """``$EVLGEN_CACHE``, or ``.cache`` in the project, or ``~/.cache/evlgen`` for an installed package."""
    if folder := os.environ.get("EVLGEN_CACHE"):
        return Path(folder)
    return ROOT / ".cache" if (ROOT / "pyproject.toml").exists() else Path.home() / ".cache" / "evlgen"

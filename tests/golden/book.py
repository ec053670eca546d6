"""The golden values of runs: where they are, how far rounding may move them, and what is measured today.

Tolerances are some 20 times what other instructions, another number of threads and other libraries for matrix
products move (TODO measured). Texts are compared where they survive noise on the trained weights; others are
stored as null.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.golden import cases, measure
from tests.golden.rule import Book, Golden, rounded

BOOK = Book(
    path=Path(__file__).with_name("golden.json"),
    what="component",
    where="COMPONENTS of evlgen/runs/behaviour.py",
    renew="python -m tests.golden --write",
    tolerances={"": (1e-3, 1e-3)},
)


def measured(root: Path, only: str = "", stable_only: bool = False) -> dict[str, Golden]:
    """Today's values of all cases, or of those with ``only`` in their names.

    Args:
        root: a folder with the files of `measure.write_files`, whose environment is set.
        stable_only: a text that noise on the trained weights changes is None.
    """
    found = {}
    for name in cases.WORLDS:
        if only in f"world {name}":
            found[f"world {name}"] = Golden(rounded(measure.world(name)), {})
    for number, (name, case) in enumerate(cases.RUNS.items()):
        if only in name:
            values = measure.run(case, root / "runs" / str(number), stable_only)
            found[name] = Golden(rounded(values), {})
    return found


def numbers(measured: Mapping[str, Golden]) -> dict[str, int]:
    """All numbers of today."""
    return {}

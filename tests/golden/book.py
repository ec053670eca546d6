"""The golden values of runs: where they are, how far rounding may move them, and what is measured today.

After two updates other vector instructions and matrix libraries (ATEN_CPU_CAPABILITY, MKL_CBWR and
ONEDNN_MAX_CPU_ISA at their lowest) move most values by less than 1e-5 and none by more than 1e-3, unless a
merge goes the other way. Seeds at which that happens are not used (`unsteady`), so a tolerance of 3e-3 is
enough. Texts are compared where they survive noise of that size on the trained weights; others are null.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evlgen.runs.behaviour import COMPONENTS, components_of
from tests.golden import cases, measure
from tests.golden.rule import Book, Golden, rounded

BOOK = Book(
    path=Path(__file__).with_name("golden.json"),
    what="component",
    where="COMPONENTS of evlgen/runs/behaviour.py",
    renew="python -m tests.golden --write",
    tolerances={
        "": (3e-3, 3e-3),
        "inspected ": (1e-4, 1e-4),
        "lr": (1e-6, 0.0),
        "validated retrieval": (0.0, 7.0),
    },
    reach={"decoding": ("said ",), "diagnostics": ("validated ",), "inspection": ("inspected ",)},
    made_by={"lr": "training"},
)

_DRAWS = 10  # of noise, to find cases that rounding might change


def measured(root: Path, only: str = "", stable_only: bool = False) -> dict[str, Golden]:
    """Today's values of all cases, or of those with ``only`` in their names.

    Args:
        root: a folder with the files of `measure.write_files`, whose environment is set.
        stable_only: a text that noise on the trained weights changes is None.
    """
    found = {}
    for name in cases.WORLDS:
        if only in f"world {name}":
            found[f"world {name}"] = Golden(rounded(measure.world(name)), {name: COMPONENTS[name]})
    for number, (name, case) in enumerate(cases.RUNS.items()):
        if only in name:
            values = measure.run(case, root / "runs" / str(number), stable_only)
            found[name] = Golden(rounded(values), numbers_of(case))
    return found


def unsteady(root: Path, golden: Mapping[str, Golden]) -> dict[str, dict[str, str]]:
    """Cases that another processor might change: those that a little noise on the initial weights does.

    Args:
        root: as of `measured`.
        golden: the cases to try, with their values.
    """
    found = {}
    for name in golden:
        for draw in range(_DRAWS if name in cases.RUNS else 0):
            values = measure.run(cases.RUNS[name], root / "noisy" / f"{name}-{draw}", noise=draw)
            recorded = {key: golden[name].values[key] for key in values}
            if changes := BOOK.changes(recorded, rounded(values)):
                found[name] = changes
                break
    return found


def numbers_of(case: cases.Case) -> dict[str, int]:
    """The numbers of all components that a case shows."""
    used = components_of(case.config)
    return {name: number for name, number in used.items() if name != "inspection" or case.inspects}

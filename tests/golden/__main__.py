"""Write the golden values: ``python -m tests.golden --write``.

Without ``--write`` it says what has changed. It refuses where values changed under the same numbers, where
numbers were raised for nothing, and where a new value hangs on rounding. ``--cases TEXT`` measures only the
cases whose names have this in them, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from evlgen.runs.behaviour import COMPONENTS
from tests.golden import book, measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write golden.json")
    parser.add_argument("--cases", default="", help="only cases whose names have this in them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU draws other random numbers
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ.update(measure.write_files(root))
        if arguments.write and not arguments.cases:
            return _write(root)
        measured = book.measured(root, arguments.cases)
    recorded, numbers = book.BOOK.read(), COMPONENTS
    if arguments.cases:
        recorded = {name: recorded[name] for name in measured if name in recorded}
        numbers = {name: number for case in measured.values() for name, number in case.numbers.items()}
    problems = book.BOOK.problems(recorded, measured, numbers)
    print("\n".join(problems) or "all golden values are as recorded")
    return int(bool(problems))


def _write(root: Path) -> int:
    recorded, measured = book.BOOK.read(), book.measured(root, stable_only=True)
    try:
        renewed = book.BOOK.renewed(recorded, measured, COMPONENTS)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    new = {
        name: case
        for name, case in renewed.items()
        if name not in recorded or case.values != recorded[name].values
    }
    if unsteady := book.unsteady(root, new):
        for name, changes in unsteady.items():
            print(f"{name}: rounding may change {', '.join(changes)}: another seed in tests/golden/cases.py")
        return 2
    book.BOOK.write(renewed)
    print(f"{book.BOOK.path}: {len(new)} of {len(renewed)} cases are new or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

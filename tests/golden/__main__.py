"""Write the golden values: ``python -m tests.golden --write``.

Without ``--write`` it says what has changed. It refuses where values changed under the same numbers, or
numbers were raised for nothing. ``--cases TEXT`` measures only the cases whose names have this in them, and
writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.golden import book, measure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write golden.json")
    parser.add_argument("--cases", default="", help="only cases whose names have this in them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ.update(measure.write_files(root))
        measured = book.measured(root, arguments.cases, stable_only=arguments.write)
    recorded = book.BOOK.read()
    if arguments.cases:
        recorded = {name: recorded[name] for name in measured if name in recorded}
    if not arguments.write or arguments.cases:
        problems = book.BOOK.problems(recorded, measured, book.numbers(measured))
        print("\n".join(problems) or "all golden values are as recorded")
        return int(bool(problems))
    try:
        renewed = book.BOOK.renewed(recorded, measured, book.numbers(measured))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    book.BOOK.write(renewed)
    changed = [case for case in renewed if renewed[case] != recorded.get(case)]
    print(f"{book.BOOK.path}: {len(changed)} of {len(renewed)} cases are new or changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What every script of a figure does when it is called: read ``--scale``, draw, and say what was written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from evlgen.errors import UserError, exit_code, nearest
from experiments.scales import NAMES as SCALES


def main(draw: Callable[[str], list[Path]], description: str | None) -> int:
    """Draw at the scale that ``--scale`` names.

    Returns:
        The exit code: 0, or 2 where the user must do something first, which is said in one line.
    """

    def act() -> None:
        for path in draw(scale_of(sys.argv[1:], Path(sys.argv[0]).name, description)):
            print(path)

    return exit_code(act)


def scale_of(argv: Sequence[str], program: str, description: str | None) -> str:
    """The value of ``--scale``, the only flag.

    Raises:
        UserError: there is no such scale.
    """
    parser = argparse.ArgumentParser(program, description=description)
    parser.add_argument("--scale", default="mini", help=f"{', '.join(SCALES)} (default: mini)")
    scale: str = parser.parse_args(argv).scale
    if scale not in SCALES:
        known = ", ".join(SCALES)
        raise UserError(f"--scale {scale}: no such scale; there are: {known}{nearest(scale, SCALES)}")
    return scale

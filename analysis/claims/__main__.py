"""``python -m analysis.claims [--scale mini] [--seeds N]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from analysis.claims import files
from analysis.claims.judging import judge
from evlgen.errors import UserError, exit_code
from experiments.scales import NAMES


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 after a user's mistake."""

    def arguments(
        scale: Annotated[str, tyro.conf.arg(help=", ".join(NAMES))] = "mini", seeds: int | None = None
    ) -> tuple[str, int | None]:
        """Judge the paper's claims by the runs there are.

        Args:
            seeds: of every row; default: those of `sweeps/run.py all`
        """
        return scale, seeds

    scale, seeds = tyro.cli(arguments, args=argv, prog="python -m analysis.claims")

    def act() -> None:
        if seeds is not None and seeds < 1:
            raise UserError(f"--seeds {seeds}: at least 1 is needed")
        claims = judge(scale, seeds)
        files.show(claims, scale, files.write(claims, scale))

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

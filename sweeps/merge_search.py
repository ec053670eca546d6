"""Search merge schedules, or learning rates, with Optuna: ``python sweeps/merge_search.py --space free``.

Every trial is an ordinary run of the run store. Workers, on this machine or elsewhere, work on one study
(`--worker`), also in a SLURM queue (`--executor slurm`); the same command goes on to the asked number of
trials. With one worker a seed gives the same trials and values each time, also after a kill; several workers
interleave: which trial each of them gets then depends on which trials had ended.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evlgen.errors import UserError
from sweeps.run import answered, stop_at_signals
from sweeps.search.arguments import Arguments, parse
from sweeps.search.secrets import hide_typed
from sweeps.surroundings import forget_ranks


def main(argv: list[str]) -> int:
    """Exit code: 0 all trials ended, 1 some did not, 2 a user's mistake, 3 queued, 130 interrupted."""
    stop_at_signals()
    forget_ranks()
    return answered(lambda: _dispatch(parse(hide_typed(argv))), "trials")


def _dispatch(arguments: Arguments) -> int:
    try:  # imports torch, for which nobody who asks for help should wait
        from sweeps.search import launch
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("optuna is missing: pip install -e '.[search]' (make merge_search does)") from None
    return launch.run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

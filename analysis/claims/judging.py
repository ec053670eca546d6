"""All claims, judged in order."""

from __future__ import annotations

from analysis.claims.c1_time import c1
from analysis.claims.c2_collapse import c2
from analysis.claims.c3_data import c3
from analysis.claims.c4_steps import c4
from analysis.claims.c5_purity import c5
from analysis.claims.c6_transfer import c6
from analysis.claims.c7_video import c7
from analysis.claims.claim import Claim
from analysis.claims.files import results_file
from analysis.results import command, read
from evlgen.errors import UserError
from evlgen.runtime import paths

CLAIMS = (c1, c2, c3, c4, c5, c6, c7)
NEEDED = ("table1", "table2", "budgets", "collapse", "data_fractions", "encoders")


def judge(scale: str, seeds: int | None = None) -> list[Claim]:
    """The verdicts, in order.

    Args:
        seeds: of each row; None takes those of `sweeps/run.py all`.

    Raises:
        UserError: no such scale, or no experiment that a claim rests on has a complete run.
    """
    found = {name: read(name, scale, seeds) for name in NEEDED}
    if not any(results.complete() for results in found.values()):
        page = results_file(scale).with_suffix(".md")
        raise UserError(
            f"no complete run that a claim rests on at scale {scale}, neither in {paths.runs_folder()} nor "
            f"in an archive of {paths.results_folder()}; make them with `{command('all', scale)}`"
            + (f" (verdicts on earlier runs stand in {page})" if page.exists() else "")
        )
    return [claim(found) for claim in CLAIMS]

"""All figures: ``python -m paper_figures [--scale mini]``, or ``make figures``.

Every script in this folder with a function ``draw`` is one. Runs are read from the run store or, where one
is not there, from the archives committed beside the tables. A figure that cannot be drawn is named with the
command that makes its runs; the others are drawn all the same, also where a script fails.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.results import found_in, read
from evlgen.errors import UserError, exit_code
from evlgen.runtime.paths import results_folder
from experiments import EXPERIMENTS
from paper_figures import script

# Searches are no part of the paper: without one, nothing is missing.
OPTIONAL = ("merge_search",)
NO_FIGURES = ("__main__", "script", "style")


def main(argv: Sequence[str]) -> int:
    """The exit code: that of `draw_all`, or 2 where the user must do something first."""
    return exit_code(lambda: draw_all(argv))


def draw_all(argv: Sequence[str]) -> int:
    """Draw what can be drawn, and say of each figure how that went.

    Returns:
        0 if every figure is drawn, 1 if one is missing or drawn from an incomplete sweep.

    Raises:
        UserError: there is no such scale.
    """
    scale = script.scale_of(argv, "python -m paper_figures", __doc__)
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NO_FIGURES)
    whole: list[str] = []
    partial: list[str] = []
    absent: list[str] = []
    drawn: set[str] = set()
    for name in names:
        since = time.perf_counter()
        try:
            written = importlib.import_module(f"paper_figures.{name}").draw(scale)
        except UserError as error:
            print(f"{name}: not drawn: {error}", flush=True)
            if name not in OPTIONAL:
                absent.append(name)
            continue
        except Exception:  # a mistake in one script must not cost the figures of the others
            traceback.print_exc()
            print(f"{name}: not drawn: its script failed, see above", flush=True)
            absent.append(name)
            continue
        about = [facts for path in written if (facts := about_figure(path))]
        drawn |= {run["id"] for facts in about for run in facts["runs"]}
        missing = list(dict.fromkeys(line for facts in about for line in facts["missing"]))
        (partial if missing else whole).append(name)
        notes = [f"missing: {'; '.join(missing)}"] if missing else []
        notes += dict.fromkeys(line for facts in about for line in facts.get("changed", []))
        print("; ".join([f"{name}: {time.perf_counter() - since:.1f} s", *notes]), flush=True)
    print(f"{len(whole)} whole, {len(partial)} partial, {len(absent)} not drawn: {folder(scale)}")
    if drawn:
        records = [one for name in EXPERIMENTS for one in read(name, scale).records()]
        print(f"drawn from: {found_in(one for one in records if one.id in drawn)}")
    return 1 if partial or absent else 0


def folder(scale: str) -> Path:
    """Where the figures of a scale are."""
    return results_folder() / "figures" / scale


def about_figure(path: Path) -> dict[str, Any]:
    """What the JSON file beside a figure says of it; empty for other files."""
    about = path.with_suffix(".json")
    if path.suffix != ".pdf" or not about.exists():
        return {}
    facts: dict[str, Any] = json.loads(about.read_text("utf-8"))
    return facts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""All figures: ``python -m paper_figures [--scale mini]``, or ``make figures``.

Every script in this folder with a function ``draw`` is one; what cannot be drawn is said, with the command
that makes its runs, and the others are drawn all the same, also where a script fails.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from evlgen.errors import UserError
from evlgen.runtime import paths
from paper_figures import runs

# Searches are no part of the paper: without one, nothing is missing.
OPTIONAL = ("merge_search",)
NO_FIGURES = ("__main__", "runs", "style")


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 if every figure is drawn, 1 if one is missing or drawn from an incomplete sweep."""
    scale = runs.scale_of(argv, "python -m paper_figures", __doc__)
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NO_FIGURES)
    whole: list[str] = []
    partial: list[str] = []
    absent: list[str] = []
    for name in names:
        since = time.perf_counter()
        try:
            paths = importlib.import_module(f"paper_figures.{name}").draw(scale)
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
        missing = [line for path in paths for line in missing_in(path)]
        (partial if missing else whole).append(name)
        seconds = f"{time.perf_counter() - since:.1f} s"
        note = f", missing: {'; '.join(dict.fromkeys(missing))}" if missing else ""
        print(f"{name}: {seconds}{note}", flush=True)
    print(f"{len(whole)} whole, {len(partial)} partial, {len(absent)} not drawn: {folder(scale)}")
    return 1 if partial or absent else 0


def folder(scale: str) -> Path:
    """Where the figures of a scale are."""
    return paths.results_folder() / "figures" / scale


def missing_in(path: Path) -> list[str]:
    """What a figure says is missing in it, by the JSON file beside it."""
    told = path.with_suffix(".json")
    if path.suffix != ".pdf" or not told.exists():
        return []
    missing: list[str] = json.loads(told.read_text())["missing"]
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Put results into README.md and docs/: ``python -m analysis.readme``.

A part of a page stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``. ``claims`` is the table of verdicts
of ``results/claims.json``, each with the first sentence of its evidence; ``headline`` the figure of quality
against cost; any other name the main table of the experiment of that name at the scale ``mini``, from the
records of its runs. What is not there stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from analysis import tables
from analysis.claims import files
from analysis.results import read_all_seeds
from analysis.table import Cell, Column, Page, Row, Section, Table, page_markdown, to_markdown
from evlgen.errors import UserError, exit_code
from evlgen.runtime.files import write_atomic
from evlgen.runtime.paths import ROOT, results_folder
from experiments import EXPERIMENTS

HEADLINE = "quality_cost"
_HEADLINE_TEXT = "Quality against training cost: EVLGen, BLIP-2 in a single stage and in two stages"


def with_results(page: str, folder: Path = ROOT) -> str:
    """The page with every marked part replaced by what is in the results and records; those not there stay.

    Args:
        folder: of the page, from which its links lead to the results.

    Raises:
        UserError: ``claims.json`` is damaged.
    """

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        if name == "claims":
            text = _claims(folder)
        elif name == "headline":
            text = _headline(folder)
        else:
            text = _table(name)
        return found[0] if text is None else f"<!-- {name} -->\n{text}\n<!-- /{name} -->"

    return re.sub(r"<!-- (?P<name>\w+) -->.*?<!-- /(?P=name) -->", replace, page, flags=re.DOTALL)


def pages() -> list[Path]:
    """The project's pages that may have marked parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _table(name: str) -> str | None:
    if name not in EXPERIMENTS:
        return None
    try:
        results = read_all_seeds(name, "mini")
    except UserError:  # no run is complete
        return None
    table = tables.main_table(results)
    page = Page(f"{table.title} (scale `mini`)", (Section("", (table,)),))
    return page_markdown(page, level=3).strip()


def _link(path: Path, folder: Path) -> str:
    """The way from a page's folder to a file of the results, as if these lay in the project's own."""
    return Path(os.path.relpath(ROOT / "results" / path, folder)).as_posix()


def _headline(folder: Path) -> str | None:
    path = Path("figures", "mini", f"{HEADLINE}.png")
    return f"![{_HEADLINE_TEXT}]({_link(path, folder)})" if (results_folder() / path).exists() else None


def _claims(folder: Path) -> str | None:
    claims = files.read(results_folder() / "claims.json")
    if claims is None:
        return None
    rows = [
        Row(
            " ".join(f"{claim.id}: {claim.claim}".split()),
            (Cell(f"**{claim.verdict}**"), Cell(" ".join(" ".join(claim.evidence[:1]).split()))),
        )
        for claim in claims
    ]
    columns = (Column("verdict"), Column("what decided"))
    text = to_markdown(Table("Claims", columns, tuple(rows), corner="claim of the paper"))
    if (results_folder() / "claims.md").exists():
        text += f"\n\nAll evidence, the rules and the runs: [claims.md]({_link(Path('claims.md'), folder)})."
    return text


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 where the user must do something first."""
    argparse.ArgumentParser(
        prog="python -m analysis.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)

    def act() -> None:
        for path in pages():
            old = path.read_text("utf-8")
            new = with_results(old, path.parent)
            if new != old:
                write_atomic(path, new.encode())
                print(f"{path}: renewed")

    return exit_code(act)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""README.md shows the committed results, not older ones."""

from __future__ import annotations

from pathlib import Path

from analysis.readme import ROOT, with_tables


def test_tables_are_replaced_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "table1" / "mini"
    folder.mkdir(parents=True)
    (folder / "table.md").write_text("# Title\n\n| a |\n|---|\n| 1 |\n")
    page = "top\n<!-- table1 -->\nold\n<!-- /table1 -->\nmiddle\n<!-- table2 -->\nkept\n<!-- /table2 -->\n"
    new = with_tables(page, tmp_path)
    assert "<!-- table1 -->\n### Title\n\n| a |\n|---|\n| 1 |\n<!-- /table1 -->\nmiddle" in new
    assert "old" not in new
    assert "kept" in new
    assert with_tables(new, tmp_path) == new


def test_readme_is_not_stale() -> None:
    page = (ROOT / "README.md").read_text()
    assert with_tables(page, ROOT / "results") == page, "run `python -m analysis.readme`"

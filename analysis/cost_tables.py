"""Writes the tables of an experiment without training as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.table import (
    NOTHING,
    Cell,
    Column,
    Page,
    Row,
    Section,
    Table,
    csv_text,
    page_markdown,
    to_csv,
    to_latex,
)
from evlgen.runtime.files import write_atomic
from experiments.cost_tables import CostRow, CostTable, CostTables, CsvTable


def write_cost_tables(counted: CostTables, out_dir: Path, measured: Sequence[CostTable] = ()) -> list[Path]:
    """Write ``table.csv``, ``table.md``, ``table.tex`` and the tables that have files of their own.

    Args:
        measured: tables of measured numbers, which come after the counted ones.

    Returns:
        The paths of the files.

    Raises:
        UserError: a file cannot be written; the old one is kept.
    """
    tables = [as_table(table) for table in (*counted.tables, *measured)]
    files = {
        "table.csv": to_csv(*tables),
        "table.md": page_markdown(cost_page(counted, measured)),
        "table.tex": "\n".join(
            to_latex(replace(table, title=f"{counted.title}. {table.title}")) for table in tables
        ),
        **{table.name: csv_text(table.columns, table.rows) for table in counted.csv_tables},
    }
    paths = []
    for name, text in files.items():
        paths.append(out_dir / name)
        write_atomic(paths[-1], text.encode())
    return paths


def cost_page(counted: CostTables, measured: Sequence[CostTable] = ()) -> Page:
    """All tables, each in a section."""
    how = "Counted; the last table is measured" if measured else "Counted, not measured"
    introduction = Section("", (f"{how}. The paper's numbers are marked as such; `?` is an unknown one.",))
    costs = [Section(table.title, (as_table(table),)) for table in (*counted.tables, *measured)]
    others = [
        Section(table.title, (_shown(table), f"More columns are in `{table.name}`."))
        for table in counted.csv_tables
    ]
    return Page(counted.title, (introduction, *costs, *others))


def as_table(table: CostTable) -> Table:
    """The table for `analysis.table`'s renderers.

    A counted number has no spread: both ends of its interval are the number itself, from one "seed".
    """
    columns = tuple(
        Column(metric, title, marks_unknown=any(metric in row.paper for row in table.rows))
        for metric, title in table.columns.items()
    )
    rows = tuple(Row(row.label, tuple(_cell(row, metric) for metric in table.columns)) for row in table.rows)
    return Table(table.title, columns, rows, table.notes)


def _cell(row: CostRow, metric: str) -> Cell:
    value, paper = row.values.get(metric), row.paper.get(metric)
    text = None if paper is None else f"{paper:g}"
    return Cell(number_text(value), value, value, value, int(value is not None), paper=text)


def number_text(value: float | None) -> str:
    """Three decimals, none for a whole number or a large one; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10_000 else f"{value:,.3f}"


def _shown(table: CsvTable) -> Table:
    """The columns of a page; the first one has the labels."""
    label, *places = (table.columns.index(name) for name in table.shown)
    return Table(
        table.title,
        tuple(Column(table.columns[place]) for place in places),
        tuple(Row(row[label], tuple(Cell(row[place]) for place in places)) for row in table.rows),
        table.notes,
        corner=table.columns[label],
    )

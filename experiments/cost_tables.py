"""What an experiment without training gives: tables of counted numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CostRow:
    """One row of a `CostTable`.

    Attributes:
        values: metric -> number; a missing one is an empty cell.
        paper: metric -> the paper's number, where it is known.
    """

    label: str
    values: dict[str, float]
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class CostTable:
    """A table of costs, in which each number is exact and has no spread.

    Attributes:
        columns: metric -> its heading.
        notes: what a reader needs to know about the numbers, a sentence or two each.
    """

    title: str
    columns: dict[str, str]
    rows: tuple[CostRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CsvTable:
    """A table with a CSV file of its own, for rows that are more than one number a metric.

    Attributes:
        name: of the file.
        shown: the columns that the page shows.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostTables:
    """All tables of an experiment without training."""

    title: str
    tables: tuple[CostTable, ...]
    csv_tables: tuple[CsvTable, ...] = ()

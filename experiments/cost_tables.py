"""What an experiment without training gives: tables of exact figures."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figures:
    """A row: metric -> figure, and metric -> the paper's figure where it is known."""

    label: str
    values: dict[str, float]
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A table of figures.

    Attributes:
        columns: metric -> its heading.
        notes: what must be known to read the figures, a sentence or two each.
    """

    title: str
    columns: dict[str, str]
    rows: tuple[Figures, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A CSV file of its own, for what is not one number a metric.

    Attributes:
        name: of the file.
        shown: the columns that a reader sees in the page.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shown: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counted:
    """All that an experiment without training gives."""

    title: str
    parts: tuple[Part, ...]
    sheets: tuple[Sheet, ...]
